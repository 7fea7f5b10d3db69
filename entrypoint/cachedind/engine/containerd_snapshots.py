"""Snapshots of a containerd snapshotter: its records (metadata.db, containerd, core/snapshots/storage/bolt.go, schema
"v1"), and directories (io.containerd.snapshotter.v1.<driver>/snapshots/<number>) whose number is above all in them.

A snapshot's directory is renamed into place before its record is written (plugins/snapshots/overlay, createSnapshot),
so a kill between the two leaves such a directory. The engine that gives out this number next fails with "failed to
rename: … file exists"; its garbage collector removes the directory later.
"""

from __future__ import annotations

import os

from cachedind.base.typed import NamedTuple
from cachedind.engine import bolt, paths
from cachedind.host import beneath

ACTIVE, COMMITTED = 2, 3
"""containerd, core/snapshots/snapshotter.go, KindActive and KindCommitted, as bolt.go writes them."""

_NUMBERS = (b"v1", b"snapshots")
_MAX_DIGITS = 18


class Snapshot(NamedTuple):
    """What a record says. `key` is the snapshotter's own name of it, `number` its directory's."""

    key: bytes
    kind: int
    number: int


def read(root_fd: int, driver: str) -> list[Snapshot]:
    """All snapshots that have a record. Raises OSError, ValueError."""
    fd, _ = beneath.open_file(root_fd, paths.snapshots_database(driver))
    try:
        return [
            Snapshot(key, _kind(fields.get(b"kind", b"")), number)
            for key, fields in bolt.open(fd).nested(_NUMBERS)
            if (number := _uvarint(fields.get(b"id", b"")))
        ]
    finally:
        os.close(fd)


def _kind(raw: bytes) -> int:
    return raw[0] if len(raw) == 1 else 0


def _uvarint(raw: bytes) -> int:
    """Go's binary.Uvarint; 0 for what is none."""
    number = 0
    for position, byte in enumerate(raw[:9]):
        number |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return number
    return 0


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
