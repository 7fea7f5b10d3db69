"""The container made fit for a nested daemon: what moby's hack/dind and docker:dind's entrypoint do."""

from __future__ import annotations

from cachedind.base.model import Degradation
from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.host.iptables import Begun
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


NFT_DIRECTORY = "/usr/local/libexec/cachedind/nftables"
"""Where the image has `nft`. An engine that finds it on PATH calls it at each start, to remove tables of its own."""


def begin(settings: Config, daemon: DaemonSettings) -> Begun | None:
    """Ask iptables beside the rest of the start; None where the engine does without it. Raises ProgramMissingError."""
    if daemon.has_nftables:
        return None
    from cachedind.host import iptables

    return iptables.begin(settings.iptables_legacy)


def finish(settings: Config, daemon: DaemonSettings, firewall: Begun | None, log: Log) -> str:
    """The PATH for dockerd, with which it finds the flavour of iptables that works, or nft. `firewall` is what `begin`
    returned."""
    if firewall is None:
        forward(daemon, log)
        return f"{settings.path}:{NFT_DIRECTORY}"
    from cachedind.host import iptables

    flavour, version = iptables.finish(firewall)
    log.info(version)
    return iptables.apply_to_path(flavour, settings.path)


def prepare(daemon: DaemonSettings, log: Log) -> None:
    """What moby's hack/dind and docker:dind's entrypoint do for a nested daemon."""
    from cachedind.host import cgroups
    from cachedind.start import leftovers

    removed = leftovers.sweep(daemon.exec_root, daemon.pidfile)
    if removed:
        log.debug(f"removed what a killed daemon had left: {', '.join(removed)}")
    nest(log)
    skipped = cgroups.prepare()
    if skipped:
        log.debug(f"no cgroup nesting: {skipped}")


def forward(daemon: DaemonSettings, log: Log) -> None:
    """Switch on what an engine with nftables insists on: forwarding of IPv4, and of IPv6 where the default network is
    to have that."""
    from cachedind.host import forwarding

    if not daemon.is_on("ip-forward", default=True):
        return
    names = forwarding.IPV4 + (forwarding.IPV6 if daemon.is_on("ipv6", default=False) else ())
    try:
        done = forwarding.switch_on(names)
    except OSError as error:
        why = f"{error.filename} cannot be set to 1: {error.strerror}"
        cost = "with firewall-backend=nftables the engine refuses networks that need it"
        mend = f"start the container with --sysctl {error.filename}=1, or the engine with --ip-forward=false"
        log.degraded(Degradation("IP forwarding is off", why, cost, mend))
        return
    for name in done:
        log.info(f"{name}=1 was set, which firewall-backend=nftables needs")


def nest(log: Log) -> None:
    """The mounts of moby's hack/dind."""
    from cachedind.host import mounts, procfs

    points = frozenset(mount.mount_point for mount in procfs.read_mounts())
    operations = mounts.plan_mounts(points, has_securityfs_directory=mounts.has_securityfs_directory())
    for line in mounts.apply_mounts(operations):
        log.info(line)
