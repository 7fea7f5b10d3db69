"""Bytes of a seed, read where they are: a part of an open file, and content whose digest is checked on the way."""

from __future__ import annotations

import hashlib
import os

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.seeds.model import SeedError
from cachedind.seeds.seed_file import CHUNK_BYTES, pread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.seeds.model import Content


class File:
    """A descriptor that can be closed: reading fails after that, and never reads another file with the same number."""

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
        return read_slice(self.file, self.offset, self.size_bytes)

    def head(self, count: int) -> bytes:
        return pread(self.file.fd, min(count, self.size_bytes), self.offset)


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
            raise SeedError(f"{self.what} does not match its digest")
        if held:
            yield held


def read_slice(file: File, offset: int, size_bytes: int) -> Iterator[bytes]:
    end = offset + size_bytes
    while offset < end:
        chunk = pread(file.fd, min(CHUNK_BYTES, end - offset), offset)
        if not chunk:
            raise SeedError("it has become shorter while it was read", lasting=False)
        offset += len(chunk)
        yield chunk
