"""Files without a name for what is decompressed or fetched: gone with their descriptor, whatever ends the process."""

from __future__ import annotations

import contextlib
import errno
import os

from cachedind.base.typed import TYPE_CHECKING
from cachedind.seeds.model import SeedError

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


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
        raise SeedError(f"no temporary file can be made for it ({error.strerror})", lasting=False) from None
    return fd


class Output:
    """Writes a file of limited size in another thread: one piece is written while the next one is made."""

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
