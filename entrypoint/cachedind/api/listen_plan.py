"""Where the API is to listen: docker:dind's addresses and the user's, what is bound here and what is left to dockerd.
Pure."""

from __future__ import annotations

import os

from cachedind.api.hosts import PLAIN_PORT, TLS_PORT, WILDCARDS, Host, covers, parse_host
from cachedind.api.way_in import DEFAULT_SOCKET
from cachedind.base.errors import DaemonConfigError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OWN_SOCKET = "/run/cachedind/docker.sock"
"""Root's own way to a daemon that has no unix socket bound here: for who waits for it, and looks after its health."""
SERVER_SET = "/run/cachedind/tls"
"""The server's certificate, key and CA, for this daemon alone: certificate directories are shared."""


class ListenPlan(NamedTuple):
    """Which addresses are bound here, unix sockets first, and which are left to dockerd. `tls_dir` has the
    certificates that are ours to make, for all of TCP; `group` owns the unix sockets."""

    bound: tuple[Host, ...]
    tls_dir: str | None
    group: str
    left: tuple[str, ...] = ()

    @property
    def sockets(self) -> list[str]:
        return [host.path for host in self.bound if host.path]

    @property
    def tcp(self) -> list[Host]:
        return [host for host in self.bound if not host.path]


def plan_listen(
    docker_host: str,
    tls_certdir: str,
    group: str | None,
    listen: Iterable[tuple[str, int | None]] = (("0.0.0.0", None),),
    more: Sequence[str] = (),
    *,
    has_tls: bool = False,
) -> ListenPlan:
    """docker:dind's rules: a unix:// DOCKER_HOST moves the socket, any other one is the client's business and ignored;
    a certificate directory means TLS on 2376, none means plain TCP on 2375. `listen` are addresses of the TCP socket,
    with its port where it is another one; `more` the user's own hosts.

    Raises DaemonConfigError for a unix:// path that is not absolute.
    """
    path = DEFAULT_SOCKET
    if docker_host.startswith("unix://"):
        path = docker_host.removeprefix("unix://")
        if not path.startswith("/"):
            raise DaemonConfigError(
                f"DOCKER_HOST={docker_host} is not an absolute path", "write unix:///path/docker.sock"
            )
    port = TLS_PORT if tls_certdir else PLAIN_PORT
    ours = [Host("/" + os.path.normpath(path).lstrip("/"))]
    ours += [Host(name=name, port=own_port or port) for name, own_port in listen]
    hosts = [text for text in more if text.strip() and not text.startswith("fd://")]
    bound, left = _arrange(ours, hosts, has_tls=has_tls or bool(tls_certdir))
    is_tcp_wanted = left or any(not host.path for host in bound)
    tls_dir = os.path.abspath(tls_certdir) if tls_certdir and is_tcp_wanted else None
    return ListenPlan(bound, tls_dir, _group(group), left)


def plan_explicit(hosts: Sequence[str], group: str | None, *, has_tls: bool) -> ListenPlan:
    """`dockerd …` with exactly these hosts, or with its own default one; TLS is the user's business.

    Where none of them is a unix socket that is bound here, OWN_SOCKET is one more.
    """
    named = [text for text in hosts if not text.startswith("fd://")]
    if hosts and not named:
        return ListenPlan((), None, _group(group), tuple(hosts))
    bound, left = _arrange([], named or [""], has_tls=has_tls)
    if not bound or not bound[0].path:
        bound = (Host(OWN_SOCKET), *bound)
    return ListenPlan(bound, None, _group(group), left)


def _group(group: str | None) -> str:
    return group or "docker"


def _arrange(ours: list[Host], hosts: Iterable[str], *, has_tls: bool) -> tuple[tuple[Host, ...], tuple[str, ...]]:
    """What is bound, each address once, unix sockets first; and what is left to dockerd."""
    chosen: list[Host] = []
    left = []
    parsed = [(text, parse_host(text, has_tls=has_tls)) for text in hosts]
    wanted = [*ours, *(host for _, host in parsed if host is not None)]
    # A wildcard makes room for what it covers, wherever it was said.
    for host in sorted(wanted, key=lambda host: (not host.path, host.name not in WILDCARDS)):
        if not any(covers(_real(other), _real(host)) or covers(other, host) for other in chosen):
            chosen.append(host)
    left = [text for text, host in parsed if host is None]
    return tuple(chosen), tuple(left)


def _real(host: Host) -> Host:
    directory, name = os.path.split(host.path)
    return host._replace(path=f"{os.path.realpath(directory)}/{name}") if host.path else host
