"""Which image store and storage driver a daemon runs with, by its own word (GET /info).

It is told both, and takes them; but `features.containerd-migration` has it move to the containerd store when there are
no containers and few images, whatever it was told (moby, daemon/daemon.go).
"""

from __future__ import annotations

import json
import re
import socket

from cachedind.base.model import ImageStore

TIMEOUT_S = 30.0
_MAX_BYTES = 4 << 20
_SNAPSHOTTER = ["driver-type", "io.containerd.snapshotter.v1"]


def read(path: str) -> tuple[ImageStore, str]:
    """Ask the daemon at a unix socket. Raises OSError; ValueError for an answer that does not say it.

    Without the docker SDK, whose import takes 0.1 s, and without a version: the job's daemon may know other ones only
    (DOCKER_MIN_API_VERSION), and all of them have these two fields. HTTP/1.0: the answer ends with the connection.
    """
    raw = bytearray()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(path)
        client.sendall(b"GET /info HTTP/1.0\r\nHost: cachedind\r\n\r\n")
        while (chunk := client.recv(1 << 16)) and len(raw) <= _MAX_BYTES:
            raw += chunk
    return parse(bytes(raw))


def parse(raw: bytes) -> tuple[ImageStore, str]:
    """The store and the driver in an answer. Raises ValueError. Pure."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1\.[01] 200 ", head):
        raise ValueError(f"it answers {head[:60].decode('ascii', 'replace')!r}")
    info = json.loads(body)
    driver = info.get("Driver") if isinstance(info, dict) else None
    if not isinstance(driver, str) or not driver.replace("-", "").isalnum():
        raise ValueError("it does not name its driver")
    status = info.get("DriverStatus")
    is_containerd = isinstance(status, list) and _SNAPSHOTTER in status
    return (ImageStore.CONTAINERD if is_containerd else ImageStore.GRAPHDRIVER), driver
