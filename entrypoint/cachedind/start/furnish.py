"""Making what was leased fit for the job: look at it, choose store and driver, clean it, put the seeds in.

Where a slot of the pool turns out to be unfit, or another one to be better, the start moves on to that.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.base.errors import CleaningError, DaemonEnd, PoolUnusableError, PrivateDaemonError
from cachedind.base.model import Degradation
from cachedind.base.trace import Trace
from cachedind.dataroot import contents, decision, facts, trials
from cachedind.engine import directories, doubt, remapping
from cachedind.host import procfs

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.base.model import DataRootState, ExistingData, Remap, StoragePlan
    from cachedind.dataroot.facts import Place
    from cachedind.dataroot.lease import Lease
    from cachedind.engine.doubt import Doubt
    from cachedind.engine.mending import Result as MendingResult
    from cachedind.pool.slot_lease import Tenancy
    from cachedind.seeds.model import BadSeed
    from cachedind.seeds.planning import Plan
    from cachedind.seeds.seeding import Found, Result, Target
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


_MAX_MOVES = 3
"""How often a start moves on to another slot: to one that is whole before it takes an empty one, and to one that has
more of the seeds before it puts them in by itself."""


class Site(NamedTuple):
    """What a start was given: its settings, dockerd's arguments and files, the environment, and where it speaks."""

    settings: Config
    daemon: DaemonSettings
    environ: dict[str, str]
    log: Log


class Past(NamedTuple):
    """What of the pool this start has given up before the slot that it has now: how many, the ids of those that stay as
    they are and are not to be taken again, and what they say of this one."""

    moves: int = 0
    avoid: frozenset[str] = frozenset()
    doubt: Doubt | None = None


NOTHING_BEFORE = Past()


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
    past: Past = NOTHING_BEFORE


class Seeds(NamedTuple):
    """The seeds that the settings name, and what the data-root lacks of them."""

    found: Found
    plan: Plan


def settle(site: Site, lease: Lease, tenancy: Tenancy | None, past: Past = NOTHING_BEFORE) -> Home:
    """Look at what was leased, choose store and driver for it, and mend it if it needs that."""
    remap = decision.build_request(site.settings, site.daemon).userns_remap
    if tenancy is not None:
        odd = directories.find_odd_in(lease.data_root, remap.directory if remap else "")
        if odd is not None:
            why = f"{odd} is no directory: the last job has put something else in its place"
            return _move_elsewhere(site, lease, tenancy, why, past)
    place, existing, noted, lost_note = observe(lease, tenancy, site.log, remap)
    found = doubt.find(noted, procfs.read_boot_id(), lost_note=lost_note) or past.doubt
    storage = decide(site.settings, site.daemon, lease, tenancy, place, existing, site.log, found)
    return mend(site, Home(lease, tenancy, place, storage, past=past), noted, found)


def observe(
    lease: Lease, tenancy: Tenancy | None, log: Log, remap: Remap | None = None
) -> tuple[Place, ExistingData, DataRootState | None, bool]:
    """Look at the data-root, now that it is ours: where it is, what is in it, what its last start noted down, and
    whether there was such a note beside the data, and is lost."""
    lost_note = False
    try:
        noted = contents.read_data_root_state(lease.directory_fd, lease.state_name)
        if noted is None and tenancy is None:
            lost_note = contents.had_a_start(lease.directory_fd, lease.state_name, lease.previous)
    except (ValueError, OSError) as error:  # OSError: a link or a directory in its place
        aside = state.set_aside(lease.directory_fd, lease.state_name)
        path = f"{lease.data_root}/.cachedind/{lease.state_name}" if tenancy is None else lease.state_name
        log.warn(f"{path} is unreadable ({error}); it is now {aside}")
        noted, lost_note = None, True
    # First of all: in a driver's own directory, what a killed trial has left would pass for layers.
    if [
        name for directory in facts.probe_directories(lease.data_root) for name in trials.sweep_stale_probes(directory)
    ]:
        log.debug("removed what killed trials of a storage driver had left")
    place = facts.read_place(lease.data_root)
    existing = contents.read_existing(remapping.make(lease.data_root, remap), noted)
    found = [facts.check_room(place, fresh=not existing.pairs)]
    if tenancy is None:
        found.append(facts.persistence(place))
    for degradation in found:
        if degradation is not None:
            log.degraded(degradation)
    return place, existing, noted, lost_note and bool(existing.pairs)


