"""Unpacked layers of the containerd store, compared with the packed layers that they came from, and repaired.

An overlay snapshot's `fs` has a layer's files, and no list of them. The layer's blob serves as one: a tar, perhaps
compressed, which is used only when it matches its digest. A file that a crash of the host has emptied is there, and
shorter than the blob says (hollow.py). Its content is written into the same file again, so that owner, mode, attributes
and hard links stay, and a container or the build cache on that layer has the content too. A start that is killed amid
that leaves a short file, which the next start finds, as the doubt stays.

Only for releases that the tests run: which snapshot belongs to an image's layer is in containerd's databases. Needs the
lease.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tarfile
import time
from typing import IO, cast

from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import paths
from cachedind.engine.containerd_store import ContainerdStore
from cachedind.engine.hollow import Found, Short
from cachedind.engine.immutable import open_layer
from cachedind.host import beneath, linux

if TYPE_CHECKING:
    from collections.abc import Iterator

DRIVER = "overlayfs"
"""Other snapshotters keep no files in a snapshot's directory, or also those of the layers below."""
_MAX_HEADER_BYTES = 1 << 20
_CHUNK = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_CAPABILITY = "security.capability"
"""The kernel removes it from a file that is written to."""


class _NotLooked(Exception):
    """There is nothing to compare with."""


class _NoTimeError(Exception):
    pass


# ---- finding ---------------------------------------------------------------------------------------------------------


def compare(root_fd: int, driver: str, blobs: Found, *, until: float, looked: frozenset[str] = frozenset()) -> Found:
    """`blobs`, with the unpacked layers that have short files. Only layers of whole blobs are compared, until that time
    of the monotonic clock; those in `looked` have none. Raises nothing for what is on disk."""
    snapshots = paths.snapshots(driver)
    there = beneath.names(root_fd, snapshots)
    layers = ContainerdStore(root_fd, driver).unpacked() if driver == DRIVER and there else {}
    short: list[Short] = []
    done: set[str] = set()
    late = False
    for number, candidates in sorted(layers.items()):
        name, path = f"snapshot {number}", f"{snapshots}/{number}/fs"
        blob = next((blob for blob in candidates if blob in blobs.whole), "")
        try:
            found = None if name in looked else _compare(root_fd, path, blob, until)
        except _NoTimeError:
            late = True
        except (_NotLooked, OSError):
            continue
        else:
            if found is None:
                done.add(name)
            else:
                short.append(found)
    own = len(there) - len(done) - len(short)
    late = late or blobs.late
    told = f"{own} of {len(there)} unpacked layers ({'no time left' if late else 'no image lists their files'})"
    unchecked = (*blobs.unchecked, told) if own > 0 else blobs.unchecked
    return blobs._replace(
        short=tuple(short), unchecked=unchecked, late=late, looked=blobs.whole | done if late else frozenset()
    )


def _compare(root_fd: int, path: str, blob: str, until: float) -> Short | None:
    """Raises _NotLooked, OSError."""
    if not blob:
        raise _NotLooked
    files: dict[str, int] = {}
    why: dict[str, str] = {}
    with _opened(root_fd, path) as files_fd, _members(root_fd, blob, until) as members:
        for place, (name, member) in enumerate(members):
            # Later entries of one name stand for what earlier ones said.
            for other in (name, _whited_out(name)):
                files.pop(other, None)
            if not member.isreg() or member.issparse() or member.size <= 0:
                continue
            size = _size_of(files_fd, name)
            if size is not None and size < member.size:
                files[name] = place
                why[name] = f"{name}: it has {size} bytes instead of {member.size}"
    if not files:
        return None
    more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
    return Short(path, blob, files, f"{why[next(iter(files))]}{more}")


@contextlib.contextmanager
def _opened(root_fd: int, path: str) -> Iterator[int]:
    fd = open_layer(root_fd, path)
    try:
        yield fd
    finally:
        os.close(fd)


def _whited_out(name: str) -> str:
    above, _, last = name.rpartition("/")
    return os.path.join(above, last.removeprefix(".wh.")) if last.startswith(".wh.") else name


