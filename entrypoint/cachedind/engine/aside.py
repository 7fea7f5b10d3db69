"""Setting things aside: they are moved out of the engine's sight, to `.cachedind/aside/<when>/` of the data-root.

Each lies there under the path that it had. The record (why.json) is on disk before the first one is moved: if a start
is killed amid that, or cannot move all of it, the next start finds the record and reports it. In direct mode nothing is
ever deleted from there. Needs the lease.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Sequence

OWN_DIRECTORY = ".cachedind"
DIRECTORY = "aside"
RECORD = "why.json"
MAX_IN_POOL = 3


class Aside(NamedTuple):
    """Things that were set aside together: the directory they are in now, relative to the data-root, why, and the paths
    that they had. `told` is false until the log has named them."""

    name: str
    why: str
    paths: tuple[str, ...]
    told: bool = True


def move(root_fd: int, paths: Sequence[str], why: str, *, in_pool: bool) -> list[Aside]:
    """Set aside what exists of these paths, together. A pool's slot, being a cache, keeps the last few of such.

    Raises OSError when something cannot be moved; what was moved before stays there, and the record names all of it.
    """
    there = [path for path in sorted(set(paths)) if _is_there(root_fd, path)]
    if not there:
        return []
    with beneath.made_directory(root_fd, f"{OWN_DIRECTORY}/{DIRECTORY}") as aside_fd:
        name = _new_name(aside_fd)
        os.mkdir(name, 0o700, dir_fd=aside_fd)
        with beneath.made_directory(aside_fd, name) as fd:
            record: dict[str, object] = {"why": why, "at": round(time.time(), 3), "paths": there, "told": False}
            state.write_state(fd, RECORD, record, None)
            os.fsync(aside_fd)
            # A directory before what is in it, which is moved with it.
            moved = tuple(path for path in there if _move_one(root_fd, path, fd))
        if in_pool:
            _forget_older(aside_fd)
    return [Aside(f"{OWN_DIRECTORY}/{DIRECTORY}/{name}", why, moved, told=False)]


def _move_one(root_fd: int, path: str, aside_fd: int) -> bool:
    """Move one thing to the path that it had, below `aside_fd`. False when it is gone, as part of a directory say."""
    above, _, name = path.rpartition("/")
    try:
        with (
            beneath.directory(root_fd, above or ".") as source_fd,
            beneath.made_directory(aside_fd, above) as target_fd,
        ):
            os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        # Something else stands where a directory should be: that is what has to be moved.
        return _move_one(root_fd, above, aside_fd) if above else False
    return True


def _is_there(root_fd: int, path: str) -> bool:
    """Whether the path exists, or something else stands in the place of a directory above it."""
    try:
        return beneath.exists(root_fd, path)
    except OSError as error:
        return error.errno in (errno.ENOTDIR, errno.ELOOP)


def _new_name(aside_fd: int) -> str:
    """The time, for people; with a number when there are two in a second."""
    base = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    taken = set(os.listdir(aside_fd))
    return next(name for number in range(1000) if (name := base + (f"-{number}" if number else "")) not in taken)


def _forget_older(aside_fd: int) -> None:
    from cachedind.host import trees

    for name in sorted(os.listdir(aside_fd))[:-MAX_IN_POOL]:
        with contextlib.suppress(OSError):
            trees.remove(aside_fd, name)


def read(root_fd: int) -> list[Aside]:
    """What was set aside in a data-root, oldest first. A job may have written anything there: no link is followed."""
    found: list[Aside] = []
    for name in beneath.names(root_fd, f"{OWN_DIRECTORY}/{DIRECTORY}"):
        where, raw = f"{OWN_DIRECTORY}/{DIRECTORY}/{name}", {}
        with contextlib.suppress(OSError, ValueError), beneath.directory(root_fd, where) as fd:
            raw = state.read_state(fd, RECORD) or {}
        paths = raw.get("paths")
        listed = tuple(map(str, paths)) if isinstance(paths, list) else ()
        found.append(Aside(where, str(raw.get("why", "?")), listed, raw.get("told") is not False))
    return found


def note_told(root_fd: int, names: Sequence[str]) -> None:
    """Note that the log has named these. Where that cannot be written, the next start names them again."""
    for name in names:
        with contextlib.suppress(OSError, ValueError), beneath.made_directory(root_fd, name) as fd:
            raw = state.read_state(fd, RECORD)
            if raw is not None:
                state.write_state(fd, RECORD, {"told": True}, raw, durable=False)
