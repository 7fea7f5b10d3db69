"""What a start does about a pool: move into a slot, have the last job's leftovers removed, hide the rest of it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from typing import TYPE_CHECKING

from cachedind.base import state
from cachedind.base.errors import PoolUnusableError, ProgramMissingError
from cachedind.base.trace import Trace
from cachedind.dataroot import decision, facts
from cachedind.dataroot.lease import Lease
from cachedind.engine import immutable, remapping
from cachedind.host import linux, mounts, procfs
from cachedind.pool import changes, choice, clone, directory, slot_lease, slot_state
from cachedind.pool.keys import BASE_KEY
from cachedind.pool.slot_request import SlotRequest, TakenSlot, Warmth
from cachedind.seeds import files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.base.log import Log
    from cachedind.base.model import StoragePlan
    from cachedind.dataroot.witness import Witness
    from cachedind.engine.cleaning import Cleaned, Pruning
    from cachedind.pool.directory import Pool
    from cachedind.seeds.planning import Plan
    from cachedind.seeds.seeding import Found, PutIn, Target
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


def make_slot_request(settings: Config, daemon: DaemonSettings) -> SlotRequest:
    """What this start can use of a pool. Raises DriverConflictError, ProgramMissingError."""
    requirements = choice.build_requirements(
        decision.build_request(settings, daemon), facts.read_engine_version(settings.path), settings.scope
    )
    holder = facts.read_holder_of_now(time.time())
    fallbacks = settings.fallback_keys
    if files.wants_seeds(settings):
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
        with _faults_of(path):
            pool = _open(path, settings, log)
            taken = _take(pool, slot_request, data_root, settings, log)
            return bind(taken, data_root, log), taken
    except PoolUnusableError:
        if pool is not None:
            pool.close()
        raise


@contextlib.contextmanager
def _faults_of(path: str) -> Iterator[None]:
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


def clean(
    settings: Config, environ: dict[str, str], storage: StoragePlan, lease: Lease, taken: TakenSlot, log: Log
) -> Cleaned:
    """Remove what the last job left in the slot, with a private daemon, before this one's job can see it. Where the
    pool is over its budget with nothing left to evict, the slot is pruned too.

    Raises CleaningError when no daemon comes up on the slot, or leaves something: then it is not fit for a job.
    """
    from cachedind.engine import cleaning
    from cachedind.engine.leftovers import find_leftovers

    leftovers = find_leftovers(remapping.make(lease.data_root, storage.remap), settings.keep)
    wanted = None if settings.read_only else _wanted_pruning(settings, storage, lease, taken)
    cleaned = cleaning.clean(
        lease.data_root,
        storage,
        leftovers,
        settings.keep,
        lock_fd=lease.fd,
        environ=environ,
        log=log,
        trace=taken.pool.trace,
        wanted=wanted,
    )
    return cleaned


def promote_due(taken: TakenSlot, lease: Lease, *, cleaned: bool, log: Log) -> TakenSlot:
    """Make what the slot has the golden of its scope, where that is due, before a job's daemon changes it. An engine
    that has removed the last job's leftovers has written it last. What cannot be copied costs warmth alone. Raises
    PoolUnusableError."""
    if taken.turn_fd is None:
        return taken
    changed: dict[str, object] = {}
    if cleaned:
        now = state.read_state(lease.directory_fd, lease.state_name) or {}
        changed = {"engine": now.get("engine")}
    try:
        return slot_lease.promote_due(taken, changed, log)
    except (ValueError, OSError, PoolUnusableError, ProgramMissingError) as error:
        log.warn(f"slot {taken.slot.id} does not become the golden of its scope: {error}")
        return taken._replace(turn_fd=None)


def _wanted_pruning(settings: Config, storage: StoragePlan, lease: Lease, taken: TakenSlot) -> Pruning | None:
    """What this slot has to give up, if the pool says so. The note is taken with that: one slot for each."""
    from cachedind.engine import pruning

    if taken.warmth is Warmth.FRESH:
        return None
    try:
        wanted_bytes = pruning.take_note(taken.pool.fd)
    except OSError:
        return None
    if wanted_bytes <= 0:
        return None
    from cachedind.engine import image_names
    from cachedind.engine.cleaning import Pruning
    from cachedind.seeds import ledger

    root_fd = remapping.open_root(lease.data_root, storage.remap)
    try:
        entries, _ = ledger.read(root_fd)
    finally:
        os.close(root_fd)
    seeded = (name for entry in entries.values() for record in entry.images for name in record.names)
    return Pruning(wanted_bytes, settings.cache_max_bytes, frozenset(map(image_names.familiar, seeded)))


def move_elsewhere(
    taken: TakenSlot, slot_request: SlotRequest, data_root: str, why: str, log: Log
) -> tuple[Lease, TakenSlot]:
    """Set a slot aside that was proven bad, with the golden that is the same byte for byte, and take another one.

    Raises PoolUnusableError: then there is no slot at the data-root.
    """
    with _faults_of(taken.pool.path):
        linux.umount(data_root, linux.MNT_DETACH)
        slot_lease.give_up(taken, why, log)
        another = slot_lease.take(taken.pool, slot_request, log)
        return bind(another, data_root, log), another


def seed(
    plan: Plan,
    found: Found,
    target: Target,
    taken: TakenSlot,
    slot_request: SlotRequest,
    *,
    environ: dict[str, str],
    log: Log,
    bars: bool,
    may_move: bool,
) -> PutIn | None:
    """Put into the slot what it lacks of the seeds, once for all who need it: what it then has becomes a golden.

    None, with `may_move`, when a golden has more of them than the slot by now: then another slot is to be taken. Raises
    CleaningError, PoolUnusableError, OSError.
    """
    from cachedind.seeds import pool_seeds, seeding

    pool = taken.pool
    put_in = functools.partial(
        seeding.put_in, plan, found, target, environ=environ, log=log, bars=bars, trace=pool.trace
    )
    # What another scope has made does not become this one's golden by getting seeds.
    is_lent = not taken.is_pure and not taken.before
    if slot_request.read_only or is_lent or not clone.is_possible_with(target.storage):
        return put_in()
    key = pool_seeds.golden_key(taken)
    with pool_seeds.turn(pool, key, lambda: log.info("waiting for another instance that is putting the same seeds in")):
        with pool_seeds.newest_golden(pool, key, slot_request.requirements, slot_request.boot_id) as golden:
            if golden is not None and may_move:
                left = seeding.compare(found, golden.data_fd, golden.storage, log)
                if len(left.missing) < len(plan.missing):
                    return None
        result = put_in()
        if result.images and result.clean:
            _promote_seeded(taken, key, log)
        return result


def promote_interrupted(taken: TakenSlot, slot_request: SlotRequest, log: Log) -> None:
    """What a start that was killed has put in is complete: let others have it, if they do not already."""
    from cachedind.seeds import pool_seeds

    if not slot_request.read_only and clone.is_possible(taken.found.data):
        with pool_seeds.turn(taken.pool, pool_seeds.golden_key(taken), lambda: None):
            _promote_seeded(taken, pool_seeds.golden_key(taken), log)


def _promote_seeded(taken: TakenSlot, key: str, log: Log) -> None:
    from cachedind.seeds import pool_seeds

    try:
        pool_seeds.promote(taken, key, log)
    except (OSError, ValueError, PoolUnusableError) as error:
        log.warn(f"the seeds are in this slot only ({error}); the next instance puts them in again")
    taken.pool.trace.reach("seed.promoted")


def move_on(taken: TakenSlot, slot_request: SlotRequest, data_root: str, log: Log) -> tuple[Lease, TakenSlot]:
    """Give a slot back, and take what is newest now. Raises PoolUnusableError: then there is no slot at the
    data-root."""
    from cachedind.seeds import pool_seeds

    with _faults_of(taken.pool.path):
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
