"""The door to the environment: this process's own, and the one that dockerd gets."""

from __future__ import annotations

import os

from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "CACHEDIND_"

ENGINE_STORE_VARIABLES = {
    "TEST_INTEGRATION_USE_SNAPSHOTTER": ImageStore.CONTAINERD,
    "TEST_INTEGRATION_USE_GRAPHDRIVER": ImageStore.GRAPHDRIVER,
}
"""With these engines take another image store than the driver they are given belongs to: the first is read by 24 to
28, the second by 29 (moby, daemon/daemon.go and daemon/image_store_choice.go). Any value that is not empty counts."""


def environment() -> dict[str, str]:
    """This process's environment as it was started with, the only place that reads it.

    Python adds LC_CTYPE to its own when there is no locale (PEP 538); dockerd and what it runs must not get that.
    """
    found = dict(os.environ)
    with open("/proc/self/environ", "rb") as file:
        if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
            found.pop("LC_CTYPE", None)
    return found


def daemon_environment(environ: Mapping[str, str], *, path: str, listen_fds: int) -> dict[str, str]:
    """The environment that dockerd gets.

    DOCKER_DRIVER and ENGINE_STORE_VARIABLES are taken out because they would override the decision (moby reads them
    before --storage-driver), LISTEN_* of somebody else because ours follow, CACHEDIND_* because inner tools have no use
    for it. container=docker keeps the inner engine's hands off the host's AppArmor profiles (containerd,
    pkg/apparmor/apparmor_linux.go).
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in ("DOCKER_DRIVER", *ENGINE_STORE_VARIABLES, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
        and not name.startswith(PREFIX)
    }
    kept["container"] = "docker"
    kept["PATH"] = path
    if listen_fds:
        kept["LISTEN_FDS"] = str(listen_fds)
    return kept
