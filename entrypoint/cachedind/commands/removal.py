"""Removing from a pool what a person names: keys, slots, what was set aside, everything. Never a slot that is held.

What goes is renamed to trash first, so that a kill leaves nothing half, and deleted then, before the command ends.
"""

from __future__ import annotations

import os

from cachedind.base.errors import NotInPoolError, SlotHeldError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.commands.inventory import find_directories, label, printable, read_key, unknown_key
from cachedind.dataroot import lease
from cachedind.host import trees
from cachedind.pool import directory, eviction, key_directory, scopes, slots, staging, sweeping, upkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachedind.base.model import Holder
    from cachedind.pool.directory import Pool
    from cachedind.settings.config import Config


class Target(NamedTuple):
    """What to remove: a key, or with `name` one thing below it ("slots/<id>"). `directory` is the key's."""

    directory: str
    name: str = ""


class Removed(NamedTuple):
    """Something that went. `name` is empty where nothing was in the key's directory."""

    key: str
    name: str

    def line(self) -> str:
        key = label(self.key)
        if not self.name:
            return f"removed {key}"
        is_slot = self.name.startswith("slots/")
        what = f"slot {self.name.removeprefix('slots/')}" if is_slot else scopes.describe(self.name)
        return f"removed {printable(what)} of key {key}"


class Kept(NamedTuple):
    """A slot that stays because somebody holds it."""

    key: str
    name: str
    holder: Holder | None

    def line(self) -> str:
        slot = self.name.removeprefix("slots/")
        return f"slot {slot} of key {label(self.key)} is held by {lease.describe_holder(self.holder)}"


class Outcome(NamedTuple):
    removed: list[Removed]
    kept: list[Kept]

    def add(self, other: Outcome) -> None:
        self.removed.extend(other.removed)
        self.kept.extend(other.kept)

    def lines(self) -> list[str]:
        return [removed.line() for removed in self.removed]

    def check(self) -> None:
        """Raises SlotHeldError when something had to stay."""
        if self.kept:
            raise SlotHeldError(
                f"not removed: {'; '.join(slot.line() for slot in self.kept)}",
                "remove it again when that container has ended; else its state may become its scope's golden",
            )


class Evicted(NamedTuple):
    """Something that the limits had removed, and why."""

    key: str
    name: str
    reason: str

    def line(self) -> str:
        return f"{Removed(self.key, self.name).line()}: {self.reason}"


class Collected(NamedTuple):
    """What `gc` did. `lacking_bytes` and `lacking_inodes` are what the limits would still have removed, were it not in
    use; `deleted` counts what was in trash.
    """

    evicted: list[Evicted]
    deleted: int
    freed_bytes: int
    lacking_bytes: int
    lacking_inodes: int


# ---- what is meant -------------------------------------------------------------------------------------------------


def remove_each(pool: Pool, words: Sequence[str], slot_ids: Sequence[str]) -> Outcome:
    """Keys as `ls` shows them, aside/ID as `status` does, and slots. Nothing goes when one of them is unknown.

    Raises NotInPoolError, PoolUnusableError, OSError.
    """
    words = list(dict.fromkeys(words))
    asides = [word for word in words if not find_directories(pool, word) and _find_aside(pool, word)]
    targets = [find_key(pool, word) for word in words if word not in asides]
    targets += [find_slot(pool, slot_id) for slot_id in slot_ids]
    outcome = Outcome([], [])
    for word in asides:
        staging.throw_away(pool, pool.aside_fd, word.removeprefix("aside/"))
        outcome.removed.append(Removed(word, ""))
    for target in targets:
        outcome.add(remove(pool, target))
    return outcome


def find_key(pool: Pool, key: str) -> Target:
    """The key as `ls` shows it. Raises NotInPoolError."""
    found = find_directories(pool, key)
    if not found:
        raise unknown_key(pool, key)
    return Target(found[0])


def _find_aside(pool: Pool, word: str) -> bool:
    parent, _, name = word.rpartition("/")
    return parent == "aside" and name in directory.names_in(pool.aside_fd)


def find_slot(pool: Pool, slot_id: str) -> Target:
    """The slot of that id, of whichever key. Raises NotInPoolError."""
    for key_name in sorted(directory.names_in(pool.keys_fd)):
        if f"slots/{slot_id}" in _names(pool, key_name):
            return Target(key_name, f"slots/{slot_id}")
    raise NotInPoolError(f"no slot {slot_id} is in the pool {pool.path}", "cachedind ls shows what is there")


