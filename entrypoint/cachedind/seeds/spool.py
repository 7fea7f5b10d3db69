"""A seed's file as one that can be read at any place: opened, its checksum compared, decompressed where it has to be.

Compressed ones are read once, from the beginning to the end, into a file without a name. All three libraries have the
interface of bz2.BZ2Decompressor, which says how much may come out at a time and whether a stream was whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from cachedind.seeds.model import SeedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

CHUNK_BYTES = 1 << 20
XZ_MEMORY_BYTES = 256 << 20
"""What an xz stream may ask for: `xz -9` needs 65 MiB."""
_LONGEST_MAGIC = 6
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Packing(StrEnum):
    GZIP = "gzip"
    ZSTD = "zstd"
    XZ = "xz"


class _Unpacker(Protocol):
    """One stream: a gzip member, a zstd frame, an xz stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def sniff(head: bytes) -> Packing | None:
    """How a file is compressed that begins so; None for any other. Six bytes are enough."""
    if head.startswith(b"\x1f\x8b"):
        return Packing.GZIP
    # RFC 8878, 3.1: frames, and those that are to be skipped.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return Packing.ZSTD
    return Packing.XZ if head.startswith(b"\xfd7zXZ\x00") else None


def open_file(path: str) -> int:
    """Open a regular file that has something in it. Raises SeedError."""
    try:
        # Nobody waits here for the other end of a FIFO.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(error) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise SeedError("it is a directory" if stat.S_ISDIR(status.st_mode) else "it is no regular file")
        if status.st_size == 0:
            raise SeedError("it is empty")
    except BaseException:
        os.close(fd)
        raise
    return fd


def unreadable(error: OSError) -> SeedError:
    """What it means that a seed cannot be read. It may go better the next time."""
    if error.errno == errno.ENOENT:
        return SeedError("it is not there any longer", lasting=False)
    return SeedError(f"it cannot be read ({error.strerror})", lasting=False)


def pread(fd: int, count: int, offset: int) -> bytes:
    """At most that many bytes. Raises SeedError."""
    try:
        return os.pread(fd, count, offset)
    except OSError as error:
        raise unreadable(error) from None


# ---- the pass through a whole file -----------------------------------------------------------------------------------


class _Input:
    """A file from its beginning on. Hashes what it reads, beside its reader, if there is a checksum to compare."""

    def __init__(self, fd: int, checksum: str | None, on_read: Callable[[int], None], helper: Executor) -> None:
        self._fd = fd
        self._offset = 0
        self._checksum = checksum
        self._hash = hashlib.sha256()
        self._on_read = on_read
        self._helper = helper
        self._hashing: Future[None] | None = None

    def read(self) -> bytes:
        """The next bytes, none at the end. Raises SeedError."""
        chunk = pread(self._fd, CHUNK_BYTES, self._offset)
        self._offset += len(chunk)
        if self._checksum is not None and chunk:
            if self._hashing is not None:
                self._hashing.result()
            self._hashing = self._helper.submit(self._hash.update, chunk)
        if chunk:
            self._on_read(len(chunk))
        return chunk

    def check(self, name: str) -> None:
        """Read what is left, and compare the checksum. Raises SeedError."""
        if self._checksum is None:
            return
        while self.read():
            pass
        if self._hashing is not None:
            self._hashing.result()
        compare(self._hash.hexdigest(), self._checksum, name)


class _Output:
    """A file that grows to no more than so many bytes. One piece is written while the next one is made."""

    def __init__(self, fd: int, room_bytes: int, helper: Executor) -> None:
        self._fd = fd
        self._room_bytes = room_bytes
        self._total = 0
        self._helper = helper
        self._writing: Future[None] | None = None

    def write(self, chunk: bytes) -> None:
        """Raises SeedError, perhaps for the piece before."""
        self._total += len(chunk)
        if self._total > self._room_bytes:
            raise _no_room(self._room_bytes)
        self.finish()
        self._writing = self._helper.submit(self._write, chunk)

    def finish(self) -> None:
        """Wait until everything is written. Raises SeedError."""
        if self._writing is not None:
            self._writing.result()

    def _write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise _no_room(self._total) from None
            raise SeedError(f"it cannot be decompressed here ({error.strerror})", lasting=False) from None


def _no_room(room_bytes: int) -> SeedError:
    return SeedError(f"it needs more than the {room_bytes / 1e9:.1f} GB that are free", lasting=False)


