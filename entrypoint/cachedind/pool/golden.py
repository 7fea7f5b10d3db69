"""Promotion: a slot's good state becomes the golden of its scope, from which others are cloned.

The slot's layers move into the layer store, and the golden gets a copy of its records, with the slot's lease alone and
beside the starts of others; the key is locked for the name. Meanwhile `golden.lock` is held, so that a start which has
nothing else can wait a little for it.

The old golden moves out of the way before the new one takes its name; a kill in between leaves golden.previous (or
golden.other/<class>), which readers take as well. So at every moment there is one, and none is ever half-written.
"""

from __future__ import annotations

import contextlib
import os
import time

from cachedind.base import state
from cachedind.base.model import StoragePlan
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import damage, directories, remapping
from cachedind.host import flock, procfs
from cachedind.pool import changes, choice, clone, directory, key_directory, scopes, slot_state, slots, staging
from cachedind.pool.slot_state import GOLDEN_NAME, Kind, SlotState, class_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.pool.directory import Pool
    from cachedind.pool.mutable import LeftOut
    from cachedind.pool.slot_state import Candidate
    from cachedind.pool.slots import Slot
    from cachedind.pool.staging import Stage

LOCK_NAME = "golden.lock"

_POLL_S = 0.01


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


def take_turn(key_fd: int, scope: str) -> int | None:
    """Be the one who copies for a scope: a descriptor to be closed after that, or None where somebody else does. Needs
    the key's lock. Raises OSError."""
    with scopes.opened(key_fd, scope) as scope_fd:
        return take_turn_in(scope_fd)


def take_turn_in(scope_fd: int) -> int | None:
    """The same in the open directory of a scope."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=scope_fd)
    if directory.try_lock(fd):
        return fd
    os.close(fd)
    return None


def is_turn_taken(scope_fd: int) -> bool:
    """Whether somebody copies for a scope. With the key's lock, nothing that is due is missed."""
    fd = _open_turn(scope_fd)
    if fd is None:
        return False
    try:
        return not flock.lock_shared(fd)
    finally:
        os.close(fd)


def wait_for_turn(scope_fd: int, timeout_s: float) -> bool:
    """Wait until nobody copies for a scope; False where somebody still does after so many seconds."""
    fd = _open_turn(scope_fd)
    if fd is None:
        return True
    try:
        deadline = time.monotonic() + timeout_s
        while not flock.lock_shared(fd):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True
    finally:
        os.close(fd)


def _open_turn(scope_fd: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=scope_fd)
    return None


class Copy(NamedTuple):
    """A copy of a slot's state that has no name yet."""

    stage: Stage
    values: dict[str, object]
    left_out: LeftOut


def promote(pool: Pool, key: str, slot: Slot, raw: dict[str, object]) -> LeftOut | None:
    """Make the slot's state the golden of its scope; `raw` is slot.json as it was found. Returns what the golden does
    without; None when something as new has become the golden meanwhile. Needs the slot's lease, and no daemon on it.
    Raises what clone.copy raises, PoolUnusableError."""
    with _copied(pool, slot, raw) as copy, key_directory.locked_key(pool, key, create=True) as key_fd:
        assert key_fd is not None
        candidates, _ = key_directory.read_candidates(key_fd)
        goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
        if not choice.is_newest(slot_state.parse_slot_state(copy.values), goldens):
            return None
        _give_name(pool, key_fd, copy, goldens)
    return copy.left_out


@contextlib.contextmanager
def _copied(pool: Pool, slot: Slot, raw: dict[str, object]) -> Iterator[Copy]:
    started = time.monotonic()
    found = slot_state.parse_slot_state(raw).data
    clone.share_layers(pool, slot.owner, found)
    clone.check(pool, slot.owner)
    with staging.staged(pool) as stage:
        pool.trace.reach("promote.staged")
        left_out = clone.copy(pool, slot.owner, found, stage.fd)
        pool.trace.reach("promote.copied")
        values: dict[str, object] = {
            **raw,
            "id": stage.name,
            "from": slot.id,
            "durable": False,
            "begun": 0,
            "nothing_new": False,
            "promoted_at": round(time.time(), 3),
            "took_s": round(time.monotonic() - started, 3),
            # What was synced at the end of the slot's daemon was not this copy, which is as old as this boot.
            "ended": None,
            "boot_id": procfs.read_boot_id(),
        }
        state.write_state(stage.fd, GOLDEN_NAME, values, None, durable=False)
        pool.trace.reach("promote.recorded")
        yield Copy(stage, values, left_out)


def _give_name(pool: Pool, key_fd: int, copy: Copy, goldens: list[Candidate]) -> None:
    new = slot_state.parse_slot_state(copy.values)
    with scopes.opened(key_fd, new.scope) as scope_fd, _others(scope_fd) as other_fd:
        _retire(pool, scope_fd, other_fd, new, goldens)
        pool.trace.reach("promote.retired")
        staging.publish(pool, copy.stage, scope_fd, scopes.GOLDEN)
        pool.trace.reach("promote.named")
        staging.throw_away(pool, other_fd, class_name(new))


