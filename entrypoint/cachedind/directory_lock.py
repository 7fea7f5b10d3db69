"""A lock on a directory that containers share, for what takes milliseconds: files of sockets, and certificates."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 5.0
"""Who holds a directory for longer does not do what is done here."""


@contextlib.contextmanager
def locked(directory: str) -> Iterator[bool]:
    """Hold the directory's flock(2). False where it cannot be had: then one has to do without. By fcntl, as filelock
    takes 35 ms to import. Raises OSError where there is no such directory."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _wait_for(fd)
    finally:
        os.close(fd)


def _wait_for(fd: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        except OSError:  # a filesystem without locks
            return False
        else:
            return True
