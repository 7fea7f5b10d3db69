"""Promotion: a slot's good state becomes its key's golden, from which others are cloned.

A copy that takes time is made with the slot's lease alone, beside the starts of others; the key is locked for its name.
Meanwhile `golden.lock` is held, so that a start which has nothing else can wait a little for it.

The old golden moves out of the way before the new one takes its name; a kill in between leaves golden.previous (or
golden.other/<class>), which readers take as well. So at every moment there is one, and none is ever half-written.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.base.model import StoragePlan
from cachedind.engine import damage, directories, remapping
from cachedind.host import flock, procfs
from cachedind.pool import directory, slots
from cachedind.pool.clone import CloneMethod, clone_directory
from cachedind.pool.slots import GOLDEN_NAME, Kind, SlotState, class_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.pool.directory import Pool, Stage
    from cachedind.pool.slots import Candidate, Slot

LOCK_NAME = "golden.lock"
CHEAP_S = 1.0
SHARE_OF_TIME = 0.05
"""A promotion that takes longer than CHEAP_S is made only so often that it costs this share of the time at most."""

_POLL_S = 0.01


def is_due(pool: Pool, goldens: list[Candidate], took_s: float | None, age_s: float | None) -> bool:
    """Whether a promotion is worth its time now. Snapshots always are; copying 200,000 files takes many seconds.

    `took_s` is how long the last one took, `age_s` how long ago that was; None where there was none.
    """
    if pool.method is CloneMethod.NONE:
        return False
    if pool.method is CloneMethod.SUBVOLUME or not goldens or took_s is None or age_s is None:
        return True
    return took_s <= CHEAP_S or age_s < 0 or age_s >= took_s / SHARE_OF_TIME


def is_sound(slot: Slot, found: SlotState) -> bool:
    """Whether a quick look finds no damage: what is bad in a golden would be bad in every clone of it."""
    data = found.data
    if directories.find_odd(slot.data_fd, "" if data is None else data.remap) is not None:
        return False
    if data is None:
        return True
    try:
        root_fd = remapping.open_in(slot.data_fd, data.remap)
    except FileNotFoundError:
        return True
    try:
        storage = StoragePlan(data.store, data.driver, "")
        return not damage.find(root_fd, storage, thorough=False, engines=[data.engine])
    finally:
        os.close(root_fd)


def last_cost(key_fd: int, now: float) -> tuple[float | None, float | None]:
    """How long the last promotion took and how long ago it was, in seconds."""
    try:
        fd = slots.open_below(key_fd, "golden")
    except OSError:
        return None, None
    try:
        raw = state.read_state(fd, GOLDEN_NAME) or {}
    except (OSError, ValueError):
        return None, None
    finally:
        os.close(fd)
    took_s, at = raw.get("took_s"), raw.get("promoted_at")
    if not isinstance(took_s, (int, float)) or not isinstance(at, (int, float)):
        return None, None
    return float(took_s), now - at


def is_instant(pool: Pool) -> bool:
    """Whether a copy is a matter of milliseconds, whatever there is to copy."""
    return pool.method is CloneMethod.SUBVOLUME


def take_turn(key_fd: int) -> int | None:
    """Be the one who copies for a key: a descriptor to be closed after that, or None where somebody else does. Needs
    the key's lock. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=key_fd)
    if directory.try_lock(fd):
        return fd
    os.close(fd)
    return None


def wait_for_turn(key_fd: int, timeout_s: float) -> bool:
    """Wait until nobody copies for a key; False where nobody did, or still does after so many seconds."""
    try:
        fd = os.open(LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=key_fd)
    except OSError:
        return False
    try:
        if flock.lock_shared(fd):
            return False
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if flock.lock_shared(fd):
                return True
            time.sleep(_POLL_S)
        return False
    finally:
        os.close(fd)


class Copy(NamedTuple):
    """A copy of a slot's state that has no name yet."""

    stage: Stage
    values: dict[str, object]


def promote(
    pool: Pool,
    key_fd: int,
    slot: Slot,
    raw: dict[str, object],
    goldens: list[Candidate],
    *,
    clean: bool,
) -> None:
    """Make the slot's state the golden of its key. Needs the slot's lease and the key's lock, and no daemon on it. Only
    where copies are instant.

    `raw` is slot.json as it was found, `goldens` what the key has, `clean` tells that the last job's leftovers are out.
    Raises OSError.
    """
    with _copied(pool, slot, raw, clean=clean) as copy:
        _give_name(pool, key_fd, copy, goldens)


def promote_beside(pool: Pool, key: str, slot: Slot, raw: dict[str, object], *, clean: bool) -> bool:
    """The same where copies take time: the key is locked for the name alone. False when something as new has become the
    golden meanwhile. Needs the slot's lease, and no daemon on it. Raises OSError, PoolUnusableError."""
    with _copied(pool, slot, raw, clean=clean) as copy, slots.locked_key(pool, key, create=True) as key_fd:
        assert key_fd is not None
        candidates, _ = slots.read_candidates(key_fd)
        goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
        if not slots.is_newest(slots.parse_slot_state(copy.values), goldens):
            return False
        _give_name(pool, key_fd, copy, goldens)
    return True