def decide(
    settings: Config,
    daemon: DaemonSettings,
    lease: Lease,
    tenancy: Tenancy | None,
    place: Place,
    existing: ExistingData,
    log: Log,
    doubted: Doubt | None = None,
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
            "begun": tenancy.sequence,
            "read_only": tenancy.is_throwaway,
            "holder": facts.read_holder_of_now(time.time())._asdict(),
        }
        if not existing.pairs:
            more["asked"] = asked
    try:
        before = contents.read_data_root_state(lease.directory_fd, lease.state_name)
        state = contents.next_state(
            before,
            plan,
            engine=engine,
            fstype=place.fstype,
            boot_id=procfs.read_boot_id(),
            now=time.time(),
            doubt="" if doubted is None else doubted.why,
        )
        contents.write_data_root_state(lease.directory_fd, lease.state_name, state, more)
    except OSError as error:
        why = f"{lease.state_name} of {lease.data_root}: {error.strerror}"
        cost = "the next start has to guess the driver from the data"
        log.degraded(Degradation("the storage decision cannot be noted down", why, cost, "free space on the volume"))
    return plan


# ---- mending ---------------------------------------------------------------------------------------------------------


def mend(site: Site, home: Home, noted: DataRootState | None, doubted: Doubt | None) -> Home:
    """Make what was leased fit for a daemon, or move on to something that is. Costs a millisecond where all is well."""
    from cachedind.engine import aside, kept, mending

    lease, tenancy, log = home.lease, home.tenancy, site.log
    before = noted if tenancy is None else tenancy.found.data
    engines = (None if before is None else before.engine, facts.read_engine_version(site.settings.path))
    has_better = tenancy is not None and _has_other(site, tenancy)
    root_fd = remapping.open_root(lease.data_root, home.storage.remap)
    try:
        _tell_untold(root_fd, log)
        result = mending.mend(
            mending.Patient(lease.data_root, root_fd, home.storage, lease.fd, engines),
            doubted,
            has_better=has_better,
            in_pool=tenancy is not None,
            strict=site.settings.strict,
            environ=site.environ,
            trace=Trace(site.settings.kill_at),
        )
        if result.fit and not result.left:
            kept.keep_copies(root_fd, home.storage)
        goes_on = tenancy is None or result.refused or (result.fit and not (result.unproven and has_better))
        if goes_on:
            _tell(_named(result, home.storage.remap), doubted, in_pool=tenancy is not None, log=log)
            aside.note_told(root_fd, [one.name for one in result.moved])
    except OSError as error:
        result = mending.Result(False, why=f"what is damaged cannot be moved: {error.strerror or error}")
        goes_on = not has_better
        if goes_on:
            mend = f"free space on the volume, or take away what is in the way in {lease.data_root}/{aside.HOME}"
            log.degraded(Degradation("damage", result.why, "the daemon may not come up on it", mend))
    finally:
        os.close(root_fd)
    if not goes_on and tenancy is not None:
        if result.fit:
            return _pass_over(site, home, f"could not be proven: {result.unproven}")
        return _move_elsewhere(site, lease, tenancy, result.why, home.past)
    if result.fit and doubted is not None:
        _note_doubt(home, doubt.UNPROVEN if result.unproven else "", log)
    return home


def _named(result: MendingResult, remap: Remap | None) -> MendingResult:
    """With names as people find them from the data-root."""
    below = f"{remap.directory}/" if remap else ""
    return result._replace(moved=tuple(one._replace(name=f"{below}{one.name}") for one in result.moved))


def _tell_untold(root_fd: int, log: Log) -> None:
    """A start that moved things away was killed before it could say so, or could not move all of them."""
    from cachedind.engine import aside

    untold = [one for one in aside.read(root_fd) if not one.told]
    for one in untold:
        log.warn(
            f"an earlier start ended while it moved {_shown(one.paths)} away ({one.why}): what of it is gone from "
            f"there is in {one.name}; cachedind doctor tells how to put it back, or drop it"
        )
    aside.note_told(root_fd, [one.name for one in untold])


def _shown(paths: tuple[str, ...]) -> str:
    return ", ".join(paths[:3]) + ", …" * (len(paths) > 3)