def _names(pool: Pool, key_name: str) -> list[str]:
    key_fd = directory.open_directory(pool.keys_fd, key_name)
    if key_fd is None:
        return []
    try:
        candidates, bad = key_directory.read_candidates(key_fd)
    except OSError:
        return []
    finally:
        os.close(key_fd)
    return [candidate.name for candidate in candidates] + [name for name, _ in bad]


# ---- removing --------------------------------------------------------------------------------------------------------


def remove(pool: Pool, target: Target) -> Outcome:
    """Move a key's slots and goldens, or one of them, to trash. Raises PoolUnusableError, OSError."""
    key = read_key(pool, target.directory)
    outcome = Outcome([], [])
    key_fd = directory.open_directory(pool.keys_fd, target.directory)
    if key_fd is None:
        staging.throw_away(pool, pool.keys_fd, target.directory)
        outcome.removed.append(Removed(key, ""))
        return outcome
    try:
        directory.wait_for_lock(key_fd, key_directory.KEY_LOCK_TIMEOUT_S, f"the key {key!r} of the pool {pool.path}")
        if not directory.is_current(key_fd, pool.keys_fd, target.directory):
            return outcome  # somebody else has removed it
        names = _names(pool, target.directory)
        for name in [name for name in names if target.name in ("", name)]:
            _remove_one(pool, key_fd, key, name, outcome)
        if not names and not target.name:
            outcome.removed.append(Removed(key, ""))
        eviction.drop_empty_key(pool, key_fd, target.directory)
    finally:
        os.close(key_fd)
    return outcome


def _remove_one(pool: Pool, key_fd: int, key: str, name: str, outcome: Outcome) -> None:
    """One slot or golden; a slot under its lease, so that nobody gets it meanwhile."""
    slot = None
    if name.startswith("slots/"):
        try:
            slot = slots.try_lease(key_fd, name)
        except slots.BadSlotError:
            pass  # nobody can have leased it
        else:
            if slot is None:
                outcome.kept.append(Kept(key, name, slots.look(key_fd, name, timeout_s=0)[1]))
                return
    try:
        parent, _, last = name.rpartition("/")
        parent_fd = key_directory.open_below(key_fd, parent) if parent else os.dup(key_fd)
        try:
            staging.throw_away(pool, parent_fd, last)
        finally:
            os.close(parent_fd)
    finally:
        if slot is not None:
            slot.close()
    outcome.removed.append(Removed(key, name))


def remove_all(pool: Pool) -> Outcome:
    """Everything that nobody holds. Raises PoolUnusableError, OSError."""
    outcome = Outcome([], [])
    for key_name in sorted(directory.names_in(pool.keys_fd)):
        outcome.add(remove(pool, Target(key_name)))
    for name in sorted(directory.names_in(pool.aside_fd)):
        staging.throw_away(pool, pool.aside_fd, name)
        outcome.removed.append(Removed(f"aside/{name}", ""))
    sweeping.sweep_stage(pool)
    return outcome


# ---- space -----------------------------------------------------------------------------------------------------------


def delete(pool: Pool, free_bytes_before: int) -> int:
    """Delete what is in trash, give the space back to the host, and return how many bytes more are free than before.

    Others who write meanwhile make that less. Raises OSError.
    """
    sweeping.empty_trash(pool)
    trees.wait_until_freed(pool.fd, sweeping.FREEING_S)
    return max(0, read_free_bytes(pool) - free_bytes_before)


def read_free_bytes(pool: Pool) -> int:
    found = os.statvfs(pool.fd)
    return found.f_bfree * found.f_frsize


def collect_garbage(pool: Pool, settings: Config, now: float) -> Collected:
    """What each start has done after it, at once: evictions and deletions. Raises OSError."""
    before = read_free_bytes(pool)
    keys = {key_name: read_key(pool, key_name) for key_name in directory.names_in(pool.keys_fd)}
    report = upkeep.run(pool, settings, None, now)
    evicted = [Evicted(keys.get(e.entry.key, e.entry.key), e.entry.name, e.reason) for e in report.evicted]
    return Collected(evicted, report.deleted, delete(pool, before), report.lacking_bytes, report.lacking_inodes)
