"""What was asked of storage, what is known of the place, and which stores and drivers that leaves. Pure."""

from __future__ import annotations

from cachedind.base import releases
from cachedind.base.errors import CachedindError, DriverConflictError, NotPrivilegedError, NoUsableDriverError
from cachedind.base.model import (
    COPYING_DRIVERS,
    GRAPH_DRIVERS,
    SNAPSHOTTERS,
    Degradation,
    EngineVersion,
    ExistingData,
    ImageStore,
    Remap,
    Verdict,
)
from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

PRIVILEGED_RUN = "docker run --privileged -v cachedind:/var/lib/docker cachedind"
VOLUME_DRIVERS = ("btrfs", "zfs")
"""Drivers that keep each layer as a volume of the filesystem, which a clone of a pool's slot leaves out."""
_MOUNT_A_VOLUME = "mount a volume with ext4, xfs or btrfs at the data-root (-v cachedind:/var/lib/docker)"


class Demand(NamedTuple):
    """A value that the user demands, and where: "the argument --storage-driver vfs"."""

    value: str
    said_by: str


class StorageRequest(NamedTuple):
    """Everything the user said about storage."""

    driver: Demand | None = None
    store: Demand | None = None
    docker_driver: str = ""
    userns_remap: Remap | None = None
    allow_vfs: bool = False
    in_pool: bool = False


class StorageFacts(NamedTuple):
    """Everything that is known about the place. `verdicts` has that on overlay2, and on fuse-overlayfs where needed;
    `containerd` is the version of the engine's, empty where that is not known."""

    data_root: str
    fstype: str
    engine: EngineVersion
    existing: ExistingData
    verdicts: Mapping[str, Verdict]
    containerd: str = ""


def unite_demands(demands: list[Demand]) -> Demand | None:
    """The one demand that several places agree on. Raises DriverConflictError when they differ."""
    for one in demands[1:]:
        if one.value != demands[0].value:
            raise DriverConflictError(
                f"{demands[0].said_by} contradicts {one.said_by}", "keep the one that is meant and drop the other"
            )
    return demands[0] if demands else None


def needs_fuse_verdict(existing: ExistingData, request: StorageRequest, overlay: Verdict) -> bool:
    """Whether fuse-overlayfs has to be tried as well: it is the second choice, and costs another 20 ms."""
    wanted = {driver for _, driver in existing.pairs} | {request.docker_driver}
    wanted |= {request.driver.value} if request.driver else set()
    return not overlay.works or "fuse-overlayfs" in wanted


# ---- what an engine has ----------------------------------------------------------------------------------------------


def default_store(engine: EngineVersion, request: StorageRequest) -> ImageStore:
    """The engine's own default on an empty data-root (moby, daemon/image_store_choice.go)."""
    if releases.prefers_containerd_store(engine) and not request.userns_remap:
        return ImageStore.CONTAINERD
    return ImageStore.GRAPHDRIVER


def has_store(store: ImageStore, engine: EngineVersion, request: StorageRequest) -> bool:
    """Whether the engine would start with that store; with userns-remap and the containerd store dockerd ends."""
    if store is ImageStore.GRAPHDRIVER:
        return True
    return releases.has_containerd_store(engine) and not request.userns_remap


def store_of(driver: str, request: StorageRequest, engine: EngineVersion) -> ImageStore | None:
    """The image store that `driver` belongs to; None where the demanded store or the engine does not have it."""
    asked = ImageStore(request.store.value) if request.store else None
    possible = []
    if driver in GRAPH_DRIVERS:
        possible.append(ImageStore.GRAPHDRIVER)
    if driver in SNAPSHOTTERS and has_store(ImageStore.CONTAINERD, engine, request):
        possible.append(ImageStore.CONTAINERD)
    if asked:
        return asked if asked in possible else None
    return possible[0] if possible else None


def may_use(driver: str, request: StorageRequest) -> bool:
    return driver not in COPYING_DRIVERS or request.allow_vfs


# ---- what the trials say ---------------------------------------------------------------------------------------------


def verdict_for(driver: str, facts: StorageFacts) -> Verdict:
    """What the trials say about any driver. overlayfs mounts as overlay2 does; vfs and native only need plain files."""
    if driver in ("overlay2", "overlayfs"):
        return facts.verdicts["overlay2"]
    if driver in facts.verdicts:
        return facts.verdicts[driver]
    if driver in COPYING_DRIVERS:
        return Verdict(driver, works=True, why="needs nothing but plain files")
    works = driver == facts.fstype
    return Verdict(driver, works=works, why=f"the data-root is on {facts.fstype}")


def degradations(facts: StorageFacts, driver: str) -> tuple[Degradation, ...]:
    overlay = facts.verdicts["overlay2"]
    why = f"overlay2 does not work on {facts.fstype}: {overlay.why}" if not overlay.works else "it was chosen before"
    if driver == "fuse-overlayfs":
        cost = "file access in builds and containers is several times slower"
        return (Degradation("storage driver fuse-overlayfs", why, cost, _MOUNT_A_VOLUME),)
    if driver in COPYING_DRIVERS:
        cost = "every layer and every container is a full copy of its image"
        return (Degradation(f"storage driver {driver}", why, cost, f"{_MOUNT_A_VOLUME}, empty"),)
    return ()


def raise_unusable(facts: StorageFacts, cause: str, tried: list[Verdict]) -> NoReturn:
    because = "; ".join(f"{verdict.driver}: {verdict.why}" for verdict in tried)
    error: CachedindError = NoUsableDriverError(
        f"{cause}: {because}", f"{_MOUNT_A_VOLUME}; CACHEDIND_ALLOW_VFS=1 allows the copying driver"
    )
    if all(verdict.privilege for verdict in tried):
        error = NotPrivilegedError(f"{cause}: {because}", f"run {PRIVILEGED_RUN}")
    raise error