def _note_doubt(home: Home, reason: str, log: Log) -> None:
    try:
        contents.note_doubt(home.lease.directory_fd, home.lease.state_name, reason)
    except (OSError, ValueError) as error:
        log.warn(f"that the data were looked at cannot be noted down: {error}; the next start looks again")


def _has_other(site: Site, tenancy: Tenancy) -> bool:
    from cachedind.pool import slot_lease
    from cachedind.pool.slot_lease import Warmth
    from cachedind.start import pool_mode

    if tenancy.warmth is Warmth.FRESH:
        return False
    return slot_lease.has_other(tenancy, pool_mode.make_order(site.settings, site.daemon))


def _move_elsewhere(site: Site, lease: Lease, tenancy: Tenancy, why: str, past: Past) -> Home:
    """Set a slot aside that was proven bad, with the golden that is byte for byte the same, and take what is next best,
    which has to be proven; an empty one after several."""
    from cachedind.start import pool_mode

    past = past._replace(moves=past.moves + 1, doubt=doubt.Doubt(doubt.SAME_STATE))
    fresh = past.moves > _MAX_MOVES
    order = pool_mode.make_order(site.settings, site.daemon)._replace(fresh=fresh, avoid=past.avoid)
    lease, tenancy = pool_mode.move_elsewhere(tenancy, order, lease.data_root, why, site.log)
    return settle(site, lease, tenancy, past)


def _pass_over(site: Site, home: Home, why: str) -> Home:
    """Leave a slot as it was that this start cannot use, and that was not proven bad, and take what is next best. When
    that is no better, an empty one, which goes with this job: it must not come before what stays."""
    from cachedind.start import pool_mode

    assert home.tenancy is not None
    slot_id = home.tenancy.slot.id
    past = Past(home.past.moves + 1, home.past.avoid | {slot_id})
    fresh = past.moves > 1
    order = pool_mode.make_order(site.settings, site.daemon)._replace(fresh=fresh, avoid=past.avoid)
    order = order._replace(read_only=order.read_only or fresh)
    what = "an empty one, for this job alone" if fresh else "another"
    site.log.warn(f"slot {slot_id} {why}; it stays as it is, and this start takes {what}")
    lease, tenancy = pool_mode.move_on(home.tenancy, order, home.lease.data_root, site.log)
    return settle(site, lease, tenancy, past)


def _tell(result: MendingResult, doubted: Doubt | None, *, in_pool: bool, log: Log) -> None:
    if result.unproven:
        log.warn(f"the data could not be proven, and are used as they are: {result.unproven}")
    if result.left:
        log.warn(
            f"some of the data is damaged: {result.left}; it is left as it is, as a daemon comes up on it. If builds "
            "or images fail: remove the images, and have them pulled, loaded or built again; docker builder prune"
        )
    if result.unchecked:
        log.warn(
            f"after a crash of the host files of layers may be empty; not looked at: {'; '.join(result.unchecked)}. "
            "If something built from them is wrong: docker builder prune, or pull the image again"
        )
    is_fine = result.fit and not (result.unproven or result.left)
    if result.loss is None and doubted is not None and is_fine:
        log.info(f"{doubted.why}: it was looked at closely, and a private daemon came up on it")
    if result.loss is None and result.fit:
        return
    what = "the data was damaged, and is mended" if result.fit else "the data is damaged, and could not be mended"
    if result.refused:
        what = "the data is damaged, and nothing of it was changed"
    places = ", ".join(f"{moved.name} ({_shown(moved.paths)})" for moved in result.moved)
    mend = f"what was moved away is in {places}" if places else "a start without CACHEDIND_STRICT mends it"
    if result.rewritten:
        rewritten = f"{result.rewritten} files were written again from the images' packed layers"
        mend = f"{rewritten}; {mend}" if places else rewritten
    if places and not in_pool:
        mend += "; cachedind doctor tells how to put it back, or drop it"
    log.degraded(Degradation(what, result.why, result.cost, mend))


# ---- cleaning --------------------------------------------------------------------------------------------------------


def clean(site: Site, home: Home) -> Home:
    """Have a slot without the last job's leftovers: this one, cleaned, or else another."""
    from cachedind.start import pool_mode

    while home.tenancy is not None and home.past.moves <= _MAX_MOVES + 1:
        try:
            cleaned = pool_mode.clean(site.settings, site.environ, home.storage, home.lease, home.tenancy, site.log)
        except CleaningError as error:
            home = _leave_uncleaned(site, home, error)
            continue
        return home._replace(cache_max_bytes=cleaned.cache_limit_bytes)
    return home