def _size_of(files_fd: int, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        status = beneath.look(files_fd, name)
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    return None


# ---- writing files again ---------------------------------------------------------------------------------------------


def write_again(root_fd: int, layer: Short) -> None:
    """Give the short files their content from the blob, and sync them. Raises OSError; then the next start
    goes on."""
    places = {place: name for name, place in layer.files.items()}
    try:
        with (
            beneath.directory(root_fd, layer.path) as files_fd,
            _members(root_fd, layer.blob, float("inf")) as members,
        ):
            for place, (name, member) in enumerate(members):
                if places.get(place) == name:
                    _write(files_fd, name, member, members.stream)
    except _NotLooked as error:
        raise OSError(f"{layer.blob} cannot be read again") from error
    fd = beneath.open_path(root_fd, layer.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        linux.syncfs(fd)
    finally:
        os.close(fd)


def _write(files_fd: int, name: str, member: tarfile.TarInfo, stream: _Stream) -> None:
    fd = beneath.open_path(files_fd, name, os.O_RDWR)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return
        capability = None
        with contextlib.suppress(OSError):
            capability = os.getxattr(fd, _CAPABILITY)
        os.ftruncate(fd, 0)
        left = member.size
        while left:
            chunk = memoryview(stream.read(min(left, _CHUNK)))
            if not chunk:
                raise OSError(f"the packed layer ends amid {name}")
            left -= len(chunk)
            while chunk:
                chunk = chunk[os.write(fd, chunk) :]
        os.fchmod(fd, stat.S_IMODE(status.st_mode))
        if capability is not None:
            os.setxattr(fd, _CAPABILITY, capability)
        with contextlib.suppress(OverflowError, ValueError):
            os.utime(fd, (status.st_atime, member.mtime))
    finally:
        os.close(fd)


# ---- reading a blob --------------------------------------------------------------------------------------------------


class _Stream:
    """What tarfile needs of a file to read headers; it goes forward only, and keeps to its time."""

    def __init__(self, file: IO[bytes], until: float) -> None:
        self._file = file
        self._until = until
        self._offset = 0

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int) -> int:
        while self._offset < offset and self.read(min(offset - self._offset, _CHUNK)):
            pass
        return self._offset

    def read(self, count: int) -> bytes:
        if time.monotonic() >= self._until:
            raise _NoTimeError
        if not 0 <= count <= _MAX_HEADER_BYTES:
            raise _NotLooked
        chunk = self._file.read(count)
        self._offset += len(chunk)
        return chunk


class _Members:
    """Names and headers, in the order of the archive. At each, the stream is at its data. Raises _NotLooked."""

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
        try:
            tar = tarfile.TarFile(fileobj=cast("IO[bytes]", self.stream), encoding="utf-8", errors="surrogateescape")
            offset = -1
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if member.size < 0 or tar.offset <= offset:
                    raise _NotLooked
                offset = tar.offset
                yield os.path.normpath(f"/{member.name}").lstrip("/"), member
        except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError, TypeError) as error:
            raise _NotLooked from error


@contextlib.contextmanager
def _members(root_fd: int, blob: str, until: float) -> Iterator[_Members]:
    """Raises _NotLooked, OSError."""
    try:
        fd, _ = beneath.open_file(root_fd, f"{paths.BLOBS}/{blob.removeprefix('sha256:')}")
    except ValueError as error:
        raise _NotLooked from error
    with os.fdopen(fd, "rb") as raw:
        file, damaged = _open(raw)
        try:
            yield _Members(_Stream(file, until))
        except damaged as error:
            raise _NotLooked from error


def _open(raw: IO[bytes]) -> tuple[IO[bytes], tuple[type[Exception], ...]]:
    """What is packed in a file, and what reading that raises about bad data."""
    magic = os.pread(raw.fileno(), 4, 0)
    if magic.startswith(_GZIP):
        from isal import igzip, isal_zlib

        # typeshed's name for it is a variable.
        damaged: type[Exception] = isal_zlib.error  # type: ignore[assignment]
        return cast("IO[bytes]", igzip.open(raw, "rb")), (EOFError, damaged)  # type: ignore[no-untyped-call]
    if magic == _ZSTD:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        return cast("IO[bytes]", zstd.open(raw, "rb")), (EOFError, zstd.ZstdError)
    return raw, ()
