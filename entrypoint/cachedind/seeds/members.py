"""What lies in a seed by its name: members of a tar, whose data stays where it is, or files of a directory.

Nothing is ever extracted, and no name leads out of the seed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import stat
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from cachedind.seeds.model import SeedError
from cachedind.seeds.spool import CHUNK_BYTES, pread, unreadable

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterator
    from typing import IO

    from cachedind.seeds.model import Content

MAX_MEMBERS = 100_000
MAX_HEADER_BYTES = 1 << 20
"""A PAX header of Linux can hold all attributes of a file, of 64 KiB each."""
_BLOCK = 512
_MAX_LINKS = 40


class Blob(Protocol):
    """Content that is in a seed under some name."""

    @property
    def size_bytes(self) -> int: ...
    def chunks(self) -> Iterator[bytes]: ...

    def head(self, count: int) -> bytes:
        """Its first bytes, without reading the others. Raises SeedError."""
        ...


class Members(Protocol):
    """The files of a seed. Names are relative to its top: "blobs/sha256/…"."""

    def find(self, name: str) -> Blob | None:
        """A regular file, or None if there is none. Raises SeedError for a name that leads out, and what cannot be
        read."""
        ...

    def top_names(self) -> frozenset[str]:
        """What is in it at the top, of whatever type."""
        ...

    def close(self) -> None: ...


def shown(text: object) -> str:
    """Something from a seed, as it can stand in a line of the log."""
    line = "".join(character if character.isprintable() else "?" for character in str(text))
    return line if len(line) <= 120 else f"{line[:119]}…"


# ---- content ---------------------------------------------------------------------------------------------------------


class File:
    """A descriptor with an end: what is read after that fails, and never comes from another file of that number."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Slice(NamedTuple):
    """Bytes of an open file."""

    file: File
    offset: int
    size_bytes: int

    def chunks(self) -> Iterator[bytes]:
        return _read(self.file, self.offset, self.size_bytes)

    def head(self, count: int) -> bytes:
        return pread(self.file.fd, min(count, self.size_bytes), self.offset)


class _LayoutFile(NamedTuple):
    """A file below a directory, open only while it is read."""

    directory: File
    path: str
    size_bytes: int

    def chunks(self) -> Iterator[bytes]:
        with contextlib.closing(self._open()) as file:
            yield from _read(file, 0, self.size_bytes)

    def head(self, count: int) -> bytes:
        with contextlib.closing(self._open()) as file:
            return pread(file.fd, count, 0)

    def _open(self) -> File:
        fd = _open_below(self.directory.fd, self.path)
        if fd is None:
            raise unreadable(FileNotFoundError(errno.ENOENT, ""))
        return File(fd)


class Verified(NamedTuple):
    """Content whose digest is compared while it is read. The last piece comes only when it is right."""

    content: Content
    digest: str
    what: str

    @property
    def size_bytes(self) -> int:
        return self.content.size_bytes

    def chunks(self) -> Iterator[bytes]:
        digest = hashlib.sha256()
        held = b""
        for chunk in self.content.chunks():
            if held:
                yield held
            digest.update(chunk)
            held = chunk
        if f"sha256:{digest.hexdigest()}" != self.digest:
            raise SeedError(f"{self.what} is not what its digest says")
        if held:
            yield held


def _read(file: File, offset: int, size_bytes: int) -> Iterator[bytes]:
    end = offset + size_bytes
    while offset < end:
        chunk = pread(file.fd, min(CHUNK_BYTES, end - offset), offset)
        if not chunk:
            raise SeedError("it has become shorter while it was read", lasting=False)
        offset += len(chunk)
        yield chunk


def clean_path(name: str) -> str:
    """ "./x//y" → "x/y". Raises SeedError for one that leads out of the seed, or seems to."""
    if name.startswith("/") or ".." in name.split("/"):
        raise _outside(name)
    return posixpath.normpath(name)


def _outside(name: str) -> SeedError:
    return SeedError(f"it names a path outside of it: {shown(name)}")


# ---- a tar -----------------------------------------------------------------------------------------------------------


class _Link(NamedTuple):
    """Another name for a file: `target` as the archive has it, seen from the directory `base`."""

    base: str
    target: str


