"""The records of a containerd snapshotter (io.containerd.snapshotter.v1.<driver>/metadata.db), against each other, its
directories (snapshots/<number>) and containerd's own records. Each is written by itself:

    v1/snapshots/<namespace>/<n>/<key>   id (a number, as an unsigned varint), kind, parent: another such name
    snapshots/<id>/                      renamed there before the record is (plugins/snapshots/overlay, createSnapshot),
                                         and removed after it
    v1/<namespace>/snapshots/<driver>/<chain ID>/name, in containerd's meta.db: written after the snapshotter's own, and
                                         removed before it (core/metadata/snapshot.go)

So no kill leaves a record without what it names, only the other way round: a directory with a number that the records
have not given out yet. The engine that draws this number next fails: "failed to rename: … file exists".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cachedind import beneath, bolt, engine_paths

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from cachedind.bolt_check import Judge

_SNAPSHOTS = (b"v1", b"snapshots")
_MAX_DIGITS = 18
_HAVE_DIRECTORIES = frozenset({"overlayfs", "native"})
"""Others keep what is active elsewhere, or in no directory."""


class Found(NamedTuple):
    """What is wrong with the snapshots: directories that nobody has a record of, by name, and why the records cannot be
    used, if they cannot."""

    ahead: dict[str, str]
    broken: str


class Snapshots:
    """What is recorded of snapshots. `takes` are shown what is in the databases of these paths; after that, `find`
    tells what is wrong."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._database = engine_paths.snapshots_database(driver)
        self._numbers: dict[bytes, str] = {}
        """By name; nothing for what is none."""
        self._parents: dict[bytes, bytes] = {}
        self._layers: list[bytes] = []
        """Names of layers of images. Others may be gone: a kill amid a commit leaves the record of what has got its
        lasting name."""
        self.takes: Mapping[str, Judge] = {self._database: self._take_own, engine_paths.META: self._take_containerds}

    def _take_own(self, path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
        if path[:-1] != _SNAPSHOTS:
            return
        if key == b"id":
            self._numbers[path[-1]] = _varint(value)
        elif key == b"parent" and value:
            self._parents[path[-1]] = value

    def _take_containerds(self, path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
        is_ours = key == b"name" and len(path) == 5 and path[2:4] == (b"snapshots", self._driver.encode())
        if is_ours and path[4].startswith(b"sha256:"):
            self._layers.append(value)

    def find(self, root_fd: int, complete: Set[str], limit_bytes: int) -> Found:
        """`complete` are the databases all of which was shown, and is sound. Raises nothing for what is on disk."""
        directories = {
            name
            for name in beneath.names(root_fd, engine_paths.snapshots(self._driver))
            if name.isascii() and name.isdigit() and len(name) <= _MAX_DIGITS
        }
        try:
            last = _read_last_number(root_fd, self._database, limit_bytes)
        except (OSError, ValueError):
            return Found({}, "")  # a damage of its own
        if last is None:
            broken = f"there are {len(directories)} snapshots, and no records of them" if directories else ""
            return Found({}, broken)
        why = f"no record of it, as the last number that was given out is {last}"
        ahead = {name: why for name in sorted(directories) if int(name) > last}
        return Found(ahead, self._compare(directories) if self._database in complete else "")

    def _compare(self, directories: Set[str]) -> str:
        for name, number in self._numbers.items():
            if not number:
                return f"snapshot {_shown(name)} has no number"
            if self._driver in _HAVE_DIRECTORIES and number not in directories:
                return f"snapshot {number} ({_shown(name)}) has no directory"
        for name, parent in self._parents.items():
            if parent not in self._numbers:
                return f"what snapshot {_shown(name)} lies on is not there: {_shown(parent)}"
        for name in self._layers:
            if name not in self._numbers:
                return f"containerd has a layer {_shown(name)} that is not in it"
        return ""


def _read_last_number(root_fd: int, path: str, limit_bytes: int) -> int | None:
    """The last number that was given out; None: none ever was. Raises OSError, ValueError."""
    try:
        fd, size = beneath.open_file(root_fd, path)
    except FileNotFoundError:
        return None
    try:
        database = bolt.open(fd, limit_bytes) if size else None
        above, name = _SNAPSHOTS
        if database is None or above not in database.buckets() or name not in database.buckets([above]):
            return None
        return database.sequence(_SNAPSHOTS)
    finally:
        os.close(fd)


def _varint(raw: bytes) -> str:
    """An unsigned varint (Go, encoding/binary) in decimal, nothing for what is none."""
    value = 0
    for index, byte in enumerate(raw[:10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return str(value)
    return ""


def _shown(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")[:80]
