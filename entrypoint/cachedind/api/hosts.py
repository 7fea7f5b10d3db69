"""The addresses of the API as people write them for dockerd, understood as dockerd understands them. Pure.

The rules are those of moby, opts/hosts.go: without a scheme it is TCP, without a host name localhost, without a port
2375; an empty one is the default socket, or with TLS localhost:2376.
"""

from __future__ import annotations

import os
import re

from cachedind.api.way_in import DEFAULT_SOCKET
from cachedind.base.typed import NamedTuple

TLS_PORT = 2376
PLAIN_PORT = 2375
WILDCARDS = frozenset({"0.0.0.0", "::"})
"""Each of them is all addresses of IPv4 and IPv6, as for Go's net.Listen."""

_TCP = r"(?:\[([0-9A-Za-z:.%]+)\]|([^\[\]:/@?#\s]*))(?::([0-9]{0,5}))?/?"


class Host(NamedTuple):
    """An address to listen on: `path` of a unix socket, or `name` and `port` of TCP."""

    path: str = ""
    name: str = ""
    port: int = 0

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"unix://{self.path}" if self.path else f"tcp://{name}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this network namespace reaches it."""
        return bool(self.path) or self.name in ("localhost", "::1") or self.name.startswith("127.")


def parse_host(text: str, *, has_tls: bool) -> Host | None:
    """What a --host, or one of daemon.json's hosts, names; None for what only dockerd itself knows what to do with."""
    text = text.strip()
    if not text:
        return Host(name="localhost", port=TLS_PORT) if has_tls else Host(DEFAULT_SOCKET)
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "tcp", text
    if scheme == "unix":
        path = rest or DEFAULT_SOCKET
        return Host("/" + os.path.normpath(path).lstrip("/")) if path.startswith("/") else None
    match = re.fullmatch(_TCP, rest) if scheme == "tcp" else None
    if match is None:
        return None
    port = int(match[3] or PLAIN_PORT)
    return Host(name=match[1] or match[2] or "localhost", port=port) if port < 1 << 16 else None


def covers(bound: Host, other: Host) -> bool:
    """Whether who listens on the one is reached at the other, and a second socket could not even be bound."""
    if bound.path or other.path:
        return bound.path == other.path
    return bound.port == other.port != 0 and (bound.name == other.name or bound.name in WILDCARDS)
