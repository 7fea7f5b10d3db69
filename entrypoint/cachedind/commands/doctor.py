"""`cachedind doctor`: what a start would find, try and decide here. No daemon is started, nothing is left changed."""

from __future__ import annotations

import contextlib
import json
import os
import time

from cachedind.api import tls
from cachedind.base import state
from cachedind.base.errors import CachedindError, PoolMissingError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.commands import forecast, inventory
from cachedind.dataroot import contents, decision, facts, lease, storage, storage_facts, witness
from cachedind.engine import aside
from cachedind.engine.remapping import engine_root
from cachedind.host import cgroups, iptables, procfs
from cachedind.pool import directory
from cachedind.settings import config, daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.start import daemon_plan, pool_mode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachedind.api.listen_plan import ListenPlan
    from cachedind.base.model import DataRootState, ExistingData, Remap
    from cachedind.settings.arguments import DaemonArguments
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings

Report = dict[str, object]


def examine(words: list[str], environ: Mapping[str, str]) -> Report:
    """Facts, verdicts and plan. What would end a start is in the report under "error", not raised.

    `words` are the container's arguments. Needs CAP_SYS_ADMIN to try drivers; without it that is what is reported.
    """
    report: Report = {}
    try:
        _examine(report, words, environ)
    except CachedindError as error:
        report["error"] = {"cause": error.cause, "hint": error.hint, "exit_code": error.exit_code}
    # The pool's place in the report is above, its turn last: it may be mounted in another namespace only.
    with contextlib.suppress(CachedindError):
        section = report["pool"] = _examine_pool(words, environ)
        data_root = report.get("data_root")
        if "this_container_holds" in section:
            report["lease"] = f"held by this container: it is {section['this_container_holds']}"
        elif section["mode"] == "pool" and isinstance(data_root, dict):
            data_root["note"] = "a slot of the pool takes its place; what follows is without the pool"
    return report


def _examine(report: Report, words: list[str], environ: Mapping[str, str]) -> None:
    settings = config.load(environ)
    explicit = words[:1] == ["dockerd"]
    daemon = daemon_json.read_settings(_parse(words))
    engine = facts.read_engine_version(settings.path)
    report["engine"] = str(engine)
    listen = _examine_listen(report, settings, daemon, explicit=explicit)
    _examine_container(report, settings, daemon)
    report["pool"] = None
    data_root = os.path.realpath(daemon.data_root)
    mount = facts.read_mount(data_root)
    report["data_root"] = {
        "path": data_root,
        "fstype": mount.fstype,
        "source": mount.source,
        "mount": mount.mount_point,
    }
    report["lease"] = _examine_lease(data_root)
    facts.check_privileges()
    facts.check_lock_filesystem(mount, data_root, allowed=settings.allow_network_fs)
    if not os.path.isdir(data_root):
        raise CachedindError(f"{data_root} does not exist yet", "a start creates it; create it now to have it examined")
    request = decision.build_request(settings, daemon)
    noted = _read_noted(data_root, request.userns_remap)
    root = engine_root(data_root, request.userns_remap)
    existing = contents.read_existing(root, noted)
    _examine_data(report, data_root, existing, noted)
    if os.path.isdir(root):
        _examine_aside(report, root)
    containerd = facts.read_containerd_version(settings.path, daemon) if existing.database else ""
    verdicts = decision.try_drivers(data_root, existing, request, every=True)
    report["trials"] = {name: {"works": verdict.works, "why": verdict.why} for name, verdict in verdicts.items()}
    plan = storage.plan_storage(
        storage_facts.StorageFacts(data_root, mount.fstype, engine, existing, verdicts, containerd), request
    )
    report["plan"] = {
        "image_store": str(plan.store),
        "driver": plan.driver,
        "why": plan.reason,
        "notes": [*plan.notes, *(str(degradation) for degradation in plan.degradations)],
    }
    final = daemon_plan.plan_daemon(daemon, plan, listen, "/run/cachedind/daemon.json", engine)
    report["dockerd"] = {"arguments": final.arguments, "daemon_json": json.loads(final.file_text)}


def _examine_aside(report: Report, data_root: str) -> None:
    """What starts have moved away because it was damaged, and what to do with it."""
    root_fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = aside.read(root_fd)
    finally:
        os.close(root_fd)
    if found:
        report["aside"] = [f"{one.name}: {one.why}: {', '.join(one.paths)}" for one in found]
        report["aside_help"] = (
            f"each lies below {data_root} under the path it had: stop the container and move it back there, or delete "
            "it to free the space"
        )


def _parse(words: list[str]) -> DaemonArguments:
    return parse_daemon_arguments(words[1:] if words[:1] == ["dockerd"] else words)


