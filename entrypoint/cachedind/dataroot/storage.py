"""The decision: which image store and storage driver. Pure.

Order of precedence: what the data-root holds; then what the user demands (an argument, daemon.json, CACHEDIND_*); then
DOCKER_DRIVER, which is a leftover of old CI templates more often than a wish; then the best that a trial proves.
A demand that contradicts the data is an error, a leftover that does so loses with one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cachedind.base.errors import (
    CachedindError,
    DriverConflictError,
    DriverUnavailableError,
    EngineTooOldError,
    NotPrivilegedError,
    NoUsableDriverError,
)
from cachedind.base.model import (
    COPYING_DRIVERS,
    GRAPH_DRIVERS,
    SNAPSHOTTERS,
    Degradation,
    EngineVersion,
    ExistingData,
    ImageStore,
    Remap,
    StoragePlan,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PRIVILEGED_RUN = "docker run --privileged -v cachedind:/var/lib/docker cachedind"
VOLUME_DRIVERS = ("btrfs", "zfs")
"""Drivers that keep each layer as a volume of the filesystem, which a clone of a pool's slot leaves out."""
_FIRST_WITH_CONTAINERD_STORE = (24, 0)
_FIRST_WITH_CONTAINERD_DEFAULT = (29, 0)
_MOUNT_A_VOLUME = "mount a volume with ext4, xfs or btrfs at the data-root (-v cachedind:/var/lib/docker)"


class Demand(NamedTuple):
    """A value that the user asked for, and where: "the argument --storage-driver vfs"."""

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
    """Everything that is known about the place. `verdicts` has overlay2's, and fuse-overlayfs's where it was needed."""

    data_root: str
    fstype: str
    engine: EngineVersion
    existing: ExistingData
    verdicts: Mapping[str, Verdict]


def unite_demands(demands: list[Demand]) -> Demand | None:
    """One demand out of those of several places. Raises DriverConflictError when they differ."""
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


def plan_storage(facts: StorageFacts, request: StorageRequest) -> StoragePlan:
    """Decide. Raises EngineTooOldError, DriverConflictError, DriverUnavailableError, NoUsableDriverError,
    NotPrivilegedError.
    """
    existing = facts.existing
    if existing.pairs and existing.engine is not None and facts.engine.release < existing.engine.release:
        raise EngineTooOldError(
            f"{facts.data_root} was last used by Docker Engine {existing.engine}; this is the older {facts.engine}, "
            "which may misread or destroy it",
            f"use an image with engine {existing.engine.major}.{existing.engine.minor} or later, or another volume",
        )
    if existing.pairs:
        return _plan_existing(facts, request)
    return _plan_fresh(facts, request)


def name_asked(facts: StorageFacts, request: StorageRequest, plan: StoragePlan) -> str:
    """Which wish has led a data-root to a plan that nobody would have got without it: "driver", "store", or none "".

    In a pool, what one start asked for is no choice for those that do not ask. Where nothing else works here, it is
    everybody's.
    """
    empty = facts._replace(existing=facts.existing._replace(pairs=(), engine=None, recorded=None))
    without_driver = request._replace(driver=None, docker_driver="")
    for name, plainer in (("driver", without_driver), ("store", without_driver._replace(store=None))):
        if plainer == request:
            continue
        try:
            own = plan_storage(empty, plainer)
        except CachedindError:
            continue
        if (own.store, own.driver) != (plan.store, plan.driver):
            return name
    return ""


# ---- a data-root with data ------------------------------------------------------------------------------------


def _plan_existing(facts: StorageFacts, request: StorageRequest) -> StoragePlan:
    store, driver = choose_pair(facts.existing, request)
    if store is ImageStore.CONTAINERD and facts.engine.release < _FIRST_WITH_CONTAINERD_STORE:
        raise EngineTooOldError(
            f"{facts.data_root} holds data of the containerd image store, which engine {facts.engine} does not have",
            "use an image with engine {}.{} or later, or another volume".format(*_FIRST_WITH_CONTAINERD_STORE),
        )
    _refuse_contradictions(facts, request, store, driver)
    verdict = verdict_for(driver, facts)
    if not verdict.works:
        kind = NotPrivilegedError if verdict.privilege else DriverUnavailableError
        raise kind(
            f"{facts.data_root} holds {driver} data, and {driver} does not work here: {verdict.why}",
            f"run {PRIVILEGED_RUN}"
            if verdict.privilege
            else f"give it back the filesystem it was made on (it is {facts.fstype} now), or start on another volume",
        )
    notes = _notes_on_other_data(facts.existing, store, driver)
    if request.docker_driver and request.docker_driver != driver:
        notes.append(
            f"DOCKER_DRIVER={request.docker_driver} is ignored: {facts.data_root} holds {driver} data, "
            "which another driver would hide; drop the variable"
        )
    return StoragePlan(store, driver, f"{facts.data_root} holds it", tuple(notes), _degradations(facts, driver))


