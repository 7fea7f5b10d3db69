"""From settings and a leased data-root to a storage plan: collects demands, has drivers tried, and lets storage.py
decide."""

from __future__ import annotations

from cachedind.base.model import Verdict
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot import contents, facts
from cachedind.dataroot.storage import name_asked, plan_storage
from cachedind.dataroot.storage_facts import (
    Demand,
    StorageFacts,
    StorageRequest,
    needs_fuse_verdict,
    unite_demands,
)
from cachedind.engine.remapping import read_remap
from cachedind.settings.environment import ENGINE_STORE_VARIABLES

if TYPE_CHECKING:
    from cachedind.base.model import EngineVersion, ExistingData, StoragePlan
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


PROVEN = Verdict("overlay2", works=True, why="it was tried before, and nothing has changed since")


def build_request(settings: Config, daemon: DaemonSettings, *, in_pool: bool = False) -> StorageRequest:
    """Everything that the user asked of storage, in any place. Raises DriverConflictError, DaemonConfigError."""
    drivers, stores = [], []
    if daemon.requested_driver:
        drivers.append(Demand(*daemon.requested_driver))
    if settings.storage_driver:
        drivers.append(Demand(settings.storage_driver, f"CACHEDIND_STORAGE_DRIVER={settings.storage_driver}"))
    if daemon.requested_store:
        stores.append(Demand(daemon.requested_store[0].value, daemon.requested_store[1]))
    if settings.image_store:
        stores.append(Demand(settings.image_store.value, f"CACHEDIND_IMAGE_STORE={settings.image_store}"))
    for name in settings.engine_stores:
        stores.append(Demand(ENGINE_STORE_VARIABLES[name].value, f"the variable {name}"))
    return StorageRequest(
        driver=unite_demands(drivers),
        store=unite_demands(stores),
        docker_driver=settings.docker_driver,
        userns_remap=read_remap(daemon.text("userns-remap")),
        allow_vfs=settings.allow_vfs,
        in_pool=in_pool,
    )


def decide(
    data_root: str,
    fstype: str,
    engine: EngineVersion,
    existing: ExistingData,
    request: StorageRequest,
    containerd: str = "",
    *,
    proven: bool = False,
) -> tuple[StoragePlan, str]:
    """Try the drivers that have to be tried, and decide; also returns what `name_asked` says. `containerd` is the
    engine's, as facts.read_containerd_version has it; `proven`: overlay need not be tried (ground.py). Needs
    CAP_SYS_ADMIN and the lease. Raises what plan_storage raises."""
    verdicts = try_drivers(data_root, existing, request, proven=proven)
    found = StorageFacts(data_root, fstype, engine, existing, verdicts, containerd)
    beside_graph = contents.has_graph_directory(data_root)
    plan = plan_storage(found, request)._replace(remap=request.userns_remap, beside_graph=beside_graph)
    return plan, name_asked(found, request, plan)


def try_drivers(
    data_root: str, existing: ExistingData, request: StorageRequest, *, every: bool = False, proven: bool = False
) -> dict[str, Verdict]:
    """The verdict on overlay2, and on fuse-overlayfs where it may be needed or `every` verdict is wanted."""
    has_data = bool(existing.pairs)
    overlay = PROVEN if proven else facts.probe_driver(data_root, "overlay2", has_data=has_data)
    verdicts = {"overlay2": overlay}
    if every or needs_fuse_verdict(existing, request, verdicts["overlay2"]):
        verdicts["fuse-overlayfs"] = facts.probe_driver(data_root, "fuse-overlayfs", has_data=has_data)
    return verdicts
