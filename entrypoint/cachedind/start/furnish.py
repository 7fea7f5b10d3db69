"""Making what was leased fit for the job: look at it, choose store and driver, mend it, clean it.

Where a slot of the pool turns out to be unfit, or another one to be better, the start moves on to that.
"""

from __future__ import annotations

import os

from cachedind.base.errors import CleaningError, DaemonEnd, PrivateDaemonError
from cachedind.base.model import Degradation
from cachedind.base.trace import Trace
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot import contents, decision, facts
from cachedind.engine import directories, doubt, remapping
from cachedind.host import procfs
from cachedind.start import damage_report, storage_plan
from cachedind.start.context import NOTHING_BEFORE, Past, Prepared

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.base.model import DataRootState
    from cachedind.dataroot.lease import Lease
    from cachedind.engine.doubt import Doubt
    from cachedind.pool.slot_request import TakenSlot
    from cachedind.seeds.seeding import Found
    from cachedind.start.context import StartContext
    from cachedind.start.summary import Stopwatch


MAX_MOVES = 3
"""How often a start moves on to another slot: to one that is whole before it takes an empty one, and to one that has
more of the seeds before it puts them in by itself."""


def settle(context: StartContext, lease: Lease, taken: TakenSlot | None, past: Past = NOTHING_BEFORE) -> Prepared:
    """Look at what was leased, choose store and driver for it, and mend it if it needs that."""
    remap = decision.build_request(context.settings, context.daemon).userns_remap
    if taken is not None:
        odd = directories.find_odd_in(lease.data_root, remap.directory if remap else "")
        if odd is not None:
            why = f"{odd} is not a directory: the last job put something else in its place"
            return _move_elsewhere(context, lease, taken, why, past)
    place, existing, noted, lost_note = storage_plan.observe(lease, taken, context.log, remap)
    found = doubt.find(noted, procfs.read_boot_id(), lost_note=lost_note) or past.doubt
    storage = storage_plan.decide(
        context.settings, context.daemon, lease, taken, place, existing, context.log, found, noted
    )
    return mend(context, Prepared(lease, taken, place, storage, past=past), noted, found)


def mend(context: StartContext, prepared: Prepared, noted: DataRootState | None, doubted: Doubt | None) -> Prepared:
    """Mend what was leased where it is damaged, or move on to another slot. Costs a millisecond where all is well."""
    from cachedind.engine import aside, kept, mending, proof

    lease, taken, log = prepared.lease, prepared.taken, context.log
    before = noted if taken is None else taken.found.data
    engines = (None if before is None else before.engine, facts.read_engine_version(context.settings.path))
    has_better = taken is not None and _has_other(context, taken)
    root_fd = remapping.open_root(lease.data_root, prepared.storage.remap)
    try:
        damage_report.tell_untold(root_fd, log)
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
            damage_report.tell(result, prepared.storage.remap, doubted, in_pool=taken is not None, log=log)
            aside.note_told(root_fd, [one.name for one in result.moved])
    except OSError as error:
        result = mending.Mended(False, why=f"what is damaged cannot be moved: {error.strerror or error}")
        goes_on = not has_better
        if goes_on:
            hint = (
                f"free space on the volume, or take away what is in the way in {lease.data_root}/{aside.OWN_DIRECTORY}"
            )
            log.degraded(Degradation("damage", result.why, "the daemon may not come up on it", hint))
    finally:
        os.close(root_fd)
    if not goes_on and taken is not None:
        if result.fit:
            return _pass_over(context, prepared, f"could not be proven: {result.unproven}")
        return _move_elsewhere(context, lease, taken, result.why, prepared.past)
    if result.fit and doubted is not None:
        left = doubt.after_a_look(doubted, late=result.late, unproven=bool(result.unproven))
        _note_doubt(prepared, left, log)
    return prepared


def _note_doubt(prepared: Prepared, reason: str, log: Log) -> None:
    try:
        contents.note_doubt(prepared.lease.directory_fd, prepared.lease.state_name, reason)
    except (OSError, ValueError) as error:
        log.warn(f"cannot note down that the data was checked: {error}; the next start checks it again")


def clean(context: StartContext, prepared: Prepared, seeds: Found | None, stopwatch: Stopwatch) -> Prepared:
    """Remove the last job's leftovers from the slot, all but `seeds`, or move on to another one; and make it the
    golden, where that is due."""
    from cachedind.start import pool_cleaning, pool_mode

    while (taken := prepared.taken) is not None and prepared.past.moves <= MAX_MOVES + 1:
        try:
            cleaned = pool_cleaning.clean(context, prepared.storage, prepared.lease, taken, seeds)
        except CleaningError as error:
            prepared = _leave_uncleaned(context, prepared, error)
            continue
        if cleaned.kept:
            # Its containers and volumes are nobody else's, and copying them takes as long as they are large.
            taken = taken.without_turn()
        if cleaned.hidden:
            _keep_copies_anew(prepared)
        stopwatch.lap("maintain")
        was_changed = bool(cleaned.removed) or cleaned.by_engine
        if taken.turn_fd is not None:
            taken = pool_mode.promote_due(taken, prepared.lease, cleaned=was_changed, log=context.log)
            stopwatch.lap("promote")
        return prepared._replace(taken=taken, cache_max_bytes=cleaned.cache_limit_bytes)
    return prepared if taken is None else prepared._replace(taken=taken.without_turn())


def _keep_copies_anew(prepared: Prepared) -> None:
    """The names of the last job's images are not to come back from a copy."""
    from cachedind.engine import kept

    root_fd = remapping.open_root(prepared.lease.data_root, prepared.storage.remap)
    try:
        kept.keep_copies(root_fd, prepared.storage)
    finally:
        os.close(root_fd)


def _leave_uncleaned(context: StartContext, prepared: Prepared, error: CleaningError) -> Prepared:
    """Only a private daemon that ended by itself, where another comes up on an empty directory, makes a slot bad."""
    from cachedind.engine import proof

    assert prepared.taken is not None
    why = f"still has leftovers of the last job: {error.cause}"
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


# ---- moving on to another slot ---------------------------------------------------------------------------------------


def _has_other(context: StartContext, taken: TakenSlot) -> bool:
    from cachedind.pool import slot_lease
    from cachedind.pool.slot_request import Warmth
    from cachedind.start import pool_mode

    if taken.warmth is Warmth.FRESH:
        return False
    return slot_lease.has_other(taken, pool_mode.make_slot_request(context.settings, context.daemon))


def _move_elsewhere(context: StartContext, lease: Lease, taken: TakenSlot, why: str, past: Past) -> Prepared:
    """Set a slot aside that was proven bad, with the golden that is byte for byte the same, and take the next best one,
    which has to be proven; after several of them an empty one."""
    from cachedind.start import pool_mode

    past = past._replace(moves=past.moves + 1, doubt=doubt.Doubt(doubt.SAME_STATE))
    fresh = past.moves > MAX_MOVES
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