def choose_pair(existing: ExistingData, request: StorageRequest) -> tuple[ImageStore, str]:
    """Which of the data in a data-root is meant: cachedind's note, then a demand, then what engines themselves
    prefer.
    """
    if existing.recorded in existing.pairs and existing.recorded is not None:
        return existing.recorded
    for pair in existing.pairs:
        if (request.driver and request.driver.value == pair[1]) or (request.store and request.store.value == pair[0]):
            return pair
    # moby 29 prefers any graph driver but vfs to containerd data; 24 to 28 know only graph drivers unless told.
    return min(existing.pairs, key=lambda pair: (pair[1] in COPYING_DRIVERS, pair[0] is ImageStore.CONTAINERD))


def _notes_on_other_data(existing: ExistingData, store: ImageStore, driver: str) -> list[str]:
    others = [f"{d} ({s})" for s, d in existing.pairs if (s, d) != (store, driver)]
    if not others:
        return []
    return [
        f"the data-root also holds data of {', '.join(others)}, which {driver} ({store}) does not show; "
        "it is kept and takes space"
    ]


def _refuse_contradictions(facts: StorageFacts, request: StorageRequest, store: ImageStore, driver: str) -> None:
    ways_out = f"drop it to keep the data, or use another volume (or move the content of {facts.data_root} away)"
    for demand, holds in ((request.driver, driver), (request.store, str(store))):
        if demand and demand.value != holds:
            raise DriverConflictError(
                f"{demand.said_by} contradicts {facts.data_root}, which holds {driver} data in the {store} image "
                f"store: "
                "its images and build cache would disappear",
                ways_out,
            )
    if store is ImageStore.CONTAINERD and request.userns_remap:
        raise DriverConflictError(
            f"userns-remap does not go with the containerd image store, whose data {facts.data_root} holds", ways_out
        )


# ---- an empty data-root ---------------------------------------------------------------------------------------


def _plan_fresh(facts: StorageFacts, request: StorageRequest) -> StoragePlan:
    if request.driver:
        return _plan_demanded_driver(facts, request, request.driver)
    notes: list[str] = []
    if request.docker_driver:
        plan, note = _try_docker_driver(facts, request)
        if plan:
            return plan
        notes.append(f"DOCKER_DRIVER={request.docker_driver} is ignored: {note}")
    recorded = facts.existing.recorded
    if (
        recorded
        and not request.store
        and _has_store(recorded[0], facts.engine, request)
        and _is_worth_keeping(recorded[1], facts)
    ):
        return _fresh(facts, *recorded, "it was chosen at the last start", notes)
    store = ImageStore(request.store.value) if request.store else _default_store(facts.engine, request)
    if request.store and not _has_store(store, facts.engine, request):
        other = "userns-remap" if request.userns_remap else f"engine {facts.engine}"
        raise DriverConflictError(
            f"{request.store.said_by} contradicts {other}, which goes without that image store", "drop one of the two"
        )
    return _plan_best(facts, request, store, notes)


def _is_worth_keeping(driver: str, facts: StorageFacts) -> bool:
    """Whether to follow the note of a start that left no data: not where it was a second choice."""
    return driver not in COPYING_DRIVERS | {"fuse-overlayfs"} and verdict_for(driver, facts).works


def _plan_demanded_driver(facts: StorageFacts, request: StorageRequest, demand: Demand) -> StoragePlan:
    store = _store_of(demand.value, request, facts.engine)
    if store is None:
        raise DriverConflictError(
            f"{demand.said_by} contradicts {request.store.said_by if request.store else 'this engine'}: "
            f"{demand.value} is no driver of that image store",
            "drop one of the two",
        )
    verdict = verdict_for(demand.value, facts)
    if not verdict.works:
        _raise_unusable(facts, f"{demand.said_by} cannot be followed", [verdict])
    return _fresh(facts, store, demand.value, demand.said_by, [])


def _try_docker_driver(facts: StorageFacts, request: StorageRequest) -> tuple[StoragePlan | None, str]:
    driver = request.docker_driver
    store = _store_of(driver, request, facts.engine)
    if store is None:
        return None, f"it is no driver of the image store that is asked for (or of engine {facts.engine})"
    if not _may_use(driver, request):
        return None, "it copies every layer in full; CACHEDIND_ALLOW_VFS=1 allows it"
    if request.in_pool and driver in VOLUME_DRIVERS:
        return None, "a clone of a pool's slot would leave its layers out"
    verdict = verdict_for(driver, facts)
    if not verdict.works:
        return None, f"it does not work here: {verdict.why}"
    return _fresh(facts, store, driver, f"DOCKER_DRIVER={driver}", []), ""


