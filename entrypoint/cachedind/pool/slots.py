"""A slot's lease, and how a slot is born: a clone, or empty."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from cachedind.base import state
from cachedind.base.errors import PoolUnusableError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.dataroot import lease
from cachedind.host import flock
from cachedind.pool import clone, directory, layer_list, scopes, staging
from cachedind.pool.key_directory import SLOTS, locked_key, open_below
from cachedind.pool.layers import Owner
from cachedind.pool.mutable import NOTHING, LeftOut
from cachedind.pool.slot_state import STATE_NAME, parse_slot_state

if TYPE_CHECKING:
    from cachedind.base.model import Holder
    from cachedind.pool.directory import Pool

LOCK_NAME = "slot.lock"


class Slot(NamedTuple):
    """A leased slot: its lock, its directory and its data, all open."""

    id: str
    lock_fd: int
    directory_fd: int
    data_fd: int
    previous: Holder | None
    left_out: LeftOut = NOTHING
    """What it was born without."""

    @property
    def owner(self) -> Owner:
        return Owner(self.directory_fd, self.data_fd)

    def close(self) -> None:
        """Give the lease back."""
        for fd in (self.lock_fd, self.directory_fd, self.data_fd):
            os.close(fd)


class BadSlotError(Exception):
    """A slot whose parts are not what they must be."""


def try_lease(key_fd: int, name: str) -> Slot | None:
    """Lease the slot `name` ("slots/<id>") if nobody holds it. Raises BadSlotError."""
    with contextlib.ExitStack() as undo:
        try:
            directory_fd = open_below(key_fd, name)
            undo.callback(os.close, directory_fd)
            lock_fd = _open_lock(directory_fd, create=False)
            undo.callback(os.close, lock_fd)
            if not directory.try_lock(lock_fd) or not _is_current(key_fd, name, directory_fd, lock_fd):
                return None
            data_fd = os.open("data", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO):
                if not _exists_below(key_fd, name):
                    return None
                raise BadSlotError(f"it is not as cachedind made it: {error.filename}: {error.strerror}") from error
            raise
        undo.pop_all()
        return Slot(name.rpartition("/")[2], lock_fd, directory_fd, data_fd, lease.read_holder(lock_fd))


def _exists_below(key_fd: int, name: str) -> bool:
    parent, _, last = name.rpartition("/")
    fd = directory.open_directory(key_fd, parent)
    if fd is None:
        return False
    try:
        return scopes.exists(fd, last)
    finally:
        os.close(fd)


def _is_current(key_fd: int, name: str, directory_fd: int, lock_fd: int) -> bool:
    try:
        now_fd = open_below(key_fd, name)
    except OSError:
        return False
    try:
        same = os.path.samestat(os.fstat(now_fd), os.fstat(directory_fd))
    finally:
        os.close(now_fd)
    return same and directory.is_current(lock_fd, directory_fd, LOCK_NAME)


def _open_lock(directory_fd: int, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT | os.O_EXCL if create else 0)
    fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=directory_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENXIO, "it is not a regular file", LOCK_NAME)
    return lease.lift(fd)


def look(key_fd: int, name: str, timeout_s: float = 0.2) -> tuple[bool, Holder | None]:
    """Whether somebody holds a slot, and who holds it or held it last. In the way of no start: the lock is taken for a
    moment, while the key is locked too, so that nobody leases.

    /proc/locks, which takes no lock, leaves out those of other containers (Linux, fs/locks.c, locks_show: owners
    that the reader's PID namespace does not know). Where the key stays locked for `timeout_s` (somebody copies; or the
    caller has locked it: 0), the question is asked all the same. Works on a read-only mount.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with contextlib.ExitStack() as undo:
        try:
            directory_fd = open_below(key_fd, name)
            undo.callback(os.close, directory_fd)
            own_key_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=key_fd)
            undo.callback(os.close, own_key_fd)
            with contextlib.suppress(PoolUnusableError):
                directory.wait_for_lock(own_key_fd, timeout_s, "the key")
            # Opened last, so that it is closed, and with it unlocked, before the key is.
            lock_fd = os.open(LOCK_NAME, flags, dir_fd=directory_fd)
            undo.callback(os.close, lock_fd)
        except OSError:
            return False, None
        # Shared, so that two who look do not take each other for holders.
        return not flock.lock_shared(lock_fd), lease.read_holder(lock_fd)


def create(pool: Pool, key: str, source: Owner | None, values: dict[str, object]) -> Slot:
    """A new slot, leased from its birth: a clone of `source`, or empty. `values` are its state. Raises what clone.copy
    raises, PoolUnusableError."""
    with staging.staged(pool) as stage, contextlib.ExitStack() as undo:
        lock_fd = _open_lock(stage.fd, create=True)
        undo.callback(os.close, lock_fd)
        if not directory.try_lock(lock_fd):
            raise AssertionError("somebody else locked a file that has just been made")
        pool.trace.reach("clone.staged")
        left_out = NOTHING
        if source is None:
            layer_list.write_list(stage.fd, ())
            os.close(clone.make_data(stage.fd))
        else:
            left_out = clone.copy(pool, source, parse_slot_state(values).data, stage.fd)
        pool.trace.reach("clone.copied")
        state.write_state(stage.fd, STATE_NAME, values, None, durable=False)
        pool.trace.reach("clone.recorded")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        data_fd = os.open("data", flags, dir_fd=stage.fd)
        undo.callback(os.close, data_fd)
        directory_fd = os.open(".", flags, dir_fd=stage.fd)
        undo.callback(os.close, directory_fd)
        _publish_slot(pool, key, stage)
        pool.trace.reach("clone.named")
        undo.pop_all()
        return Slot(stage.name, lock_fd, directory_fd, data_fd, None, left_out)


def _publish_slot(pool: Pool, key: str, stage: staging.Stage) -> None:
    # Under the key's lock: a key that is being removed must not take a new slot along.
    with locked_key(pool, key, create=True) as key_fd:
        assert key_fd is not None
        with contextlib.suppress(FileExistsError):
            os.mkdir(SLOTS, 0o700, dir_fd=key_fd)
        slots_fd = os.open(SLOTS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=key_fd)
        try:
            staging.publish(pool, stage, slots_fd, stage.name)
        finally:
            os.close(slots_fd)
