"""Whether a file was edited since somebody read it. Imports next to nothing: the supervisor asks, too."""

from __future__ import annotations

import os


def modified_ns(path: str) -> int:
    """When a file was last written, in nanoseconds; 0 for one that is not there or cannot be looked at."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
