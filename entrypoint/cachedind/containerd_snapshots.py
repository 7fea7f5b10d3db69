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

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from cachedind import beneath, bolt, bolt_check, engine_paths

if TYPE_CHECKING:
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


def look(root_fd: int, driver: str, limit_bytes: int) -> Found:
    """Raises nothing for what is on disk: a database that cannot be read is a damage of its own. Of databases with more
    than so many bytes nothing is compared."""
    numbers = {
        name
        for name in beneath.names(root_fd, engine_paths.snapshots(driver))
        if name.isascii() and name.isdigit() and len(name) <= _MAX_DIGITS
    }
    try:
        last, records = _read(root_fd, engine_paths.snapshots_database(driver), limit_bytes)
    except (OSError, ValueError):
        return Found({}, "")
    if last is None:
        return Found({}, f"there are {len(numbers)} snapshots, and no records of them" if numbers else "")
    why = f"no record of it, as the last number that was given out is {last}"
    ahead = {name: why for name in sorted(numbers) if int(name) > last}
    return Found(ahead, "" if records is None else _compare(root_fd, driver, records, numbers, limit_bytes))


class _Records:
    """Of each snapshot, by its name: its number (nothing for what is none), and what it lies on."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, str] = {}
        self.parents: dict[bytes, bytes] = {}

    def take(self, path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
        if path[:-1] != _SNAPSHOTS:
            return
        if key == b"id":
            self.numbers[path[-1]] = _varint(value)
        elif key == b"parent" and value:
            self.parents[path[-1]] = value


def _read(root_fd: int, path: str, limit_bytes: int) -> tuple[int | None, _Records | None]:
    """The last number that was given out (None: none ever was), and the records (None: they are too many). Raises
    OSError, ValueError."""
    records = _Records()
    try:
        fd, _ = beneath.open_file(root_fd, path)
    except FileNotFoundError:
        return None, None
    try:
        found = bolt_check.check(fd, limit_bytes, records.take)
        if not found.buckets:
            return None, None
        database = bolt.open(fd, limit_bytes)
        if _SNAPSHOTS[-1] not in database.buckets(_SNAPSHOTS[:-1]):
            return None, None
        return database.sequence(_SNAPSHOTS), records if found.complete else None
    finally:
        os.close(fd)


def _compare(root_fd: int, driver: str, records: _Records, numbers: set[str], limit_bytes: int) -> str:
    for name, number in records.numbers.items():
        if not number:
            return f"snapshot {_shown(name)} has no number"
        if driver in _HAVE_DIRECTORIES and number not in numbers:
            return f"snapshot {number} ({_shown(name)}) has no directory"
    for name, parent in records.parents.items():
        if parent not in records.numbers:
            return f"what snapshot {_shown(name)} lies on is not there: {_shown(parent)}"
    for name in _named_by_containerd(root_fd, driver, limit_bytes):
        if name not in records.numbers:
            return f"containerd has a layer {_shown(name)} that is not in it"
    return ""


def _named_by_containerd(root_fd: int, driver: str, limit_bytes: int) -> list[bytes]:
    """The names of layers of images, at the snapshotter. Others may be gone: a kill amid a commit leaves the record of
    what has got its lasting name."""
    names: list[bytes] = []

    def take(path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
        is_one = key == b"name" and len(path) == 5 and path[2:4] == (b"snapshots", driver.encode())
        if is_one and path[4].startswith(b"sha256:"):
            names.append(value)

    with contextlib.suppress(OSError, ValueError):
        _walk(root_fd, engine_paths.META, limit_bytes, take)
    return names


def _walk(root_fd: int, path: str, limit_bytes: int, take: Judge) -> None:
    fd, _ = beneath.open_file(root_fd, path)
    try:
        bolt_check.check(fd, limit_bytes, take)
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
