"""What a daemon in a container was given, and what is seen of it there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.dind import DATA_ROOT

if TYPE_CHECKING:
    from helpers.dind import Dind

LOCK = f"{DATA_ROOT}/.cachedind/lock"
LEGACY_FARM = "/usr/local/sbin/.iptables-legacy"
"""First on the PATH of a daemon that is to use legacy iptables."""


def daemon_argv(dind: Dind) -> list[str]:
    [daemon] = dind.daemons()
    return list(daemon.argv)


def daemon_environment(dind: Dind) -> dict[str, str]:
    [daemon] = dind.daemons()
    text = dind.sh(f"cat /proc/{daemon.pid}/environ | tr '\\0' '\\n'")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def listening_ports(dind: Dind) -> set[int]:
    text = dind.sh("cat /proc/net/tcp /proc/net/tcp6")
    rows = [line.split() for line in text.splitlines()]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def mount_line(dind: Dind, mount_point: str) -> str:
    """The line of mountinfo for what is on top at a mount point, or nothing."""
    lines = dind.sh("cat /proc/1/mountinfo").splitlines()
    return next((line for line in reversed(lines) if line.split()[4] == mount_point), "")
