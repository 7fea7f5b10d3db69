"""Blobs of the containerd store that do not match their digest, as a crash of the host leaves them.

They are found without a daemon. The time for it is limited; what was not reached is counted, and not taken for bad: the
next start goes on with it (looked.py). Needs the lease.
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


def find(root_fd: int, *, time_s: float = TIME_S, looked: frozenset[str] = frozenset()) -> Found:
    """Blobs that do not match their digest, small ones first. They stay where they are: containerd has a record of
    each, and when the image is pulled again it takes a blob of that name for present. Those in `looked` are whole.

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
    late = unread = 0
    for size, name in sorted(sizes):
        path = f"{paths.BLOBS}/{name}"
        if size == 0 and name != _EMPTY:
            held[path] = "it is empty"
            continue
        if f"sha256:{name}" in looked:
            whole.add(f"sha256:{name}")
            continue
        digest = _digest_of(root_fd, path, until)
        if digest is None and time.monotonic() < until:
            unread += 1
        elif digest is None:
            late += 1
        elif digest != name:
            held[path] = "its content does not match its digest"
        else:
            whole.add(f"sha256:{name}")
    told = [f"{late} of {len(sizes)} blobs (no time left)"] if late else []
    told += [f"{unread} of {len(sizes)} blobs (they cannot be read)"] if unread else []
    found = Found(held=held, unchecked=tuple(told), whole=frozenset(whole))
    return found._replace(late=True, looked=found.whole) if late else found


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
