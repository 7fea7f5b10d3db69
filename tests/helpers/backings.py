"""Filesystems as the trials see them, and what a decision about storage is made from."""

from __future__ import annotations

from typing import NamedTuple

from cachedind.base.model import EngineVersion, ExistingData, ImageStore, Remap, StoragePlan, Verdict
from cachedind.dataroot.storage_facts import Demand, StorageFacts

REMAP = Remap("default", 165536, 165536)
GRAPH, CTRD = ImageStore.GRAPHDRIVER, ImageStore.CONTAINERD
ENGINES = {
    "23": EngineVersion(23, 0, 6),
    "26.1": EngineVersion(26, 1, 5),
    "28.5": EngineVersion(28, 5, 2),
    "29.1": EngineVersion(29, 1, 0),
}
NOTHING = ExistingData((), None, None)


class Backing(NamedTuple):
    """A filesystem as the trials see it."""

    fstype: str
    overlay: bool
    fuse: bool
    why: str = "tried"
    privilege: bool = False


# storage.md a1, one row per filesystem; "works" is what the probe finds on it.
BACKINGS = {
    "ext4": Backing("ext4", overlay=True, fuse=True),
    "ext4 casefold": Backing("ext4", overlay=False, fuse=True, why="the backing filesystem is unfit (merged)"),
    "xfs": Backing("xfs", overlay=True, fuse=True),
    "xfs ftype=0": Backing("xfs", overlay=False, fuse=True, why="directory entries carry no d_type"),
    "btrfs": Backing("btrfs", overlay=True, fuse=True),
    "tmpfs": Backing("tmpfs", overlay=True, fuse=True),
    "f2fs": Backing("f2fs", overlay=True, fuse=True),
    "zfs 2.2": Backing("zfs", overlay=True, fuse=True),
    "zfs 2.1": Backing("zfs", overlay=False, fuse=True, why="merged/other: Invalid argument"),
    "overlay": Backing("overlay", overlay=False, fuse=True, why="the backing filesystem is unfit (merged)"),
    "overlay without /dev/fuse": Backing("overlay", overlay=False, fuse=False, why="unfit"),
    "ramfs": Backing("ramfs", overlay=False, fuse=True, why="merged/other: Invalid argument"),
    "nfs": Backing("nfs4", overlay=False, fuse=True, why="unfit"),
    "9p": Backing("9p", overlay=False, fuse=False, why="unfit"),
    "no privileges": Backing("ext4", overlay=False, fuse=False, why="no permission", privilege=True),
}


def facts_of(
    backing: str = "ext4", engine: str = "28.5", existing: ExistingData = NOTHING, *, fuse: bool | None = None
) -> StorageFacts:
    found = BACKINGS[backing]
    verdicts = {
        "overlay2": Verdict("overlay2", found.overlay, found.why, found.privilege and not found.overlay),
        "fuse-overlayfs": Verdict("fuse-overlayfs", found.fuse if fuse is None else fuse, "tried", found.privilege),
    }
    return StorageFacts("/var/lib/docker", found.fstype, ENGINES[engine], existing, verdicts)


def held(*pairs: tuple[ImageStore, str], engine: str | None = None, recorded: bool = False) -> ExistingData:
    return ExistingData(pairs, ENGINES[engine] if engine else None, pairs[0] if recorded else None)


def argument(driver: str) -> Demand:
    return Demand(driver, f"the argument --storage-driver {driver}")


def store_demand(store: ImageStore) -> Demand:
    return Demand(str(store), f"CACHEDIND_IMAGE_STORE={store}")


def decided(plan: StoragePlan) -> tuple[ImageStore, str]:
    return plan.store, plan.driver
