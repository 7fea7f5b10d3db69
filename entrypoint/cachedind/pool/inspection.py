"""What of a key a start can use: what cannot be understood or was tampered with is set aside. Needs the key's lock."""

from __future__ import annotations

import os
import time

from cachedind.base.model import Degradation
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import in_use
from cachedind.pool import choice, clone, golden, key_directory, scopes, slots, staging
from cachedind.pool.slot_state import Candidate, Kind, SlotState

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_request import SlotRequest
    from cachedind.pool.slots import Slot


def survey(pool: Pool, key_fd: int, slot_request: SlotRequest, log: Log) -> list[Candidate]:
    """What the key has, and this start has not passed over. What cannot be understood is set aside."""
    candidates, bad = key_directory.read_candidates(key_fd)
    for name, why in bad:
        set_aside(pool, key_fd, name, why, log)
    return [candidate for candidate in candidates if candidate.name.removeprefix("slots/") not in slot_request.avoid]


def set_aside(pool: Pool, key_fd: int, name: str, why: str, log: Log) -> bool:
    """Set a bad slot or golden aside, unless somebody holds it. With CACHEDIND_STRICT it stays, and the start ends."""
    if name.startswith("slots/"):
        try:
            slot = slots.try_lease(key_fd, name)
        except slots.BadSlotError:
            slot = None
        else:
            if slot is None:
                return False
            slot.close()
    if log.strict:
        mend = "a start without CACHEDIND_STRICT sets it aside and takes what is next best"
        log.degraded(Degradation(f"{scopes.describe(name)} of the pool is bad", why, "nothing of it was changed", mend))
    parent_fd = key_directory.open_parent(key_fd, name)
    try:
        where = staging.set_aside(pool, parent_fd, name.rpartition("/")[2], why, time.time())
    except FileNotFoundError:
        return True
    finally:
        os.close(parent_fd)
    what = f"{scopes.describe(name)} of the pool is set aside"
    log.degraded(Degradation(what, why, f"it is kept as {where}", f"cachedind rm {where} drops it"))
    return True


def try_lease(pool: Pool, key_fd: int, name: str, log: Log) -> Slot | None:
    try:
        slot = slots.try_lease(key_fd, name)
    except slots.BadSlotError as error:
        set_aside(pool, key_fd, name, str(error), log)
        return None
    if slot is None:
        return None
    locked = in_use.find_locked(slot.data_fd)
    if locked is not None:
        slot.close()
        log.warn(f"{name} is passed over: a daemon that does not hold its lease is at work on it ({locked} is locked)")
        return None
    try:
        why = clone.examine(pool, slot.owner)
    except BaseException:
        slot.close()
        raise
    if why:
        slot.close()
        set_aside(pool, key_fd, name, why, log)
        return None
    return slot


def is_due(
    pool: Pool,
    key_fd: int,
    slot_request: SlotRequest,
    slot: Slot,
    found: SlotState,
    candidates: list[Candidate],
    log: Log,
) -> bool:
    """Whether a slot's state should become the golden of its scope now."""
    goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
    if not choice.needs_promotion(found, goldens, slot_request.boot_id):
        return False
    if not golden.is_sound(slot, found):
        log.debug("the slot's state is not promoted: something in it is damaged")
        return False
    return True
