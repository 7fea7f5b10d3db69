"""Blobs of the containerd store that do not match their digest, as a crash of the host leaves them.

They are found without a daemon. The time for it is limited; what was not reached is counted, and not taken for bad.
Needs the lease.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time

from cachedind.engine import paths
from cachedind.engine.hollow import TIME_S, Found
from cachedind.host import beneath

_NAME = re.compile(r"[0-9a-f]{64}")
_EMPTY = hashlib.sha256().hexdigest()
_CHUNK = 1 << 20


def find(root_fd: int, *, time_s: float = TIME_S) -> Found:
    """Blobs that do not match their digest, small ones first. They stay where they are: containerd has a record of
    each, and when the image is pulled again it takes a blob of that name for present.

    Raises nothing for what is on disk.
    """
    sizes: list[tuple[int, str]] = []
    for name in beneath.names(root_fd, paths.BLOBS):
        if _NAME.fullmatch(name):
            with contextlib.suppress(OSError):
                sizes.append((beneath.look(root_fd, f"{paths.BLOBS}/{name}").st_size, name))
    held: dict[str, str] = {}
    whole: set[str] = set()
    until = time.monotonic() + time_s
    late = 0
    for size, name in sorted(sizes):
        path = f"{paths.BLOBS}/{name}"
        if size == 0 and name != _EMPTY:
            held[path] = "it is empty"
            continue
        digest = _digest_of(root_fd, path, until)
        if digest is None:
            late += 1
        elif digest != name:
            held[path] = "its content does not match its digest"
        else:
            whole.add(f"sha256:{name}")
    told = [f"{late} of {len(sizes)} blobs (no time left)"] if late else []
    return Found(held=held, unchecked=tuple(told), whole=frozenset(whole))


def _digest_of(root_fd: int, path: str, until: float) -> str | None:
    """None when there was no time left, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        fd, _ = beneath.open_file(root_fd, path)
        with os.fdopen(fd, "rb", buffering=0) as file:
            digest = hashlib.sha256()
            while time.monotonic() < until:
                chunk = file.read(_CHUNK)
                if not chunk:
                    return digest.hexdigest()
                digest.update(chunk)
    return None