def _leave_uncleaned(site: Site, home: Home, error: CleaningError) -> Home:
    """Only a private daemon that ended by itself, where another comes up on an empty directory, makes a slot bad."""
    from cachedind.engine import mending

    assert home.tenancy is not None
    why = f"still has what the last job left: {error.cause}"
    by_itself = isinstance(error, PrivateDaemonError) and error.end is DaemonEnd.BY_ITSELF
    if by_itself:
        root_fd = remapping.open_root(home.lease.data_root, home.storage.remap)
        try:
            patient = mending.Patient(home.lease.data_root, root_fd, home.storage, home.lease.fd)
            if mending.is_to_blame(patient, site.environ):
                return _move_elsewhere(site, home.lease, home.tenancy, why, home.past)
        finally:
            os.close(root_fd)
    return _pass_over(site, home, why)


# ---- seeds -----------------------------------------------------------------------------------------------------------


def seed(site: Site, home: Home) -> tuple[Home, Seeds | None]:
    """Put in what is missing, or say what is to be put in when the daemon runs (CACHEDIND_SEED_WHEN=after).

    Whatever is wrong with a seed costs its images, and nothing else. Raises StrictError instead with CACHEDIND_STRICT.
    """
    from cachedind.seeds import seeding

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
        except (CleaningError, PoolUnusableError) as error:
            cost = "the images of the seeds are not there"
            site.log.degraded(Degradation("no seeds are put in", error.cause, cost, error.hint))
            break
        seeding.report_bad(result.bad, site.log)
        return home._replace(seeded=result.images, bad=(*bad, *result.bad)), None
    return home._replace(bad=bad), None


def _look(home: Home, found: Found, log: Log) -> Seeds:
    from cachedind.seeds import seeding

    root_fd = remapping.open_root(home.lease.data_root, home.storage.remap)
    try:
        return Seeds(found, seeding.compare(found, root_fd, home.storage, log))
    finally:
        os.close(root_fd)


def _finish_interrupted(site: Site, home: Home) -> None:
    """The last start may have been killed between the last image and its promotion."""
    from cachedind.seeds import seeding
    from cachedind.start import pool_mode

    target = _target(home)
    if seeding.was_interrupted(target):
        if home.tenancy is not None:
            order = pool_mode.make_order(site.settings, site.daemon)
            pool_mode.promote_interrupted(home.tenancy, order, site.log)
        seeding.settle_interrupted(target)


def _target(home: Home) -> Target:
    from cachedind.seeds import seeding

    return seeding.Target(home.lease.data_root, home.storage, home.lease)


def _put_in(site: Site, home: Home, seeds: Seeds, *, may_move: bool) -> Result | None:
    from cachedind.seeds import seeding
    from cachedind.start import pool_mode

    target = _target(home)
    if seeding.is_hopeless(target):
        why = f"the last {seeding.MAX_ATTEMPTS} starts ended amid that"
        raise CleaningError(why, "see the logs of those starts; one without seeds makes the next one try again")
    bars = os.isatty(2) and not site.settings.log_json
    if home.tenancy is None:
        trace = Trace(site.settings.kill_at)
        return seeding.put_in(
            seeds.plan, seeds.found, target, environ=site.environ, log=site.log, bars=bars, trace=trace
        )
    order = pool_mode.make_order(site.settings, site.daemon)
    return pool_mode.seed(
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
    from cachedind.start import pool_mode

    assert home.tenancy is not None
    order = pool_mode.make_order(site.settings, site.daemon)._replace(avoid=home.past.avoid)
    lease, tenancy = pool_mode.move_on(home.tenancy, order, home.lease.data_root, site.log)
    return clean(site, settle(site, lease, tenancy, Past(avoid=home.past.avoid)))


def seed_late(site: Site, home: Home, seeds: Seeds, addresses: list[str]) -> None:
    """The witness's part: put the seeds in through the daemon that runs by now."""
    from cachedind.seeds import seeding

    result = seeding.put_in_running(seeds.plan, seeds.found, _target(home), addresses, site.log)
    seeding.report_bad(result.bad, site.log)
    site.log.info(f"{result.images} images of the seeds are there")
