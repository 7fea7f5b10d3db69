"""`cachedind doctor`: what a start would find, try and decide here. No daemon is started, nothing is left changed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from cachedind import (
    cgroups,
    config,
    daemon_config,
    dataroot,
    decision,
    facts,
    iptables,
    lease,
    listeners,
    procfs,
    state,
    storage,
    tls,
)
from cachedind.arguments import parse_daemon_arguments
from cachedind.errors import CachedindError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachedind.config import Config
    from cachedind.daemon_config import DaemonSettings
    from cachedind.model import DataRootState, ExistingData

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
    return report


def _examine(report: Report, words: list[str], environ: Mapping[str, str]) -> None:
    settings = config.load(environ)
    explicit = words[:1] == ["dockerd"]
    daemon = daemon_config.read_settings(parse_daemon_arguments(words[1:] if explicit else words))
    engine = facts.read_engine_version(settings.path)
    report["engine"] = str(engine)
    listen = None if explicit else _examine_listen(report, settings, daemon)
    _examine_container(report, settings)
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
        raise CachedindError(f"{data_root} does not exist yet", "a start makes it; create it to examine it")
    noted = _read_noted(data_root)
    existing = dataroot.read_existing(data_root, noted)
    _examine_data(report, data_root, existing, noted)
    request = decision.build_request(settings, daemon)
    verdicts = decision.try_drivers(data_root, existing, request, every=True)
    report["trials"] = {name: {"works": verdict.works, "why": verdict.why} for name, verdict in verdicts.items()}
    plan = storage.plan_storage(storage.StorageFacts(data_root, mount.fstype, engine, existing, verdicts), request)
    report["plan"] = {
        "image_store": str(plan.store),
        "driver": plan.driver,
        "why": plan.reason,
        "notes": [*plan.notes, *(str(degradation) for degradation in plan.degradations)],
    }
    final = daemon_config.plan_daemon(daemon, plan, listen, "/run/cachedind/daemon.json")
    report["dockerd"] = {"arguments": final.arguments, "daemon_json": json.loads(final.file_text)}


def _examine_listen(report: Report, settings: Config, daemon: DaemonSettings) -> listeners.ListenPlan:
    plan = listeners.plan_listen(settings.docker_host, settings.tls_certdir, daemon.text("group"))
    report["listen"] = {"socket": plan.socket_path, "tcp_port": plan.tcp_port, "tls": plan.tls_dir is not None}
    if plan.tls_dir is not None:
        case = tls.plan_case(tls.read_present(plan.tls_dir))
        report["certificates"] = {"directory": plan.tls_dir, "case": case.name.lower(), "meaning": case.value}
    return plan


def _examine_container(report: Report, settings: Config) -> None:
    is_v2 = os.path.exists(f"{cgroups.ROOT}/cgroup.controllers")
    skipped = cgroups.skip_reason(is_v2=is_v2, own_path=procfs.read_cgroup_v2_path())
    decided = iptables.plan_without_trial(settings.iptables_legacy, iptables.read_tables())
    report["container"] = {
        "privileged": bool(procfs.read_effective_capabilities() >> 21 & 1),
        "user_namespace": not procfs.read_is_full_user_namespace(),
        "cgroup_nesting": skipped or "needed",
        "iptables": decided.value if decided else "nf_tables if that answers, else legacy",
        "fuse_device": os.path.exists("/dev/fuse"),
    }


def _examine_lease(data_root: str) -> str:
    held, holder = lease.look(data_root)
    if held:
        return f"held by {lease.describe_holder(holder)}"
    return "free" if holder is None else f"free; last held by {lease.describe_holder(holder)}"


def _read_noted(data_root: str) -> DataRootState | None:
    try:
        fd = os.open(f"{data_root}/{lease.DIRECTORY}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return dataroot.read_data_root_state(fd)
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


def print_report(report: Report) -> None:
    """As a table for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for section, value in report.items():
        rows = list(value.items()) if isinstance(value, dict) else [("", value)]
        for position, (name, content) in enumerate(rows):
            style = "red" if section == "error" else ""
            label = section if position == 0 else ""
            table.add_row(label.replace("_", " "), name.replace("_", " "), Text(_cell(name, content), style=style))
    Console().print(table)


def _cell(name: str, content: object) -> str:
    if isinstance(content, dict) and set(content) == {"works", "why"}:
        return f"{'works' if content['works'] else 'does not work'}: {content['why']}"
    if name.endswith("_bytes") and isinstance(content, int):
        return facts.format_bytes(content)
    if name == "arguments" and isinstance(content, list):
        return daemon_config.describe(content)
    if isinstance(content, list):
        return "\n".join(map(str, content)) or "none"
    if isinstance(content, bool) or content is None:
        return {True: "yes", False: "no", None: "none"}[content]
    return json.dumps(content) if isinstance(content, dict) else str(content)
