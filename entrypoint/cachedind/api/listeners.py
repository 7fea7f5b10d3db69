"""The API's sockets: bound before anything slow, and kept for dockerd (socket activation, sd_listen_fds(3)).

A client that connects while the data-root is being leased waits in the backlog instead of being refused, and dockerd
answers it the moment it is ready. dockerd wraps the TCP ones in TLS itself (moby, daemon/listeners, `fd://`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from cachedind.api.hosts import DEFAULT_SOCKET, PLAIN_PORT, TLS_PORT, WILDCARDS, Host, covers, parse_host
from cachedind.api.socket_files import BACKLOG, SocketFile
from cachedind.base.errors import DaemonConfigError, ListenError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

FIRST_FD = 3
OWN_SOCKET = "/run/cachedind/docker.sock"
"""Root's own way to a daemon that has no other unix socket: for who waits for it, and looks after its health."""
_WAY_IN = "/run/cachedind/socket"
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
                f"DOCKER_HOST={docker_host} names no absolute path", "write unix:///path/docker.sock"
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

    Where none of them is a unix socket, OWN_SOCKET is one more.
    """
    named = [text for text in hosts if not text.startswith("fd://")]
    if hosts and not named:
        return ListenPlan((), None, _group(group), tuple(hosts))
    bound, left = _arrange([], named or [""], has_tls=has_tls)
    if bound and not bound[0].path:
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


class Api:
    """The bound sockets of a plan, in its order. As a context: a start that fails takes its files of sockets away."""

    def __init__(self, plan: ListenPlan) -> None:
        """Bind them; those of TCP do not listen yet. Raises ListenError, with nothing left behind."""
        self.plan = plan
        self.files: list[SocketFile] = []
        self.tcp: list[socket.socket] = []
        self.is_open = False
        self._owner = os.getpid()
        try:
            for path in plan.sockets:
                self.files.append(_bind_unix(path, plan.group))
            for host in plan.tcp:
                self.tcp.append(_bind_tcp(host))
        except BaseException:
            self.withdraw()
            raise

    @property
    def sockets(self) -> list[socket.socket]:
        return [*(file.listener for file in self.files), *self.tcp]

    def open_tcp(self) -> None:
        """Accept clients from now on. Raises ListenError."""
        for listener in self.tcp:
            open_port(listener)
        self.is_open = True

    def publish(self) -> list[str]:
        """Show those sockets that are not shown yet, now that the lease is held. Returns the paths that this has taken
        from somebody who answered there. Raises ListenError."""
        taken = []
        for file in self.files:
            try:
                if file.publish():
                    taken.append(file.path)
            except OSError as error:
                raise _unix_error(error, file.path) from error
        return taken

    def withdraw(self) -> None:
        for file in self.files:
            file.withdraw()
        for listener in self.tcp:
            listener.close()

    def __enter__(self) -> Api:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None and os.getpid() == self._owner:
            self.withdraw()


def note_way_in(plan: ListenPlan) -> None:
    """Write down where a process of this container reaches the daemon whatever its hosts are. Raises OSError."""
    if plan.sockets:
        os.makedirs(os.path.dirname(_WAY_IN), mode=0o755, exist_ok=True)
        fd = os.open(_WAY_IN, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(plan.sockets[0])


def read_way_in() -> str | None:
    """What `note_way_in` has written; None in a container whose start has not come that far."""
    try:
        with open(_WAY_IN, encoding="utf-8") as file:
            return file.read() or None
    except OSError:
        return None


def open_port(listener: socket.socket) -> None:
    """Accept clients from now on, in every process that shares the socket. Raises ListenError."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _tcp_error(error, Host(name=listener.getsockname()[0], port=listener.getsockname()[1])) from error


def _bind_unix(path: str, group: str) -> SocketFile:
    try:
        if path == OWN_SOCKET:
            return SocketFile(path, 0, 0o600)
        return SocketFile(path, _group_id(group), 0o660)
    except OSError as error:
        raise _unix_error(error, path) from error


def _unix_error(error: OSError, path: str) -> ListenError:
    # Python itself refuses a path that is too long, without an errno.
    return ListenError(f"the socket {path} cannot be bound: {error.strerror or error}", _unix_hint(error, path))


def _unix_hint(error: OSError, path: str) -> str:
    if error.errno == errno.EBUSY:
        return f"something is mounted there: mount the host's socket elsewhere, not at {path}"
    if error.errno == errno.EISDIR:
        return "the outer engine makes a directory of a missing bind source: remove that mount"
    if error.errno == errno.EROFS:
        return "a read-only container needs places to write: --tmpfs /run, and --tmpfs /certs for certificates"
    return "set DOCKER_HOST=unix:///another/path/docker.sock"


def _group_id(group: str) -> int:
    """A group's number by name or number; root's where it does not exist, as dockerd does it."""
    import grp

    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        return 0


def _bind_tcp(host: Host) -> socket.socket:
    """Bind TCP: a wildcard for IPv4 and IPv6 where there is IPv6, a name's first address, IPv4 before IPv6.

    Clients are refused until `open_port`. Raises ListenError.
    """
    try:
        if host.name in WILDCARDS:
            try:
                return _tcp_listener(socket.AF_INET6, "::", host.port)
            except OSError as error:
                # No IPv6 at all, or switched off by sysctl.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
            return _tcp_listener(socket.AF_INET, "0.0.0.0", host.port)
        # Bytes, as text would be put through IDNA, which takes 5 ms to import.
        found = socket.getaddrinfo(host.name.encode(), host.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return _tcp_listener(family, str(address[0]), host.port)
    except OSError as error:
        raise _tcp_error(error, host) from error


def _tcp_listener(family: int, address: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener


def _tcp_error(error: OSError, host: Host) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        hint = "another daemon in this network namespace has it; give this container a network of its own"
    else:
        hint = "name an address that this container has, or 0.0.0.0 for all"
    return ListenError(f"TCP port {host.port} cannot be bound at {host.name}: {error.strerror}", hint)


def hand_over(listeners: list[socket.socket]) -> None:
    """Move the listening sockets to file descriptors 3, 4, …, open across exec, where sd_listen_fds(3) wants them.

    Call it last: whatever else was open at those numbers is closed.
    """
    above = FIRST_FD + len(listeners)
    moved = [fcntl.fcntl(listener.detach(), fcntl.F_DUPFD_CLOEXEC, above) for listener in listeners]
    for offset, fd in enumerate(moved):
        os.dup2(fd, FIRST_FD + offset, inheritable=True)
        os.close(fd)
