"""What killed trials of a storage driver leave in a data-root (trials.py), and its removal."""

from __future__ import annotations

import os

PROBE_PREFIX = ".cachedind-probe-"

_STALE_PREFIXES = (
    "check-overlayfs-support",
    "opaque-bug-check",
    "metacopy-check",
    "userxattr-check",
    "multiple-lowerdir-check",
    "fsutils-dummy",
)
"""What moby's and containers/storage's own trials leave behind when they are killed."""


def sweep(directory: str) -> list[str]:
    """Remove what killed trials left in a data-root, ours and the engines' own. Only under the lease. Returns the
    names.
    """
    stale = [name for name in os.listdir(directory) if name.startswith((PROBE_PREFIX, *_STALE_PREFIXES))]
    if stale:
        import shutil  # 4 ms of imports, for the rare start that has something to sweep
    for name in stale:
        shutil.rmtree(f"{directory}/{name}", ignore_errors=True)
    return stale
