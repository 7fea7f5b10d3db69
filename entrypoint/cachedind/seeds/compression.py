"""Compressed seeds: read once, from the beginning to the end, into a file without a name that can be read anywhere.

All three libraries have the interface of bz2.BZ2Decompressor, which says how much may come out at a time and whether a
stream was whole.
"""

from __future__ import annotations

import contextlib
import os
import sys
from enum import StrEnum

from cachedind.base.typed import TYPE_CHECKING, Protocol
from cachedind.seeds import seed_file
from cachedind.seeds.model import SeedError
from cachedind.seeds.quoting import one_line
from cachedind.seeds.seed_file import Input
from cachedind.seeds.spool import Output, open_spool

if TYPE_CHECKING:
    from collections.abc import Callable

XZ_MEMORY_BYTES = 256 << 20
"""What an xz stream may ask for: `xz -9` needs 65 MiB."""
_LONGEST_MAGIC = 6


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
        source = Input(fd, checksum, on_read, helper)
        target = Output(spool_fd, room_bytes, helper)
        try:
            _unpack(source, packing, target)
        except SeedError as error:
            if error.lasting:
                source.check(name)
            raise
        source.check(name)
        on_error.pop_all()
        return spool_fd


def _unpack(source: Input, packing: Packing, target: Output) -> None:
    """All streams of a file, one after another, and zeros after them. Raises SeedError."""
    make, damaged = _library(packing)
    data = source.read()
    while data:
        unpacker = make()
        try:
            _unpack_stream(unpacker, data, source, target)
        except damaged as error:
            raise SeedError(f"its {packing} data is damaged ({one_line(error)})") from None
        data = _next_stream(unpacker.unused_data, source)
        if data and sniff(data) is not packing:
            raise SeedError(f"there is something else after its {packing} data")
    target.finish()


def _unpack_stream(unpacker: _Unpacker, data: bytes, source: Input, target: Output) -> None:
    while not unpacker.eof:
        if unpacker.needs_input and not data:
            data = source.read()
            if not data:
                raise SeedError("it is cut short")
        chunk = unpacker.decompress(data, seed_file.CHUNK_BYTES)
        if not chunk and not data and not unpacker.needs_input and not unpacker.eof:
            raise SeedError("it cannot be decompressed: its data has no end")
        data = b""
        if chunk:
            target.write(chunk)


def _next_stream(data: bytes, source: Input) -> bytes:
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
