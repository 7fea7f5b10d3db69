"""IP forwarding in the container's network namespace, for an engine that insists on it instead of switching it on.

With iptables dockerd does that itself, and lets the FORWARD chain drop what is not its own. With nftables it leaves
both to whoever looks after the machine, and refuses each bridge network without (moby,
daemon/libnetwork/drivers/bridge/setup_ip_forwarding.go). Here that is this start; the namespace is the container's own
unless it was started with the host's, whose own engine has forwarding on.
"""

from __future__ import annotations

import os

IPV4 = ("net.ipv4.ip_forward",)
IPV6 = ("net.ipv6.conf.default.forwarding", "net.ipv6.conf.all.forwarding")


def switch_on(names: tuple[str, ...], root: str = "/proc/sys") -> list[str]:
    """Set these kernel parameters to 1 where they are not; returns the names of those that were set.

    Raises OSError at the first that cannot be, with its name as the filename. Needs CAP_NET_ADMIN and a /proc/sys that
    is mounted for writing, as --privileged gives.
    """
    done = []
    for name in names:
        path = f"{root}/{name.replace('.', '/')}"
        try:
            with open(path, encoding="ascii") as file:
                if file.read().strip() != "0":
                    continue
            with open(path, "w", encoding="ascii") as file:
                file.write("1\n")
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), name) from None
        done.append(name)
    return done
