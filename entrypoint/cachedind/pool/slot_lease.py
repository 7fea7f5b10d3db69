"""One start in a pool: lease the newest slot or clone the newest golden, of this scope, its key, or the fallbacks.

What is newest is settled under the key's lock; copying is done outside of it, with a shared lock on what is copied. A
free slot that is good becomes the golden before its new daemon changes it (`promote_due`): whoever starts beside this
one is then as warm as this one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from cachedind.base.model import Degradation
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.pool import (
    changes,
    choice,
    clone,
    golden,
    inspection,
    key_directory,
    passed_over,
    scopes,
    slot_state,
    slots,
)
from cachedind.pool.keys import BASE_KEY
from cachedind.pool.mutable import NOTHING
from cachedind.pool.slot_request import SlotRequest, TakenSlot, Warmth
from cachedind.pool.slot_state import Candidate, Kind
from cachedind.pool.source import open_fallback, open_newest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.base.log import Log
    from cachedind.base.model import Holder
    from cachedind.pool.directory import Pool
    from cachedind.pool.slots import Slot
    from cachedind.pool.source import Source

WAIT_S = 10.0
"""How long a start that has nothing waits for somebody who copies its key's newest state."""
WAIT_WITH_OTHER_S = 0.5
"""How long one does that has an older state."""


def take(pool: Pool, slot_request: SlotRequest, log: Log) -> TakenSlot:
    """Lease a slot. Raises PoolUnusableError, OSError (ENOSPC where the pool is full)."""
    chosen = _choose(pool, slot_request, log)
    if chosen.copied and _has_waited(pool, slot_request, chosen):
        if chosen.source is not None:
            chosen.source.close()
        chosen = _choose(pool, slot_request, log)
    if chosen.leased is not None:
        return _introduce(chosen.leased._replace(passed_over=chosen.passed_over), slot_request.holder)
    source, source_key = chosen.source, slot_request.key
    if source is None and not slot_request.fresh:
        source, source_key = open_fallback(pool, slot_request, log)
    if source is None and slot_request.avoid:
        # An empty one must not come before the good one that this start could not use.
        slot_request = slot_request._replace(read_only=True)
    try:
        taken = _be_born(pool, slot_request, source, source_key, chosen.sequence)
        taken = taken._replace(passed_over=chosen.passed_over)
    except ValueError as error:
        assert source is not None
        with key_directory.locked_key(pool, source_key, create=False) as key_fd:
            is_gone = key_fd is not None and inspection.set_aside(
                pool, key_fd, source.name, f"it cannot be cloned: {error}", log
            )
        return take(pool, slot_request if is_gone else slot_request._replace(fresh=True), log)
    taken.slot.left_out.tell(log)
    return _introduce(taken, slot_request.holder)


class _Chosen(NamedTuple):
    """A slot of the key, or else a state of it to clone, this start's number, and why it is nothing warmer.

    `copied` are the directories of scopes for which somebody copied a state at that moment that this start would rather
    have. Whether that has a name by the time that it is asked for again depends on nothing but that.
    """

    leased: TakenSlot | None
    source: Source | None
    sequence: int
    passed_over: str
    copied: tuple[str, ...]


def _choose(pool: Pool, slot_request: SlotRequest, log: Log) -> _Chosen:
    with key_directory.locked_key(pool, slot_request.key, create=True) as key_fd:
        assert key_fd is not None
        found = inspection.survey(pool, key_fd, slot_request, log)
        sequence, aside = key_directory.draw_sequence(key_fd, found)
        if aside is not None:
            log.warn(
                f"the sequence of the key {slot_request.key} was not a file, and is counted anew; it is kept as {aside}"
            )
        candidates = [] if slot_request.fresh else found
        leased = source = None
        if not slot_request.read_only:
            leased = _lease_newest(pool, key_fd, slot_request, candidates, sequence, log)
        if leased is None:
            source = open_newest(pool, key_fd, slot_request, candidates, sequence, log)
        got = leased or source
        name = f"slots/{leased.slot.id}" if leased else source.name if source else ""
        why = passed_over.explain(key_fd, slot_request, found, got.found if got else None, name)
        copied = () if leased or slot_request.fresh else _find_copied(key_fd, slot_request, source)
        return _Chosen(leased, source, sequence, why, copied)


