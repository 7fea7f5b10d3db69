"""Volumes that are kept by their names (CACHEDIND_KEEP=volumes:PATTERN), and how many of them.

A tool may name its volume anew in each job, as buildx does for a builder without a name: kept without a limit, these
would only ever become more. So of each pattern those stay that were used last.
"""

from __future__ import annotations

import contextlib
import os
from itertools import islice

from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import beneath
from cachedind.settings.values import VOLUMES_LIKE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_KEPT = 3
"""Of each pattern."""
_MAX_LOOKED_AT = 1000


def plan_kept(last_used: Mapping[str, int], keep: frozenset[str]) -> frozenset[str]:
    """Which of the volumes stay, given when each was last used. Pure."""
    newest_first = sorted(last_used, key=lambda name: (last_used[name], name), reverse=True)
    kept = (name for pattern in _patterns(keep) for name in _matching(newest_first, pattern)[:MAX_KEPT])
    return frozenset(kept)


def over_the_limit(going: Sequence[str], keep: frozenset[str]) -> tuple[str, ...]:
    """Which of the volumes that go would stay if there were fewer of their pattern. Pure."""
    matching = {name for pattern in _patterns(keep) for name in _matching(going, pattern)}
    return tuple(sorted(matching))


def find_kept(root_fd: int, directory: str, names: Sequence[str], keep: frozenset[str]) -> frozenset[str]:
    """Which of the volumes in a directory of the engine's root stay. Costs nothing where no pattern is given."""
    matching = {name for pattern in _patterns(keep) for name in _matching(names, pattern)}
    return plan_kept({name: _last_used_ns(root_fd, f"{directory}/{name}/_data") for name in matching}, keep)


def _patterns(keep: frozenset[str]) -> list[str]:
    return [word.removeprefix(VOLUMES_LIKE) for word in keep if word.startswith(VOLUMES_LIKE)]


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    from fnmatch import fnmatchcase

    return [name for name in names if fnmatchcase(name, pattern)]


def _last_used_ns(root_fd: int, path: str) -> int:
    """When the directory, or something directly in it, changed last: the databases of BuildKit and of servers are
    there. 0 for what is no directory. A clone has the times of what it was copied from."""
    latest = 0
    with contextlib.suppress(OSError):
        fd = beneath.open_path(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            latest = os.fstat(fd).st_mtime_ns
            with os.scandir(fd) as entries:
                for entry in islice(entries, _MAX_LOOKED_AT):
                    latest = max(latest, entry.stat(follow_symlinks=False).st_mtime_ns)
        finally:
            os.close(fd)
    return latest
