"""The container made fit for a nested daemon: what moby's hack/dind and docker:dind's entrypoint do."""

from __future__ import annotations

from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.host.iptables import Begun
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


def prepare(settings: Config, daemon: DaemonSettings, firewall: Begun, log: Log) -> str:
    """What moby's hack/dind and docker:dind's entrypoint do for a nested daemon. `firewall` is what iptables was asked
    before. Returns the PATH for dockerd."""
    from cachedind.host import cgroups, iptables
    from cachedind.start import leftovers

    removed = leftovers.sweep(daemon.exec_root, daemon.pidfile)
    if removed:
        log.debug(f"removed what a killed daemon had left: {', '.join(removed)}")
    flavour, version = iptables.finish(firewall)
    log.info(version)
    nest(log)
    skipped = cgroups.prepare()
    if skipped:
        log.debug(f"no cgroup nesting: {skipped}")
    return iptables.apply_to_path(flavour, settings.path)


def nest(log: Log) -> None:
    """The mounts of moby's hack/dind."""
    from cachedind.host import mounts, procfs

    points = frozenset(mount.mount_point for mount in procfs.read_mounts())
    operations = mounts.plan_mounts(points, has_securityfs_directory=mounts.has_securityfs_directory())
    for line in mounts.apply_mounts(operations):
        log.info(line)
