"""BuildKit's records of its build cache, against what there has to be for them. A step is CACHED by a record alone;
when it comes to be an image and something is missing, the build fails, and each one after it.

    metadata_v2.db   _main/<record>/cache.snapshot {"value": <snapshot>}, snapshot.committed {"value": true}
    snapshots.db     <snapshot>/chainid, committed: a layer of the engine, or the name under which it was committed;
                     with graph drivers only (moby, builder/builder-next/adapters/snapshot/snapshot.go). Without it:
                     "can not convert active … to layer". Layers of images that were pulled are their own snapshots,
                     by their chain ID
    containerd's     v1/<namespace>/leases/<record>: what keeps its collector from a record's layer (BuildKit,
                     cache/manager.go). Without it: "lease …: not found". A kill amid a record's removal leaves it
                     without one, and nobody builds on it then; all of them are without one only when the records are
                     those of another data-root
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from cachedind import beneath, bolt_check, databases, state
from cachedind.model import ImageStore

if TYPE_CHECKING:
    from cachedind.bolt_check import Judge
    from cachedind.model import StoragePlan

_LAYER = frozenset({b"chainid", b"committed", b"iscommitted"})


class Broken(NamedTuple):
    """A database that does not fit the others, and why."""

    path: str
    why: str


def find_broken(root_fd: int, storage: StoragePlan, limit_bytes: int) -> Broken | None:
    """Why a build from this cache would fail. Raises nothing for what is on disk: a database that cannot be read is a
    damage of its own. Of databases with more than so many bytes nothing is compared."""
    of_graph = storage.store is ImageStore.GRAPHDRIVER
    if of_graph and _size(root_fd, databases.BUILDERS_SNAPSHOTS) == 0:
        # It is made before cache.db.
        built = _size(root_fd, "buildkit/cache.db")
        return Broken(databases.BUILDERS_SNAPSHOTS, "it is empty, and there is a build cache") if built else None
    with contextlib.suppress(OSError, ValueError):
        metadata = databases.builders_metadata(storage)
        records = _Records()
        _walk(root_fd, metadata, limit_bytes, records.take)
        finished = (records.committed & records.snapshots.keys()) - records.lazy
        if of_graph:
            layers = _Layers()
            if _walk(root_fd, databases.BUILDERS_SNAPSHOTS, limit_bytes, layers.take):
                for name in sorted(records.snapshots[record] for record in finished):
                    if name not in layers.names and not name.startswith("sha256:"):
                        why = f"the build cache has a layer {name[:64]!r} that is not in it"
                        return Broken(databases.BUILDERS_SNAPSHOTS, why)
        leases = _Leases()
        complete = _walk(root_fd, databases.builders_leases(storage), limit_bytes, leases.take)
        if complete and finished and finished.isdisjoint(leases.names):
            return Broken(metadata, "containerd knows none of its records: they are those of another data-root")
    return None


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
        if len(path) == 1 and key in _LAYER:
            self.names.add(path[0].decode("ascii", "replace"))


class _Leases:
    """Which records containerd keeps something for."""

    def __init__(self) -> None:
        self.names: set[bytes] = set()

    def take(self, path: tuple[bytes, ...], _key: bytes, _value: bytes) -> None:
        if len(path) >= 4 and path[2] == b"leases":
            self.names.add(path[3])


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
