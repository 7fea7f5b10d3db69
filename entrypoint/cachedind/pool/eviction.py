"""Evictions: what the limits demand, and room for a start that finds the pool full. Never a slot that is held."""

from __future__ import annotations

import os

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.dataroot import facts
from cachedind.host import trees
from cachedind.pool import clock, directory, golden, key_directory, scopes, slots, staging, sweeping
from cachedind.pool.keys import directory_name
from cachedind.pool.limits import (
    NOTHING_NEW,
    SUPERSEDED,
    THROW_AWAY,
    Budget,
    Entry,
    EntryKind,
    Eviction,
    Size,
    Usage,
    plan_evictions,
)
from cachedind.pool.survey import survey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachedind.pool.directory import Pool
    from cachedind.settings.config import Config

MAKE_ROOM_BYTES = 512 << 20
MAKE_ROOM_INODES = 50_000
MIN_FREE_BYTES = 10 << 30
MIN_FREE_INODES = 500_000


class Evicted(NamedTuple):
    """What was evicted, the bytes and inodes that the budget still lacks, and how many of the bytes the pool itself has
    to free: none, where others fill the disk and nobody has asked for free space."""

    evictions: list[Eviction]
    lacking_bytes: int = 0
    own_lacking_bytes: int = 0
    lacking_inodes: int = 0


def evict(pool: Pool, settings: Config, now: float) -> Evicted:
    """Remove what the budget demands, and superseded slots in any case. Never a leased slot."""
    now = clock.read_now(pool.fd, now)
    budget = read_budget(pool, settings)
    planned = plan_evictions(
        survey(pool, sizes=False, now=now).entries, Budget(None, None, budget.max_age_s), Usage(0, 0), now
    )
    gone = [eviction for eviction in planned.evictions if remove_entry(pool, eviction.entry)]
    if sweeping.empty_trash(pool):
        trees.wait_until_freed(pool.fd, sweeping.FREEING_S)  # else it would count as used, and more would go
    if is_within(pool, budget):
        return Evicted(gone)
    entries, shared = survey(pool, sizes=True, now=now)
    usage = read_usage(pool, entries, shared)
    planned = plan_evictions(entries, budget, usage, now, shared)
    own = planned
    if not planned.is_enough and settings.pool_min_free_bytes is None:
        # Others fill the disk. All caches together would not help, and nobody has asked for that.
        kept_bytes = None if planned.lacking_bytes else budget.min_free_bytes
        kept_inodes = None if planned.lacking_inodes else budget.min_free_inodes
        own = plan_evictions(
            entries, budget._replace(min_free_bytes=kept_bytes, min_free_inodes=kept_inodes), usage, now, shared
        )
    gone += [eviction for eviction in own.evictions if remove_entry(pool, eviction.entry)]
    return Evicted(gone, planned.lacking_bytes, own.lacking_bytes, planned.lacking_inodes)


