"""Making what was leased fit for the job: look at it, choose store and driver, clean it, put the seeds in.

Where a slot of the pool turns out to be unfit, or another one to be better, the start moves on to that.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from cachedind import dataroot, decision, directories, engine_root, facts, probes, procfs, state
from cachedind.errors import MaintenanceError, PoolUnusableError
from cachedind.model import Degradation
from cachedind.trace import Trace

if TYPE_CHECKING:
    from cachedind.config import Config
    from cachedind.daemon_config import DaemonSettings
    from cachedind.facts import Place
    from cachedind.lease import Lease
    from cachedind.log import Log
    from cachedind.mending import Doubt
    from cachedind.mending import Result as MendingResult
    from cachedind.model import DataRootState, ExistingData, Remap, StoragePlan
    from cachedind.pool_lease import Tenancy
    from cachedind.seed_plan import Plan
    from cachedind.seeding import Found, Result, Target
    from cachedind.seeds import BadSeed


_MAX_MOVES = 3
"""How often a start moves on to another slot: to one that is whole before it takes an empty one, and to one that has
more of the seeds before it puts them in by itself."""


class Site(NamedTuple):
    """What a start was given: its settings, dockerd's arguments and files, the environment, and where it speaks."""

    settings: Config
    daemon: DaemonSettings
    environ: dict[str, str]
    log: Log


class Home(NamedTuple):
    """A leased data-root and what was decided for it. `seeded` counts the images that this start put in, `bad` are the
    seeds that are not there, `cache_max_bytes` is what the build cache has to be kept to in any case."""

    lease: Lease
    tenancy: Tenancy | None
    place: Place
    storage: StoragePlan
    seeded: int = 0
    bad: tuple[BadSeed, ...] = ()
    cache_max_bytes: int | None = None


class Seeds(NamedTuple):
    """The seeds that the settings name, and what the data-root lacks of them."""

    found: Found
    plan: Plan


def settle(site: Site, lease: Lease, tenancy: Tenancy | None, moves: int = 0, deadline: float | None = None) -> Home:
    """Look at what was leased, choose store and driver for it, and mend it if it needs that.

    `moves` counts the slots of the pool that were given up before this one, whose mending took of the time until
    `deadline` (of time.monotonic()).
    """
    remap = decision.build_request(site.settings, site.daemon).userns_remap
    if tenancy is not None:
        odd = directories.find_odd_in(lease.data_root, remap.directory if remap else "")
        if odd is not None:
            why = f"{odd} is no directory: the last job has put something else in its place"
            return _move_elsewhere(site, lease, tenancy, why, moves, deadline)
    place, existing, noted = observe(lease, tenancy, site.log, remap)
    storage = decide(site.settings, site.daemon, lease, tenancy, place, existing, site.log)
    return mend(site, Home(lease, tenancy, place, storage), noted, moves, deadline)


def observe(
    lease: Lease, tenancy: Tenancy | None, log: Log, remap: Remap | None = None
) -> tuple[Place, ExistingData, DataRootState | None]:
    """Look at the data-root, now that it is ours: where it is, what is in it, and what its last start noted down."""
    try:
        noted = dataroot.read_data_root_state(lease.directory_fd, lease.state_name)
    except (ValueError, OSError) as error:  # OSError: a link or a directory in its place
        aside = state.set_aside(lease.directory_fd, lease.state_name)
        path = f"{lease.data_root}/.cachedind/{lease.state_name}" if tenancy is None else lease.state_name
        log.warn(f"{path} is unreadable ({error}); it is now {aside}")
        noted = None
    # First of all: in a driver's own directory, what a killed trial has left would pass for layers.
    if [
        name for directory in facts.probe_directories(lease.data_root) for name in probes.sweep_stale_probes(directory)
    ]:
        log.debug("removed what killed trials of a storage driver had left")
    place = facts.read_place(lease.data_root)
    existing = dataroot.read_existing(engine_root.make(lease.data_root, remap), noted)
    found = [facts.check_room(place, fresh=not existing.pairs)]
    if tenancy is None:
        found.append(facts.persistence(place))
    for degradation in found:
        if degradation is not None:
            log.degraded(degradation)
    return place, existing, noted


def decide(
    settings: Config,
    daemon: DaemonSettings,
    lease: Lease,
    tenancy: Tenancy | None,
    place: Place,
    existing: ExistingData,
    log: Log,
) -> StoragePlan:
    """Choose store and driver, say what was passed over, and note the decision and this start down."""
    request = decision.build_request(settings, daemon, in_pool=tenancy is not None)
    engine = facts.read_engine_version(settings.path)
    plan, asked = decision.decide(lease.data_root, place.fstype, engine, existing, request)
    for note in plan.notes:
        log.warn(note)
    for degradation in plan.degradations:
        log.degraded(degradation)
    more: dict[str, object] = {}
    if tenancy is not None:
        decision.check_driver_in_pool(plan)
        more = {
            "arch": os.uname().machine,
            "sequence": tenancy.sequence,
            "read_only": settings.read_only,
            "holder": facts.read_holder_of_now(time.time())._asdict(),
        }
        if not existing.pairs:
            more["asked"] = asked
    try:
        before = dataroot.read_data_root_state(lease.directory_fd, lease.state_name)
        state = dataroot.next_state(
            before, plan, engine=engine, fstype=place.fstype, boot_id=procfs.read_boot_id(), now=time.time()
        )
        dataroot.write_data_root_state(lease.directory_fd, lease.state_name, state, more)
    except OSError as error:
        why = f"{lease.state_name} of {lease.data_root}: {error.strerror}"
        cost = "the next start has to guess the driver from the data"
        log.degraded(Degradation("the storage decision cannot be noted down", why, cost, "free space on the volume"))
    return plan


