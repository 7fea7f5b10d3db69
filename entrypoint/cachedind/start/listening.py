"""Where the API listens and from when on: its addresses, its ports, and what must wait for the lease."""

from __future__ import annotations

from cachedind.base.typed import TYPE_CHECKING
from cachedind.start import daemon_plan

if TYPE_CHECKING:
    from cachedind.api.listen_plan import ListenPlan
    from cachedind.api.listeners import Api
    from cachedind.base.log import Log
    from cachedind.host.children import Ahead
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


def plan_listen(settings: Config, daemon: DaemonSettings, log: Log, *, explicit: bool) -> ListenPlan:
    """Which addresses to bind, with the warning that plain TCP deserves (dockerd would print it after a 15 s pause)."""
    plan = daemon_plan.plan_listen(settings, daemon, explicit=explicit)
    bare = [] if plan.tls_dir or daemon.has_tls else [host for host in plan.tcp if not host.is_local]
    if bare:
        log.warn(
            f"the API at {', '.join(map(str, bare))} has neither encryption nor authentication: whoever reaches it is "
            "root on this container's host; set DOCKER_TLS_CERTDIR=/certs, CACHEDIND_LISTEN=127.0.0.1, or use the unix "
            "socket on a shared volume"
        )
    return plan


def open_ports(api: Api) -> None:
    """Let clients connect by TCP: at once, but where the certificates are ours to make, when the client's fit.

    They fit at once where they are kept, else the moment they are written (decisions/0006). GitLab, which keeps
    /certs/client alone, starts the job when the port opens; it must not find the last job's certificates, or none.
    """
    from cachedind.api import tls

    directory = api.plan.tls_dir
    if directory is None or tls.clients_are_ready(directory):
        api.open_tcp()


def publish(settings: Config, daemon: DaemonSettings, api: Api, certificates: Ahead | None, log: Log) -> None:
    """Show the files of the sockets, and have the certificates made beside the rest of the start (decisions/0018).

    Other instances may share both, so this waits until the lease is held."""
    from cachedind.start import leftovers

    leftovers.check_free(daemon.exec_root)
    for path in api.publish():
        log.warn(
            f"another daemon answers at {path}, and its clients reach this one from now on; give each container a "
            "directory of its own for the socket"
        )
    if api.plan.tls_dir is not None:
        assert certificates is not None
        wanted = {
            "directory": api.plan.tls_dir,
            "names": settings.tls_san,
            "is_open": api.is_open,
            "log_level": settings.log_level.name,
            "log_json": settings.log_json,
        }
        certificates.begin(wanted, [listener.fileno() for listener in api.tcp])
