"""The API's sockets: bound before anything slow, and kept for dockerd (socket activation, sd_listen_fds(3)).

A client that connects while the data-root is being leased waits in the backlog instead of being refused, and dockerd
answers it the moment it is ready. dockerd wraps the TCP ones in TLS itself (moby, daemon/listeners, `fd://`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
from typing import NamedTuple

from cachedind.errors import DaemonConfigError, ListenError

DEFAULT_SOCKET = "/var/run/docker.sock"
TLS_PORT = 2376
PLAIN_PORT = 2375
FIRST_FD = 3
BACKLOG = 4096

_WILDCARD_HOST = re.compile(r"(?:tcp://)?(?:0\.0\.0\.0|\[::\])?(?::(\d+))?/?")


class ListenPlan(NamedTuple):
    """Which addresses to bind. `tls_dir` is None for plain TCP; `group` owns the unix socket."""

    socket_path: str
    tcp_port: int
    tls_dir: str | None
    group: str

    def covers(self, host: str) -> bool:
        """Whether a --host of the user's is one of ours, which dockerd must not bind a second time."""
        if host.startswith("unix://"):
            return os.path.normpath(host.removeprefix("unix://") or DEFAULT_SOCKET) == self.socket_path
        if host == "" or host.startswith("fd://"):
            return True
        match = _WILDCARD_HOST.fullmatch(host)
        default = PLAIN_PORT if self.tls_dir is None else TLS_PORT
        return match is not None and int(match.group(1) or default) == self.tcp_port


def plan_listen(docker_host: str, tls_certdir: str, group: str | None) -> ListenPlan:
    """docker:dind's rules: a unix:// DOCKER_HOST moves the socket, any other one is the client's business and ignored;
    a certificate directory means TLS on 2376, none means plain TCP on 2375.

    Raises DaemonConfigError for a unix:// path that is not absolute.
    """
    path = DEFAULT_SOCKET
    if docker_host.startswith("unix://"):
        path = docker_host.removeprefix("unix://")
        if not path.startswith("/"):
            raise DaemonConfigError(
                f"DOCKER_HOST={docker_host} names no absolute path", "write unix:///path/docker.sock"
            )
        path = os.path.normpath(path)
    tls_dir = os.path.abspath(tls_certdir) if tls_certdir else None
    return ListenPlan(path, PLAIN_PORT if tls_dir is None else TLS_PORT, tls_dir, group or "docker")


def bind_unix(plan: ListenPlan) -> socket.socket:
    """Bind the plan's unix socket, 0660 for root and its group, and listen on it. Raises ListenError."""
    return _bind_unix(plan.socket_path, plan.group)


def bind_tcp(plan: ListenPlan) -> socket.socket:
    """Bind the plan's TCP port, for IPv4 and IPv6 where there is IPv6. Clients are refused until `open_port`.

    Raises ListenError.
    """
    return _bind_tcp(plan.tcp_port)


def open_port(listener: socket.socket, plan: ListenPlan) -> None:
    """Accept clients from now on, in every process that shares the socket. Raises ListenError."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _tcp_error(error, plan.tcp_port) from error


def _bind_unix(path: str, group: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _remove_stale(path)
        # Nobody may connect before owner and mode are right.
        before = os.umask(0o777)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        os.chown(path, 0, _group_id(group))
        os.chmod(path, 0o660)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        # Python itself refuses a path that is too long, without an errno.
        raise ListenError(
            f"the socket {path} cannot be bound: {error.strerror or error}", _unix_hint(error, path)
        ) from error
    return listener


def _remove_stale(path: str) -> None:
    """A killed container leaves its socket on a shared volume: it is dead, as nobody can have it open but a daemon."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            raise IsADirectoryError(errno.EISDIR, "a directory is in its place", path)
        os.unlink(path)


def _unix_hint(error: OSError, path: str) -> str:
    if error.errno == errno.EBUSY:
        return f"something is mounted there: mount the host's socket elsewhere, not at {path}"
    if error.errno == errno.EISDIR:
        return "the outer engine makes a directory of a missing bind source: remove that mount"
    return "set DOCKER_HOST=unix:///another/path/docker.sock"


def _group_id(group: str) -> int:
    """A group's number by name or number; root's where it does not exist, as dockerd does it."""
    import grp

    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        return 0


def _bind_tcp(port: int) -> socket.socket:
    try:
        return _tcp_listener(socket.AF_INET6, "::", port)
    except OSError as error:
        # No IPv6 at all, or switched off by sysctl.
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise _tcp_error(error, port) from error
    try:
        return _tcp_listener(socket.AF_INET, "0.0.0.0", port)
    except OSError as error:
        raise _tcp_error(error, port) from error


def _tcp_listener(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener


def _tcp_error(error: OSError, port: int) -> ListenError:
    return ListenError(
        f"TCP port {port} cannot be bound: {error.strerror}",
        "another daemon in this network namespace has it; give this container a network of its own",
    )


def hand_over(listeners: list[socket.socket]) -> None:
    """Move the listening sockets to file descriptors 3, 4, …, open across exec, where sd_listen_fds(3) wants them.

    Call it last: whatever else was open at those numbers is closed.
    """
    above = FIRST_FD + len(listeners)
    moved = [fcntl.fcntl(listener.detach(), fcntl.F_DUPFD_CLOEXEC, above) for listener in listeners]
    for offset, fd in enumerate(moved):
        os.dup2(fd, FIRST_FD + offset, inheritable=True)
        os.close(fd)
