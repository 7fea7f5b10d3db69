"""A seed's file: opened, read from its beginning to its end, and its checksum compared."""

from __future__ import annotations

import errno
import hashlib
import os
import stat

from cachedind.base.typed import TYPE_CHECKING
from cachedind.seeds.model import SeedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

CHUNK_BYTES = 1 << 20


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
            raise SeedError("it is a directory" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
        if status.st_size == 0:
            raise SeedError("it is empty")
    except BaseException:
        os.close(fd)
        raise
    return fd


def unreadable(error: OSError) -> SeedError:
    """The error for a seed that cannot be read. The next time it may be readable."""
    if error.errno == errno.ENOENT:
        return SeedError("it is not there any longer", lasting=False)
    return SeedError(f"it cannot be read ({error.strerror})", lasting=False)


def pread(fd: int, count: int, offset: int) -> bytes:
    """At most that many bytes. Raises SeedError."""
    try:
        return os.pread(fd, count, offset)
    except OSError as error:
        raise unreadable(error) from None


class Input:
    """Reads a file from its beginning, and hashes it in another thread if there is a checksum to compare."""

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


def compare(found: str, wanted: str, name: str) -> None:
    """Compare two SHA-256, in hex, of the seed with that path. Raises SeedError."""
    if found != wanted.lower():
        beside = f"{os.path.basename(name.rstrip('/'))}.sha256"
        raise SeedError(f"its SHA-256 is {found[:16]}…, but {beside} says {wanted.lower()[:16]}…")


def verify(fd: int, checksum: str, name: str, on_read: Callable[[int], None]) -> None:
    """Read a whole file, and compare its SHA-256. Raises SeedError."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, "cachedind-seed") as helper:
        Input(fd, checksum, on_read, helper).check(name)
