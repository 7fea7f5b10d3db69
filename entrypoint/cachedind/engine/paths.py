"""Where an engine keeps images, layers and content: paths relative to its data-root. Pure.

The layout below image/ and in drivers' directories is moby's (image/fs.go, layer/filestore.go, reference/store.go,
daemon/graphdriver/), below containerd/daemon/ it is that of containerd's plugins (core/metadata/,
plugins/content/local/, plugins/snapshots/).
"""

from __future__ import annotations

import re

NETWORKS = "network"
NETWORK_DATABASE = f"{NETWORKS}/files/local-kv.db"
"""libnetwork's records of networks, and its drivers' (moby, libnetwork/internal/kvstore/boltdb)."""

HISTORY = ("history.db", "history_c8d.db")
"""In buildkit/, of graph drivers and of the containerd store: records of builds (buildkit, solver/llbsolver/history.go;
moby, builder/builder-next/controller.go)."""

# ---- graph drivers ---------------------------------------------------------------------------------------------------

OVERLAYS = frozenset({"overlay2", "fuse-overlayfs"})
"""Drivers that have `diff` and, above another layer, `lower` in a layer's directory."""
CACHE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""The name of a layer's directory: 64 hexadecimal digits of the layer store, or a shorter word of BuildKit's."""
_LAYERS = {"btrfs": "btrfs/subvolumes", "vfs": "vfs/dir"}


def images(driver: str) -> str:
    """Records of images and layers. Without it dockerd never ran with this driver."""
    return f"image/{driver}"


def references(driver: str) -> str:
    """The file with the names of images."""
    return f"{images(driver)}/repositories.json"


def configurations(driver: str) -> str:
    return f"{images(driver)}/imagedb/content/sha256"


def image_metadata(driver: str) -> str:
    """A directory for each image: when it was named last, and the image that the classic builder made it from."""
    return f"{images(driver)}/imagedb/metadata/sha256"


def layer_records(driver: str) -> str:
    """A directory for each layer, with the hexadecimal digits of its chain ID as its name."""
    return f"{images(driver)}/layerdb/sha256"


def mounts(driver: str) -> str:
    """A directory for each container, with the chain ID of the layer below it; and for each image that no job sees, as
    if it was a container's (pins.py)."""
    return f"{images(driver)}/layerdb/mounts"


PIN = "cachedind-"
"""How the names of the latter begin."""


def layers(driver: str) -> str:
    """A directory for each layer, with its cache ID as its name. ZFS has datasets instead."""
    return _LAYERS.get(driver, driver)


# ---- containerd ------------------------------------------------------------------------------------------------------

CONTAINERD = "containerd/daemon"
"""All data of the containerd that dockerd runs."""
META = f"{CONTAINERD}/io.containerd.metadata.v1.bolt/meta.db"
"""The database with the records of images, content and snapshots."""
UUID = f"{CONTAINERD}/io.containerd.grpc.v1.introspection/uuid"
"""A word that names this containerd."""
CONTENT = f"{CONTAINERD}/io.containerd.content.v1.content"
BLOBS = f"{CONTENT}/blobs/sha256"
SNAPSHOTTER_PREFIX = "io.containerd.snapshotter.v1."
"""What comes before a snapshotter's name in the name of its directory."""


def snapshots(snapshotter: str) -> str:
    """A directory for each snapshot, with its number as its name, where the snapshotter keeps them in directories."""
    return f"{_snapshotter(snapshotter)}/snapshots"


def snapshots_database(snapshotter: str) -> str:
    """The database in which snapshots have their numbers."""
    return f"{_snapshotter(snapshotter)}/metadata.db"


def _snapshotter(name: str) -> str:
    return f"{CONTAINERD}/{SNAPSHOTTER_PREFIX}{name}"
