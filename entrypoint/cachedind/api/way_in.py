"""The way in: where a process of this container reaches the daemon, whatever its hosts are, and whether it answers."""

from __future__ import annotations

import os
import socket

from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_SOCKET = "/var/run/docker.sock"
_WAY_IN = "/run/cachedind/socket"


def note(sockets: Sequence[str]) -> None:
    """Write down the first of a start's unix sockets. Needs the lease, as containers may share /run. Raises OSError."""
    if sockets:
        os.makedirs(os.path.dirname(_WAY_IN), mode=0o755, exist_ok=True)
        fd = os.open(_WAY_IN, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(sockets[0])


def read() -> str | None:
    """What `note` has written; None in a container whose start has not come that far."""
    try:
        with open(_WAY_IN, encoding="utf-8") as file:
            return file.read() or None
    except OSError:
        return None


def answers(path: str, timeout_s: float | None = None) -> bool:
    """Whether somebody answers HTTP at a unix socket; where it is bound before its daemon runs, the request waits.

    Raises OSError; TimeoutError when there is no answer in `timeout_s` seconds.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout_s)
        client.connect(path)
        client.sendall(b"GET /_ping HTTP/1.0\r\nHost: cachedind\r\n\r\n")
        return client.recv(5) == b"HTTP/"
