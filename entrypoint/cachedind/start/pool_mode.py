"""What a start does about a pool: move into a slot, have it promoted, or move on to another; hide the rest of it."""

from __future__ import annotations

import contextlib
import errno
import os
import time

from cachedind.base import state
from cachedind.base.errors import PoolUnusableError, ProgramMissingError
from cachedind.base.trace import Trace
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot import decision, facts
from cachedind.dataroot.lease import Lease
from cachedind.engine import immutable
from cachedind.host import linux, mounts, procfs
from cachedind.pool import changes, choice, directory, slot_lease, slot_state
from cachedind.pool.keys import BASE_KEY
from cachedind.pool.slot_request import SlotRequest, TakenSlot, Warmth
from cachedind.seeds import wanted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.base.log import Log
    from cachedind.base.model import StoragePlan
    from cachedind.dataroot.witness import Witness
    from cachedind.pool.directory import Pool
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


def make_slot_request(settings: Config, daemon: DaemonSettings) -> SlotRequest:
    """What this start can use of a pool. Raises DriverConflictError, ProgramMissingError."""
    requirements = choice.build_requirements(
        decision.build_request(settings, daemon), facts.read_engine_version(settings.path), settings.scope
    )
    holder = facts.read_holder_of_now(time.time())
    fallbacks = settings.fallback_keys
    if wanted.wants_seeds(settings):
        fallbacks = (*fallbacks, BASE_KEY)
    requirements = requirements._replace(container=holder.container)
    return SlotRequest(settings.key, fallbacks, settings.read_only, requirements, procfs.read_boot_id(), holder)


def move_in(
    path: str, slot_request: SlotRequest, data_root: str, settings: Config, log: Log
) -> tuple[Lease, TakenSlot]:
    """Lease the newest slot, or a clone, and bind it over the data-root.

    Raises PoolUnusableError whatever the pool's fault is; then nothing of it is left mounted. Needs CAP_SYS_ADMIN.
    """
    pool = None
    try:
        with faults_of(path):
            pool = _open(path, settings, log)
            taken = _take(pool, slot_request, data_root, settings, log)
            return bind(taken, data_root, log), taken
    except PoolUnusableError:
        if pool is not None:
            pool.close()
        raise


@contextlib.contextmanager
def faults_of(path: str) -> Iterator[None]:
    """Whatever goes wrong with a pool is one error, with which a start goes on without it."""
    try:
        yield
    except ProgramMissingError as error:
        raise PoolUnusableError(error.cause, error.hint) from error
    except OSError as error:
        raise _why_unusable(path, error) from error


def _why_unusable(path: str, error: OSError) -> PoolUnusableError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(path)
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return PoolUnusableError(f"the pool {path} cannot be used: {what}", "check its disk, space and mode")


def _full(path: str) -> PoolUnusableError:
    return PoolUnusableError(f"the pool {path} is full", "free space, or see what fills it: cachedind ls")


def check_lasting(path: str, settings: Config) -> None:
    """Raises PoolUnusableError for a pool that nobody has mounted, unless the settings want such a one."""
    if facts.read_mount(path).mount_point == "/" and not settings.allow_ephemeral_pool:
        raise PoolUnusableError(
            f"CACHEDIND_POOL={path} is a directory in the container's own layer, and is deleted with it",
            f"mount one: -v /srv/cachedind:{path}; CACHEDIND_ALLOW_EPHEMERAL_POOL=1 allows it",
        )


def _open(path: str, settings: Config, log: Log) -> Pool:
    check_lasting(path, settings)
    pool, notes = directory.open_pool(path, settings, Trace(settings.kill_at))
    for note in notes:
        log.degraded(note)
    if pool.is_new:
        log.info(f"made a new pool in {pool.path} ({pool.fstype})")
    return pool


def _take(pool: Pool, slot_request: SlotRequest, data_root: str, settings: Config, log: Log) -> TakenSlot:
    if facts.is_cramped(pool.path):
        _make_room(pool, slot_request, settings, log)
        os.makedirs(data_root, mode=0o710, exist_ok=True)
        if facts.is_cramped(pool.path) and not facts.is_cramped(data_root):
            # A job that cannot write fails, however warm it is.
            raise _full(pool.path)
    try:
        taken = slot_lease.take(pool, slot_request, log)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _make_room(pool, slot_request, settings, log)
        taken = slot_lease.take(pool, slot_request, log)
    if taken.warmth is Warmth.FRESH and facts.is_cramped(pool.path):
        # Data comes up on a full disk; an empty data-root does not.
        taken.close()
        raise _full(pool.path)
    return taken


