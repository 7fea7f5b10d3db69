"""The lease: the right to use a data-root, held as an flock(2) on a file inside it.

The lock belongs to the open file description. Its descriptor is inherited by the supervisor, dockerd and containerd,
so the lease ends when the last process that may touch the data-root is gone, however it went; containers do not get it
(runc closes what it does not know). The file is never unlinked: a second file of that name would be a second lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time

from cachedind.base.errors import DataRootBusyError, DataRootInvalidError, DataRootUnwritableError
from cachedind.base.model import Holder, Remap
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.host import flock

if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = ".cachedind"
LOCK_NAME = "lock"
STATE_NAME = "state.json"
POLL_S = 0.02
_HIGH_FD = 20
"""Locks get descriptors from here on: socket activation uses those below."""
_END_OF_TIME_S = 253402300800.0
"""The year 10000. A later time (or NaN) did not come from a clock, and cannot be shown as a date."""


class Lease(NamedTuple):
    """A held lock. `directory_fd` is the data-root's .cachedind directory, or the slot, for what is written under the
    lease, `state_name` the state file in it; `previous` is who held it last."""

    fd: int
    directory_fd: int
    data_root: str
    previous: Holder | None
    waited_s: float
    state_name: str = STATE_NAME


def state_name(remap: Remap | None) -> str:
    """The name of the state file in direct mode: with userns-remap, each mapping has its own data and state. Pure."""
    return STATE_NAME if remap is None else f"state-{remap.directory}.json"


def acquire(data_root: str, holder: Holder, timeout_s: float, on_wait: Callable[[Holder | None], None]) -> Lease:
    """Lease `data_root`, waiting up to `timeout_s` seconds for another holder; `on_wait` is called once, with that
    holder.

    Nothing in the data-root but the lock file is read before the lock is held.
    Raises DataRootBusyError, DataRootInvalidError, DataRootUnwritableError. Needs write access, no capability.
    """
    started = time.monotonic()
    told = False
    while True:
        with contextlib.ExitStack() as undo:
            directory_fd = _open_directory(data_root)
            undo.callback(os.close, directory_fd)
            fd = _open_lock(data_root, directory_fd)
            undo.callback(os.close, fd)
            is_held = flock.lock_exclusive(fd)
            if not is_held and (left := _take_over(fd, holder)) is not None:
                fd, is_held = left, True
                undo.callback(os.close, fd)
            if is_held:
                if _is_current(fd, directory_fd, data_root):
                    previous = read_holder(fd)
                    write_holder(fd, holder, data_root)
                    undo.pop_all()
                    return Lease(fd, directory_fd, data_root, previous, time.monotonic() - started)
            elif time.monotonic() - started >= timeout_s:
                raise _busy(data_root, read_holder(fd), timeout_s)
            elif not told:
                on_wait(read_holder(fd))
                told = True
        time.sleep(POLL_S if told else 0)


def _take_over(fd: int, own: Holder) -> int | None:
    """A descriptor of the held lock, where only leftovers of a killed daemon of this container hold it; else None."""
    holder = read_holder(fd)
    if holder is None or not own.container or holder.container != own.container:
        return None
    from cachedind.dataroot import survivors

    left = survivors.take_lock(fd)
    return None if left is None else lift(left)


def look(data_root: str) -> tuple[bool, Holder | None]:
    """Whether somebody holds the lease, and who holds it or held it last. It may change at once: for display only.

    Writes nothing; a free lock is taken for a moment.
    """
    try:
        fd = os.open(f"{data_root}/{DIRECTORY}/{LOCK_NAME}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False, None
    try:
        return not flock.lock_exclusive(fd), read_holder(fd)
    finally:
        os.close(fd)


def _open_directory(data_root: str) -> int:
    try:
        os.makedirs(data_root, mode=0o710, exist_ok=True)
        root_fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(data_root, error) from error
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(DIRECTORY, 0o700, dir_fd=root_fd)
        # A previous job was root here: no link is followed.
        return os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        raise _unwritable(data_root, error) from error
    finally:
        os.close(root_fd)


def _open_lock(data_root: str, directory_fd: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=directory_fd)
    except OSError as error:
        raise _unwritable(data_root, error) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _unwritable(data_root, OSError(errno.ENXIO, "its lock is not a regular file"))
    except BaseException:
        os.close(fd)
        raise
    return lift(fd)


def lift(fd: int) -> int:
    """The same open file at a descriptor that socket activation does not use; `fd` is closed."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    finally:
        os.close(fd)


def _is_current(fd: int, directory_fd: int, data_root: str) -> bool:
    """Whether the locked file and its directory still have their names: a lock on a replaced file excludes nobody."""
    try:
        named = os.stat(LOCK_NAME, dir_fd=directory_fd, follow_symlinks=False)
        directory = os.stat(f"{data_root}/{DIRECTORY}", follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named) and os.path.samestat(os.fstat(directory_fd), directory)


def write_holder(fd: int, holder: Holder, data_root: str) -> None:
    """Write who holds the lease, for those who wait. A full disk is no error. Raises DataRootUnwritableError."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(holder._asdict()).encode() + b"\n", 0)
    except OSError as error:
        # On a full disk a message lacks the holder's name, and the lease is held all the same.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise _unwritable(data_root, error) from error


def read_holder(fd: int) -> Holder | None:
    """What the holder wrote about itself, or None when that cannot be read (it may be writing right now)."""
    try:
        found = json.loads(os.pread(fd, 4096, 0))
        since = float(found["since"])
        if not 0 <= since < _END_OF_TIME_S:
            return None
        return Holder(str(found["container"])[:12], str(found["hostname"])[:64], since)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def describe_holder(holder: Holder | None) -> str:
    """The holder in words, for messages."""
    if holder is None:
        return "another daemon"
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.since))
    name = f"container {holder.container}" if holder.container else "a daemon"
    return f"{name} (host name {holder.hostname}, since {since})"


def share_with_daemon(lease: Lease) -> None:
    """Let the lock's descriptor stay open across exec. The last thing before exec, so that no helper inherits it."""
    os.set_inheritable(lease.fd, True)


def _busy(data_root: str, holder: Holder | None, timeout_s: float) -> DataRootBusyError:
    return DataRootBusyError(
        f"{data_root} is in use by {describe_holder(holder)}; waited {timeout_s:g} s, the running daemon is unharmed",
        "give each concurrent container a volume of its own, stop that one, or wait longer with "
        "CACHEDIND_LOCK_TIMEOUT=5m",
    )


def _unwritable(data_root: str, error: OSError) -> DataRootInvalidError | DataRootUnwritableError:
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO):
        return DataRootInvalidError(
            f"{data_root}/{DIRECTORY} is not as cachedind made it: {error.strerror}",
            f"look at it, then move it away: mv {data_root}/{DIRECTORY} {data_root}/{DIRECTORY}.old",
        )
    if error.errno == errno.EROFS:
        return DataRootUnwritableError(
            f"{data_root} is on a read-only filesystem",
            "mount the volume read-write; if it is, its filesystem met an error: check it with fsck",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataRootUnwritableError(
            f"the filesystem of {data_root} is full: no room for even the lock file",
            "free space or inodes on the volume",
        )
    return DataRootUnwritableError(
        f"{data_root} cannot be written: {error.strerror} ({error.filename})", "check the volume and its mode"
    )
