"""What of an engine's data never changes: directories with the content of a layer, and files that are written once.

An engine makes a layer's directory while it pulls or builds, and never writes into it again once the layer is whole:
what runs on it has a directory of its own. Which ones are whole is written in the engine's records. Two ways to share:

    a link in its place        overlay2, fuse-overlayfs: <driver>/<id>/diff of the layers of images
                               (image/<driver>/layerdb/sha256/*/cache-id), which engines pack again by the list that
                               they keep of them (tar-split)
                               overlayfs of containerd: snapshots/<n> of the kind "committed" (metadata.db); not its
                               `fs`, as BuildKit packs that by walking through it, and does not follow a link at the
                               beginning of its way (util/overlay, Changes: an empty layer, without an error)
    hard links of its files    results of builds that are no image's yet (BuildKit's metadata_v2.db: no
                               cache.recordType, snapshot.committed), which are active snapshots of containerd where
                               nothing was built upon them: an engine that packs or measures one walks through `diff`
                               or `fs` in the same way

What is not known to be whole counts as mutable: layers of containers, cache mounts, build contexts, checkouts. Records
of BuildKit are read only for releases that the tests run; other engines' image layers are known all the same:
containerd's database has its schema's version in the name of a bucket ("v1"), and of another one nothing is found.

Sources: moby, layer/filestore.go, daemon/graphdriver/overlay2/overlay.go, builder/builder-next/adapters/snapshot,
pkg/archive (TarWithOptions); BuildKit, cache/metadata.go, util/overlay; containerd, core/snapshots/storage/bolt.go.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat

from cachedind.base.model import ImageStore
from cachedind.base.releases import are_tested
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import build_records, containerd_snapshots, paths
from cachedind.host import beneath

if TYPE_CHECKING:
    from cachedind.base.model import EngineVersion, StoragePlan

_MAX_WORD_BYTES = 256


SHARED_AT = ".cachedind/layers"
"""Where a pool's layers are in a data-root while a daemon runs. A layer that is shared is a link to one of them."""
LINK = re.compile(r"((?:\.\./)*)" + re.escape(SHARED_AT) + r"/([0-9a-f]{32})/content")
"""What such a link says: the way up to the data-root, and the layer's id."""

ALL_SHARED = (
    *((paths.layers(driver), "diff") for driver in sorted(paths.OVERLAYS)),
    (paths.snapshots("overlayfs"), ""),
)
"""Where any engine has layers that can be shared."""


def find(root_fd: int, storage: StoragePlan) -> list[str]:
    """The directories in whose places there may be links, as paths below the engine's root, and that are none yet;
    sorted.

    Needs the lease, and no daemon on the data. Raises nothing for what is on disk: what cannot be read is not shared.
    """
    parent, leaf = shared_directories(storage)
    if not parent:
        return []
    unshared = {name for name in beneath.names(root_fd, parent) if _is_directory(root_fd, place(parent, name, leaf))}
    if not unshared:
        return []
    is_containerd = storage.store is ImageStore.CONTAINERD
    whole = (_committed_snapshots if is_containerd else _image_layers)(root_fd, storage.driver)
    return sorted(place(parent, name, leaf) for name in unshared & whole)


def find_results(root_fd: int, storage: StoragePlan, engine: EngineVersion | None) -> frozenset[str]:
    """The names of directories with results of builds that are whole, and that no link may replace. `engine` wrote the
    data last. As `find`."""
    if not shared_directories(storage)[0] or not are_tested([engine]):
        return frozenset()
    try:
        known = build_records.read(root_fd, storage.store, storage.driver)
        mutable = _keys_of_mutable(known)
        keys = _keys_of_results(known) - mutable
        if storage.store is ImageStore.CONTAINERD:
            found = containerd_snapshots.read(root_fd, storage.driver)
            return frozenset(
                str(one.number)
                for one in found
                if one.kind == containerd_snapshots.ACTIVE and one.key.rpartition(b"/")[2] in keys
            )
        directories = build_records.read_directories(root_fd)
    except (OSError, ValueError):
        return frozenset()
    named = {directories.get(key, {}).get(b"committed") or key for key in keys}
    return frozenset(name.decode("ascii", "replace") for name in named - mutable)