def read_budget(pool: Pool, settings: Config) -> Budget:
    """What the pool may take: the settings', and where they say nothing about free space a twentieth of its filesystem,
    10 GiB at most, so that jobs do not find it full. Inodes as bytes: a twentieth, half a million at most, unless no
    free space is wanted."""
    inside = os.statvfs(pool.fd)
    default = min(inside.f_blocks * inside.f_frsize // 20, MIN_FREE_BYTES)
    min_free = default if settings.pool_min_free_bytes is None else settings.pool_min_free_bytes
    min_inodes = None if settings.pool_min_free_bytes == 0 else min(inside.f_files // 20, MIN_FREE_INODES)
    return Budget(settings.pool_max_bytes, min_free, settings.max_age_s, min_inodes)


def make_room(pool: Pool, settings: Config, key: str, now: float) -> int:
    """For a start of `key` that finds the pool full: what is half-made, superseded or thrown away goes at once, then
    what the budget says, and then, least recently used first and of this key last, what has to go for some room:
    bytes or inodes, whatever is short.

    Where all of that would not be enough, it stays: somebody else fills the disk. Returns how many things were evicted
    for their size. Raises OSError.
    """
    sweeping.sweep_stage(pool)
    gone = evict(pool, settings, now).evictions
    evicted = sum(eviction.reason not in (SUPERSEDED, THROW_AWAY, NOTHING_NEW) for eviction in gone)
    was_something = sweeping.empty_trash(pool) > 0 or bool(gone)
    if was_something:
        trees.wait_until_freed(pool.fd, sweeping.FREEING_S)
    if not was_something or facts.is_cramped(pool.path):
        own = directory_name(key)
        found, shared = survey(pool, sizes=True, now=now)
        entries = [entry._replace(favoured=entry.key == own) for entry in found]
        usage = read_usage(pool, entries, shared)
        planned = plan_evictions(entries, _plan_room(pool, usage), usage, now, shared)
        if planned.is_enough:
            evicted += sum(remove_entry(pool, eviction.entry) for eviction in planned.evictions)
        sweeping.empty_trash(pool)
        trees.wait_until_freed(pool.fd, sweeping.FREEING_S)
    return evicted


def _plan_room(pool: Pool, usage: Usage) -> Budget:
    """Room for a start, of what is short."""
    total = os.statvfs(pool.fd)
    room_bytes = min(MAKE_ROOM_BYTES, total.f_blocks * total.f_frsize // 8)
    room_inodes = min(MAKE_ROOM_INODES, max(total.f_files // 8, facts.MIN_FREE_INODES))
    inodes_short = usage.free_inodes is not None and usage.free_inodes < room_inodes
    bytes_short = usage.free_bytes < room_bytes or not inodes_short
    return Budget(
        None,
        usage.free_bytes + room_bytes if bytes_short else None,
        None,
        (usage.free_inodes or 0) + room_inodes if inodes_short else None,
    )


def is_within(pool: Pool, budget: Budget) -> bool:
    """Whether the budget is kept, as far as that can be told without measuring every file."""
    if budget.max_bytes is not None:
        return False
    usage = read_usage(pool, [], {})
    has_inodes = (
        budget.min_free_inodes is None or usage.free_inodes is None or usage.free_inodes >= budget.min_free_inodes
    )
    return has_inodes and (budget.min_free_bytes is None or usage.free_bytes >= budget.min_free_bytes)


def read_usage(pool: Pool, entries: list[Entry], shared: Mapping[str, Size]) -> Usage:
    """Bytes that the pool uses, as far as that was measured, and bytes and inodes that are free for everybody on its
    filesystem."""
    there = os.statvfs(pool.fd)
    return Usage(
        sum(size.bytes for size in shared.values()) + sum(entry.own_bytes for entry in entries),
        there.f_bavail * there.f_frsize,
        there.f_favail if there.f_files else None,
    )


def remove_entry(pool: Pool, entry: Entry) -> bool:
    """Move one thing to trash; False when it is held by now, or gone."""
    key_fd = directory.open_directory(pool.keys_fd, entry.key)
    if key_fd is None:
        return False
    try:
        directory.wait_for_lock(key_fd, key_directory.KEY_LOCK_TIMEOUT_S, f"the key directory {entry.key}")
        if not directory.is_current(key_fd, pool.keys_fd, entry.key):
            return False
        gone = _remove_slot(pool, key_fd, entry) if entry.kind is EntryKind.SLOT else _remove(pool, key_fd, entry)
        drop_empty_key(pool, key_fd, entry.key)
        return gone
    finally:
        os.close(key_fd)


def _remove_slot(pool: Pool, key_fd: int, entry: Entry) -> bool:
    try:
        slot = slots.try_lease(key_fd, entry.name)
    except slots.BadSlotError:
        return False  # the next start of this key sets it aside
    if slot is None:
        return False
    try:
        if slot.previous is not None and slot.previous.since != entry.last_used:
            return False  # somebody had it meanwhile: it is not what was judged
        slots_fd = key_directory.open_below(key_fd, key_directory.SLOTS)
        try:
            staging.throw_away(pool, slots_fd, slot.id)
        finally:
            os.close(slots_fd)
    finally:
        slot.close()
    return True


def _remove(pool: Pool, key_fd: int, entry: Entry) -> bool:
    there = key_directory.read_candidates(key_fd)[0]
    if not any(one.name == entry.name and one.state.id == entry.id for one in there):
        return False  # another one has been promoted meanwhile
    parent_fd = key_directory.open_parent(key_fd, entry.name)
    try:
        staging.throw_away(pool, parent_fd, entry.name.rpartition("/")[2])
    finally:
        os.close(parent_fd)
    return True


def drop_empty_key(pool: Pool, key_fd: int, name: str) -> None:
    """Move a key's directory to trash when nothing is left in it, else those of its scopes that have nothing. Needs the
    key's lock."""
    if not key_directory.is_empty(key_fd):
        _drop_empty_scopes(pool, key_fd)
    else:
        staging.throw_away(pool, pool.keys_fd, name)


def _drop_empty_scopes(pool: Pool, key_fd: int) -> None:
    for path, scope_fd in scopes.each(key_fd):
        if scope_fd is None or any(scopes.owners_in(scope_fd)):
            continue
        # Whose golden is being made right now stays.
        turn_fd = golden.take_turn_in(scope_fd)
        if turn_fd is not None:
            parent_fd = key_directory.open_parent(key_fd, path)
            staging.throw_away(pool, parent_fd, path.rpartition("/")[2])
            os.close(parent_fd)
            os.close(turn_fd)
