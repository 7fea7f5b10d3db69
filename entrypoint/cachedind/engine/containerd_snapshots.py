"""Directories of a containerd snapshotter (io.containerd.snapshotter.v1.<driver>/snapshots/<number>) that its records
have not given out yet. A snapshot's directory is renamed into place before its record is (plugins/snapshots/overlay,
createSnapshot), so a kill between the two leaves one; and the engine that draws this number next fails: "failed to
rename: … file exists". Its collector takes it away after that.
"""

from __future__ import annotations

import os

from cachedind.engine import bolt, paths
from cachedind.host import beneath

_NUMBERS = (b"v1", b"snapshots")
_MAX_DIGITS = 18


def find_ahead(root_fd: int, driver: str) -> dict[str, str]:
    """By name, and why. The place of the last number is that of the tested releases (damage.py). Raises nothing for
    what is on disk: of records that cannot be read, nothing is known."""
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
    why = f"no record of it, as the last number that was given out is {last}"
    names = beneath.names(root_fd, paths.snapshots(driver))
    return {name: why for name in names if _is_number(name) and int(name) > last}


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) <= _MAX_DIGITS
