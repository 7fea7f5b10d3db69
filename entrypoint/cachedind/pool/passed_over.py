"""Why a start got nothing warmer of its key than it did: for the line that it ends with."""

from __future__ import annotations

import contextlib

from cachedind.base.typed import TYPE_CHECKING
from cachedind.pool import choice, key_directory, slots
from cachedind.pool.slot_state import Kind

if TYPE_CHECKING:
    from cachedind.pool.slot_request import SlotRequest
    from cachedind.pool.slot_state import Candidate, SlotState


def explain(
    key_fd: int, slot_request: SlotRequest, candidates: list[Candidate], got: SlotState | None, name: str
) -> str:
    """`candidates` are what the start chose from, `got` what it then has, and `name` the path of that below the key.

    Slots are looked at once more, as they have been judged since, where there may be something to tell. Needs the key's
    lock. Where they cannot be looked at, nothing is told.
    """

    def describe(there: list[Candidate], held: frozenset[str]) -> str:
        others = [one for one in there if one.name != name]
        requirements, boot_id = slot_request.requirements, slot_request.boot_id
        return choice.why_nothing_warmer(others, requirements, boot_id, got, held, lends=slot_request.read_only)

    if not slot_request.avoid and not describe(candidates, frozenset()):
        return ""
    with contextlib.suppress(OSError):
        there, _ = key_directory.read_candidates(key_fd)
        in_slots = [one.name for one in there if one.kind is Kind.SLOT and one.name != name]
        return describe(there, frozenset(each for each in in_slots if slots.look(key_fd, each, 0)[0]))
    return ""