def _find_copied(key_fd: int, slot_request: SlotRequest, source: Source | None) -> tuple[str, ...]:
    """The scopes that are being copied: its own, and with nothing at all in its hands any. Needs the key's lock."""
    own = os.path.dirname(scopes.golden_name(slot_request.scope))
    return tuple(
        name
        for name, scope_fd in scopes.each(key_fd)
        if scope_fd is not None and (name == own or source is None) and golden.is_turn_taken(scope_fd)
    )


def _has_waited(pool: Pool, slot_request: SlotRequest, chosen: _Chosen) -> bool:
    """Whether one of those who were copying has ended within the time that this may take: its own scope's first."""
    key_fd = key_directory.open_key(pool, slot_request.key, create=False)
    if key_fd is None:
        return False
    try:
        own = os.path.dirname(scopes.golden_name(slot_request.scope))
        end = time.monotonic() + (WAIT_S if chosen.source is None else WAIT_WITH_OTHER_S)
        return any(
            golden.wait_for_turn(scope_fd, max(0.0, end - time.monotonic()))
            for is_own in (True, False)
            for name, scope_fd in scopes.each(key_fd)
            if scope_fd is not None and name in chosen.copied and (name == own) is is_own
        )
    finally:
        os.close(key_fd)


def _introduce(taken: TakenSlot, holder: Holder) -> TakenSlot:
    from cachedind.dataroot.lease import write_holder

    try:
        write_holder(taken.slot.lock_fd, holder, f"the slot {taken.slot.id}")
    except BaseException:
        taken.close()
        raise
    taken.pool.trace.reach("lease.recorded")
    return taken


def _lease_newest(
    pool: Pool, key_fd: int, slot_request: SlotRequest, candidates: list[Candidate], sequence: int, log: Log
) -> TakenSlot | None:
    """The scope's newest free slot, unless a golden is newer or better; to be promoted, if it deserves it. Needs the
    key's lock."""
    passed: set[str] = set()
    ranked = choice.plan_choice(candidates, slot_request.requirements, slot_request.boot_id)
    while ranked:
        candidate = ranked.pop(0)
        if candidate.kind is Kind.GOLDEN or candidate.state.scope != slot_request.scope:
            return None
        slot = inspection.try_lease(pool, key_fd, candidate.name, log)
        if slot is None:
            passed.add(candidate.name)
            continue
        pool.trace.reach("lease.locked")
        try:
            is_own = slot_request.requirements.is_own(candidate.state)
            raw, found = changes.read_unjudged(slot) if is_own else changes.read_judged(key_fd, slot, sequence)
            if found != candidate.state and found.sequence < candidate.state.sequence:
                # It is no more than its job began with: others may be newer.
                slot.close()
                if found.nothing_new and found.before:
                    log.info(
                        f"slot {slot.id} is passed over: its job removed most of what it began with; "
                        "what two such jobs in a row leave is kept"
                    )
                candidates = [one._replace(state=found) if one is candidate else one for one in candidates]
                left = [one for one in candidates if one.name not in passed]
                ranked = choice.plan_choice(left, slot_request.requirements, slot_request.boot_id)
                continue
            due = inspection.is_due(pool, key_fd, slot_request, slot, found, candidates, log)
            turn_fd = golden.take_turn(key_fd, found.scope) if due else None
        except BaseException:
            slot.close()
            raise
        taken = TakenSlot(pool, slot_request.key, slot, Warmth.LEASED, found, raw, slot_request.key, sequence)
        return taken._replace(turn_fd=turn_fd, is_same_job=is_own)
    return None