def _plan_best(facts: StorageFacts, request: StorageRequest, store: ImageStore, notes: list[str]) -> StoragePlan:
    overlay = facts.verdicts["overlay2"]
    if overlay.works:
        driver = "overlay2" if store is ImageStore.GRAPHDRIVER else "overlayfs"
        return _fresh(facts, store, driver, f"it works on {facts.fstype}", notes)
    tried = [overlay]
    if store is ImageStore.CONTAINERD and request.store:
        # The containerd store has no snapshotter for this but the copying one.
        if _may_use("native", request):
            return _fresh(facts, store, "native", "overlayfs does not work here", notes)
        _raise_unusable(facts, f"{request.store.said_by}, and only native would work", tried)
    fuse = facts.verdicts["fuse-overlayfs"]
    tried.append(fuse)
    for driver in ("fuse-overlayfs", "vfs"):
        if verdict_for(driver, facts).works and _may_use(driver, request):
            return _fresh(facts, ImageStore.GRAPHDRIVER, driver, "overlay2 does not work here", notes)
    _raise_unusable(facts, f"no storage driver works on {facts.data_root} ({facts.fstype})", tried)


def _fresh(facts: StorageFacts, store: ImageStore, driver: str, reason: str, notes: list[str]) -> StoragePlan:
    return StoragePlan(store, driver, reason, tuple(notes), _degradations(facts, driver))


def _default_store(engine: EngineVersion, request: StorageRequest) -> ImageStore:
    """The engine's own default on an empty data-root (moby, daemon/image_store_choice.go)."""
    if engine.release >= _FIRST_WITH_CONTAINERD_DEFAULT and not request.userns_remap:
        return ImageStore.CONTAINERD
    return ImageStore.GRAPHDRIVER


def _has_store(store: ImageStore, engine: EngineVersion, request: StorageRequest) -> bool:
    """Whether the engine would start with that store; dockerd dies of userns-remap with containerd's."""
    if store is ImageStore.GRAPHDRIVER:
        return True
    return engine.release >= _FIRST_WITH_CONTAINERD_STORE and not request.userns_remap


def _store_of(driver: str, request: StorageRequest, engine: EngineVersion) -> ImageStore | None:
    """The image store that `driver` belongs to, or None where that contradicts a demanded store or the engine."""
    asked = ImageStore(request.store.value) if request.store else None
    possible = []
    if driver in GRAPH_DRIVERS:
        possible.append(ImageStore.GRAPHDRIVER)
    if driver in SNAPSHOTTERS and _has_store(ImageStore.CONTAINERD, engine, request):
        possible.append(ImageStore.CONTAINERD)
    if asked:
        return asked if asked in possible else None
    return possible[0] if possible else None


def _may_use(driver: str, request: StorageRequest) -> bool:
    return driver not in COPYING_DRIVERS or request.allow_vfs


# ---- verdicts and words -----------------------------------------------------------------------------------------


def verdict_for(driver: str, facts: StorageFacts) -> Verdict:
    """What the trials say about any driver. overlayfs mounts what overlay2 mounts; vfs and native need plain files
    only.
    """
    if driver in ("overlay2", "overlayfs"):
        return facts.verdicts["overlay2"]
    if driver in facts.verdicts:
        return facts.verdicts[driver]
    if driver in COPYING_DRIVERS:
        return Verdict(driver, works=True, why="needs nothing but plain files")
    works = driver == facts.fstype
    return Verdict(driver, works=works, why=f"the data-root is on {facts.fstype}")


def _degradations(facts: StorageFacts, driver: str) -> tuple[Degradation, ...]:
    overlay = facts.verdicts["overlay2"]
    why = f"overlay2 does not work on {facts.fstype}: {overlay.why}" if not overlay.works else "it was chosen before"
    if driver == "fuse-overlayfs":
        cost = "file access in builds and containers is several times slower"
        return (Degradation("storage driver fuse-overlayfs", why, cost, _MOUNT_A_VOLUME),)
    if driver in COPYING_DRIVERS:
        cost = "every layer and every container is a full copy of its image"
        return (Degradation(f"storage driver {driver}", why, cost, f"{_MOUNT_A_VOLUME}, empty"),)
    return ()


def _raise_unusable(facts: StorageFacts, cause: str, tried: list[Verdict]) -> NoReturn:
    because = "; ".join(f"{verdict.driver}: {verdict.why}" for verdict in tried)
    error: CachedindError = NoUsableDriverError(
        f"{cause}: {because}", f"{_MOUNT_A_VOLUME}; CACHEDIND_ALLOW_VFS=1 allows the copying driver"
    )
    if all(verdict.privilege for verdict in tried):
        error = NotPrivilegedError(f"{cause}: {because}", f"run {PRIVILEGED_RUN}")
    raise error
