"""What a pool needs now and then, and what may come late: deletions, evictions, spares. Not on a start's path.

Everything here may be killed at any point and is gone on with by the next one, and several may run side by side.
"""

from __future__ import annotations

import contextlib
import os

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import pruning
from cachedind.host import flock, linux, trees
from cachedind.pool import directory, eviction, key_directory, scopes, slot_state, slots, survey, sweeping
from cachedind.pool.keys import BASE_KEY
from cachedind.pool.layers import Owner
from cachedind.pool.slot_state import Kind

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.pool.directory import Pool
    from cachedind.pool.limits import Eviction
    from cachedind.settings.config import Config

SLOW_S = 0.2
"""A golden that took longer to copy has a clone made of it in advance."""


class Report(NamedTuple):
    """What was done: evicted things with the reason, and bytes and inodes that the budget still lacks."""

    evicted: list[Eviction]
    lacking_bytes: int
    lacking_inodes: int
    deleted: int

    def tell(self, path: str, log: Log) -> None:
        """One line, where inodes are short: of bytes the next start has its slot give up some (pruning.py)."""
        if self.lacking_inodes:
            log.warn(
                f"the filesystem of the pool {path} has {self.lacking_inodes} inodes too few free, and evicting "
                "all that nobody uses would not be enough; jobs fail where it has none; give it more, or see what "
                "takes them: cachedind ls --json"
            )


def run(pool: Pool, settings: Config, key: str | None, now: float) -> Report:
    """All of it. `key` is the key of this start, for whose scope (the settings') a spare may be made. Raises
    OSError."""
    if key is not None:
        # Before what they replace is deleted.
        for each in (key, BASE_KEY):
            make_durable(pool, each)
    sweeping.sweep_stage(pool)
    sweeping.tidy_aside(pool)
    evicted = eviction.evict(pool, settings, now)
    pruning.note(pool.fd, evicted.own_lacking_bytes)
    deleted = sweeping.empty_trash(pool)
    if deleted:
        trees.wait_until_freed(pool.fd, sweeping.FREEING_S)
    if key is not None:
        prepare_spare(pool, key, settings.scope)
    survey.measure_layers(pool)
    return Report(evicted.evictions, evicted.lacking_bytes, evicted.lacking_inodes, deleted)


def make_durable(pool: Pool, key: str) -> None:
    """Bring a key's new goldens to the disk, so that they can be trusted after a crash of the host."""
    opened = []
    with key_directory.locked_key(pool, key, create=False) as key_fd:
        if key_fd is None:
            return
        for candidate in key_directory.read_candidates(key_fd)[0]:
            if candidate.kind is Kind.GOLDEN and not candidate.state.durable:
                with contextlib.suppress(OSError):
                    opened.append(key_directory.open_below(key_fd, candidate.name))
    try:
        for fd in opened[:1]:
            linux.syncfs(fd)  # may take long: not under the lock
        if opened:
            # One at a time: others bring the same ones to the disk.
            with key_directory.locked_key(pool, key, create=False):
                for fd in opened:
                    _note_durable(fd)
    finally:
        for fd in opened:
            os.close(fd)


def _note_durable(golden_fd: int) -> None:
    # Unreadable, or deleted meanwhile: the next start's business.
    with contextlib.suppress(ValueError, FileNotFoundError):
        raw = state.read_state(golden_fd, slot_state.GOLDEN_NAME)
        if raw is not None and raw.get("durable") is not True:
            state.write_state(golden_fd, slot_state.GOLDEN_NAME, {"durable": True}, raw)


def prepare_spare(pool: Pool, key: str, scope: str) -> bool:
    """Clone a scope's golden to a free slot, unless there is one, where that takes long: the next start beside this one
    need not copy then. What the golden does without was told when it was made; a copy of a copy leaves no more out."""
    with key_directory.locked_key(pool, key, create=False) as key_fd:
        if key_fd is None:
            return False
        candidates = [one for one in key_directory.read_candidates(key_fd)[0] if one.state.scope == scope]
        name = scopes.golden_name(scope)
        golden = next((candidate for candidate in candidates if candidate.name == name), None)
        if golden is None:
            return False
        number = golden.state.sequence
        ready = [c for c in candidates if c.kind is Kind.SLOT and c.state.sequence == number]
        usable = [c for c in ready if not c.state.read_only and not c.state.nothing_new]
        if any(not slots.look(key_fd, candidate.name, 0)[0] for candidate in usable):
            return False
        directory_fd = key_directory.open_below(key_fd, name)
        flock.lock_shared(directory_fd)
    try:
        data_fd = directory.open_directory(directory_fd, "data")
        raw = state.read_state(directory_fd, slot_state.GOLDEN_NAME)
        if data_fd is None:
            return False
        try:
            if raw is None or not _is_slow(raw.get("took_s")):
                return False
            values = slot_state.clone_state(raw, scope=scope, sequence=number, read_only=False)
            slots.create(pool, key, Owner(directory_fd, data_fd), values).close()
        finally:
            os.close(data_fd)
    except ValueError:
        return False
    finally:
        os.close(directory_fd)
    return True


def _is_slow(took_s: object) -> bool:
    return isinstance(took_s, (int, float)) and took_s >= SLOW_S
