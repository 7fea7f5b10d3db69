"""Layers of graph drivers whose files a crash of the host has emptied, found without a daemon, whatever their age.

Graph drivers keep a list of each layer's files with their sizes, from which the layer's archive can be put together
again (image/<driver>/layerdb/sha256/<chain ID>/tar-split.json.gz; vbatts/tar-split). A kernel that loses what it had
not written leaves a file empty or short, never with other content of the same size (ext4's data=ordered, xfs and btrfs
write a size after the bytes). So sizes are compared, some 200,000 files in a second. For the containerd store see
blobs.py and unpacked.py.

The time for it is limited; what was not reached is counted, and not taken for bad: the next start goes on with it
(looked.py). Needs the lease.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import re
import stat
import time
import zlib
from types import MappingProxyType

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import paths
from cachedind.engine.immutable import open_layer
from cachedind.engine.paths import CACHE_ID
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TIME_S = 60.0
_FILES = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})\n?")
_MAX_LINE = 1 << 22
_FILE_ENTRY = 1
"""In a tar-split list; 2 is a piece of the archive between files."""


class Short(NamedTuple):
    """An unpacked layer with files that are too short: the directory of its files in the data-root, the digest of the
    blob that still has them, and their names, each with its place in the blob."""

    path: str
    blob: str
    files: Mapping[str, int]
    why: str


class Found(NamedTuple):
    """What is damaged, by its path in the data-root, and why: `bad` is to be set aside, `held` stays because a
    container or a record needs it. `unchecked` has sentences about what could not be looked at."""

    bad: Mapping[str, str] = MappingProxyType({})
    held: Mapping[str, str] = MappingProxyType({})
    unchecked: tuple[str, ...] = ()
    cached: bool = False
    """Whether BuildKit's records refer to some of `bad`: builds would fail on them."""
    whole: frozenset[str] = frozenset()
    """Digests of blobs that are what their names say."""
    short: tuple[Short, ...] = ()
    """Files that can get their content back."""
    late: bool = False
    """Whether there was no time left for some of it. What can never be looked at is no reason."""
    looked: frozenset[str] = frozenset()
    """When it is late: the names of what was looked at and is whole."""


def find_layers(root_fd: int, driver: str, *, time_s: float = TIME_S, looked: frozenset[str] = frozenset()) -> Found:
    """The records of layers that have lost files, and of the layers above them; those in `looked` have not. Raises
    nothing for what is on disk."""
    records_path = paths.layer_records(driver)
    records = [name for name in beneath.names(root_fd, records_path) if _FILES.fullmatch(name)]
    until = time.monotonic() + time_s
    why: dict[str, str] = {}
    done = set(looked)
    late = 0
    for name in records:
        if name in looked:
            continue
        try:
            reason = _look_at_layer(root_fd, driver, f"{records_path}/{name}", until)
        except _NoTimeError:
            late += 1
            continue
        if reason:
            why[name] = reason
        else:
            done.add(name)
    _add_layers_above(root_fd, records_path, records, why)
    used = _used_by_containers(root_fd, driver, records_path)
    bad = {f"{records_path}/{name}": reason for name, reason in why.items() if name not in used}
    held = {f"{records_path}/{name}": reason for name, reason in why.items() if name in used}
    told = [f"{late} of {len(records)} layers (no time left)"] if late else []
    own = _layers_without_list(root_fd, driver, records_path, records)
    if own:
        told.append(f"{own} layers of the build cache alone, which have no list of their files")
    cached = _is_cached(root_fd, [name for name in why if name not in used])
    return Found(bad, held, tuple(told), cached, late=late > 0, looked=frozenset(done) if late else frozenset())


class _NoTimeError(Exception):
    pass


def _look_at_layer(root_fd: int, driver: str, record: str, until: float) -> str:
    """Why a layer is bad; empty where it is not, or there is nothing to compare it with. Raises _NoTimeError."""
    if time.monotonic() >= until:
        raise _NoTimeError
    try:
        cache_id = beneath.read(root_fd, f"{record}/cache-id", 256).decode("ascii", "replace").strip()
        fd, size = beneath.open_file(root_fd, f"{record}/tar-split.json.gz")
    except (OSError, ValueError):
        return ""
    with os.fdopen(fd, "rb") as file:
        if size == 0:
            return "the list of its files is empty"
        if not CACHE_ID.fullmatch(cache_id):
            return ""
        above = f"{paths.layers(driver)}/{cache_id}"
        try:
            files_fd = open_layer(root_fd, f"{above}/diff" if driver in paths.OVERLAYS else above)
        except OSError:
            return ""  # whether it is there is damage.py's question
        try:
            return _compare(file, files_fd, until)
        finally:
            os.close(files_fd)


