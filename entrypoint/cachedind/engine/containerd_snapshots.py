"""Directories of a containerd snapshotter (io.containerd.snapshotter.v1.<driver>/snapshots/<number>) whose number is
above all in its records. A snapshot's directory is renamed into place before its record is written
(plugins/snapshots/overlay, createSnapshot), so a kill between the two leaves such a directory. The engine that gives
out this number next fails with "failed to rename: … file exists"; its garbage collector removes the directory later.
"""

from __future__ import annotations

import os

from cachedind.engine import bolt, paths
from cachedind.host import beneath

_NUMBERS = (b"v1", b"snapshots")
_MAX_DIGITS = 18


def find_ahead(root_fd: int, driver: str) -> dict[str, str]:
    """Such directories by name, and why. Only for tested releases (damage.py), as the last number is in the database.
    Raises nothing for what is on disk: when the database cannot be read, none is found."""
    try:
        fd, _ = beneath.open_file(root_fd, paths.snapshots_database(driver))
    except (OSError, ValueError):
        return {}
    try:
        last = bolt.open(fd).sequence(_NUMBERS)
    except (OSError, ValueError):
        return {}
    finally:
        os.close(fd)
    why = f"there is no record of it: the last number given out is {last}"
    names = beneath.names(root_fd, paths.snapshots(driver))
    return {name: why for name in names if _is_number(name) and int(name) > last}


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= _MAX_DIGITS
