"""Seeds in a pool: put in once for all instances, and in a golden from then on."""

from __future__ import annotations

import functools

from cachedind.base.errors import PoolUnusableError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.pool import clone

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.pool.slot_request import SlotRequest, TakenSlot
    from cachedind.seeds.planning import Plan
    from cachedind.seeds.seeding import Found, PutIn, Target


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
