"""What a new slot is cloned from: the newest golden of a key, or a free slot of another scope or key that is newer."""

from __future__ import annotations

import contextlib
import os

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import doubt
from cachedind.host import flock
from cachedind.pool import changes, choice, golden, inspection, key_directory, slot_state, slots
from cachedind.pool.layers import Owner
from cachedind.pool.slot_state import Candidate, Kind, SlotState

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_request import SlotRequest
    from cachedind.pool.slots import Slot

_MAX_SUSPECTS = 8


class Source(NamedTuple):
    """A golden that is open to be cloned, kept from deletion by a shared lock on its directory."""

    name: str
    owner: Owner
    found: SlotState
    raw: dict[str, object]
    doubt: str = ""
    slot: Slot | None = None
    """The leased slot that it is, where it is no golden."""
    turn_fd: int | None = None
    """Held as long as that: a start that finds the slot leased waits a little, instead of going on without."""

    def close(self) -> None:
        if self.turn_fd is not None:
            os.close(self.turn_fd)
        if self.slot is not None:
            self.slot.close()
            return
        os.close(self.owner.data_fd)
        os.close(self.owner.directory_fd)


def open_newest(
    pool: Pool, key_fd: int, slot_request: SlotRequest, candidates: list[Candidate], sequence: int, log: Log
) -> Source | None:
    """The newest state of a key that can be cloned: a golden, or a free slot that is newer. Needs the key's lock."""
    ranked = choice.plan_choice(candidates, slot_request.requirements, slot_request.boot_id)
    for candidate in ranked:
        if candidate.kind is Kind.SLOT:
            # For another key or scope, or for a throw-away: the slot stays free, its state is what is wanted.
            slot = inspection.try_lease(pool, key_fd, candidate.name, log)
            if slot is None:
                continue
            try:
                raw, found = changes.read_judged(key_fd, slot, sequence)
                due = inspection.is_due(pool, key_fd, slot_request, slot, found, candidates, log)
                if due:
                    turn_fd = golden.take_turn(key_fd, found.scope)
                    # What was synced at the end of its daemon is not the copy.
                    raw = {**raw, "ended": None}
                    return Source(candidate.name, slot.owner, found, raw, slot=slot, turn_fd=turn_fd)
            except BaseException:
                slot.close()
                raise
            slot.close()
        else:
            source = _open_source(pool, key_fd, candidate.name, log)
            if source is not None:
                return source._replace(doubt=_doubt_of_golden(key_fd, source.found, candidates, slot_request.boot_id))
    return None


def _doubt_of_golden(key_fd: int, found: SlotState, candidates: list[Candidate], boot_id: str) -> str:
    """Why a clone of it has to be proven; nothing where it need not."""
    if not found.is_trusted(boot_id):
        doubted = doubt.find(found.data, boot_id)
        return doubted.why if doubted is not None else ""
    return doubt.NEVER_READY if _last_clone_failed(key_fd, found, candidates) else ""


def _last_clone_failed(key_fd: int, golden: SlotState, candidates: list[Candidate]) -> bool:
    """Whether no daemon came up on a golden's last clone that nobody holds. Of the newest alone, as each look at a lock
    takes its time."""
    for one in choice.newest_clones(golden, candidates)[:_MAX_SUSPECTS]:
        if not one.state.never_ready:
            return False
        if not slots.look(key_fd, one.name, 0)[0]:
            return True
    return False


def _open_source(pool: Pool, key_fd: int, name: str, log: Log) -> Source | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as undo:
        try:
            directory_fd = key_directory.open_below(key_fd, name)
            undo.callback(os.close, directory_fd)
            if not flock.lock_shared(directory_fd):  # it is being deleted
                return None
            raw = state.read_state(directory_fd, slot_state.GOLDEN_NAME) or {}
            found = slot_state.parse_slot_state(raw)
            data_fd = os.open("data", flags, dir_fd=directory_fd)
        except (ValueError, FileNotFoundError, NotADirectoryError) as error:
            why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            inspection.set_aside(pool, key_fd, name, f"it cannot be cloned: {why}", log)
            return None
        undo.pop_all()
        return Source(name, Owner(directory_fd, data_fd), found, raw)


def open_fallback(pool: Pool, slot_request: SlotRequest, log: Log) -> tuple[Source | None, str]:
    for key in slot_request.fallback_keys:
        with key_directory.locked_key(pool, key, create=False) as key_fd:
            if key_fd is None:
                continue
            candidates = inspection.survey(pool, key_fd, slot_request, log)
            number, _ = key_directory.draw_sequence(key_fd, candidates)
            source = open_newest(pool, key_fd, slot_request, candidates, number, log)
        if source is not None:
            return source, key
    return None, ""
