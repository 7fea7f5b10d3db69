"""The API's sockets: bound before anything slow, and kept for dockerd (socket activation, sd_listen_fds(3)).

A client that connects while the data-root is being leased waits in the backlog instead of being refused, and dockerd
answers it the moment it is ready. dockerd wraps the TCP ones in TLS itself (moby, daemon/listeners, `fd://`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket

from cachedind.api.hosts import WILDCARDS, Host
from cachedind.api.listen_plan import OWN_SOCKET, ListenPlan
from cachedind.api.socket_files import BACKLOG, SocketFile
from cachedind.base.errors import ListenError
from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

FIRST_FD = 3


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
        return "the outer engine makes a directory where a bind source is missing: remove that mount"
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
        hint = "another daemon in this network namespace listens there; give this container a network of its own"
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
