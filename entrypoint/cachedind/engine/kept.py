"""Good copies of small files that are dear: the words that the build cache hangs on, and the names of images.

They are taken at each start, before the daemon, from data of which nothing is damaged, and put back where a later start
finds the files gone or damaged. Needs the lease.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from cachedind.base.model import Loss
from cachedind.engine import damage
from cachedind.host import beneath

if TYPE_CHECKING:
    from cachedind.base.model import StoragePlan
    from cachedind.engine.damage import Damage

_HOME = ".cachedind/kept"
_MAX_BYTES = 4 << 20


def _files(storage: StoragePlan) -> list[str]:
    """Whole at any moment that no engine runs."""
    names = damage.names_file(storage)
    return [damage.identity_file(storage), *([names] if names else [])]


def keep_copies(root_fd: int, storage: StoragePlan) -> None:
    """Copy what a later start may have to put back. A disk that has no room for them costs the copies alone."""
    with contextlib.suppress(OSError, ValueError):
        for path in _files(storage):
            raw = _read(root_fd, path)
            copy = f"{_HOME}/{path}"
            if raw is not None and raw != _read(root_fd, copy):
                _write(root_fd, copy, raw)


def find(root_fd: int, storage: StoragePlan) -> frozenset[str]:
    """The files of which there is a copy. It was checked when it was made, and is checked again like any other."""
    return frozenset(path for path in _files(storage) if _read(root_fd, f"{_HOME}/{path}"))


def find_lost_words(root_fd: int, storage: StoragePlan) -> list[Damage]:
    """Small files that are gone, or say something else, although there is a copy and data that needs them."""
    path = damage.identity_file(storage)
    copy = _read(root_fd, f"{_HOME}/{path}")
    if not copy or beneath.leads_away(root_fd, path):
        return []
    with contextlib.suppress(OSError):
        if not beneath.exists(root_fd, "buildkit/cache.db"):
            return []
    now = _read(root_fd, path)
    if now == copy:
        return []
    return [damage.Damage(path, "it is gone" if now is None else "it is another one than before", Loss.CACHE)]


def put_back(root_fd: int, path: str) -> None:
    """The copy in the place of the file, which lies aside by now."""
    raw = _read(root_fd, f"{_HOME}/{path}")
    if raw is not None:
        with contextlib.suppress(OSError):
            _write(root_fd, path, raw)


def _read(root_fd: int, path: str) -> bytes | None:
    """A small regular file; None for anything else."""
    with contextlib.suppress(OSError, ValueError):
        return beneath.read(root_fd, path, _MAX_BYTES) or None
    return None


def _write(root_fd: int, path: str, raw: bytes) -> None:
    """Whole or not at all. Raises OSError."""
    above, _, name = path.rpartition("/")
    temporary = f"{name}.cachedind"
    with beneath.made_directory(root_fd, above) as fd:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=fd), "wb") as file:
            file.write(raw)
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