def _examine_listen(report: Report, settings: Config, daemon: DaemonSettings, *, explicit: bool) -> ListenPlan:
    plan = daemon_plan.plan_listen(settings, daemon, explicit=explicit)
    is_tls = plan.tls_dir is not None or daemon.has_tls
    report["listen"] = {"at": [*map(str, plan.bound), *plan.left], "tls": is_tls}
    if plan.tls_dir is not None:
        case = tls.plan_case(tls.read_present(plan.tls_dir))
        report["certificates"] = {"directory": plan.tls_dir, "case": case.name.lower(), "meaning": case.value}
    return plan


def _examine_container(report: Report, settings: Config, daemon: DaemonSettings) -> None:
    is_v2 = os.path.exists(f"{cgroups.ROOT}/cgroup.controllers")
    skipped = cgroups.skip_reason(is_v2=is_v2, own_path=procfs.read_cgroup_v2_path())
    decided = iptables.plan_without_trial(settings.iptables_legacy, iptables.read_tables())
    report["container"] = {
        "privileged": bool(procfs.read_effective_capabilities() >> 21 & 1),
        "user_namespace": not procfs.read_is_full_user_namespace(),
        "cgroup_nesting": skipped or "needed",
        "iptables": _describe_iptables(decided, daemon),
        "fuse_device": os.path.exists("/dev/fuse"),
    }


def _describe_iptables(decided: iptables.Flavour | None, daemon: DaemonSettings) -> str:
    if daemon.has_nftables:
        return "not asked: firewall-backend is nftables"
    return decided.value if decided else "nf_tables if that answers, else legacy"


def _examine_pool(words: list[str], environ: Mapping[str, str]) -> Report:
    """Whether a start uses a pool and why, and what it would begin with there. What stands in its way is "problem"."""
    settings = config.load(environ)
    path = directory.wanted_path(settings)
    hidden = path is None and settings.pool is None and witness.enter_hidden_namespace()
    if hidden:
        path = directory.wanted_path(settings)
    section: Report = {"mode": "direct" if path is None else "pool", "why": _why_pool(settings, path, hidden=hidden)}
    if path is None:
        return section
    section |= {"path": path, "key": settings.key, "scope": settings.scope}
    try:
        section |= _look_into_pool(path, words, settings)
    except CachedindError as error:
        section["problem"] = f"{error.cause}; {error.hint}"
    except OSError as error:
        section["problem"] = f"{error.filename or path}: {error.strerror}"
    return section


def _look_into_pool(path: str, words: list[str], settings: Config) -> Report:
    pool_mode.check_lasting(path, settings)
    directory.check_filesystem(os.path.realpath(path), settings)
    try:
        pool = inventory.find_pool(path, settings)
    except PoolMissingError:
        return {"a_start_would": _forecast_new_pool(path)}
    try:
        section: Report = {}
        rows = inventory.read_rows(pool, directory.names_in(pool.keys_fd), time.time())
        own = next((row for row in rows if row.here), None)
        if own is not None:
            section["this_container_holds"] = f"slot {own.id} of key {own.key}"
        slot_request = pool_mode.make_slot_request(settings, daemon_json.read_settings(_parse(words)))
        return section | {"a_start_would": forecast.forecast(pool, slot_request)}
    finally:
        pool.close()


def _why_pool(settings: Config, path: str | None, *, hidden: bool) -> str:
    if settings.pool is not None:
        return f"CACHEDIND_POOL={settings.pool}" if settings.pool else "CACHEDIND_POOL is empty"
    if path is None:
        return f"nothing is mounted at {directory.DEFAULT_POOL}, and CACHEDIND_POOL is not set"
    where = ", where this container's jobs do not see it" if hidden else ""
    return f"something is mounted at {directory.DEFAULT_POOL}{where}"


def _forecast_new_pool(path: str) -> str:
    """Raises OSError where nothing can be written."""
    if not os.path.isdir(path):
        return f"make the directory {path} and a pool in it, and start cold"
    return "make a new pool, and start cold"


def _examine_lease(data_root: str) -> str:
    held, holder = lease.look(data_root)
    if held:
        return f"held by {lease.describe_holder(holder)}"
    return "free" if holder is None else f"free; last held by {lease.describe_holder(holder)}"


def _read_noted(data_root: str, remap: Remap | None) -> DataRootState | None:
    try:
        fd = os.open(f"{data_root}/{lease.DIRECTORY}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return contents.read_data_root_state(fd, lease.state_name(remap))
    except (ValueError, OSError):
        return None
    finally:
        os.close(fd)


def _examine_data(report: Report, data_root: str, existing: ExistingData, noted: DataRootState | None) -> None:
    place = facts.read_place(data_root)
    fate = facts.persistence(place)
    report["space"] = {
        "total_bytes": place.total_bytes,
        "free_bytes": place.free_bytes,
        "free_inodes": place.free_inodes if place.total_inodes else None,
    }
    report["data"] = {
        "holds": [f"{driver} ({store})" for store, driver in existing.pairs] or ["nothing"],
        "noted": None if noted is None else f"{noted.driver} ({noted.store}) by engine {noted.engine}",
        "state_version": state.VERSION,
        "survives": "yes" if fate is None else str(fate),
    }
    facts.check_room(place, fresh=not existing.pairs)
