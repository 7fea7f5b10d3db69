"""What a start asks of a pool, and what it gets."""

from __future__ import annotations

import os
from enum import StrEnum

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.pool import slot_state

if TYPE_CHECKING:
    from cachedind.base.model import Holder
    from cachedind.pool.choice import Requirements
    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_state import SlotState
    from cachedind.pool.slots import Slot


class Warmth(StrEnum):
    """Where a start's cache came from."""

    LEASED = "leased"
    CLONED = "cloned"
    FRESH = "fresh"


class SlotRequest(NamedTuple):
    """What a start asks of the pool."""

    key: str
    fallback_keys: tuple[str, ...]
    read_only: bool
    requirements: Requirements
    boot_id: str
    holder: Holder
    fresh: bool = False
    """Whether to start from nothing, whatever there is."""
    avoid: frozenset[str] = frozenset()
    """Ids of slots that this start has passed over."""

    @property
    def scope(self) -> str:
        return self.requirements.scope


class TakenSlot(NamedTuple):
    """A leased slot and where its content came from.

    `found` is the state of that content, `raw` its state file, `source_key` the key it was of, `sequence` this start's
    number.
    """

    pool: Pool
    key: str
    slot: Slot
    warmth: Warmth
    found: SlotState
    raw: dict[str, object]
    source_key: str
    sequence: int
    promoted: bool = False
    turn_fd: int | None = None
    """Held while its state is to become the golden: who starts beside this waits a little for it."""
    is_same_job: bool = False
    """Whether the last job on it was this container's, which has started again: it finds everything as it was."""
    passed_over: str = ""
    """Why it is nothing warmer, where there was something."""

    def close(self) -> None:
        """Give the lease back."""
        self.slot.close()
        if self.turn_fd is not None:
            os.close(self.turn_fd)

    def without_turn(self) -> TakenSlot:
        """The same, and nobody waits for its state to become the golden any longer."""
        if self.turn_fd is not None:
            os.close(self.turn_fd)
        return self._replace(turn_fd=None)

    @property
    def before(self) -> int:
        """The sequence of the state that it begins with; 0 where that is not of its own scope."""
        is_own = self.warmth is not Warmth.FRESH and self.source_key == self.key
        return self.found.sequence if is_own and self.found.scope == self.scope else 0

    @property
    def scope(self) -> str:
        return slot_state.parse_scope(self.raw)

    @property
    def is_throwaway(self) -> bool:
        """Whether it goes with this job."""
        return self.raw.get("read_only") is True

    @property
    def is_pure(self) -> bool:
        """Whether no job has ever run on it: there is nothing in it but seeds."""
        return self.raw.get("pure") is True
