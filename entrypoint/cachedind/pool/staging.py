"""Where things of a pool are born, and where they go: stage, trash, aside."""

from __future__ import annotations

import contextlib
import os

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.pool import directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.pool.directory import Pool

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def new_id() -> str:
    return os.urandom(6).hex()


class Stage(NamedTuple):
    """A directory that is being made, and locked by whoever makes it."""

    name: str
    fd: int


@contextlib.contextmanager
def staged(pool: Pool) -> Iterator[Stage]:
    """A new directory in stage. What still has its name at the end is thrown away."""
    stage = _new_stage(pool)
    try:
        yield stage
    finally:
        try:
            if directory.is_current(stage.fd, pool.stage_fd, stage.name):
                throw_away(pool, pool.stage_fd, stage.name)
        finally:
            os.close(stage.fd)


def _new_stage(pool: Pool) -> Stage:
    while True:
        name = new_id()
        os.mkdir(name, 0o700, dir_fd=pool.stage_fd)
        fd = directory.open_directory(pool.stage_fd, name)
        if fd is None:
            continue
        # A sweep may have met the directory before it was locked.
        if directory.try_lock(fd) and directory.is_current(fd, pool.stage_fd, name):
            return Stage(name, fd)
        os.close(fd)


def publish(pool: Pool, stage: Stage, parent_fd: int, name: str) -> None:
    """Give what was made in stage its place. Raises OSError: EEXIST or ENOTEMPTY when the place is taken."""
    os.rename(stage.name, name, src_dir_fd=pool.stage_fd, dst_dir_fd=parent_fd)


def throw_away(pool: Pool, parent_fd: int, name: str) -> None:
    """Move a directory to trash; `upkeep` deletes it later, in the background. What is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(name, new_id(), src_dir_fd=parent_fd, dst_dir_fd=pool.trash_fd)
        pool.trace.reach("evict.renamed")


def set_aside(pool: Pool, parent_fd: int, name: str, why: str, now: float) -> str:
    """Keep something bad for inspection, whatever it is, and return where."""
    aside = new_id()
    os.mkdir(aside, 0o700, dir_fd=pool.aside_fd)
    fd = os.open(aside, _DIRECTORY, dir_fd=pool.aside_fd)
    try:
        state.write_state(fd, "why.json", {"why": why, "was": name, "at": round(now, 3)}, None)
        os.rename(name, "slot", src_dir_fd=parent_fd, dst_dir_fd=fd)
    finally:
        os.close(fd)
    pool.trace.reach("aside.renamed")
    return f"aside/{aside}"
