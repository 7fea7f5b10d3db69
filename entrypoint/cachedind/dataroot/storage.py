"""The decision: which image store and storage driver. Pure.

First counts what the data-root holds; then what the user demands (an argument, daemon.json, CACHEDIND_*); then
DOCKER_DRIVER, which is more often a leftover of old CI templates than meant; then the best that a trial proves. A
demand that contradicts the data is an error; a DOCKER_DRIVER that does so is ignored, with one line.
"""

from __future__ import annotations

from cachedind.base import releases
from cachedind.base.errors import (
    CachedindError,
    DriverConflictError,
    DriverUnavailableError,
    EngineTooOldError,
    NotPrivilegedError,
)
from cachedind.base.model import COPYING_DRIVERS, ExistingData, ImageStore, StoragePlan
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot.fresh_storage import plan_fresh
from cachedind.dataroot.storage_facts import PRIVILEGED_RUN, degradations, verdict_for

if TYPE_CHECKING:
    from cachedind.dataroot.storage_facts import StorageFacts, StorageRequest


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
    _refuse_newer_database(facts)
    if existing.pairs:
        plan = _plan_existing(facts, request)
        note = _note_on_database(facts)
        return plan._replace(notes=(*plan.notes, note)) if note else plan
    return plan_fresh(facts, request)


def _refuse_newer_database(facts: StorageFacts) -> None:
    """What a plain daemon wrote says of its engine only which containerd that had. Nothing is made of what is not
    known."""
    found, ours = facts.existing.database, releases.containerd_database(facts.containerd)
    if found is None or ours is None or found <= ours:
        return
    raise EngineTooOldError(
        f"{facts.data_root} was opened by an engine with {releases.first_containerd(found)} or later (its database "
        f"is of version {found[1]} of schema v{found[0]}); this is engine {facts.engine} with the older containerd "
        f"{facts.containerd}, which may misread or destroy what a newer one wrote",
        "use an image with a newer engine, or another volume (docs/engines.md, also where an older engine has worked "
        "on it since)",
    )


def _note_on_database(facts: StorageFacts) -> str:
    """Where the same sign does not tell a newer engine from this one."""
    found = facts.existing.database
    if found is None or not releases.may_be_newer(found, facts.engine):
        return ""
    return (
        f"nothing in {facts.data_root} tells which engine wrote it, and its containerd is one that engines later than "
        f"{facts.engine} have, too; if it was one of these, use an image with that engine (docs/engines.md). It is "
        "taken, and this engine noted"
    )


def name_asked(facts: StorageFacts, request: StorageRequest, plan: StoragePlan) -> str:
    """Which request alone has led to this plan on an empty data-root: "driver", "store", or "" for none.

    In a pool, what one start asked for is not for starts that do not ask. A plan that every start would get here, as
    nothing else works, was not led to by a request.
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


# ---- a data-root with data -------------------------------------------------------------------------------------------


def _plan_existing(facts: StorageFacts, request: StorageRequest) -> StoragePlan:
    store, driver = choose_pair(facts.existing, request)
    if store is ImageStore.CONTAINERD and not releases.has_containerd_store(facts.engine):
        raise EngineTooOldError(
            f"{facts.data_root} holds data of the containerd image store, which engine {facts.engine} does not have",
            "use an image with engine {}.{} or later, or another volume".format(*releases.FIRST_WITH_CONTAINERD_STORE),
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
    return StoragePlan(store, driver, f"{facts.data_root} holds it", tuple(notes), degradations(facts, driver))


def choose_pair(existing: ExistingData, request: StorageRequest) -> tuple[ImageStore, str]:
    """Which of several stores with data is meant: that of cachedind's note, then of a demand, then the one that engines
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
                "store: its images and build cache would disappear",
                ways_out,
            )
    if store is ImageStore.CONTAINERD and request.userns_remap:
        raise DriverConflictError(
            f"userns-remap does not go with the containerd image store, whose data {facts.data_root} holds", ways_out
        )
