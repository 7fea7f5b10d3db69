"""The pool: one directory with many slots that share their layers.

    <pool>/                      the mount, CACHEDIND_POOL (default /cachedind); any local filesystem with links
      CACHEDIR.TAG  pool.json {version, min_reader}  pool.lock
      layers/<id>/               {layer.json, content/}; see layers.py
      keys/<key>/key.json        the key as given
      keys/<key>/sequence        the number of the last start (a counter, not a clock: clocks are set back)
      keys/<key>/scopes/<scope>/ goldens of one job of the project; see scopes.py
      keys/<key>/slots/<id>/     {slot.json, slot.lock, layers.list, data/}
      aside/<id>/                {why.json, slot/}
      stage/<id>/  trash/<id>/   everything is born in stage and renamed in; renamed to trash first, deleted later

Three locks, all flock(2), always taken in this order: pool.lock (making the pool), a key's directory (which state is
newest), slot.lock (the lease itself). Whoever makes something in stage holds its directory's lock, so that a sweep
leaves it alone; whoever copies a golden holds a shared lock on its directory, so that it is not deleted meanwhile.
Nobody waits for a lease.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from cachedind.base.errors import PoolMissingError, PoolUnusableError
from cachedind.base.model import Degradation
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.dataroot import facts
from cachedind.host import flock
from cachedind.pool import founding

if TYPE_CHECKING:
    from cachedind.base.model import Mount
    from cachedind.base.trace import Trace
    from cachedind.settings.config import Config

DEFAULT_POOL = "/cachedind"
LOCK_TIMEOUT_S = 60.0
_POLL_S = 0.005
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTS = ("keys", founding.LAYERS, "aside", "stage", "trash")


class Pool(NamedTuple):
    """An open pool: its path, and the descriptors of its directories."""

    path: str
    fstype: str
    fd: int
    keys_fd: int
    layers_fd: int
    aside_fd: int
    stage_fd: int
    trash_fd: int
    trace: Trace
    is_new: bool = False

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self.fd, self.keys_fd, self.layers_fd, self.aside_fd, self.stage_fd, self.trash_fd)

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


def wanted_path(settings: Config) -> str | None:
    """The pool's directory where pool mode is on: it is named, or something is mounted at the default place."""
    if settings.pool is not None:
        return settings.pool or None
    return DEFAULT_POOL if os.path.ismount(DEFAULT_POOL) else None


