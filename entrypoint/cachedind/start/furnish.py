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
    from cachedind.engine.mending import Mended
    from cachedind.pool.slot_lease import TakenSlot
    from cachedind.seeds.model import BadSeed
    from cachedind.seeds.planning import Plan
    from cachedind.seeds.seeding import Found, PutIn, Target
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


_MAX_MOVES = 3
"""How often a start moves on to another slot: to one that is whole before it takes an empty one, and to one that has
more of the seeds before it puts them in by itself."""


class StartContext(NamedTuple):
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


class Prepared(NamedTuple):
    """A leased data-root and what was decided for it. `seeded` counts the images that this start put in, `bad` are the
    seeds that are not there, `cache_max_bytes` is what the build cache has to be kept to in any case."""

    lease: Lease
    taken: TakenSlot | None
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


def settle(context: StartContext, lease: Lease, taken: TakenSlot | None, past: Past = NOTHING_BEFORE) -> Prepared:
    """Look at what was leased, choose store and driver for it, and mend it if it needs that."""
    remap = decision.build_request(context.settings, context.daemon).userns_remap
    if taken is not None:
        odd = directories.find_odd_in(lease.data_root, remap.directory if remap else "")
        if odd is not None:
            why = f"{odd} is no directory: the last job has put something else in its place"
            return _move_elsewhere(context, lease, taken, why, past)
    place, existing, noted, lost_note = observe(lease, taken, context.log, remap)
    found = doubt.find(noted, procfs.read_boot_id(), lost_note=lost_note) or past.doubt
    storage = decide(context.settings, context.daemon, lease, taken, place, existing, context.log, found)
    return mend(context, Prepared(lease, taken, place, storage, past=past), noted, found)


def observe(
    lease: Lease, taken: TakenSlot | None, log: Log, remap: Remap | None = None
) -> tuple[Place, ExistingData, DataRootState | None, bool]:
    """Look at the data-root, now that it is ours: where it is, what is in it, what its last start noted down, and
    whether there was such a note beside the data, and is lost."""
    lost_note = False
    try:
        noted = contents.read_data_root_state(lease.directory_fd, lease.state_name)
        if noted is None and taken is None:
            lost_note = contents.had_a_start(lease.directory_fd, lease.state_name, lease.previous)
    except (ValueError, OSError) as error:  # OSError: a link or a directory in its place
        aside = state.set_aside(lease.directory_fd, lease.state_name)
        path = f"{lease.data_root}/.cachedind/{lease.state_name}" if taken is None else lease.state_name
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
    if taken is None:
        found.append(facts.persistence(place))
    for degradation in found:
        if degradation is not None:
            log.degraded(degradation)
    return place, existing, noted, lost_note and bool(existing.pairs)