def shared_directories(storage: StoragePlan) -> tuple[str, str]:
    """Where a layer has a directory, and what in that is its content, an empty word where it is all of it; two empty
    words where layers cannot be shared."""
    if storage.store is ImageStore.CONTAINERD:
        return (paths.snapshots(storage.driver), "") if storage.driver == "overlayfs" else ("", "")
    return (paths.layers(storage.driver), "diff") if storage.driver in paths.OVERLAYS else ("", "")


def place(parent: str, name: str, leaf: str) -> str:
    """Where the link to a layer is."""
    return f"{parent}/{name}/{leaf}" if leaf else f"{parent}/{name}"


def open_layer(root_fd: int, path: str) -> int:
    """A descriptor (O_PATH) of the directory at `path`, which is a layer's content or lies in one, be it shared. Raises
    OSError: any other link on the way is not followed."""
    fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    for name in path.split("/"):
        above_fd = fd
        try:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            target = _target(above_fd, name)
            # Up to the data-root and down to where the pool's layers are mounted, which was seen to at the lease.
            fd = os.open(target or name, flags | (0 if target else os.O_NOFOLLOW), dir_fd=above_fd)
        finally:
            os.close(above_fd)
    return fd


def _target(directory_fd: int, name: str) -> str:
    with contextlib.suppress(OSError):
        target = os.readlink(name, dir_fd=directory_fd)
        return target if LINK.fullmatch(target) else ""
    return ""


def files_written_once(storage: StoragePlan) -> tuple[str, ...]:
    """Directories in which each file is written whole, under another name, and renamed: a hard link to one stays what
    it is, whatever its engine does."""
    if storage.store is ImageStore.CONTAINERD:
        return (paths.BLOBS,)
    return paths.images(storage.driver), "buildkit/content/blobs", ".cachedind/unused"


def _is_directory(root_fd: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(beneath.look(root_fd, path).st_mode)
    return False


# ---- graph drivers ---------------------------------------------------------------------------------------------------


def _image_layers(root_fd: int, driver: str) -> set[str]:
    found = set()
    records = paths.layer_records(driver)
    for chain in beneath.names(root_fd, records):
        with contextlib.suppress(OSError, ValueError):
            found.add(beneath.read(root_fd, f"{records}/{chain}/cache-id", _MAX_WORD_BYTES).decode("ascii").strip())
    return found


# ---- build cache -----------------------------------------------------------------------------------------------------


def _keys_of_results(known: build_records.Records) -> set[bytes]:
    """Names of the snapshots in which BuildKit's committed results lie. Pure."""
    value = build_records.value
    return {
        value(fields.get(b"cache.equalMutable", b"")) or value(fields.get(b"cache.snapshot", b""))
        for fields in known.values()
        if value(fields.get(b"snapshot.committed", b"")) == b"true"
    }


def _keys_of_mutable(known: build_records.Records) -> set[bytes]:
    """Those of records that builds go on writing to: cache mounts, contexts, whatever has a type. Pure."""
    special = {name for name, fields in known.items() if fields.get(b"cache.recordType")}
    return special | {build_records.value(known[name].get(b"cache.snapshot", b"")) for name in special}


# ---- containerd ------------------------------------------------------------------------------------------------------


def _committed_snapshots(root_fd: int, snapshotter: str) -> set[str]:
    try:
        found = containerd_snapshots.read(root_fd, snapshotter)
    except (OSError, ValueError):
        return set()
    return {str(one.number) for one in found if one.kind == containerd_snapshots.COMMITTED}
