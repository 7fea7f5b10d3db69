"""The record of a pool (pool.json): founding a new one, and setting aside what an older version has made."""

from __future__ import annotations

import contextlib
import errno
import os
import time

from cachedind.base import state
from cachedind.base.errors import PoolUnusableError
from cachedind.base.model import Degradation

LAYERS = "layers"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
RECORD = "pool.json"


VERSION = 2
"""Version 1 kept slots in a filesystem image, or as subvolumes."""


_CACHEDIR_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# A pool of Docker data-roots, made by cachedind; backups may leave it out (https://bford.info/cachedir/).\n"
)


def found(pool_fd: int, path: str, *, strict: bool) -> tuple[bool, list[Degradation]]:
    """Write the record of a pool that has none. What is in it stays, unless an older version has left it: that is set
    aside. Needs the pool's lock.

    Returns whether the pool is new; somebody else may have made it meanwhile. Raises PoolUnusableError, OSError.
    """
    if is_known(pool_fd, path):
        return False, []
    notes = _set_record_aside(pool_fd, path, strict=strict)
    raw = read_record(pool_fd, path)
    there = os.listdir(pool_fd)
    if raw is not None or ("keys" in there and LAYERS not in there):
        notes += _set_older_aside(pool_fd, path, strict=strict)
    with contextlib.suppress(FileExistsError):
        fd = os.open("CACHEDIR.TAG", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=pool_fd)
        with os.fdopen(fd, "wb") as file:
            file.write(_CACHEDIR_TAG)
    state.write_state(pool_fd, RECORD, {"version": VERSION, "min_reader": VERSION}, None)
    return not notes, notes


def _set_record_aside(pool_fd: int, path: str, *, strict: bool) -> list[Degradation]:
    """A record that cannot be understood costs nothing of what is in the pool."""
    try:
        read_record(pool_fd, path)
        return []
    except ValueError as error:
        why = f"{path}/{RECORD} cannot be understood: {error}"
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        why = f"{path}/{RECORD} cannot be understood: {error.strerror}"
    if strict:
        raise PoolUnusableError(why, f"find out who wrote to it, and delete {path}/{RECORD}")
    mend = f"find out who wrote to it, and delete {path}/{state.set_aside(pool_fd, RECORD)}"
    return [Degradation("the pool's record is written anew", why, "its slots and goldens stay as they are", mend)]


def _set_older_aside(pool_fd: int, path: str, *, strict: bool) -> list[Degradation]:
    """Move what an earlier version made to aside/."""
    why = "a pool of version 1"
    if strict:
        raise PoolUnusableError(f"{path} is {why}", "empty the directory, or use another one")
    where = os.urandom(6).hex()
    with contextlib.ExitStack() as undo:
        old_fd = pool_fd
        for name in ("aside", where, "slot"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=old_fd)
            above_fd, old_fd = old_fd, os.open(name, _DIRECTORY, dir_fd=old_fd)
            undo.callback(os.close, old_fd)
        state.write_state(above_fd, "why.json", {"why": why, "was": "pool", "at": round(time.time(), 3)}, None)
        # The record last: as long as it is there, the next start goes on with this.
        for name in ("pool.img", "keys", "stage", "trash", RECORD):
            with contextlib.suppress(FileNotFoundError):
                os.rename(name, name, src_dir_fd=pool_fd, dst_dir_fd=old_fd)
    mend = f"cachedind rm aside/{where} drops it"
    return [Degradation("the pool begins anew", f"{path} was {why}", f"what was in it is kept as aside/{where}", mend)]


_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})


def is_known(pool_fd: int, path: str) -> bool:
    """Whether there is a record, and it is this version's. Raises PoolUnusableError when it is a later version's."""
    try:
        raw = read_record(pool_fd, path)
    except ValueError:
        return False
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return False
    return raw is not None and raw.get("version") == VERSION


def read_record(pool_fd: int, path: str) -> dict[str, object] | None:
    """What pool.json says; None in a new pool. Raises PoolUnusableError when it is a later version's, ValueError when
    it cannot be understood, OSError (ELOOP, EISDIR, ENXIO) for what is no file."""
    try:
        return state.read_state(pool_fd, RECORD, version=VERSION)
    except state.TooNewError as error:
        raise PoolUnusableError(
            f"the pool {path} is of a later cachedind: {error}", "use that version's image, or another directory"
        ) from error