def decide(
    settings: Config,
    daemon: DaemonSettings,
    lease: Lease,
    taken: TakenSlot | None,
    place: Place,
    existing: ExistingData,
    log: Log,
    doubted: Doubt | None = None,
) -> StoragePlan:
    """Choose store and driver, say what was passed over, and note the decision and this start down."""
    request = decision.build_request(settings, daemon, in_pool=taken is not None)
    engine = facts.read_engine_version(settings.path)
    plan, asked = decision.decide(lease.data_root, place.fstype, engine, existing, request)
    for note in plan.notes:
        log.warn(note)
    for degradation in plan.degradations:
        log.degraded(degradation)
    more: dict[str, object] = {}
    if taken is not None:
        decision.check_driver_in_pool(plan)
        more = {
            "arch": os.uname().machine,
            "begun": taken.sequence,
            "read_only": taken.is_throwaway,
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


def mend(context: StartContext, prepared: Prepared, noted: DataRootState | None, doubted: Doubt | None) -> Prepared:
    """Make what was leased fit for a daemon, or move on to something that is. Costs a millisecond where all is well."""
    from cachedind.engine import aside, kept, mending, proof

    lease, taken, log = prepared.lease, prepared.taken, context.log
    before = noted if taken is None else taken.found.data
    engines = (None if before is None else before.engine, facts.read_engine_version(context.settings.path))
    has_better = taken is not None and _has_other(context, taken)
    root_fd = remapping.open_root(lease.data_root, prepared.storage.remap)
    try:
        _tell_untold(root_fd, log)
        result = mending.mend(
            proof.Subject(lease.data_root, root_fd, prepared.storage, lease.fd, engines),
            doubted,
            has_better=has_better,
            in_pool=taken is not None,
            strict=context.settings.strict,
            environ=context.environ,
            trace=Trace(context.settings.kill_at),
        )
        if result.fit and not result.left:
            kept.keep_copies(root_fd, prepared.storage)
        goes_on = taken is None or result.refused or (result.fit and not (result.unproven and has_better))
        if goes_on:
            _tell(_named(result, prepared.storage.remap), doubted, in_pool=taken is not None, log=log)
            aside.note_told(root_fd, [one.name for one in result.moved])
    except OSError as error:
        result = mending.Mended(False, why=f"what is damaged cannot be moved: {error.strerror or error}")
        goes_on = not has_better
        if goes_on:
            mend = f"free space on the volume, or take away what is in the way in {lease.data_root}/{aside.HOME}"
            log.degraded(Degradation("damage", result.why, "the daemon may not come up on it", mend))
    finally:
        os.close(root_fd)
    if not goes_on and taken is not None:
        if result.fit:
            return _pass_over(context, prepared, f"could not be proven: {result.unproven}")
        return _move_elsewhere(context, lease, taken, result.why, prepared.past)
    if result.fit and doubted is not None:
        _note_doubt(prepared, doubt.UNPROVEN if result.unproven else "", log)
    return prepared


def _named(result: Mended, remap: Remap | None) -> Mended:
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


def _note_doubt(prepared: Prepared, reason: str, log: Log) -> None:
    try:
        contents.note_doubt(prepared.lease.directory_fd, prepared.lease.state_name, reason)
    except (OSError, ValueError) as error:
        log.warn(f"that the data were looked at cannot be noted down: {error}; the next start looks again")


def _has_other(context: StartContext, taken: TakenSlot) -> bool:
    from cachedind.pool import slot_lease
    from cachedind.pool.slot_lease import Warmth
    from cachedind.start import pool_mode

    if taken.warmth is Warmth.FRESH:
        return False
    return slot_lease.has_other(taken, pool_mode.make_slot_request(context.settings, context.daemon))


def _move_elsewhere(context: StartContext, lease: Lease, taken: TakenSlot, why: str, past: Past) -> Prepared:
    """Set a slot aside that was proven bad, with the golden that is byte for byte the same, and take what is next best,
    which has to be proven; an empty one after several."""
    from cachedind.start import pool_mode

    past = past._replace(moves=past.moves + 1, doubt=doubt.Doubt(doubt.SAME_STATE))
    fresh = past.moves > _MAX_MOVES
    slot_request = pool_mode.make_slot_request(context.settings, context.daemon)._replace(fresh=fresh, avoid=past.avoid)
    lease, taken = pool_mode.move_elsewhere(taken, slot_request, lease.data_root, why, context.log)
    return settle(context, lease, taken, past)


def _pass_over(context: StartContext, prepared: Prepared, why: str) -> Prepared:
    """Leave a slot as it was that this start cannot use, and that was not proven bad, and take what is next best. When
    that is no better, an empty one, which goes with this job: it must not come before what stays."""
    from cachedind.start import pool_mode

    assert prepared.taken is not None
    slot_id = prepared.taken.slot.id
    past = Past(prepared.past.moves + 1, prepared.past.avoid | {slot_id})
    fresh = past.moves > 1
    slot_request = pool_mode.make_slot_request(context.settings, context.daemon)._replace(fresh=fresh, avoid=past.avoid)
    slot_request = slot_request._replace(read_only=slot_request.read_only or fresh)
    what = "an empty one, for this job alone" if fresh else "another"
    context.log.warn(f"slot {slot_id} {why}; it stays as it is, and this start takes {what}")
    lease, taken = pool_mode.move_on(prepared.taken, slot_request, prepared.lease.data_root, context.log)
    return settle(context, lease, taken, past)


def _tell(result: Mended, doubted: Doubt | None, *, in_pool: bool, log: Log) -> None:
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


def clean(context: StartContext, prepared: Prepared) -> Prepared:
    """Have a slot without the last job's leftovers: this one, cleaned, or else another."""
    from cachedind.start import pool_mode

    while prepared.taken is not None and prepared.past.moves <= _MAX_MOVES + 1:
        try:
            cleaned = pool_mode.clean(
                context.settings, context.environ, prepared.storage, prepared.lease, prepared.taken, context.log
            )
        except CleaningError as error:
            prepared = _leave_uncleaned(context, prepared, error)
            continue
        return prepared._replace(cache_max_bytes=cleaned.cache_limit_bytes)
    return prepared


def _leave_uncleaned(context: StartContext, prepared: Prepared, error: CleaningError) -> Prepared:
    """Only a private daemon that ended by itself, where another comes up on an empty directory, makes a slot bad."""
    from cachedind.engine import proof

    assert prepared.taken is not None
    why = f"still has what the last job left: {error.cause}"
    by_itself = isinstance(error, PrivateDaemonError) and error.end is DaemonEnd.BY_ITSELF
    if by_itself:
        root_fd = remapping.open_root(prepared.lease.data_root, prepared.storage.remap)
        try:
            subject = proof.Subject(prepared.lease.data_root, root_fd, prepared.storage, prepared.lease.fd)
            if proof.is_to_blame(subject, context.environ):
                return _move_elsewhere(context, prepared.lease, prepared.taken, why, prepared.past)
        finally:
            os.close(root_fd)
    return _pass_over(context, prepared, why)


# ---- seeds -----------------------------------------------------------------------------------------------------------


def seed(context: StartContext, prepared: Prepared) -> tuple[Prepared, Seeds | None]:
    """Put in what is missing, or say what is to be put in when the daemon runs (CACHEDIND_SEED_WHEN=after).

    Whatever is wrong with a seed costs its images, and nothing else. Raises StrictError instead with CACHEDIND_STRICT.
    """
    from cachedind.seeds import seeding

    found = seeding.find(context.settings)
    seeds = _look(prepared, found, context.log)
    bad = (*found.bad, *seeds.plan.bad)
    seeding.report_bad(bad, context.log)
    for moves in range(_MAX_MOVES + 1):
        if not seeds.plan.missing:
            _finish_interrupted(context, prepared)
            return prepared._replace(bad=bad), None
        if context.settings.seed_after:
            return prepared._replace(bad=bad), seeds
        try:
            result = _put_in(context, prepared, seeds, may_move=moves < _MAX_MOVES)
            if result is None:
                prepared = _move_on(context, prepared)
                seeds = _look(prepared, found, context.log)
                continue
        except (CleaningError, PoolUnusableError) as error:
            cost = "the images of the seeds are not there"
            context.log.degraded(Degradation("no seeds are put in", error.cause, cost, error.hint))
            break
        seeding.report_bad(result.bad, context.log)
        return prepared._replace(seeded=result.images, bad=(*bad, *result.bad)), None
    return prepared._replace(bad=bad), None


def _look(prepared: Prepared, found: Found, log: Log) -> Seeds:
    from cachedind.seeds import seeding

    root_fd = remapping.open_root(prepared.lease.data_root, prepared.storage.remap)
    try:
        return Seeds(found, seeding.compare(found, root_fd, prepared.storage, log))
    finally:
        os.close(root_fd)


def _finish_interrupted(context: StartContext, prepared: Prepared) -> None:
    """The last start may have been killed between the last image and its promotion."""
    from cachedind.seeds import seeding
    from cachedind.start import pool_mode

    target = _target(prepared)
    if seeding.was_interrupted(target):
        if prepared.taken is not None:
            slot_request = pool_mode.make_slot_request(context.settings, context.daemon)
            pool_mode.promote_interrupted(prepared.taken, slot_request, context.log)
        seeding.settle_interrupted(target)


def _target(prepared: Prepared) -> Target:
    from cachedind.seeds import seeding

    return seeding.Target(prepared.lease.data_root, prepared.storage, prepared.lease)


def _put_in(context: StartContext, prepared: Prepared, seeds: Seeds, *, may_move: bool) -> PutIn | None:
    from cachedind.seeds import seeding
    from cachedind.start import pool_mode

    target = _target(prepared)
    if seeding.is_hopeless(target):
        why = f"the last {seeding.MAX_ATTEMPTS} starts ended amid that"
        raise CleaningError(why, "see the logs of those starts; one without seeds makes the next one try again")
    bars = os.isatty(2) and not context.settings.log_json
    if prepared.taken is None:
        trace = Trace(context.settings.kill_at)
        return seeding.put_in(
            seeds.plan, seeds.found, target, environ=context.environ, log=context.log, bars=bars, trace=trace
        )
    slot_request = pool_mode.make_slot_request(context.settings, context.daemon)
    return pool_mode.seed(
        seeds.plan,
        seeds.found,
        target,
        prepared.taken,
        slot_request,
        environ=context.environ,
        log=context.log,
        bars=bars,
        may_move=may_move,
    )


def _move_on(context: StartContext, prepared: Prepared) -> Prepared:
    from cachedind.start import pool_mode

    assert prepared.taken is not None
    slot_request = pool_mode.make_slot_request(context.settings, context.daemon)._replace(avoid=prepared.past.avoid)
    lease, taken = pool_mode.move_on(prepared.taken, slot_request, prepared.lease.data_root, context.log)
    return clean(context, settle(context, lease, taken, Past(avoid=prepared.past.avoid)))


def seed_late(context: StartContext, prepared: Prepared, seeds: Seeds, addresses: list[str]) -> None:
    """The witness's part: put the seeds in through the daemon that runs by now."""
    from cachedind.seeds import seeding

    result = seeding.put_in_running(seeds.plan, seeds.found, _target(prepared), addresses, context.log)
    seeding.report_bad(result.bad, context.log)
    context.log.info(f"{result.images} images of the seeds are there")
