"""What a start does about a pool: move into a slot, have the last job's leftovers removed, hide the rest of it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from typing import TYPE_CHECKING

from cachedind.base.errors import CachedindError, ImageImpossibleError, PoolUnusableError, ProgramMissingError
from cachedind.base.trace import Trace
from cachedind.dataroot import decision, facts
from cachedind.dataroot.lease import Lease
from cachedind.engine import remapping
from cachedind.host import linux, mounts, procfs
from cachedind.pool import pool, slot_lease, slots
from cachedind.pool.keys import BASE_KEY
from cachedind.pool.slot_lease import Order, Tenancy, Warmth
from cachedind.seeds import files

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.base.model import StoragePlan
    from cachedind.dataroot.witness import Witness
    from cachedind.engine.cleaning import Cleaned, Pruning
    from cachedind.pool.pool import Pool
    from cachedind.seeds.planning import Plan
    from cachedind.seeds.seeding import Found, Result, Target
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


def make_order(settings: Config, daemon: DaemonSettings) -> Order:
    """What this start can use of a pool. Raises DriverConflictError, ProgramMissingError."""
    wish = slots.build_wish(decision.build_request(settings, daemon), facts.read_engine_version(settings.path))
    holder = facts.read_holder_of_now(time.time())
    fallbacks = settings.fallback_keys
    if files.wants_seeds(settings):
        fallbacks = (*fallbacks, BASE_KEY)
    return Order(settings.key, fallbacks, settings.read_only, wish, procfs.read_boot_id(), holder)


def move_in(path: str, order: Order, data_root: str, settings: Config, log: Log) -> tuple[Lease, Tenancy]:
    """Lease the newest slot, or a clone, and bind it over the data-root.

    Raises PoolUnusableError whatever the pool's fault is; then nothing of it is left mounted. Needs CAP_SYS_ADMIN.
    """
    home = None
    try:
        home = _open(path, settings, log)
        tenancy = _take(home, order, data_root, settings, log)
        return bind(tenancy, data_root, log), tenancy
    except (PoolUnusableError, ImageImpossibleError, ProgramMissingError) as error:
        bad: CachedindError = error
    except OSError as error:
        bad = _why_unusable(path, error)
    _leave(home)
    raise PoolUnusableError(bad.cause, bad.hint) from bad


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
            f"CACHEDIND_POOL={path} is a directory in the container's own layer: a pool there goes with the container",
            f"mount one: -v /srv/cachedind:{path}; CACHEDIND_ALLOW_EPHEMERAL_POOL=1 makes one there all the same",
        )


def _open(path: str, settings: Config, log: Log) -> Pool:
    check_lasting(path, settings)
    home, notes = pool.open_pool(path, settings, Trace(settings.kill_at))
    for note in notes:
        log.degraded(note)
    if home.is_new:
        log.info(f"made a new pool in {home.path}: {home.describe()}")
    return home


def _take(home: Pool, order: Order, data_root: str, settings: Config, log: Log) -> Tenancy:
    if facts.is_cramped(home.tree):
        _make_room(home, order, settings, log)
        os.makedirs(data_root, mode=0o710, exist_ok=True)
        if facts.is_cramped(home.tree) and not facts.is_cramped(data_root):
            # A job that cannot write fails, however warm it is.
            raise _full(home.path)
    try:
        tenancy = slot_lease.take(home, order, log)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _make_room(home, order, settings, log)
        tenancy = slot_lease.take(home, order, log)
    if tenancy.warmth is Warmth.FRESH and facts.is_cramped(home.tree):
        # Data comes up on a full disk; an empty data-root does not.
        tenancy.slot.close()
        raise _full(home.path)
    return tenancy


def _make_room(home: Pool, order: Order, settings: Config, log: Log) -> None:
    from cachedind.pool import upkeep

    log.info(f"the pool {home.path} is full: looking for what was not used for longest, which may take a while")
    evicted = upkeep.make_room(home, settings, order.key, time.time())
    if evicted:
        log.warn(
            f"the pool {home.path} was full: {evicted} of its slots and goldens were evicted, those first that nobody "
            "has used for longest; give it more room, or limit it with CACHEDIND_POOL_MAX_SIZE or CACHEDIND_MAX_AGE"
        )


def bind(tenancy: Tenancy, data_root: str, log: Log) -> Lease:
    """Put a slot in the data-root's place. Raises OSError. Needs CAP_SYS_ADMIN."""
    slot = tenancy.slot
    if mounts.bind(slot.data_fd, data_root):
        log.warn(
            f"{data_root} has content of its own, which the pool's slot hides; it is kept as it is; an empty "
            "CACHEDIND_POOL shows it again"
        )
    tenancy.home.trace.reach("bind.bound")
    return Lease(slot.lock_fd, slot.directory_fd, data_root, slot.previous, 0.0, slots.STATE_NAME)


def _leave(home: Pool | None) -> None:
    if home is not None:
        home.close()
    for point in mounts.mount_points_at([pool.IMAGE_MOUNT]):
        with contextlib.suppress(OSError):
            linux.umount(point, linux.MNT_DETACH)


