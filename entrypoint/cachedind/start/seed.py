"""The seeds of a start: what the data-root lacks of them is put in before the daemon runs, or late, through it."""

from __future__ import annotations

import os

from cachedind.base.errors import CleaningError, PoolUnusableError
from cachedind.base.model import Degradation
from cachedind.base.trace import Trace
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import remapping
from cachedind.seeds import attempts, seeding
from cachedind.start import furnish, pool_mode, pool_seeding
from cachedind.start.context import Past
from cachedind.start.summary import Stopwatch

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.seeds.planning import Plan
    from cachedind.seeds.seeding import Found, PutIn, Target
    from cachedind.start.context import Prepared, StartContext


class Seeds(NamedTuple):
    """The seeds that the settings name, and what the data-root lacks of them."""

    found: Found
    plan: Plan


def put_in_missing(context: StartContext, prepared: Prepared, found: Found) -> tuple[Prepared, Seeds | None]:
    """Put in what is missing, or say what is to be put in when the daemon runs (CACHEDIND_SEED_WHEN=after).

    Whatever is wrong with a seed costs its images, and nothing else. Raises StrictError instead with CACHEDIND_STRICT,
    PoolUnusableError where the slot was given back and no other can be had.
    """
    seeds = _look(prepared, found, context.log)
    bad = (*found.bad, *seeds.plan.bad)
    seeding.report_bad(bad, context.log)
    for moves in range(furnish.MAX_MOVES + 1):
        if not seeds.plan.missing:
            _finish_interrupted(context, prepared)
            return prepared._replace(bad=bad), None
        if context.settings.seed_after:
            return prepared._replace(bad=bad), seeds
        try:
            result = _put_in(context, prepared, seeds, may_move=moves < furnish.MAX_MOVES)
        except (CleaningError, PoolUnusableError) as error:
            cost = "the images of the seeds are missing"
            context.log.degraded(Degradation("no seeds are put in", error.cause, cost, error.hint))
            break
        except OSError as error:
            cost = "the images of the seeds are not there"
            why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            context.log.degraded(
                Degradation("no seeds are put in", why, cost, "check the disk, its space and its mode")
            )
            break
        if result is None:
            prepared = _move_on(context, prepared, found)
            seeds = _look(prepared, found, context.log)
            continue
        seeding.report_bad(result.bad, context.log)
        return prepared._replace(seeded=result.images, bad=(*bad, *result.bad)), None
    return prepared._replace(bad=bad), None


def _look(prepared: Prepared, found: Found, log: Log) -> Seeds:
    root_fd = remapping.open_root(prepared.lease.data_root, prepared.storage.remap)
    try:
        return Seeds(found, seeding.compare(found, root_fd, prepared.storage, log))
    finally:
        os.close(root_fd)


def _finish_interrupted(context: StartContext, prepared: Prepared) -> None:
    """The last start may have been killed between the last image and its promotion."""
    if attempts.was_interrupted(prepared.lease):
        if prepared.taken is not None:
            slot_request = pool_mode.make_slot_request(context.settings, context.daemon)
            pool_seeding.promote_interrupted(prepared.taken, slot_request, context.log)
        attempts.mark(prepared.lease, 0)


def _target(prepared: Prepared) -> Target:
    return seeding.Target(prepared.lease.data_root, prepared.storage, prepared.lease)


def _put_in(context: StartContext, prepared: Prepared, seeds: Seeds, *, may_move: bool) -> PutIn | None:
    target = _target(prepared)
    if attempts.is_hopeless(prepared.lease):
        why = f"the last {attempts.MAX_ATTEMPTS} starts ended while they put seeds in"
        raise CleaningError(why, "see the logs of those starts; after one start without seeds the next one tries again")
    bars = os.isatty(2) and not context.settings.log_json
    if prepared.taken is None:
        trace = Trace(context.settings.kill_at)
        return seeding.put_in(
            seeds.plan, seeds.found, target, environ=context.environ, log=context.log, bars=bars, trace=trace
        )
    slot_request = pool_mode.make_slot_request(context.settings, context.daemon)
    return pool_seeding.seed(
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


def _move_on(context: StartContext, prepared: Prepared, found: Found) -> Prepared:
    assert prepared.taken is not None
    slot_request = pool_mode.make_slot_request(context.settings, context.daemon)._replace(avoid=prepared.past.avoid)
    lease, taken = pool_mode.move_on(prepared.taken, slot_request, prepared.lease.data_root, context.log)
    settled = furnish.settle(context, lease, taken, Past(avoid=prepared.past.avoid))
    return furnish.clean(context, settled, found, Stopwatch())


def put_in_late(context: StartContext, prepared: Prepared, seeds: Seeds, addresses: list[str]) -> None:
    """The witness's part: put the seeds in through the daemon that runs by now."""
    result = seeding.put_in_running(seeds.plan, seeds.found, _target(prepared), addresses, context.log)
    seeding.report_bad(result.bad, context.log)
    context.log.info(f"{result.images} images of the seeds are there")
