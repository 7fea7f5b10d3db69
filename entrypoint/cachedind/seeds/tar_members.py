"""The members of a tar archive, whose data stays where it is."""

from __future__ import annotations

import os
import posixpath
from typing import cast

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.seeds.contents import Slice
from cachedind.seeds.members import clean_path, outside
from cachedind.seeds.model import SeedError
from cachedind.seeds.quoting import shown
from cachedind.seeds.seed_file import pread

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterator
    from typing import IO

    from cachedind.seeds.contents import File
    from cachedind.seeds.members import Blob

MAX_MEMBERS = 100_000
MAX_HEADER_BYTES = 1 << 20
"""A PAX header of Linux can hold all attributes of a file, of 64 KiB each."""
_BLOCK = 512
_MAX_LINKS = 40


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
                raise outside(found.target)
        raise SeedError(f"its links form a loop: {shown(name)}")

    def top_names(self) -> frozenset[str]:
        return frozenset(self._tops)

    def close(self) -> None:
        self._file.close()

    def _walk(self, size_bytes: int) -> None:
        if size_bytes == 0:
            raise SeedError("there is nothing in it")
        if not any(pread(self._file.fd, _BLOCK, 0)):
            raise SeedError("it is not a tar archive: it begins with zeros")
        for count, member in enumerate(_headers(self._file, size_bytes), 1):
            if count > MAX_MEMBERS:
                raise SeedError(f"it has more than {MAX_MEMBERS} files, so it is not an image archive")
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
    """Each member, whose data is all there. Raises SeedError for anything but a complete tar archive.

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
        raise SeedError(f"it is damaged at byte {offset}" if is_tar else "it is not a tar archive") from None
    if offset + _BLOCK > size_bytes:
        raise SeedError("it is cut short: the end of the tar archive is missing")
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
