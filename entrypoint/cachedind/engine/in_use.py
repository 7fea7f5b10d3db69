"""Whether a daemon without a lease uses the data-root: docker:dind that still runs while people move to this image, or
one that was started past the entrypoint.

bbolt holds an flock(2) on each database that it has open (bbolt, bolt_unix.go) as long as the daemon runs, and the
kernel releases it with the process, however that ends. So whoever gets a shared lock on all databases for a moment
knows that no engine is at work. A daemon that opens one in that very moment tries again by itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import time

from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import paths
from cachedind.host import beneath, flock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLL_S = 0.05
_DATABASES = ("volumes/metadata.db", "network/files/local-kv.db", paths.META)
_REMAPPED = re.compile(r"[0-9]+\.[0-9]+")
"""With userns-remap an engine keeps its data in a directory named by its root's ids (moby, daemon/daemon.go)."""


def find_locked(root_fd: int) -> str | None:
    """The first database below an open data-root that a living process has locked; None when nobody is at work.

    Follows no link, and reads nothing. Raises nothing for what is on disk.
    """
    for path in _databases(root_fd):
        with contextlib.suppress(OSError, ValueError):
            fd, _ = beneath.open_file(root_fd, path)
            try:
                if not flock.lock_shared(fd):
                    return path
            finally:
                os.close(fd)
    return None


def _databases(root_fd: int) -> Iterator[str]:
    above = ["", *(f"{name}/" for name in os.listdir(root_fd) if _REMAPPED.fullmatch(name))]
    for prefix in above:
        yield from (f"{prefix}{path}" for path in _DATABASES)
        for name in beneath.names(root_fd, f"{prefix}buildkit"):
            if name.endswith(".db"):
                yield f"{prefix}buildkit/{name}"


def wait(data_root: str, timeout_s: float, on_wait: Callable[[str], None]) -> str | None:
    """Wait up to `timeout_s` seconds until no engine is at work in `data_root`; `on_wait` is called once, with the
    database that is locked. Returns a database that is still locked at the end, None when all are free. Raises
    OSError."""
    started = time.monotonic()
    told = False
    root_fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while (locked := find_locked(root_fd)) is not None and time.monotonic() - started < timeout_s:
            if not told:
                on_wait(locked)
                told = True
            time.sleep(POLL_S)
        return locked
    finally:
        os.close(root_fd)
