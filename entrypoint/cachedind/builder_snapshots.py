"""BuildKit's build cache with a graph driver: its records (metadata_v2.db) and what they are in the engine's layers
(snapshots.db) lie in two databases. The records of one are CACHED in each build; without the other the build fails when
it comes to be an image: "can not convert active … to layer".

    metadata_v2.db  _main/<record>/cache.snapshot  {"value": <snapshot>}, snapshot.committed {"value": true}
    snapshots.db    <snapshot>/chainid, committed: a layer, or the name under which it was committed (moby,
                    builder/builder-next/adapters/snapshot/snapshot.go); made before BuildKit's records are. Layers of
                    images that were pulled are their own snapshots, by their chain ID
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from cachedind import beneath, bolt_check, state
from cachedind.databases import BUILDERS_SNAPSHOTS

if TYPE_CHECKING:
    from cachedind.bolt_check import Judge

_METADATA = "buildkit/metadata_v2.db"
_KEYS = frozenset({b"chainid", b"committed", b"iscommitted"})


def find_broken(root_fd: int, limit_bytes: int) -> str:
    """Why a build from this cache would fail, or nothing. Raises nothing for what is on disk: a database that cannot be
    read is a damage of its own. Of databases with more than so many bytes nothing is compared."""
    if _size(root_fd, BUILDERS_SNAPSHOTS) == 0:
        return "it is empty, and there is a build cache" if _size(root_fd, "buildkit/cache.db") else ""
    with contextlib.suppress(OSError, ValueError):
        layers = _Layers()
        records = _Records()
        if _walk(root_fd, BUILDERS_SNAPSHOTS, limit_bytes, layers.take):
            _walk(root_fd, _METADATA, limit_bytes, records.take)
            for record in sorted((records.committed & records.snapshots.keys()) - records.lazy):
                name = records.snapshots[record]
                if name not in layers.names and not name.startswith("sha256:"):
                    return f"the build cache has a layer {name[:64]!r} that is not in it"
    return ""


class _Records:
    """Which of BuildKit's records are finished, what snapshot each has, and which of them are committed only when
    somebody wants to build on them (cache/refs.go, equalMutable)."""

    def __init__(self) -> None:
        self.committed: set[bytes] = set()
        self.lazy: set[bytes] = set()
        self.snapshots: dict[bytes, str] = {}

    def take(self, path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
        if len(path) != 2 or path[0] != b"_main" or not value:
            return
        if key == b"snapshot.committed" and state.parse_object(value).get("value") is True:
            self.committed.add(path[1])
        elif key == b"cache.equalMutable":
            self.lazy.add(path[1])
        elif key == b"cache.snapshot":
            self.snapshots[path[1]] = str(state.parse_object(value).get("value"))


class _Layers:
    """Which snapshots are layers of the engine, or on the way there."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def take(self, path: tuple[bytes, ...], key: bytes, _value: bytes) -> None:
        if len(path) == 1 and key in _KEYS:
            self.names.add(path[0].decode("ascii", "replace"))


def _walk(root_fd: int, path: str, limit_bytes: int, take: Judge) -> bool:
    fd, _ = beneath.open_file(root_fd, path)
    try:
        return bolt_check.check(fd, limit_bytes, take).complete
    finally:
        os.close(fd)


def _size(root_fd: int, path: str) -> int | None:
    """Bytes of a file, 0 where there is none, None for anything else."""
    try:
        found = beneath.look(root_fd, path)
    except FileNotFoundError:
        return 0
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
