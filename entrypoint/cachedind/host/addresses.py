"""The addresses of this network namespace's interfaces."""

from __future__ import annotations

import re

from cachedind.base.typed import NamedTuple
from cachedind.host import processes

_LINE = re.compile(r"^\d+: ([^\s@:]+)\S*\s+inet6? ([0-9a-fA-F.:]+)(?: peer [0-9a-fA-F.:]+)?/(\d+)", re.MULTILINE)


class Address(NamedTuple):
    """An interface's address with the length of its prefix: "eth0" and "172.17.0.2/16"."""

    interface: str
    text: str


def parse_addresses(text: str) -> tuple[Address, ...]:
    """What `ip -oneline address` says, of IPv4 and IPv6. Pure."""
    return tuple(Address(name, f"{address}/{length}") for name, address, length in _LINE.findall(text))


def read_addresses() -> tuple[Address, ...]:
    """Raises ProgramMissingError, OSError."""
    return parse_addresses(processes.run(["ip", "-oneline", "address"], timeout_s=5).stdout)