def _be_born(pool: Pool, slot_request: SlotRequest, source: Source | None, source_key: str, sequence: int) -> TakenSlot:
    """A slot of its own: a clone of `source`, or empty. It is `pure` until a job's daemon has come up on it."""
    if source is None:
        raw: dict[str, object] = {
            "arch": slot_request.requirements.arch,
            "sequence": 0,
            "read_only": slot_request.read_only,
            "scope": slot_request.scope,
            "pure": True,
        }
        slot = slots.create(pool, slot_request.key, None, raw)
        return TakenSlot(
            pool, slot_request.key, slot, Warmth.FRESH, slot_state.parse_slot_state(raw), raw, "", sequence
        )
    try:
        # Another key's numbers mean nothing in this one, and another scope's state is not this one's.
        is_own = source_key == slot_request.key and source.found.scope == slot_request.scope
        own = source.found.sequence if is_own else 0
        raw = slot_state.clone_state(
            source.raw, scope=slot_request.scope, sequence=own, read_only=slot_request.read_only
        )
        # From now on it is as old as this boot, and doubted for what its golden is doubted for.
        raw |= {"boot_id": slot_request.boot_id, "doubt": source.doubt}
        raw["pure"] = source_key == BASE_KEY
        if source.slot is not None:
            clone.share_layers(pool, source.owner, source.found.data)
        slot = slots.create(pool, slot_request.key, source.owner, raw)
    finally:
        source.close()
    return TakenSlot(pool, slot_request.key, slot, Warmth.CLONED, source.found, raw, source_key, sequence)


def promote_due(taken: TakenSlot, changed: dict[str, object], log: Log) -> TakenSlot:
    """Make the slot's state the golden of its scope, where that is due. `changed` is what is no longer as slot.json had
    it: another engine may have removed what the last job left. What cannot be copied costs warmth alone. Raises
    PoolUnusableError, OSError."""
    if taken.turn_fd is None:
        return taken
    promoted = False
    try:
        with _full_is_no_end(taken.slot, log):
            left_out = golden.promote(taken.pool, taken.key, taken.slot, {**taken.raw, **changed})
            promoted = left_out is not None
            (left_out or NOTHING).tell(log)
    finally:
        os.close(taken.turn_fd)
    return taken._replace(promoted=promoted, turn_fd=None)


@contextlib.contextmanager
def _full_is_no_end(slot: Slot, log: Log) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f"slot {slot.id} does not become the golden of its scope"
        cost = "instances beside this one start from an older state"
        mend = "give the pool more room, or see what fills it: cachedind ls"
        log.degraded(Degradation(what, "the pool is full", cost, mend))


def give_up(taken: TakenSlot, why: str, log: Log) -> None:
    """Set a leased slot aside that was proven bad, with the golden that it is a clone of, byte for byte. The lease
    ends. Raises OSError."""
    taken.close()
    is_golden_too = taken.warmth is Warmth.CLONED
    golden_key = taken.source_key or taken.key
    for key in dict.fromkeys((taken.key, golden_key)):
        with key_directory.locked_key(taken.pool, key, create=False) as key_fd:
            if key_fd is None:
                continue
            if key == taken.key:
                inspection.set_aside(taken.pool, key_fd, f"slots/{taken.slot.id}", why, log)
            for candidate in key_directory.read_candidates(key_fd)[0]:
                same = slot_state.class_name(candidate.state) == slot_state.class_name(taken.found)
                same = same and candidate.state.sequence == taken.found.sequence
                if is_golden_too and key == golden_key and candidate.kind is Kind.GOLDEN and same:
                    inspection.set_aside(taken.pool, key_fd, candidate.name, why, log)


def has_other(taken: TakenSlot, slot_request: SlotRequest) -> bool:
    """Whether the key has another trusted state for this start, of which a slot could be had. Raises OSError."""
    with key_directory.locked_key(taken.pool, taken.key, create=False) as key_fd:
        if key_fd is None:
            return False
        candidates, _ = key_directory.read_candidates(key_fd)
        # Its golden is the same byte for byte. Nothing else is, be it as new.
        is_clone = taken.warmth is Warmth.CLONED and taken.source_key == taken.key
        return any(
            candidate.state.is_trusted(slot_request.boot_id)
            and not (is_clone and candidate.state.sequence == taken.found.sequence)
            and (candidate.kind is Kind.GOLDEN or not slots.look(key_fd, candidate.name, 0)[0])
            for candidate in choice.plan_choice(candidates, slot_request.requirements, slot_request.boot_id)
            if candidate.name != f"slots/{taken.slot.id}"
        )
