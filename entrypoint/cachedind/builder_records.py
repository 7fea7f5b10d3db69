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

import stat
from typing import TYPE_CHECKING, NamedTuple

from cachedind import beneath, databases, state
from cachedind.model import ImageStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from cachedind.bolt_check import Judge
    from cachedind.model import StoragePlan

_LAYER = frozenset({b"chainid", b"committed", b"iscommitted"})


class Broken(NamedTuple):
    """A database that does not fit the others, and why."""

    path: str
    why: str


class BuilderRecords:
    """What is recorded of a build cache. `takes` are shown what is in the databases of these paths; after that, `find`
    tells why a build from it would fail."""

    def __init__(self, storage: StoragePlan) -> None:
        self._of_graph = storage.store is ImageStore.GRAPHDRIVER
        self._metadata = databases.builders_metadata(storage)
        self._lease_database = databases.builders_leases(storage)
        self._committed: set[bytes] = set()
        self._lazy: set[bytes] = set()
        """Records that are committed only when somebody wants to build on them (cache/refs.go, equalMutable)."""
        self._snapshots: dict[bytes, bytes] = {}
        """JSON by record."""
        self._layers: set[str] = set()
        self._leases: set[bytes] = set()
        self.takes: Mapping[str, Judge] = {
            self._metadata: self._take_record,
            self._lease_database: self._take_lease,
            **({databases.BUILDERS_SNAPSHOTS: self._take_layer} if self._of_graph else {}),
        }

    def _take_record(self, path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
        if not value or len(path) != 2 or path[0] != b"_main":
            return
        if key == b"cache.snapshot":
            self._snapshots[path[1]] = value
        elif key == b"cache.equalMutable":
            self._lazy.add(path[1])
        elif key == b"snapshot.committed" and state.parse_object(value).get("value") is True:
            self._committed.add(path[1])

    def _take_layer(self, path: tuple[bytes, ...], key: bytes, _value: bytes) -> None:
        if key in _LAYER and len(path) == 1:
            self._layers.add(path[0].decode("ascii", "replace"))

    def _take_lease(self, path: tuple[bytes, ...], _key: bytes, _value: bytes) -> None:
        if len(path) >= 4 and path[2] == b"leases":
            self._leases.add(path[3])

    def find(self, root_fd: int, complete: Set[str]) -> Broken | None:
        """`complete` are the databases all of which was shown, and is sound. Raises nothing for what is on disk."""
        snapshots = databases.BUILDERS_SNAPSHOTS
        if self._of_graph and _size(root_fd, snapshots) == 0:
            # It is made before cache.db.
            built = _size(root_fd, "buildkit/cache.db")
            return Broken(snapshots, "it is empty, and there is a build cache") if built else None
        finished = (self._committed & self._snapshots.keys()) - self._lazy
        if self._of_graph and snapshots in complete:
            for name in sorted(_value_of(self._snapshots[record]) for record in finished):
                if name not in self._layers and not name.startswith("sha256:"):
                    return Broken(snapshots, f"the build cache has a layer {name[:64]!r} that is not in it")
        if self._lease_database in complete and finished and finished.isdisjoint(self._leases):
            return Broken(self._metadata, "containerd knows none of its records: they are those of another data-root")
        return None


def _value_of(raw: bytes) -> str:
    return str(state.parse_object(raw).get("value"))


def _size(root_fd: int, path: str) -> int | None:
    """Bytes of a file, 0 where there is none, None for anything else."""
    try:
        found = beneath.look(root_fd, path)
    except FileNotFoundError:
        return 0
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
