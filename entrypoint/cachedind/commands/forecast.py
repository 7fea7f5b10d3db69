"""What a start would begin with if it came now: which slot it would lease, or which golden clone."""

from __future__ import annotations

import os

from cachedind.base.typed import TYPE_CHECKING
from cachedind.commands.inventory import label, printable
from cachedind.pool import changes, choice, key_directory, scopes, slots
from cachedind.pool.slot_state import Candidate, Kind

if TYPE_CHECKING:
    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_request import SlotRequest


def forecast(pool: Pool, slot_request: SlotRequest) -> str:
    """What a start would begin with if it came now, in a few words. Raises OSError."""
    words = _forecast_key(pool, slot_request.key, slot_request, lend=slot_request.read_only)
    if words is not None:
        return words
    for key in slot_request.fallback_keys:
        words = _forecast_key(pool, key, slot_request, lend=True)
        if words is not None:
            return words
    return f"start cold: the pool has nothing that fits for key {slot_request.key}"


def _foreseen(key_fd: int, candidate: Candidate) -> Candidate:
    """As the start will find it: what a free slot's last job has left is compared with what it began with."""
    if candidate.kind is Kind.GOLDEN or slots.look(key_fd, candidate.name)[0]:
        return candidate
    return candidate._replace(state=changes.foresee(key_fd, candidate.name, candidate.state))


def _forecast_key(pool: Pool, key: str, slot_request: SlotRequest, *, lend: bool) -> str | None:
    """`lend`: the start must leave this key's slots alone and wants a clone."""
    key_fd = key_directory.open_key(pool, key, create=False)
    if key_fd is None:
        return None
    try:
        candidates = [_foreseen(key_fd, one) for one in key_directory.read_candidates(key_fd)[0]]
        goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
        for candidate in choice.plan_choice(candidates, slot_request.requirements, slot_request.boot_id):
            if candidate.kind is Kind.GOLDEN:
                return f"clone the {printable(scopes.describe(candidate.name))} of key {label(key)}"
            if slots.look(key_fd, candidate.name)[0]:
                continue
            if not lend and candidate.state.scope == slot_request.scope:
                return f"lease {candidate.name} of key {key}"
            if choice.needs_promotion(candidate.state, goldens, slot_request.boot_id):
                return f"clone {candidate.name} of key {label(key)}"
    finally:
        os.close(key_fd)
    return None