def _make_room(pool: Pool, slot_request: SlotRequest, settings: Config, log: Log) -> None:
    from cachedind.pool import eviction  # seldom needed

    log.info(f"the pool {pool.path} is full: evicting what was least recently used, which may take a while")
    evicted = eviction.make_room(pool, settings, slot_request.key, time.time())
    if evicted:
        log.warn(
            f"the pool {pool.path} was full: {evicted} of its slots and goldens were evicted, least recently used "
            "first; give it more room, or limit it with CACHEDIND_POOL_MAX_SIZE or CACHEDIND_MAX_AGE"
        )


def bind(taken: TakenSlot, data_root: str, log: Log) -> Lease:
    """Put a slot in the data-root's place, and the layers that it links to in theirs. Raises OSError. Needs
    CAP_SYS_ADMIN."""
    slot = taken.slot
    if mounts.bind(slot.data_fd, data_root):
        log.warn(
            f"{data_root} already has content, which the pool's slot hides; it is kept as it is; "
            "CACHEDIND_POOL= (empty) uses it instead of the pool"
        )
    try:
        mounts.bind_read_only(taken.pool.layers_fd, slot.data_fd, data_root, immutable.SHARED_AT)
    except BaseException:
        linux.umount(data_root, linux.MNT_DETACH)
        taken.close()
        raise
    taken.pool.trace.reach("bind.bound")
    return Lease(slot.lock_fd, slot.directory_fd, data_root, slot.previous, 0.0, slot_state.STATE_NAME)


def promote_due(taken: TakenSlot, lease: Lease, *, cleaned: bool, log: Log) -> TakenSlot:
    """Make what the slot has the golden of its scope, where that is due, before a job's daemon changes it. An engine
    that has removed the last job's leftovers has written it last. What cannot be copied costs warmth alone. Raises
    PoolUnusableError."""
    changed: dict[str, object] = {}
    if cleaned:
        now = state.read_state(lease.directory_fd, lease.state_name) or {}
        changed = {"engine": now.get("engine")}
    try:
        return slot_lease.promote_due(taken, changed, log)
    except (ValueError, OSError, PoolUnusableError, ProgramMissingError) as error:
        log.warn(f"slot {taken.slot.id} does not become the golden of its scope: {error}")
        return taken._replace(turn_fd=None)


def move_elsewhere(
    taken: TakenSlot, slot_request: SlotRequest, data_root: str, why: str, log: Log
) -> tuple[Lease, TakenSlot]:
    """Set a slot aside that was proven bad, with the golden that is the same byte for byte, and take another one.

    Raises PoolUnusableError: then there is no slot at the data-root.
    """
    with faults_of(taken.pool.path):
        linux.umount(data_root, linux.MNT_DETACH)
        slot_lease.give_up(taken, why, log)
        another = slot_lease.take(taken.pool, slot_request, log)
        return bind(another, data_root, log), another


def move_on(taken: TakenSlot, slot_request: SlotRequest, data_root: str, log: Log) -> tuple[Lease, TakenSlot]:
    """Give a slot back, and take what is newest now. Raises PoolUnusableError: then there is no slot at the
    data-root."""
    from cachedind.seeds import pool_seeds

    with faults_of(taken.pool.path):
        linux.umount(data_root, linux.MNT_DETACH)
        pool_seeds.give_back(taken)
        another = slot_lease.take(taken.pool, slot_request, log)
        return bind(another, data_root, log), another


def note_beginning(taken: TakenSlot, storage: StoragePlan, settings: Config, log: Log) -> None:
    """Note down what the job begins with, so that the next start can tell what it has left. Needs the lease, and no
    daemon on the slot."""
    try:
        holder = facts.read_holder_of_now(time.time())
        is_same = bool(holder.container) and taken.found.container == holder.container
        goes_on = is_same or taken.found.begun not in (0, taken.found.sequence)
        changes.note_beginning(taken.slot.owner, storage, keeps=bool(settings.keep), goes_on=goes_on)
    except OSError as error:
        log.debug(f"what the slot holds is not noted down: {error}; what its job leaves counts as new")


def hide(taken: TakenSlot, observer: Witness, log: Log) -> None:
    """Take the rest of the pool out of the daemon's sight: its jobs have no business there."""
    from cachedind.dataroot import witness

    pool = taken.pool
    try:
        witness.hide(observer, mounts.mount_points_at([pool.path]))
    except OSError as error:
        log.warn(f"the pool stays mounted at {pool.path}: {error.strerror}; jobs can see other projects' slots there")
    pool.trace.reach("hide.unmounted")