def clean(
    settings: Config, environ: dict[str, str], storage: StoragePlan, lease: Lease, tenancy: Tenancy, log: Log
) -> Cleaned:
    """Remove what the last job left in the slot, with a private daemon, before this one's job can see it. Where the
    pool is over its budget with nothing left to evict, the slot is pruned too.

    Raises CleaningError when no daemon comes up on the slot, or leaves something: then it is not fit for a job.
    """
    from cachedind.engine import cleaning

    leftovers = cleaning.find_leftovers(remapping.make(lease.data_root, storage.remap), settings.keep)
    wanted = None if settings.read_only else _wanted_pruning(settings, storage, lease, tenancy)
    cleaned = cleaning.clean(
        lease.data_root,
        storage,
        leftovers,
        settings.keep,
        lock_fd=lease.fd,
        environ=environ,
        log=log,
        trace=tenancy.home.trace,
        wanted=wanted,
    )
    if not leftovers and wanted is None:
        return cleaned
    try:
        slot_lease.promote_cleaned(tenancy)
    except (OSError, PoolUnusableError) as error:
        log.warn(f"the golden keeps the last job's leftovers ({error}); each clone of it is cleaned by itself")
    return cleaned


def _wanted_pruning(settings: Config, storage: StoragePlan, lease: Lease, tenancy: Tenancy) -> Pruning | None:
    """What this slot has to give up, if the pool says so. The note is taken with that: one slot for each."""
    from cachedind.engine import pruning

    if tenancy.warmth is Warmth.FRESH:
        return None
    try:
        wanted_bytes = pruning.take_note(tenancy.home.tree_fd)
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


def move_elsewhere(tenancy: Tenancy, order: Order, data_root: str, why: str, log: Log) -> tuple[Lease, Tenancy]:
    """Set a slot aside that was proven bad, with the golden that is the same byte for byte, and take another one.

    Raises PoolUnusableError, OSError.
    """
    linux.umount(data_root, linux.MNT_DETACH)
    slot_lease.give_up(tenancy, why, log)
    taken = slot_lease.take(tenancy.home, order, log)
    return bind(taken, data_root, log), taken


def seed(
    plan: Plan,
    found: Found,
    target: Target,
    tenancy: Tenancy,
    order: Order,
    *,
    environ: dict[str, str],
    log: Log,
    bars: bool,
    may_move: bool,
) -> Result | None:
    """Put into the slot what it lacks of the seeds, once for all who need it: what it then has becomes a golden.

    None, with `may_move`, when a golden has more of them than the slot by now: then another slot is to be taken. Raises
    CleaningError, PoolUnusableError, OSError.
    """
    from cachedind.seeds import pool_seeds, seeding

    home = tenancy.home
    put_in = functools.partial(
        seeding.put_in, plan, found, target, environ=environ, log=log, bars=bars, trace=home.trace
    )
    if order.read_only or not slots.has_clones(home):
        return put_in()
    key = pool_seeds.home_key(tenancy)
    with pool_seeds.turn(home, key, lambda: log.info("waiting for another instance, which puts the same seeds in")):
        with pool_seeds.newest_golden(home, key, order.wish, order.boot_id) as golden:
            if golden is not None and may_move:
                left = seeding.compare(found, golden.data_fd, golden.storage, log)
                if len(left.missing) < len(plan.missing):
                    return None
        result = put_in()
        if result.images and result.clean:
            _promote_seeded(tenancy, key, log)
        return result


def promote_interrupted(tenancy: Tenancy, order: Order, log: Log) -> None:
    """What a start that was killed has put in is complete: let others have it, if they do not already."""
    from cachedind.seeds import pool_seeds

    if not order.read_only and slots.has_clones(tenancy.home):
        with pool_seeds.turn(tenancy.home, pool_seeds.home_key(tenancy), lambda: None):
            _promote_seeded(tenancy, pool_seeds.home_key(tenancy), log)


def _promote_seeded(tenancy: Tenancy, key: str, log: Log) -> None:
    from cachedind.seeds import pool_seeds

    try:
        pool_seeds.promote(tenancy, key)
    except (OSError, ValueError, PoolUnusableError) as error:
        log.warn(f"the seeds stay in this slot alone ({error}); the next instance puts them in again")
    tenancy.home.trace.reach("seed.promoted")


def move_on(tenancy: Tenancy, order: Order, data_root: str, log: Log) -> tuple[Lease, Tenancy]:
    """Give a slot back, and take what is newest now. Raises PoolUnusableError, OSError."""
    from cachedind.seeds import pool_seeds

    linux.umount(data_root, linux.MNT_DETACH)
    pool_seeds.give_back(tenancy)
    taken = slot_lease.take(tenancy.home, order, log)
    return bind(taken, data_root, log), taken


def hide(tenancy: Tenancy, observer: Witness, log: Log) -> None:
    """Take the rest of the pool out of the daemon's sight: its jobs have no business there."""
    from cachedind.dataroot import witness

    home = tenancy.home
    try:
        witness.hide(observer, mounts.mount_points_at([home.tree, home.path]))
    except OSError as error:
        log.warn(f"the pool stays mounted at {home.path}: {error.strerror}; jobs can see other projects' slots there")
    home.trace.reach("hide.unmounted")
