"""What containerd's database says of the containerd that wrote it: the one sign of how new a data-root's engine was.

`meta.db` has a bucket for each schema ("v1") with the database's version in it, which a containerd raises when it opens
an older one, and never lowers (containerd, core/metadata/db.go, Init). dockerd itself writes no version anywhere.
"""

from __future__ import annotations

import os
import re

from cachedind.engine import bolt, paths
from cachedind.host import beneath

_SCHEMA = re.compile(rb"v([0-9]{1,4})")
_VERSION = b"version"


def read(data_root: str) -> tuple[int, int] | None:
    """Schema and version, (1, 4) say; None where there is no database, or none that can be read. Raises nothing for
    what is on disk. Not while a daemon runs on it."""
    try:
        root_fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fd, _ = beneath.open_file(root_fd, paths.META)
        try:
            return _read(bolt.open(fd))
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return None
    finally:
        os.close(root_fd)


def _read(database: bolt.Database) -> tuple[int, int] | None:
    """Raises ValueError, OSError."""
    schemas = {int(match[1]): name for name in database.buckets() if (match := _SCHEMA.fullmatch(name))}
    if not schemas:
        return None
    newest = max(schemas)
    raw = next((value for key, value in database.items([schemas[newest]]) if key == _VERSION), b"")
    return newest, _varint(raw)


def _varint(raw: bytes) -> int:
    """A number as Go's binary.PutVarint writes it; 0 where there is none."""
    value = 0
    for index, byte in enumerate(raw[:10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value >> 1 ^ -(value & 1)
    return 0
