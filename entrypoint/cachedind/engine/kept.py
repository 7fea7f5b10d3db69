"""Good copies of small files that much depends on: the worker's name, without which the build cache is dropped, and the
names of images.

They are made at each start, before the daemon, when no damage was found, and put back where a later start finds the
files gone or damaged. Needs the lease.
"""

from __future__ import annotations

import contextlib
import os

from cachedind.base.model import Loss
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import damage
from cachedind.host import beneath

if TYPE_CHECKING:
    from cachedind.base.model import StoragePlan
    from cachedind.engine.damage import Damage

_DIRECTORY = ".cachedind/kept"
_MAX_BYTES = 4 << 20


def _files(storage: StoragePlan) -> list[str]:
    """The files to copy, which are whole whenever no engine runs."""
    names = damage.names_file(storage)
    return [damage.identity_file(storage), *([names] if names else [])]


def keep_copies(root_fd: int, storage: StoragePlan) -> None:
    """Copy what a later start may have to put back. Without room on the disk there are no copies, and the start goes
    on."""
    with contextlib.suppress(OSError, ValueError):
        for path in _files(storage):
            raw = _read(root_fd, path)
            copy = f"{_DIRECTORY}/{path}"
            if raw is not None and raw != _read(root_fd, copy):
                _write(root_fd, copy, raw)


def find(root_fd: int, storage: StoragePlan) -> frozenset[str]:
    """The files of which there is a copy."""
    return frozenset(path for path in _files(storage) if _read(root_fd, f"{_DIRECTORY}/{path}"))


def find_lost_name(root_fd: int, storage: StoragePlan) -> list[Damage]:
    """The worker's name, where it is gone or differs from its copy although there is a build cache that needs it."""
    path = damage.identity_file(storage)
    copy = _read(root_fd, f"{_DIRECTORY}/{path}")
    if not copy or beneath.leads_away(root_fd, path):
        return []
    with contextlib.suppress(OSError):
        if not beneath.exists(root_fd, "buildkit/cache.db"):
            return []
    now = _read(root_fd, path)
    if now == copy:
        return []
    return [
        damage.Damage(path, "it is gone" if now is None else "it is not the one of the last good start", Loss.CACHE)
    ]


def put_back(root_fd: int, path: str) -> None:
    """Write the copy in the place of the file, which was set aside before."""
    raw = _read(root_fd, f"{_DIRECTORY}/{path}")
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