class Promotion(NamedTuple):
    """What promote_newest has done for a scope: the id of the slot, or None, and what there is to say."""

    scope: str
    slot_id: str | None
    words: str


def promote_newest(pool: Pool, key: str, boot_id: str) -> list[Promotion]:
    """Make the newest free trusted slot of each scope of a key its golden. Nothing for a key that the pool does not
    have. Raises PoolUnusableError, OSError."""
    with key_directory.locked_key(pool, key, create=False) as key_fd:
        candidates = [] if key_fd is None else key_directory.read_candidates(key_fd)[0]
    names = sorted({candidate.state.scope for candidate in candidates})
    return [_promote_newest(pool, key, scope, boot_id) for scope in names]


def _promote_newest(pool: Pool, key: str, scope: str, boot_id: str) -> Promotion:
    found_slot, is_held, found, goldens = None, False, [], []
    with key_directory.locked_key(pool, key, create=False) as key_fd:
        if key_fd is not None:
            everything = key_directory.read_candidates(key_fd)[0]
            number, _ = key_directory.draw_sequence(key_fd, everything)
            candidates = [one for one in everything if one.state.scope == scope]
            goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
            found = [candidate for candidate in candidates if candidate.kind is Kind.SLOT]
            due = [candidate for candidate in found if choice.needs_promotion(candidate.state, goldens, boot_id)]
            for candidate in sorted(due, key=lambda candidate: candidate.state.sequence, reverse=True):
                found_slot = _lease_if_good(pool, key_fd, candidate.name, goldens, number, boot_id)
                if found_slot is not None:
                    break
                is_held = is_held or slots.look(key_fd, candidate.name, 0)[0]
    if found_slot is not None:
        slot, raw = found_slot
        try:
            left_out = promote(pool, key, slot, raw)
        except ValueError as error:
            return Promotion(scope, None, f"slot {slot.id} is not as an engine left it: {error}")
        finally:
            slot.close()
        if left_out is None:
            return Promotion(scope, None, "a newer state has become the golden meanwhile")
        return Promotion(scope, slot.id, f"its state is the golden now{left_out.remark()}")
    if is_held:
        return Promotion(scope, None, "what is newer than the golden is held by running instances")
    return Promotion(scope, None, _why_none(found, goldens, boot_id))


def _lease_if_good(
    pool: Pool, key_fd: int, name: str, goldens: list[Candidate], number: int, boot_id: str
) -> tuple[Slot, dict[str, object]] | None:
    try:
        slot = slots.try_lease(key_fd, name)
    except slots.BadSlotError:
        return None  # the next start of this key sets it aside
    if slot is None:
        return None
    try:
        raw, found = changes.read_judged(key_fd, slot, number)
        is_good = choice.needs_promotion(found, goldens, boot_id) and is_sound(slot, found)
        if is_good and not clone.examine(pool, slot.owner):
            return slot, raw
    except ValueError:
        pass
    except BaseException:
        slot.close()
        raise
    slot.close()
    return None


def _why_none(found: list[Candidate], goldens: list[Candidate], boot_id: str) -> str:
    drivers = {one.state.data.driver for one in found if one.state.data and not clone.is_possible(one.state.data)}
    if drivers:
        return f"layers of the driver {', '.join(sorted(drivers))} cannot be shared"
    if not any(candidate.state.is_trusted(boot_id) for candidate in found):
        return "no slot is in a state that can be trusted: no daemon came up on it, or the host went down since"
    if not goldens:
        return "there are throw-away slots only (CACHEDIND_ACCESS=ro)"
    return "no slot has anything that the golden lacks"


@contextlib.contextmanager
def _others(scope_fd: int) -> Iterator[int]:
    with contextlib.suppress(FileExistsError):
        os.mkdir(scopes.OTHER, 0o700, dir_fd=scope_fd)
    fd = os.open(scopes.OTHER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=scope_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _retire(pool: Pool, scope_fd: int, other_fd: int, new: SlotState, goldens: list[Candidate]) -> None:
    """Free the name "golden" for `new`."""
    own = scopes.golden_name(new.scope)
    current = next((golden.state for golden in goldens if golden.name == own), None)
    if current is None:
        # Nothing, or something that cannot be read.
        staging.throw_away(pool, scope_fd, scopes.GOLDEN)
    elif class_name(current) == class_name(new):
        staging.throw_away(pool, scope_fd, scopes.PREVIOUS)
        os.rename(scopes.GOLDEN, scopes.PREVIOUS, src_dir_fd=scope_fd, dst_dir_fd=scope_fd)
    else:
        # Another class's, which stays.
        name = class_name(current)
        staging.throw_away(pool, other_fd, name)
        os.rename(scopes.GOLDEN, name, src_dir_fd=scope_fd, dst_dir_fd=other_fd)