class TarMembers:
    """The members of an uncompressed tar. Closes its file in the end, also when it cannot be made."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._members: dict[str, Slice | _Link] = {}
        self._tops: set[str] = set()
        try:
            self._walk(os.fstat(file.fd).st_size)
        except BaseException:
            file.close()
            raise

    def find(self, name: str) -> Blob | None:
        path = clean_path(name)
        for _ in range(_MAX_LINKS):
            found = self._members.get(path)
            if not isinstance(found, _Link):
                return found
            path = posixpath.normpath(posixpath.join(found.base, found.target))
            if path.startswith("/") or path.split("/", 1)[0] == "..":
                raise _outside(found.target)
        raise SeedError(f"its links lead in a circle: {shown(name)}")

    def top_names(self) -> frozenset[str]:
        return frozenset(self._tops)

    def close(self) -> None:
        self._file.close()

    def _walk(self, size_bytes: int) -> None:
        if size_bytes == 0:
            raise SeedError("there is nothing in it")
        if not any(pread(self._file.fd, _BLOCK, 0)):
            raise SeedError("it is no tar archive: it begins with zeros")
        for count, member in enumerate(_headers(self._file, size_bytes), 1):
            if count > MAX_MEMBERS:
                raise SeedError(f"it has more than {MAX_MEMBERS} files: it is no image archive")
            self._add(member)

    def _add(self, member: tarfile.TarInfo) -> None:
        path = clean_path(member.name)
        self._tops.add(path.split("/", 1)[0])
        if member.issym():
            self._members[path] = _Link(posixpath.dirname(path), member.linkname)
        elif member.islnk():
            self._members[path] = _Link("", member.linkname)
        elif member.isreg():
            self._members[path] = Slice(self._file, member.offset_data, member.size)
        else:
            self._members.pop(path, None)


def _headers(file: File, size_bytes: int) -> Iterator[tarfile.TarInfo]:
    """Each member, whose data is all there. Raises SeedError for whatever is no whole tar archive.

    What tarfile takes for the end is looked at again: it ends silently at a header that it does not understand.
    """
    import tarfile

    offset = 0
    try:
        tar = tarfile.TarFile(fileobj=cast("IO[bytes]", _HeaderReader(file)))
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            # Also against tarfile going round in circles (CVE-2025-8194).
            if member.size < 0 or tar.offset <= offset:
                raise SeedError(f"it is damaged at byte {offset}")
            if member.issparse():
                raise SeedError(f"it has a sparse file: {shown(member.name)}")
            if member.isreg() and member.offset_data + member.size > size_bytes:
                raise SeedError(f"it ends early: {size_bytes} of {member.offset_data + member.size} bytes are there")
            offset = tar.offset
            yield member
    except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError, TypeError):
        is_tar = offset > 0 or pread(file.fd, 5, 257) == b"ustar"
        raise SeedError(f"it is damaged at byte {offset}" if is_tar else "it is no tar archive") from None
    if offset + _BLOCK > size_bytes:
        raise SeedError("it is cut short: a tar archive has an end")
    if any(pread(file.fd, _BLOCK, offset)):
        raise SeedError(f"it is damaged at byte {offset}")


class _HeaderReader:
    """What tarfile needs of a file to read headers. It is never asked for the members' data."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._offset = 0

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int) -> int:
        self._offset = offset
        return offset

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_HEADER_BYTES:
            raise SeedError(f"it has a header of {count} bytes")
        chunk = pread(self._file.fd, count, self._offset)
        self._offset += len(chunk)
        return chunk


# ---- a directory -----------------------------------------------------------------------------------------------------


class LayoutMembers:
    """The files below a directory, without following a symbolic link."""

    def __init__(self, path: str) -> None:
        try:
            self._directory = File(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except NotADirectoryError:
            raise SeedError("it is no directory") from None
        except OSError as error:
            raise unreadable(error) from None

    def find(self, name: str) -> Blob | None:
        path = clean_path(name)
        fd = _open_below(self._directory.fd, path)
        if fd is None:
            return None
        try:
            return _LayoutFile(self._directory, path, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def top_names(self) -> frozenset[str]:
        try:
            return frozenset(os.listdir(self._directory.fd))
        except OSError as error:
            raise unreadable(error) from None

    def close(self) -> None:
        self._directory.close()


def _open_below(directory_fd: int, path: str) -> int | None:
    """Open a regular file, or return None if there is none. Raises SeedError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    *parents, last = path.split("/")
    with contextlib.ExitStack() as stack:
        at = directory_fd
        try:
            for parent in parents:
                at = os.open(parent, flags | os.O_DIRECTORY, dir_fd=at)
                stack.callback(os.close, at)
            fd = os.open(last, flags, dir_fd=at)
        except (FileNotFoundError, ValueError):  # ValueError: no file has such a name
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise SeedError(f"{shown(path)} is behind a symbolic link or a file, which is not followed") from None
            raise unreadable(error) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SeedError(f"{shown(path)} is no regular file")
    return fd