@contextlib.contextmanager
def _copied(pool: Pool, slot: Slot, raw: dict[str, object], *, clean: bool) -> Iterator[Copy]:
    started = time.monotonic()
    with directory.staged(pool) as stage:
        pool.trace.reach("promote.staged")
        clone_directory(pool.method, slot.data_fd, stage.fd, "data", read_only=True)
        pool.trace.reach("promote.copied")
        # A snapshot is made by a commit of the whole filesystem; a copy's data may still be on its way to the disk.
        durable = pool.method is CloneMethod.SUBVOLUME
        values: dict[str, object] = {
            **raw,
            "id": stage.name,
            "from": slot.id,
            "clean": clean,
            "durable": durable,
            "promoted_at": round(time.time(), 3),
            "took_s": round(time.monotonic() - started, 3),
            # What was synced at the end of the slot's daemon was not this copy, which is as old as this boot.
            "ended": None,
            "boot_id": procfs.read_boot_id(),
        }
        state.write_state(stage.fd, GOLDEN_NAME, values, None, durable=durable)
        pool.trace.reach("promote.recorded")
        yield Copy(stage, values)


def _give_name(pool: Pool, key_fd: int, copy: Copy, goldens: list[Candidate]) -> None:
    with _others(key_fd) as other_fd:
        new = slots.parse_slot_state(copy.values)
        _retire(pool, key_fd, other_fd, new, goldens)
        pool.trace.reach("promote.retired")
        directory.publish(pool, copy.stage, key_fd, "golden")
        pool.trace.reach("promote.named")
        directory.throw_away(pool, other_fd, class_name(new))


def promote_newest(pool: Pool, key: str, boot_id: str) -> tuple[str | None, str]:
    """Make the newest free trusted slot of a key its golden. Returns its id, or None, and what there is to say.

    Raises PoolUnusableError, OSError.
    """
    if pool.method is CloneMethod.NONE:
        return None, "a pool without clones has no goldens"
    with slots.locked_key(pool, key, create=False) as key_fd:
        if key_fd is None:
            return None, "the pool has nothing of this key"
        candidates, _ = slots.read_candidates(key_fd)
        goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
        found = [candidate for candidate in candidates if candidate.kind is Kind.SLOT]
        newer = [candidate for candidate in found if slots.needs_promotion(candidate.state, goldens, boot_id)]
        for candidate in sorted(newer, key=lambda candidate: candidate.state.sequence, reverse=True):
            found_slot = _lease_if_good(key_fd, candidate.name, goldens, boot_id)
            if found_slot is not None:
                break
        else:
            found_slot = None
    if found_slot is not None:
        slot, raw = found_slot
        try:
            is_golden = promote_beside(pool, key, slot, raw, clean=False)
        finally:
            slot.close()
        if not is_golden:
            return None, "a newer state has become the golden meanwhile"
        return slot.id, "its state is the golden of the key now"
    if newer:
        return None, "what is newer than the golden is held by running instances"
    return None, _why_none(found, goldens, boot_id)


def _lease_if_good(
    key_fd: int, name: str, goldens: list[Candidate], boot_id: str
) -> tuple[Slot, dict[str, object]] | None:
    try:
        slot = slots.try_lease(key_fd, name)
    except slots.BadSlotError:
        return None  # the next start of this key sets it aside
    if slot is None:
        return None
    try:
        raw = state.read_state(slot.directory_fd, slots.STATE_NAME) or {}
        # Read again: it was not ours before.
        found = slots.parse_slot_state(raw)
        if slots.needs_promotion(found, goldens, boot_id) and is_sound(slot, found):
            return slot, raw
    except ValueError:
        pass
    except BaseException:
        slot.close()
        raise
    slot.close()
    return None


def _why_none(found: list[Candidate], goldens: list[Candidate], boot_id: str) -> str:
    if not any(candidate.state.is_trusted(boot_id) for candidate in found):
        return "no slot is in a state that can be trusted: no daemon came up on it, or the host went down since"
    if not goldens:
        return "there are throw-away slots only (CACHEDIND_ACCESS=ro)"
    return "the golden is as new as the newest slot"


@contextlib.contextmanager
def _others(key_fd: int) -> Iterator[int]:
    with contextlib.suppress(FileExistsError):
        os.mkdir("golden.other", 0o700, dir_fd=key_fd)
    fd = os.open("golden.other", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=key_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _retire(pool: Pool, key_fd: int, other_fd: int, new: SlotState, goldens: list[Candidate]) -> None:
    """Free the name "golden" for `new`."""
    current = next((golden.state for golden in goldens if golden.name == "golden"), None)
    if current is None:
        # Nothing, or something that cannot be read.
        directory.throw_away(pool, key_fd, "golden")
    elif class_name(current) == class_name(new) and current.sequence != new.sequence:
        directory.throw_away(pool, key_fd, "golden.previous")
        os.rename("golden", "golden.previous", src_dir_fd=key_fd, dst_dir_fd=key_fd)
    else:
        # Another class's, which stays; or the same state, cleaned meanwhile: golden.previous stays what it is.
        name = class_name(current)
        directory.throw_away(pool, other_fd, name)
        os.rename("golden", name, src_dir_fd=key_fd, dst_dir_fd=other_fd)