def _compare(file: object, files_fd: int, until: float) -> str:
    """The first file that is not as the list says; empty when all are. Of entries with one name the last one counts."""
    wrong: dict[str, str] = {}
    count = 0
    try:
        for name, size in _read_list(file):
            count += 1
            if count % 1024 == 0 and time.monotonic() >= until:
                raise _NoTimeError
            wrong.pop(name, None)
            if size > 0 and (reason := _look_at_file(files_fd, name, size)):
                wrong[name] = reason
    except (OSError, EOFError, zlib.error, ValueError) as error:
        # gzip.BadGzipFile is an OSError: it is what a crash leaves of a file.
        return f"the list of its files cannot be read: {error}"
    if not wrong:
        return ""
    name, reason = next(iter(wrong.items()))
    return f"{name}: {reason}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")


def _read_list(file: object) -> Iterator[tuple[str, int]]:
    """Names and sizes, in the order of the archive. Raises OSError, EOFError, ValueError."""
    with gzip.open(file, "rb") as lines:  # type: ignore[call-overload]
        while line := lines.readline(_MAX_LINE):
            if b'"type":2' in line[:16]:
                continue  # whole headers of an archive: not worth parsing
            entry = json.loads(line)
            if not isinstance(entry, dict) or entry.get("type") != _FILE_ENTRY:
                continue
            name, size = entry.get("name", ""), entry.get("size", 0)
            if entry.get("name_raw"):
                name = os.fsdecode(base64.b64decode(entry["name_raw"]))
            if isinstance(name, str) and isinstance(size, int):
                yield os.path.normpath(f"/{name}").lstrip("/"), size


def _look_at_file(files_fd: int, name: str, size: int) -> str:
    try:
        status = beneath.look(files_fd, name)
    except FileNotFoundError:
        return "it is gone" if _has_directory_of(files_fd, name) else ""
    except (OSError, ValueError):
        return ""
    if not stat.S_ISREG(status.st_mode) or status.st_size == size:
        return ""
    return f"it has {status.st_size} bytes instead of {size}"


def _has_directory_of(files_fd: int, name: str) -> bool:
    """An archive may name a file behind a link ("lib/x", where lib is a link to usr/lib in this layer or in one below):
    it is not there under that name, and never was."""
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(beneath.look(files_fd, os.path.dirname(name) or ".").st_mode)
    return False


def _add_layers_above(root_fd: int, records_path: str, records: list[str], why: dict[str, str]) -> None:
    parents = {name: parent for name in records if (parent := _read_digest(root_fd, f"{records_path}/{name}/parent"))}
    while fallen := [name for name, parent in parents.items() if parent in why and name not in why]:
        for name in fallen:
            why[name] = f"a layer below it is damaged: {parents[name][:12]}"


def _used_by_containers(root_fd: int, driver: str, records_path: str) -> frozenset[str]:
    """The layers below containers: without them, nobody reaches what the containers have written."""
    mounts = f"{paths.images(driver)}/layerdb/mounts"
    used: set[str] = set()
    for container in beneath.names(root_fd, mounts):
        if container.startswith(paths.PIN):
            continue
        name = _read_digest(root_fd, f"{mounts}/{container}/parent")
        while name and name not in used:
            used.add(name)
            name = _read_digest(root_fd, f"{records_path}/{name}/parent")
    return frozenset(used)


def _layers_without_list(root_fd: int, driver: str, records_path: str, records: list[str]) -> int:
    mounts = f"{paths.images(driver)}/layerdb/mounts"
    known = {_read_word(root_fd, f"{records_path}/{name}/cache-id") for name in records}
    for container in beneath.names(root_fd, mounts):
        known |= {_read_word(root_fd, f"{mounts}/{container}/{name}") for name in ("init-id", "mount-id")}
    layers = beneath.names(root_fd, paths.layers(driver))
    return len({name for name in layers if len(name) > 1 and name != "backingFsBlockDev"} - known)


def _is_cached(root_fd: int, layers: list[str]) -> bool:
    """Whether BuildKit's records have the name of one of these layers in them, whatever their format."""
    if not layers:
        return False
    with contextlib.suppress(OSError, ValueError):
        raw = beneath.read(root_fd, "buildkit/snapshots.db", 1 << 28)
        return any(name.encode() in raw for name in layers)
    return False


def _read_digest(root_fd: int, path: str) -> str:
    found = _DIGEST.fullmatch(_read_word(root_fd, path))
    return found[1] if found else ""


def _read_word(root_fd: int, path: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        return beneath.read(root_fd, path, 256).decode("ascii", "replace").strip()
    return ""
