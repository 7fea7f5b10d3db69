"""BuildKit's records of what its build cache has in directories, and which of these are cache mounts.

    metadata_v2.db    in buildkit/, with the containerd store in buildkit/containerd-<snapshotter>/: _main/<record>, its
                      fields in JSON: cache.snapshot (the key of its directory), cache.recordType
    snapshots.db      graph drivers: by key the directory below <driver>/, where that is not named like the key
    metadata.db       the containerd store's snapshotter: by moby/<count>/<key> the number of the directory

A cache mount (RUN --mount=type=cache) is the one kind of them that any build may write to again and that none relies
on: a build that finds it empty fills it. A build context (source.local) is not of that kind, although a client sends
it again: with its record goes a list of its files and their digests (cache/contenthash), which the next transfer
corrects only by what it finds in the directory. In an emptied one nothing is found to be gone, and a file that was
removed from the context stays in the digest: its COPY is CACHED, and has the file (seen on 28.5 with both stores).
But no file of a context is ever written to again: a transfer makes a new file under another name and renames it, so
that a hard link to the old one stays what it is.

Sources: BuildKit, cache/metadata.go, cache/contenthash/checksum.go, client/client.go (UsageRecordType); fsutil,
diskwriter.go (DiskWriter.HandleChange); moby, builder/builder-next/adapters/snapshot; containerd,
core/metadata/snapshot.go (createKey).
"""

from __future__ import annotations

import contextlib
import json
import os

from cachedind.base.model import ImageStore
from cachedind.base.releases import are_tested
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import bolt, containerd_snapshots, paths
from cachedind.host import beneath

if TYPE_CHECKING:
    from cachedind.base.model import EngineVersion, StoragePlan

    Records = dict[bytes, dict[bytes, bytes]]

_CACHE_MOUNT = b"exec.cachemount"
_CONTEXT = b"source.local"


def read(root_fd: int, store: ImageStore, snapshotter: str = "") -> Records:
    """All records, by name, with their fields. Raises OSError, ValueError."""
    below = f"containerd-{snapshotter}/" if store is ImageStore.CONTAINERD else ""
    return _nested(root_fd, f"buildkit/{below}metadata_v2.db", b"_main")


def read_names(root_fd: int, store: ImageStore, snapshotter: str = "") -> frozenset[str] | None:
    """The names of all records, which is quicker; None where they cannot be read. Raises nothing."""
    below = f"containerd-{snapshotter}/" if store is ImageStore.CONTAINERD else ""
    with contextlib.suppress(OSError, ValueError):
        fd, _ = beneath.open_file(root_fd, f"buildkit/{below}metadata_v2.db")
        try:
            return frozenset(name.decode("ascii", "replace") for name in bolt.open(fd).buckets([b"_main"]))
        finally:
            os.close(fd)
    return None


def read_directories(root_fd: int) -> Records:
    """Graph drivers: by key of a snapshot, what is noted down of its directory. Raises OSError, ValueError."""
    return _nested(root_fd, "buildkit/snapshots.db")


def value(field: bytes) -> bytes:
    """What a field holds: {"value": …} (cache/metadata.go)."""
    if not field:
        return b""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(field)
        if isinstance(found, dict):
            inner = found.get("value", "")
            return str(inner).lower().encode() if isinstance(inner, bool) else str(inner).encode("utf-8", "replace")
    return b""


def find_cache_mounts(root_fd: int, storage: StoragePlan, engine: EngineVersion | None) -> dict[str, str]:
    """The names of the directories (of graph drivers, or numbers of snapshots) in which cache mounts lie, and where
    each is mounted. `engine` wrote the data last.

    Needs the lease, and no daemon on the data. Raises nothing for what is on disk: what cannot be read, or was written
    by a release that the tests do not run, is not known to be one.
    """
    if not are_tested([engine]):
        return {}
    try:
        records = read(root_fd, storage.store, storage.driver)
        mounts = _cache_mounts(records)
        return _directories_of(root_fd, storage, mounts) if mounts else {}
    except (OSError, ValueError):
        return {}


def find_contexts(root_fd: int, storage: StoragePlan, engine: EngineVersion | None) -> frozenset[str]:
    """The names of the directories in which build contexts lie, as find_cache_mounts."""
    if not are_tested([engine]):
        return frozenset()
    try:
        contexts = _contexts(read(root_fd, storage.store, storage.driver))
        return frozenset(_directories_of(root_fd, storage, contexts)) if contexts else frozenset()
    except (OSError, ValueError):
        return frozenset()


def _contexts(records: Records) -> dict[bytes, str]:
    """By key of their snapshots. A record without a type shows the same directory as it was when its build used it."""
    by_kind: dict[bytes, set[bytes]] = {}
    for name, fields in records.items():
        kind = value(fields.get(b"cache.recordType", b""))
        by_kind.setdefault(kind, set()).add(value(fields.get(b"cache.snapshot", b"")) or name)
    others = {key for kind, keys in by_kind.items() if kind != _CONTEXT for key in keys}
    return dict.fromkeys(by_kind.get(_CONTEXT, set()) - others, "")


def _cache_mounts(records: Records) -> dict[bytes, str]:
    """By key of their snapshots, without those that records of another kind have too. Pure."""
    mounts: dict[bytes, str] = {}
    others: set[bytes] = set()
    for name, fields in records.items():
        keys = {name, value(fields.get(b"cache.snapshot", b"")), value(fields.get(b"cache.equalMutable", b""))} - {b""}
        if value(fields.get(b"cache.recordType", b"")) == _CACHE_MOUNT:
            key = value(fields.get(b"cache.snapshot", b"")) or name
            mounts[key] = _place_of(value(fields.get(b"cache.description", b"")))
        else:
            others |= keys
    return {key: place for key, place in mounts.items() if key not in others}


def _place_of(description: bytes) -> str:
    """ "/root/.cache" of "cached mount /root/.cache from exec go build …" (solver/llbsolver/ops/exec.go)."""
    text = description.decode("utf-8", "replace").removeprefix("cached mount ")
    return text.partition(" from exec ")[0][:200]


def _directories_of(root_fd: int, storage: StoragePlan, mounts: dict[bytes, str]) -> dict[str, str]:
    if storage.store is ImageStore.CONTAINERD:
        found = containerd_snapshots.read(root_fd, storage.driver)
        active = {one.key.rpartition(b"/")[2]: one.number for one in found if one.kind == containerd_snapshots.ACTIVE}
        return {str(active[key]): place for key, place in mounts.items() if key in active}
    # What is committed is no cache mount of now.
    directories = read_directories(root_fd)
    return {
        key.decode("ascii", "replace"): place
        for key, place in mounts.items()
        if not directories.get(key, {}).get(b"committed") and paths.CACHE_ID.fullmatch(key.decode("ascii", "replace"))
    }


def _nested(root_fd: int, path: str, *bucket: bytes) -> Records:
    fd, _ = beneath.open_file(root_fd, path)
    try:
        return dict(bolt.open(fd).nested(bucket))
    finally:
        os.close(fd)
