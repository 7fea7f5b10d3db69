"""What a pool needs now and then, and what may come late: deletions, evictions, spares. Not on a start's path.

Everything here may be killed at any point and is gone on with by the next one, and several may run side by side.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.base.errors import PoolUnusableError
from cachedind.dataroot import facts
from cachedind.engine import pruning
from cachedind.host import flock, linux, procfs, trees
from cachedind.pool import clock, directory, layers, records, slots
from cachedind.pool.keys import BASE_KEY, directory_name
from cachedind.pool.layers import Owner
from cachedind.pool.limits import NOTHING, SUPERSEDED, Budget, Entry, EntryKind, Eviction, Size, Usage, plan_evictions
from cachedind.pool.slots import Candidate, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cachedind.pool.directory import Pool
    from cachedind.settings.config import Config

MAKE_ROOM_BYTES = 512 << 20
MAKE_ROOM_INODES = 50_000
MIN_FREE_BYTES = 10 << 30
MIN_FREE_INODES = 500_000
FREEING_S = 60.0
"""How long to wait for btrfs to free what was deleted; it goes on by itself after that."""
SLOW_S = 0.2
"""A golden that took longer to copy has a clone made of it in advance."""
GRACE_S = 1.0
"""How old a layer is at least, when a sweep begins, that goes because nobody lists it."""
KEEP_ASIDE = 3
"""How many bad slots are kept for inspection."""


class Evicted(NamedTuple):
    """What was evicted, the bytes that the budget still lacks, and how many of these the pool itself has to free:
    none, where others fill the disk and nobody has asked for free space."""

    evictions: list[Eviction]
    lacking_bytes: int = 0
    own_lacking_bytes: int = 0


class Report(NamedTuple):
    """What was done: evicted things with the reason, and bytes that the budget still lacks."""

    evicted: list[Eviction]
    lacking_bytes: int
    deleted: int


def run(pool: Pool, settings: Config, key: str | None, now: float) -> Report:
    """All of it. `key` is the key of this start, for which a spare may be made. Raises OSError."""
    sweep_stage(pool)
    tidy_aside(pool)
    evicted = evict(pool, settings, now)
    pruning.note(pool.fd, evicted.own_lacking_bytes)
    deleted = empty_trash(pool)
    if deleted:
        trees.wait_until_freed(pool.fd, FREEING_S)
    if key is not None:
        for each in (key, BASE_KEY):
            make_durable(pool, each)
        prepare_spare(pool, key)
    measure_layers(pool)
    return Report(evicted.evictions, evicted.lacking_bytes, deleted)


# ---- deletions -----------------------------------------------------------------------------------------------------


def sweep_stage(pool: Pool) -> None:
    """Throw away what a killed start left half-made. What is being made right now is locked, and left alone."""
    for name in directory.names_in(pool.stage_fd):
        fd = directory.open_directory(pool.stage_fd, name)
        if fd is None:
            directory.throw_away(pool, pool.stage_fd, name)
            continue
        try:
            if directory.try_lock(fd):
                directory.throw_away(pool, pool.stage_fd, name)
        finally:
            os.close(fd)


def empty_trash(pool: Pool) -> int:
    """Delete what is in trash, and the layers that nobody lists then; returns how many things that were. What is still
    being cloned waits. One at a time for a pool: a sweep looks for lists in trash, too."""
    lock_fd = os.open("trash", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=pool.fd)
    try:
        if not directory.try_lock(lock_fd):
            return 0
        deleted = _empty_trash(pool)
        # What was deleted listed layers as long as it was there.
        return deleted + (_empty_trash(pool) if sweep_layers(pool) else 0)
    finally:
        os.close(lock_fd)


def sweep_layers(pool: Pool) -> int:
    """Throw away the layers that nobody lists. Needs the lock of trash. Raises OSError."""

    def throw_away(layer_id: str) -> None:
        directory.throw_away(pool, pool.layers_fd, layer_id)

    try:
        return layers.sweep(pool.layers_fd, lambda: read_lists(pool), throw_away, GRACE_S)
    except PoolUnusableError:  # a key stays locked: the next one sweeps
        return 0


def read_lists(pool: Pool) -> frozenset[str]:
    """The layers that anybody lists, be it in trash. In the order in which owners move: stage, keys, aside, trash; in a
    key goldens, which come of slots, first. Raises OSError."""
    return frozenset(count_owners(pool))


def count_owners(pool: Pool) -> Counter[str]:
    """How many list each layer, as `read_lists`. Raises OSError."""
    counts: Counter[str] = Counter()
    for parent_fd in itertools.chain((pool.stage_fd,), _key_parts(pool), (pool.aside_fd, pool.trash_fd)):
        for name in directory.names_in(parent_fd):
            counts.update(_read_list(parent_fd, name))
    return counts


def _key_parts(pool: Pool) -> Iterator[int]:
    """Descriptors of the directories in a key in which owners lie, each for as long as it is looked at."""
    for key_name in sorted(directory.names_in(pool.keys_fd)):
        key_fd = directory.open_directory(pool.keys_fd, key_name)
        if key_fd is None:
            continue
        try:
            # A promotion renames goldens: none may go from a name that is not read yet to one that is.
            directory.wait_for_lock(key_fd, slots.KEY_LOCK_TIMEOUT_S, f"the key directory {key_name}")
            for part in (".", "golden.other", "slots"):
                fd = directory.open_directory(key_fd, part)
                if fd is not None:
                    try:
                        yield fd
                    finally:
                        os.close(fd)
        finally:
            os.close(key_fd)


def _read_list(parent_fd: int, name: str) -> frozenset[str]:
    """Of an owner, or of what was set aside; nothing of whatever else that is."""
    found: frozenset[str] = frozenset()
    fd = directory.open_directory(parent_fd, name)
    if fd is None:
        return found
    try:
        for owner_fd in (fd, directory.open_directory(fd, "slot")):
            if owner_fd is not None:
                found |= _layers_of(owner_fd)
                if owner_fd != fd:
                    os.close(owner_fd)
        return found
    finally:
        os.close(fd)


def _layers_of(owner_fd: int) -> frozenset[str]:
    """What its list says, or, where a crash of the host has cut that short, what its data links to. Raises OSError."""
    try:
        return layers.read_list(owner_fd)
    except layers.BadListError:
        data_fd = directory.open_directory(owner_fd, "data")
        if data_fd is None:
            return frozenset()
        try:
            return records.find_links(data_fd)
        finally:
            os.close(data_fd)


def _empty_trash(pool: Pool) -> int:
    deleted = 0
    for name in directory.names_in(pool.trash_fd):
        fd = directory.open_directory(pool.trash_fd, name)
        try:
            if fd is not None and not directory.try_lock(fd):
                continue
            trees.remove(pool.trash_fd, name)
            pool.trace.reach("evict.emptied")
            deleted += 1
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT, errno.ENOTEMPTY, errno.EXDEV):
                raise
        finally:
            if fd is not None:
                os.close(fd)
    return deleted


def tidy_aside(pool: Pool) -> None:
    """Keep the newest bad slots only."""
    ages = []
    for name in directory.names_in(pool.aside_fd):
        with contextlib.suppress(FileNotFoundError):
            ages.append((os.stat(name, dir_fd=pool.aside_fd, follow_symlinks=False).st_mtime, name))
    for _, name in sorted(ages)[:-KEEP_ASIDE]:
        directory.throw_away(pool, pool.aside_fd, name)


# ---- evictions -----------------------------------------------------------------------------------------------------


def evict(pool: Pool, settings: Config, now: float) -> Evicted:
    """Remove what the budget demands, and superseded slots in any case. Never a leased slot."""
    now = clock.read_now(pool.fd, now)
    budget = read_budget(pool, settings)
    planned = plan_evictions(
        survey(pool, sizes=False, now=now).entries, Budget(None, None, budget.max_age_s), Usage(0, 0), now
    )
    gone = [eviction for eviction in planned.evictions if remove_entry(pool, eviction.entry)]
    if empty_trash(pool):
        trees.wait_until_freed(pool.fd, FREEING_S)  # else it would count as used, and more would go
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
    return Evicted(gone, planned.lacking_bytes, own.lacking_bytes)


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
    sweep_stage(pool)
    gone = evict(pool, settings, now).evictions
    evicted = sum(eviction.reason != SUPERSEDED for eviction in gone)
    was_something = empty_trash(pool) > 0 or bool(gone)
    if was_something:
        trees.wait_until_freed(pool.fd, FREEING_S)
    if not was_something or facts.is_cramped(pool.path):
        own = directory_name(key)
        found, shared = survey(pool, sizes=True, now=now)
        entries = [entry._replace(favoured=entry.key == own) for entry in found]
        usage = read_usage(pool, entries, shared)
        planned = plan_evictions(entries, _plan_room(pool, usage), usage, now, shared)
        if planned.is_enough:
            evicted += sum(remove_entry(pool, eviction.entry) for eviction in planned.evictions)
        empty_trash(pool)
        trees.wait_until_freed(pool.fd, FREEING_S)
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


# ---- sizes -----------------------------------------------------------------------------------------------------------


def measure_layers(pool: Pool) -> None:
    """Note down how large each layer is that nobody has measured yet: two system calls for each file of it, once."""
    for layer_id in layers.names(pool.layers_fd):
        with contextlib.suppress(OSError, ValueError):
            layers.measure(pool.layers_fd, layer_id)


def read_layer_sizes(pool: Pool) -> dict[str, Size]:
    """Of all layers, measured now where that was not done yet. Raises OSError."""
    found = {}
    for layer_id in layers.names(pool.layers_fd):
        with contextlib.suppress(OSError, ValueError):
            found[layer_id] = layers.measure(pool.layers_fd, layer_id)
    return found


class Survey(NamedTuple):
    """Everything that could be evicted, and how large each thing is that several of these may have: layers, and files
    with several names. Sizes only where they were asked for."""

    entries: list[Entry]
    shared: dict[str, Size]


def survey(pool: Pool, *, sizes: bool, now: float) -> Survey:
    """Look at all keys. `sizes` measures what is no layer, which takes a system call or two for each file of it."""
    found: list[Entry] = []
    shared = read_layer_sizes(pool) if sizes else {}
    for key_name in sorted(directory.names_in(pool.keys_fd)):
        key_fd = directory.open_directory(pool.keys_fd, key_name)
        if key_fd is None:
            continue
        try:
            candidates, _ = slots.read_candidates(key_fd)
            goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
            for candidate in candidates:
                entry = _entry(key_fd, key_name, candidate, goldens, now)
                if sizes:
                    measured = measure(key_fd, entry.name)
                    shared |= measured.linked
                    layer_ids = measured.layers.union(measured.linked)
                    entry = entry._replace(own_bytes=measured.own.bytes, inodes=measured.own.inodes, layers=layer_ids)
                found.append(entry)
        finally:
            os.close(key_fd)
    return Survey(found, shared)


class Measured(NamedTuple):
    """What a slot or golden takes: alone, as the layers that it lists, and in files that have names elsewhere too, each
    by a name that no layer has."""

    own: Size = NOTHING
    layers: frozenset[str] = frozenset()
    linked: dict[str, Size] = {}  # noqa: RUF012


def measure(key_fd: int, name: str) -> Measured:
    """How large a slot or golden is. What is gone meanwhile has no size; of what has no list that can be read no layer
    is known."""
    try:
        directory_fd = slots.open_below(key_fd, name)
    except OSError:
        return Measured()
    try:
        data_fd = directory.open_directory(directory_fd, "data")
        if data_fd is None:
            return Measured()
        try:
            found = trees.measure(data_fd)
        finally:
            os.close(data_fd)
        listed: frozenset[str] = frozenset()
        with contextlib.suppress(OSError, ValueError):
            listed = layers.read_list(directory_fd)
        linked = {f"{device}:{inode}": Size(size, 1) for (device, inode), size in found.linked.items()}
        return Measured(Size(found.bytes, found.files + found.directories), listed, linked)
    finally:
        os.close(directory_fd)


_KINDS = {"golden": EntryKind.GOLDEN, "golden.previous": EntryKind.PREVIOUS}


def _entry(key_fd: int, key_name: str, candidate: Candidate, goldens: list[Candidate], now: float) -> Entry:
    found = candidate.state
    is_slot = candidate.kind is Kind.SLOT
    held, holder = slots.look(key_fd, candidate.name) if is_slot else (False, None)
    used = holder.since if holder is not None else (found.data.started_at if found.data is not None else now)
    return Entry(
        key=key_name,
        name=candidate.name,
        kind=EntryKind.SLOT if is_slot else _KINDS.get(candidate.name, EntryKind.OTHER),
        held=held,
        superseded=is_slot and not held and slots.superseded(found, goldens),
        trusted=found.is_trusted(procfs.read_boot_id()),
        last_used=used,
        own_bytes=0,
    )


def remove_entry(pool: Pool, entry: Entry) -> bool:
    """Move one thing to trash; False when it is held by now, or gone."""
    key_fd = directory.open_directory(pool.keys_fd, entry.key)
    if key_fd is None:
        return False
    try:
        directory.wait_for_lock(key_fd, slots.KEY_LOCK_TIMEOUT_S, f"the key directory {entry.key}")
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
        slots_fd = slots.open_below(key_fd, "slots")
        try:
            directory.throw_away(pool, slots_fd, slot.id)
        finally:
            os.close(slots_fd)
    finally:
        slot.close()
    return True


def _remove(pool: Pool, key_fd: int, entry: Entry) -> bool:
    parent, _, last = entry.name.rpartition("/")
    parent_fd = slots.open_below(key_fd, parent) if parent else os.dup(key_fd)
    try:
        directory.throw_away(pool, parent_fd, last)
    finally:
        os.close(parent_fd)
    return True


def drop_empty_key(pool: Pool, key_fd: int, name: str) -> None:
    """Move a key's directory to trash when nothing is left in it. Needs the key's lock."""
    if slots.is_empty(key_fd):
        directory.throw_away(pool, pool.keys_fd, name)


# ---- goldens ---------------------------------------------------------------------------------------------------------


def make_durable(pool: Pool, key: str) -> None:
    """Bring a copied golden to the disk, so that it can be trusted after a crash of the host."""
    with slots.locked_key(pool, key, create=False) as key_fd:
        fd = None if key_fd is None else directory.open_directory(key_fd, "golden")
    if fd is None:
        return
    try:
        if _is_durable(fd):
            return
        linux.syncfs(fd)  # may take long: not under the lock
        with slots.locked_key(pool, key, create=False):
            if not _is_durable(fd):
                raw = state.read_state(fd, slots.GOLDEN_NAME)
                state.write_state(fd, slots.GOLDEN_NAME, {"durable": True}, raw)
    except (ValueError, FileNotFoundError):
        pass  # unreadable, or deleted meanwhile: the next start's business
    finally:
        os.close(fd)


def _is_durable(golden_fd: int) -> bool:
    raw = state.read_state(golden_fd, slots.GOLDEN_NAME)
    return raw is None or raw.get("durable") is True


def prepare_spare(pool: Pool, key: str) -> bool:
    """Clone the golden to a free slot, unless there is one, where that takes long: the next start beside this one need
    not copy then. What the golden does without was told when it was made; a copy of a copy leaves no more out."""
    with slots.locked_key(pool, key, create=False) as key_fd:
        if key_fd is None:
            return False
        candidates, _ = slots.read_candidates(key_fd)
        golden = next((candidate for candidate in candidates if candidate.name == "golden"), None)
        if golden is None:
            return False
        number = golden.state.sequence
        ready = [c for c in candidates if c.kind is Kind.SLOT and c.state.sequence == number and not c.state.read_only]
        if any(not slots.look(key_fd, candidate.name, 0)[0] for candidate in ready):
            return False
        directory_fd = slots.open_below(key_fd, "golden")
        flock.lock_shared(directory_fd)
    try:
        data_fd = directory.open_directory(directory_fd, "data")
        raw = state.read_state(directory_fd, slots.GOLDEN_NAME)
        if data_fd is None:
            return False
        try:
            if raw is None or not _is_slow(raw.get("took_s")):
                return False
            source = Owner(directory_fd, data_fd)
            slots.create(pool, key, source, slots.clone_state(raw, sequence=number, read_only=False)).close()
        finally:
            os.close(data_fd)
    except ValueError:
        return False
    finally:
        os.close(directory_fd)
    return True


def _is_slow(took_s: object) -> bool:
    return isinstance(took_s, (int, float)) and took_s >= SLOW_S