# ---- mending ---------------------------------------------------------------------------------------------------------


def mend(site: Site, home: Home, noted: DataRootState | None, moves: int, deadline: float | None) -> Home:
    """Make what was leased fit for a daemon, or move on to something that is. Costs a millisecond where all is well."""
    from cachedind import mending

    lease, tenancy, log = home.lease, home.tenancy, site.log
    doubt = _doubt(tenancy, noted)
    before = noted if tenancy is None else tenancy.found.data
    wrote, starts = None if before is None else before.engine, facts.read_engine_version(site.settings.path)
    deadline = time.monotonic() + mending.MENDING_S if deadline is None else deadline
    has_better = tenancy is not None and _has_other(site, tenancy)
    root_fd = engine_root.open_root(lease.data_root, home.storage.remap)
    try:
        result = mending.mend(
            mending.Patient(lease.data_root, root_fd, home.storage, lease.fd, (wrote, starts)),
            doubt,
            has_better=has_better,
            in_pool=tenancy is not None,
            environ=site.environ,
            trace=Trace(site.settings.kill_at),
            deadline=deadline,
        )
        if result.fit:
            mending.keep_copies(root_fd, home.storage)
    except OSError as error:
        result = mending.Result(False, why=f"what is damaged cannot be moved: {error.strerror or error}")
        if not has_better:
            mend = f"free space on the volume, or take away what is in the way in {lease.data_root}/{mending.HOME}"
            log.degraded(Degradation("damage", result.why, "the daemon may not come up on it", mend))
            return home
    finally:
        os.close(root_fd)
    if not result.fit and tenancy is not None:
        return _move_elsewhere(site, lease, tenancy, result.why, moves, deadline)
    if home.storage.remap is not None:
        below = home.storage.remap.directory
        result = result._replace(moved=tuple(one._replace(where=f"{below}/{one.where}") for one in result.moved))
    _tell(result, doubt, in_pool=tenancy is not None, log=log)
    return home


def _doubt(tenancy: Tenancy | None, noted: DataRootState | None) -> Doubt | None:
    """Why to look closely. A start that was killed while seeds were put in says nothing about the data."""
    from cachedind import pool_lease
    from cachedind.mending import Doubt

    if tenancy is not None:
        data = tenancy.found.data
        if not tenancy.doubt or data is None:
            return None
        return Doubt(tenancy.doubt, tenancy.doubt == pool_lease.CRASHED, data.ready_at or data.started_at)
    if noted is None:
        return None
    if noted.boot_id != procfs.read_boot_id():
        return Doubt(pool_lease.CRASHED, True, noted.ready_at or noted.started_at)
    if noted.ready_at is None and not noted.seeding:
        return Doubt("no daemon came up on it at its last start")
    return None


def _has_other(site: Site, tenancy: Tenancy) -> bool:
    from cachedind import pool_lease, pool_start
    from cachedind.pool_lease import Warmth

    if tenancy.warmth is Warmth.FRESH:
        return False
    return pool_lease.has_other(tenancy, pool_start.make_order(site.settings, site.daemon))


def _move_elsewhere(
    site: Site, lease: Lease, tenancy: Tenancy, why: str, moves: int, deadline: float | None = None
) -> Home:
    """Set the slot aside, with the golden of the same state, and take what is next best; an empty one after several, or
    when the time is over."""
    from cachedind import pool_start

    fresh = moves >= _MAX_MOVES or (deadline is not None and time.monotonic() >= deadline)
    order = pool_start.make_order(site.settings, site.daemon)._replace(fresh=fresh)
    lease, tenancy = pool_start.move_elsewhere(tenancy, order, lease.data_root, why, site.log)
    return settle(site, lease, tenancy, moves + 1, deadline)


def _tell(result: MendingResult, doubt: Doubt | None, *, in_pool: bool, log: Log) -> None:
    if result.unproven:
        log.warn(f"the data could not be proven: {result.unproven}")
    if result.loss is None:
        if doubt is not None and result.fit and not result.unproven:
            log.info(f"{doubt.why}: it was looked at closely, and a private daemon came up on it")
        return
    what = "the data was damaged, and is mended" if result.fit else "the data is damaged, and could not be mended"
    places = ", ".join(
        f"{moved.where} ({', '.join(moved.paths[:3])}{', …' * (len(moved.paths) > 3)})" for moved in result.moved
    )
    mend = f"what was moved away is in {places}" if places else "nothing has to be done"
    if places and not in_pool:
        mend += "; cachedind doctor tells how to put it back, or drop it"
    log.degraded(Degradation(what, result.why, result.cost, mend))