def compare(found: str, wanted: str, name: str) -> None:
    """Compare two SHA-256, in hex, of the seed with that path. Raises SeedError."""
    if found != wanted.lower():
        beside = f"{os.path.basename(name.rstrip('/'))}.sha256"
        raise SeedError(f"its SHA-256 is {found[:16]}…, and {wanted.lower()[:16]}… in {beside}")


def verify(fd: int, checksum: str, name: str, on_read: Callable[[int], None]) -> None:
    """Read a whole file, and compare its SHA-256. Raises SeedError."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, "cachedind-seed") as helper:
        _Input(fd, checksum, on_read, helper).check(name)


def decompress(
    fd: int,
    packing: Packing,
    *,
    name: str,
    checksum: str | None,
    spool_directory: str,
    room_bytes: int,
    on_read: Callable[[int], None],
) -> int:
    """Decompress a file into one without a name, and return its descriptor. Leaves `fd` open.

    Raises SeedError: for a wrong checksum rather than for what it did to the stream. It passes (`lasting` is not set)
    when more than `room_bytes` come out or the disk is full.
    """
    from concurrent.futures import ThreadPoolExecutor

    with contextlib.ExitStack() as on_error, contextlib.ExitStack() as stack:
        spool_fd = open_spool(spool_directory)
        on_error.callback(os.close, spool_fd)
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        helper = stack.enter_context(ThreadPoolExecutor(2, "cachedind-seed"))
        source = _Input(fd, checksum, on_read, helper)
        target = _Output(spool_fd, room_bytes, helper)
        try:
            _unpack(source, packing, target)
        except SeedError as error:
            if error.lasting:
                source.check(name)
            raise
        source.check(name)
        on_error.pop_all()
        return spool_fd


def open_spool(directory: str) -> int:
    """A file without a name in a directory. Raises SeedError."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        with contextlib.suppress(OSError):  # a filesystem without such files, or a full one, which tells it below
            return os.open(directory, flags | os.O_TMPFILE, 0o600)
        path = os.path.join(directory, f".cachedind-spool-{os.urandom(8).hex()}")
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        os.unlink(path)
    except OSError as error:
        raise SeedError(f"there is no place to write it down ({error.strerror})", lasting=False) from None
    return fd


# ---- streams ---------------------------------------------------------------------------------------------------------


def _unpack(source: _Input, packing: Packing, target: _Output) -> None:
    """All streams of a file, one after another, and zeros after them. Raises SeedError."""
    make, damaged = _library(packing)
    data = source.read()
    while data:
        unpacker = make()
        try:
            _unpack_stream(unpacker, data, source, target)
        except damaged as error:
            raise SeedError(f"its {packing} data is damaged ({_one_line(error)})") from None
        data = _next_stream(unpacker.unused_data, source)
        if data and sniff(data) is not packing:
            raise SeedError(f"there is something else after its {packing} data")
    target.finish()


def _unpack_stream(unpacker: _Unpacker, data: bytes, source: _Input, target: _Output) -> None:
    while not unpacker.eof:
        if unpacker.needs_input and not data:
            data = source.read()
            if not data:
                raise SeedError("it is cut short")
        chunk = unpacker.decompress(data, CHUNK_BYTES)
        if not chunk and not data and not unpacker.needs_input and not unpacker.eof:
            raise SeedError("it cannot be decompressed: its data leads nowhere")
        data = b""
        if chunk:
            target.write(chunk)


def _next_stream(data: bytes, source: _Input) -> bytes:
    """What comes after a stream without its padding: at least so much that it can be told, or nothing."""
    data = data.lstrip(b"\0")
    while len(data) < _LONGEST_MAGIC:
        more = source.read()
        if not more:
            break
        data = (data + more).lstrip(b"\0")
    return data


def _library(packing: Packing) -> tuple[Callable[[], _Unpacker], tuple[type[Exception], ...]]:
    """What makes a decompressor, and what that raises about bad data."""
    match packing:
        case Packing.GZIP:
            from isal import igzip_lib

            # typeshed's name for it is a variable.
            damaged: type[Exception] = igzip_lib.error  # type: ignore[assignment]
            return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), (damaged, EOFError, ValueError)
        case Packing.XZ:
            import lzma

            return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES), (lzma.LZMAError, EOFError)
        case Packing.ZSTD:
            if sys.version_info >= (3, 14):
                from compression import zstd
            else:
                from backports import zstd
            return zstd.ZstdDecompressor, (zstd.ZstdError, EOFError)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]
