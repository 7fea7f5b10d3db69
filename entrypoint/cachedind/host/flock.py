"""The door to flock(2): leases, the pool's locks, and directories that containers share (decisions/0027)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 5.0
"""Who holds a directory for longer does not do what is done here."""


def lock_exclusive(fd: int) -> bool:
    """LOCK_EX on an open file or directory, without waiting; False when somebody holds it. Raises OSError."""
    return _lock(fd, fcntl.LOCK_EX)


def lock_shared(fd: int) -> bool:
    """LOCK_SH, without waiting; False when somebody holds it exclusively. Raises OSError."""
    return _lock(fd, fcntl.LOCK_SH)


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(directory: str) -> Iterator[bool]:
    """Hold a directory's lock, for what takes milliseconds: files of sockets, and certificates. False where it cannot
    be had: then one has to do without. Raises OSError where there is no such directory."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _wait_for(fd)
    finally:
        os.close(fd)


def _wait_for(fd: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if lock_exclusive(fd):
                return True
        except OSError:  # a filesystem without locks
            return False
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.002)
