"""A bolt file in a data-root, opened for each look, as a daemon may have it open; and numbers as Go writes them."""

from __future__ import annotations

import contextlib
import os

from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import bolt
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAX_BYTES = 128 << 20
"""How much of a database is read in all, however often it is looked into."""


class File:
    """A bolt file in a data-root, opened for each look. A daemon may have it open too: a change amid a look is a
    ValueError, and the look is not repeated."""

    def __init__(self, root_fd: int, path: str) -> None:
        self._root_fd = root_fd
        self._path = path
        self._left_bytes = _MAX_BYTES

    def buckets(self, *path: bytes) -> list[bytes]:
        """Raises ValueError or OSError, also for no such bucket."""
        with self._opened() as database:
            return database.buckets(path)

    def items(self, *path: bytes) -> list[tuple[bytes, bytes]]:
        """Raises ValueError or OSError, also for no such bucket."""
        with self._opened() as database:
            return list(database.items(path))

    def nested(self, path: Sequence[bytes], below: Sequence[bytes]) -> dict[bytes, dict[bytes, bytes]]:
        """What is in the bucket `below` each of those at `path` (bolt.Database.nested). Raises ValueError or OSError,
        also for no such bucket."""
        with self._opened() as database:
            return dict(database.nested(path, below))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[bolt.Database]:
        fd, size_bytes = beneath.open_file(self._root_fd, self._path)

        def read(size: int, offset: int) -> bytes:
            self._left_bytes -= size
            if self._left_bytes < 0:
                raise ValueError("the database is larger than what is read of it")
            return os.pread(fd, size, offset)

        try:
            yield bolt.Database(read, size_bytes)
        finally:
            os.close(fd)


def uvarint(raw: bytes, at: int) -> tuple[int, int]:
    """A number as Go's binary.PutUvarint writes it, and where it ends. Raises ValueError."""
    value = 0
    for index, byte in enumerate(raw[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number without an end")
