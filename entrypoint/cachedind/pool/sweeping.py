"""Deletions: what a killed start left half-made, what was thrown away, and the layers that nobody lists any more.

Each may be killed at any point and is gone on with by the next one; several may run side by side.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections import Counter

from cachedind.base.errors import PoolUnusableError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import trees
from cachedind.pool import directory, key_directory, layer_list, layers, records, scopes, staging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.pool.directory import Pool

GRACE_S = 1.0
"""How old a layer is at least, when a sweep begins, that goes because nobody lists it."""
KEEP_ASIDE = 3
"""How many bad slots are kept for inspection."""
FREEING_S = 60.0
"""How long to wait for btrfs to free what was deleted; it goes on by itself after that."""


def sweep_stage(pool: Pool) -> None:
    """Throw away what a killed start left half-made. What is being made right now is locked, and left alone."""
    for name in directory.names_in(pool.stage_fd):
        fd = directory.open_directory(pool.stage_fd, name)
        if fd is None:
            staging.throw_away(pool, pool.stage_fd, name)
            continue
        try:
            if directory.try_lock(fd):
                staging.throw_away(pool, pool.stage_fd, name)
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
        staging.throw_away(pool, pool.aside_fd, name)


def sweep_layers(pool: Pool) -> int:
    """Throw away the layers that nobody lists. Needs the lock of trash. Raises OSError."""

    def throw_away(layer_id: str) -> None:
        staging.throw_away(pool, pool.layers_fd, layer_id)

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
            directory.wait_for_lock(key_fd, key_directory.KEY_LOCK_TIMEOUT_S, f"the key directory {key_name}")
            for _, scope_fd in scopes.each(key_fd):
                if scope_fd is not None:
                    yield scope_fd
                    yield from _opened(scope_fd, scopes.OTHER)
            yield from _opened(key_fd, key_directory.SLOTS)
        finally:
            os.close(key_fd)


def _opened(parent_fd: int, name: str) -> Iterator[int]:
    fd = directory.open_directory(parent_fd, name)
    if fd is not None:
        try:
            yield fd
        finally:
            os.close(fd)


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
        return layer_list.read_list(owner_fd)
    except layer_list.BadListError:
        data_fd = directory.open_directory(owner_fd, "data")
        if data_fd is None:
            return frozenset()
        try:
            return records.find_links(data_fd)
        finally:
            os.close(data_fd)