def open_pool(path: str, settings: Config, trace: Trace) -> tuple[Pool, list[Degradation]]:
    """Open a pool, making it when it is new. Also returns what about it works less well than it could.

    Raises PoolUnusableError, OSError.
    """
    real = os.path.realpath(path)
    notes = check_filesystem(real, settings)
    os.makedirs(real, mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as undo:
        pool_fd = os.open(real, _DIRECTORY)
        undo.callback(os.close, pool_fd)
        lock_fd = _open_lock(pool_fd, real)
        undo.callback(os.close, lock_fd)
        is_new = not founding.is_known(pool_fd, real)
        if is_new:
            wait_for_lock(lock_fd, LOCK_TIMEOUT_S, f"{real}/pool.lock")
            is_new, found = founding.found(pool_fd, real, strict=settings.strict)
            notes += found
            trace.reach("pool.recorded")
        return _open_tree(real, trace)._replace(is_new=is_new), notes


def open_existing(path: str, trace: Trace) -> Pool:
    """Open a pool as it is, to look at it or tidy up: nothing is made or set aside.

    Raises PoolMissingError, PoolUnusableError, OSError.
    """
    real = os.path.realpath(path)
    try:
        pool_fd = os.open(real, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(real, "there is no such directory") from error
    try:
        raw = founding.read_record(pool_fd, real)
    except ValueError as error:
        raise PoolUnusableError(
            f"{real}/{founding.RECORD} cannot be understood: {error}", "the next start makes it anew"
        ) from error
    finally:
        os.close(pool_fd)
    if raw is None:
        raise _missing(real, "the directory has no pool.json")
    if raw.get("version") != founding.VERSION:
        version = raw.get("version")
        what = "its pool.json has no version" if version is None else f"it is of version {version}"
        raise PoolUnusableError(
            f"the pool {real} is not one that this cachedind uses: {what}",
            "the next start sets it aside, and makes a new one",
        )
    return _open_tree(real, trace)


def _missing(path: str, why: str) -> PoolMissingError:
    return PoolMissingError(
        f"there is no pool at {path}: {why}",
        f"mount it there (-v /srv/cachedind:{path}), or say where it is with --pool; the first start makes one",
    )


def check_filesystem(path: str, settings: Config) -> list[Degradation]:
    """Whether locks hold there, and for how long the pool will last. Raises PoolUnusableError."""
    mount = facts.read_mount(path)
    reason = facts.unsafe_lock_reason(mount.fstype)
    if reason is not None:
        if not settings.allow_network_fs:
            raise PoolUnusableError(
                f"the pool {path} is on {mount.fstype}: {reason}",
                "use a local disk or a block volume; CACHEDIND_ALLOW_NETWORK_FS=1 uses it anyway",
            )
        why = f"the pool {path} is on {mount.fstype}: {reason}"
        return [Degradation("exclusive use is not certain", why, "use it from one machine only", "use a local disk")]
    lost = _why_it_will_not_last(mount)
    if lost is None:
        return []
    where, cost = lost
    mend = "mount a named volume or a host directory there: -v /srv/cachedind:/cachedind"
    return [Degradation("the pool will not last", f"{path} is {where}", cost, mend)]


def _why_it_will_not_last(mount: Mount) -> tuple[str, str] | None:
    if mount.fstype == "overlay":
        return "in the container's own layer", "it is deleted with the container"
    if mount.fstype in ("tmpfs", "ramfs"):
        return f"in memory ({mount.fstype})", "it is gone after an unmount or a reboot"
    if facts.is_anonymous_volume(mount):
        return "an anonymous volume", "the next container gets another one"
    return None


def _open_tree(path: str, trace: Trace) -> Pool:
    with contextlib.ExitStack() as undo:
        pool_fd = os.open(path, _DIRECTORY)
        undo.callback(os.close, pool_fd)
        parts = []
        for name in _PARTS:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=pool_fd)
            try:
                parts.append(os.open(name, _DIRECTORY, dir_fd=pool_fd))
            except (NotADirectoryError, OSError) as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                raise PoolUnusableError(
                    f"{name} in the pool {path} is not the directory that cachedind made",
                    "look at it, and move it away",
                ) from error
            undo.callback(os.close, parts[-1])
        undo.pop_all()
    keys_fd, layers_fd, aside_fd, stage_fd, trash_fd = parts
    return Pool(path, facts.read_mount(path).fstype, pool_fd, keys_fd, layers_fd, aside_fd, stage_fd, trash_fd, trace)


# ---- locks -------------------------------------------------------------------------------------------------------


def _open_lock(pool_fd: int, path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open("pool.lock", flags, 0o600, dir_fd=pool_fd)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise PoolUnusableError(
                f"the pool {path} is on a read-only filesystem", "mount it read-write; CACHEDIND_ACCESS=ro protects it"
            ) from error
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise PoolUnusableError(
                f"{path}/pool.lock is not the file that cachedind made", "look at it, and move it away"
            ) from error
        raise


def try_lock(fd: int) -> bool:
    """Take the exclusive flock of an open file or directory, if it is free."""
    return flock.lock_exclusive(fd)


def wait_for_lock(fd: int, timeout_s: float, what: str) -> None:
    """Raises PoolUnusableError when others hold it for longer than `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not try_lock(fd):
        if time.monotonic() >= deadline:
            raise PoolUnusableError(
                f"{what} was held by other starts for {timeout_s:g} s", "see what they do: cachedind ls"
            )
        time.sleep(_POLL_S)


def is_current(fd: int, parent_fd: int, name: str) -> bool:
    """Whether a name still stands for what is open as `fd`: between opening and locking it may have been renamed."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=parent_fd, follow_symlinks=False))
    except FileNotFoundError:
        return False


def open_directory(parent_fd: int, name: str) -> int | None:
    """A directory's descriptor, or None when there is no such directory (nothing, a link, a file)."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def names_in(directory_fd: int) -> list[str]:
    """What is in an open directory now. btrfs shows a descriptor the entries of the moment it was opened (Linux 6.5,
    fs/btrfs/inode.c, btrfs_opendir), so the directory is opened anew.
    """
    fd = os.open(".", _DIRECTORY, dir_fd=directory_fd)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)
