"""The decision on an empty data-root: what was demanded, else the choice of the last start, else the best that works.

Pure.
"""

from __future__ import annotations

from cachedind.base.errors import DriverConflictError
from cachedind.base.model import COPYING_DRIVERS, ImageStore, StoragePlan
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot.storage_facts import (
    VOLUME_DRIVERS,
    default_store,
    degradations,
    has_store,
    may_use,
    raise_unusable,
    store_of,
    verdict_for,
)

if TYPE_CHECKING:
    from cachedind.dataroot.storage_facts import Demand, StorageFacts, StorageRequest


def plan_fresh(facts: StorageFacts, request: StorageRequest) -> StoragePlan:
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
        and has_store(recorded[0], facts.engine, request)
        and _is_worth_keeping(recorded[1], facts)
    ):
        return _fresh(facts, *recorded, "it was chosen at the last start", notes)
    store = ImageStore(request.store.value) if request.store else default_store(facts.engine, request)
    if request.store and not has_store(store, facts.engine, request):
        other = "userns-remap" if request.userns_remap else f"engine {facts.engine}"
        raise DriverConflictError(
            f"{request.store.said_by} contradicts {other}, which does not have that image store", "drop one of the two"
        )
    return _plan_best(facts, request, store, notes)


def _is_worth_keeping(driver: str, facts: StorageFacts) -> bool:
    """Whether to choose again what the last start chose, which left no data: not where that was a second choice."""
    return driver not in COPYING_DRIVERS | {"fuse-overlayfs"} and verdict_for(driver, facts).works


def _plan_demanded_driver(facts: StorageFacts, request: StorageRequest, demand: Demand) -> StoragePlan:
    store = store_of(demand.value, request, facts.engine)
    if store is None:
        raise DriverConflictError(
            f"{demand.said_by} contradicts {request.store.said_by if request.store else 'this engine'}: "
            f"that image store has no driver {demand.value}",
            "drop one of the two",
        )
    verdict = verdict_for(demand.value, facts)
    if not verdict.works:
        raise_unusable(facts, f"{demand.said_by} cannot be followed", [verdict])
    return _fresh(facts, store, demand.value, demand.said_by, [])


def _try_docker_driver(facts: StorageFacts, request: StorageRequest) -> tuple[StoragePlan | None, str]:
    driver = request.docker_driver
    store = store_of(driver, request, facts.engine)
    if store is None:
        return None, f"the image store that is asked for, or engine {facts.engine}, has no such driver"
    if not may_use(driver, request):
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
        # Without overlayfs, the containerd store has only the snapshotter that copies.
        if may_use("native", request):
            return _fresh(facts, store, "native", "overlayfs does not work here", notes)
        raise_unusable(facts, f"{request.store.said_by}, and only native would work", tried)
    fuse = facts.verdicts["fuse-overlayfs"]
    tried.append(fuse)
    for driver in ("fuse-overlayfs", "vfs"):
        if verdict_for(driver, facts).works and may_use(driver, request):
            return _fresh(facts, ImageStore.GRAPHDRIVER, driver, "overlay2 does not work here", notes)
    raise_unusable(facts, f"no storage driver works on {facts.data_root} ({facts.fstype})", tried)


def _fresh(facts: StorageFacts, store: ImageStore, driver: str, reason: str, notes: list[str]) -> StoragePlan:
    return StoragePlan(store, driver, reason, tuple(notes), degradations(facts, driver))