# ---- cleaning --------------------------------------------------------------------------------------------------------


def clean(site: Site, home: Home) -> Home:
    """Have a slot without the last job's leftovers: this one, cleaned, or else another."""
    from cachedind import pool_start

    for moves in range(1, _MAX_MOVES + 2):
        tenancy = home.tenancy
        if tenancy is None:
            break
        cleaned = pool_start.clean(site.settings, site.environ, home.storage, home.lease, tenancy, site.log)
        if cleaned is not None:
            return home._replace(cache_max_bytes=cleaned.cache_limit_bytes)
        why = "the last job's leftovers could not be removed from it"
        home = _move_elsewhere(site, home.lease, tenancy, why, moves)
    return home


# ---- seeds -----------------------------------------------------------------------------------------------------------


def seed(site: Site, home: Home) -> tuple[Home, Seeds | None]:
    """Put in what is missing, or say what is to be put in when the daemon runs (CACHEDIND_SEED_WHEN=after).

    Whatever is wrong with a seed costs its images, and nothing else. Raises StrictError instead with CACHEDIND_STRICT.
    """
    from cachedind import seeding

    found = seeding.find(site.settings)
    seeds = _look(home, found, site.log)
    bad = (*found.bad, *seeds.plan.bad)
    seeding.report_bad(bad, site.log)
    for moves in range(_MAX_MOVES + 1):
        if not seeds.plan.missing:
            _finish_interrupted(site, home)
            return home._replace(bad=bad), None
        if site.settings.seed_after:
            return home._replace(bad=bad), seeds
        try:
            result = _put_in(site, home, seeds, may_move=moves < _MAX_MOVES)
            if result is None:
                home = _move_on(site, home)
                seeds = _look(home, found, site.log)
                continue
        except (MaintenanceError, PoolUnusableError) as error:
            cost = "the images of the seeds are not there"
            site.log.degraded(Degradation("no seeds are put in", error.cause, cost, error.hint))
            break
        seeding.report_bad(result.bad, site.log)
        return home._replace(seeded=result.images, bad=(*bad, *result.bad)), None
    return home._replace(bad=bad), None


def _look(home: Home, found: Found, log: Log) -> Seeds:
    from cachedind import seeding

    root_fd = engine_root.open_root(home.lease.data_root, home.storage.remap)
    try:
        return Seeds(found, seeding.compare(found, root_fd, home.storage, log))
    finally:
        os.close(root_fd)


def _finish_interrupted(site: Site, home: Home) -> None:
    """The last start may have been killed between the last image and its promotion."""
    from cachedind import pool_start, seeding

    target = _target(home)
    if seeding.was_interrupted(target):
        if home.tenancy is not None:
            order = pool_start.make_order(site.settings, site.daemon)
            pool_start.promote_interrupted(home.tenancy, order, site.log)
        seeding.settle_interrupted(target)


def _target(home: Home) -> Target:
    from cachedind import seeding

    return seeding.Target(home.lease.data_root, home.storage, home.lease)


def _put_in(site: Site, home: Home, seeds: Seeds, *, may_move: bool) -> Result | None:
    from cachedind import pool_start, seeding

    target = _target(home)
    if seeding.is_hopeless(target):
        why = f"the last {seeding.MAX_ATTEMPTS} starts ended amid that"
        raise MaintenanceError(why, "see the logs of those starts; one without seeds makes the next one try again")
    bars = os.isatty(2) and not site.settings.log_json
    if home.tenancy is None:
        trace = Trace(site.settings.kill_at)
        return seeding.put_in(
            seeds.plan, seeds.found, target, environ=site.environ, log=site.log, bars=bars, trace=trace
        )
    order = pool_start.make_order(site.settings, site.daemon)
    return pool_start.seed(
        seeds.plan,
        seeds.found,
        target,
        home.tenancy,
        order,
        environ=site.environ,
        log=site.log,
        bars=bars,
        may_move=may_move,
    )


def _move_on(site: Site, home: Home) -> Home:
    from cachedind import pool_start

    assert home.tenancy is not None
    order = pool_start.make_order(site.settings, site.daemon)
    lease, tenancy = pool_start.move_on(home.tenancy, order, home.lease.data_root, site.log)
    return clean(site, settle(site, lease, tenancy))


def seed_late(site: Site, home: Home, seeds: Seeds, addresses: list[str]) -> None:
    """The witness's part: put the seeds in through the daemon that runs by now."""
    from cachedind import seeding

    result = seeding.put_in_running(seeds.plan, seeds.found, _target(home), addresses, site.log)
    seeding.report_bad(result.bad, site.log)
    site.log.info(f"{result.images} images of the seeds are there")
