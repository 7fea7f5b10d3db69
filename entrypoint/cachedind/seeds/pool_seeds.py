"""Seeds in a pool: once for all of it. A key of its own, BASE_KEY, has a golden with nothing but seeds in it.

A start that finds nothing of its key clones that; where seeds are missing in it, the start puts them into its own new
slot, which becomes the base's golden before a job sees it. A start on a key's own state puts in what is missing there,
and the result becomes the key's golden. Starts that need the same at the same time wait and clone.
"""

from __future__ import annotations

import contextlib
import os
import time

from cachedind.base import state
from cachedind.base.model import StoragePlan
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import doubt
from cachedind.pool import choice, directory, golden, key_directory, staging
from cachedind.pool.keys import BASE_KEY
from cachedind.pool.slot_request import Warmth
from cachedind.pool.slot_state import STATE_NAME, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachedind.base.log import Log
    from cachedind.pool.choice import Requirements
    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_request import TakenSlot

LOCK_NAME = "seeds.lock"
TURN_TIMEOUT_S = 1800.0


def golden_key(taken: TakenSlot) -> str:
    """Whose golden gets the seeds: the base's while no job's data is in the slot, else the key's."""
    return BASE_KEY if taken.is_pure else taken.key


@contextlib.contextmanager
def turn(pool: Pool, key: str, on_wait: Callable[[], None]) -> Iterator[bool]:
    """For the length of a block nobody else puts seeds into this key. The value tells whether that took waiting.

    Raises PoolUnusableError after TURN_TIMEOUT_S seconds, OSError.
    """
    key_fd = key_directory.open_key(pool, key, create=True)
    assert key_fd is not None
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=key_fd)
    finally:
        os.close(key_fd)
    try:
        waited = not directory.try_lock(fd)
        if waited:
            on_wait()
            directory.wait_for_lock(fd, TURN_TIMEOUT_S, "the turn to put seeds into the pool")
        yield waited
    finally:
        os.close(fd)


class OpenGolden(NamedTuple):
    """A golden's data, open for reading, and the store and driver it was made with."""

    data_fd: int
    storage: StoragePlan


@contextlib.contextmanager
def newest_golden(pool: Pool, key: str, requirements: Requirements, boot_id: str) -> Iterator[OpenGolden | None]:
    """The golden that a start with these requirements would clone, or None."""
    found = None
    with key_directory.locked_key(pool, key, create=False) as key_fd:
        if key_fd is not None:
            candidates, _ = key_directory.read_candidates(key_fd)
            goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
            ranked = choice.plan_choice(goldens, requirements, boot_id)
            data = ranked[0].state.data if ranked else None
            if data is not None:
                with contextlib.suppress(OSError):
                    fd = key_directory.open_below(key_fd, f"{ranked[0].name}/data{data.remap and '/'}{data.remap}")
                    found = OpenGolden(fd, StoragePlan(data.store, data.driver, "the golden was made with it"))
    try:
        yield found
    finally:
        if found is not None:
            os.close(found.data_fd)


def promote(taken: TakenSlot, key: str, log: Log) -> TakenSlot:
    """Make the slot's state, with its seeds and before its daemon, the golden of `key`. Returns the slot with the
    sequence number that it has from now on. Nothing becomes one while a crash of the host may have emptied its layers.
    Raises OSError, ValueError, PoolUnusableError."""
    pool, slot = taken.pool, taken.slot
    raw = state.read_state(slot.directory_fd, STATE_NAME) or {}
    if doubt.after_a_daemon(str(raw.get("doubt") or "")):
        return taken
    with key_directory.locked_key(pool, key, create=True) as key_fd:
        assert key_fd is not None
        candidates, _ = key_directory.read_candidates(key_fd)
        number, _ = key_directory.draw_sequence(key_fd, candidates)
    # The private daemon came up on it.
    proven: dict[str, object] = {"ready_at": round(time.time(), 3), "doubt": "", "seeding": 0}
    scope = "" if key == BASE_KEY else taken.scope
    left_out = golden.promote(pool, key, slot, {**raw, **proven, "sequence": number, "scope": scope})
    if left_out is not None:
        left_out.tell(log)
    if key != taken.key:
        return taken
    with key_directory.locked_key(pool, key, create=True) as key_fd:
        assert key_fd is not None
        candidates, _ = key_directory.read_candidates(key_fd)
        # The start's own number has to be higher than its golden's, or what the job adds would never be promoted.
        own, _ = key_directory.draw_sequence(key_fd, candidates)
        state.write_state(
            slot.directory_fd, STATE_NAME, {"sequence": number, "before": number, "begun": own}, raw, durable=False
        )
        return taken._replace(sequence=own)


def give_back(taken: TakenSlot) -> None:
    """End a lease before a daemon has used the slot: a slot that no job has used is removed, another one is left as it
    was. Raises OSError."""
    pool, slot = taken.pool, taken.slot
    if taken.warmth is Warmth.LEASED and not taken.is_pure:
        raw = state.read_state(slot.directory_fd, STATE_NAME)
        names = (
            "started_at",
            "ready_at",
            "ready_s",
            "sequence",
            "begun",
            "before",
            "boot_id",
            "ended",
            "doubt",
            "ground",
        )
        state.write_state(slot.directory_fd, STATE_NAME, {name: taken.raw.get(name) for name in names}, raw)
    else:
        with key_directory.locked_key(pool, taken.key, create=False) as key_fd:
            if key_fd is not None:
                slots_fd = key_directory.open_below(key_fd, "slots")
                try:
                    staging.throw_away(pool, slots_fd, slot.id)
                finally:
                    os.close(slots_fd)
    taken.close()
