"""Damage in a data-root, found without a daemon: what is no longer as an engine left it, and what that costs.

    quick       at each start: the databases, all of whose pages have to be as bbolt writes them, with what engines must
                be able to read in them; the lists that must parse, the words that make the build cache this engine's
                own; pipes and the like among what a daemon reads at its start, for which it would wait for ever; the
                records of layers, with their directories, or of blobs
    thorough    when a start has reason to doubt: databases of any size, and every image's configuration

Which file is of what use, and what an engine does without it, was tried on 26.1 and 28.5 (docs/reliability.md has the
table); where they lie is moby's daemon/, layer/ and volume/, BuildKit's and containerd's own affair. The last job was
root here: no link is followed, nothing is waited for, and no file is read beyond a limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from cachedind import (
    beneath,
    builder_records,
    containerd_blobs,
    containerd_snapshots,
    databases,
    engine_paths,
    graph_layers,
)
from cachedind.model import ImageStore, Loss
from cachedind.state import parse_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachedind.bolt_check import Judge
    from cachedind.databases import Database
    from cachedind.model import StoragePlan

_MAX_JSON_BYTES = 16 << 20
_MAX_DATABASE_BYTES = 256 << 20
_QUICK_DATABASE_BYTES = 1 << 19
"""Of each database, what is looked at in each start: some milliseconds. It has the records of hundreds of layers."""
_MAX_FOUND = 10_000
_WORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9:_-]{3,127}\n?")
_UUID = re.compile(rb"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\n?")
_HEX = re.compile(r"[0-9a-f]{64}")


class Damage(NamedTuple):
    """Something at `path`, relative to the data-root, that an engine cannot use."""

    path: str
    why: str
    loss: Loss


# ---- what there is ---------------------------------------------------------------------------------------------------


def identity_file(storage: StoragePlan) -> str:
    """The file whose word names this BuildKit worker: with another one the whole build cache is dropped at the next
    start (BuildKit, solver/cachemanager.go, ReleaseUnreferenced)."""
    if storage.store is ImageStore.CONTAINERD:
        return f"buildkit/containerd-{storage.driver}/workerid"
    return "engine-id"


def names_file(storage: StoragePlan) -> str | None:
    """The list of images' names, where that is a file of its own."""
    return None if storage.store is ImageStore.CONTAINERD else engine_paths.references(storage.driver)


# ---- finding ---------------------------------------------------------------------------------------------------------


def find(root_fd: int, storage: StoragePlan, *, thorough: bool) -> list[Damage]:
    """What is damaged in the data-root that `root_fd` is open on, whose lease is held. Raises nothing for what is on
    disk; what is not there is no damage."""
    found = [damage for damage in _checked(root_fd, storage, thorough=thorough) if damage is not None]
    return found[:_MAX_FOUND]


def _checked(root_fd: int, storage: StoragePlan, *, thorough: bool) -> Iterator[Damage | None]:
    yield from _check_databases(root_fd, storage, _MAX_DATABASE_BYTES if thorough else _QUICK_DATABASE_BYTES)
    names = names_file(storage)
    if names is not None:
        yield _check(root_fd, names, Loss.NAMES, _check_names)
    yield _check(root_fd, identity_file(storage), Loss.CACHE, _check_word)
    # Engines make these anew when they are empty or gone, and do not come up with anything else in them.
    yield _check(root_fd, engine_paths.UUID, Loss.NOTHING, _check_uuid)
    if identity_file(storage) != "engine-id":
        yield _check(root_fd, "engine-id", Loss.NOTHING, _check_word_or_none)
    yield from _check_kinds(root_fd, storage)
    yield from _check_volumes(root_fd)
    if storage.store is ImageStore.GRAPHDRIVER:
        home = engine_paths.layer_records(storage.driver)
        for name, why in graph_layers.find_damaged(root_fd, storage.driver).items():
            yield Damage(f"{home}/{name}", why, Loss.IMAGES)
        if thorough:
            yield from _check_configurations(root_fd, storage.driver)


def _check_databases(root_fd: int, storage: StoragePlan, limit_bytes: int) -> Iterator[Damage | None]:
    """Each is read once, and shown to all who compare what is in it with something else."""
    builder = builder_records.BuilderRecords(storage)
    of_containerd = storage.store is ImageStore.CONTAINERD
    snapshots = containerd_snapshots.Snapshots(storage.driver) if of_containerd else None
    blobs = containerd_blobs.Blobs() if of_containerd else None
    shown = [one.takes for one in (builder, snapshots, blobs) if one is not None]
    complete: set[str] = set()
    sound: set[str] = set()
    for path, database in databases.known(storage).items():
        takes = [take[path] for take in shown if path in take]

        def look(fd: int, path: str = path, database: Database = database, takes: list[Judge] = takes) -> None:
            if databases.check(fd, database, limit_bytes, takes):
                complete.add(path)
            sound.add(path)

        yield _check(root_fd, path, database.loss, look)
    broken = builder.find(root_fd, complete)
    if broken is not None:
        yield Damage(broken.path, broken.why, Loss.CACHE)
    if snapshots is not None:
        found = snapshots.find(root_fd, complete, limit_bytes)
        for name, why in found.ahead.items():
            yield Damage(f"{engine_paths.snapshots(storage.driver)}/{name}", why, Loss.NOTHING)
        if found.broken:
            yield Damage(engine_paths.snapshots_database(storage.driver), found.broken, Loss.IMAGES)
    if blobs is not None and engine_paths.META in sound:
        for name, why in blobs.find_damaged(root_fd).items():
            yield Damage(f"{engine_paths.BLOBS}/{name}", why, Loss.IMAGES)


def _check(root_fd: int, path: str, loss: Loss, look: Callable[[int], None]) -> Damage | None:
    try:
        fd, _ = beneath.open_file(root_fd, path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return Damage(path, str(error), loss)
    except OSError as error:
        return Damage(path, f"it is not as an engine made it: {error.strerror}", loss)
    try:
        look(fd)
    except ValueError as error:
        return Damage(path, str(error), loss)
    except OSError as error:
        return Damage(path, f"it cannot be read: {error.strerror}", loss)
    finally:
        os.close(fd)
    return None


def _check_names(fd: int) -> None:
    """Raises ValueError."""
    if not isinstance(parse_object(_read(fd, _MAX_JSON_BYTES)).get("Repositories", {}), dict):
        raise ValueError("no list of names")


def _check_word(fd: int) -> None:
    if not _WORD.fullmatch(_read(fd, 256)):
        raise ValueError("no name in it")


def _check_word_or_none(fd: int) -> None:
    """Raises ValueError."""
    if os.fstat(fd).st_size:
        _check_word(fd)


def _check_uuid(fd: int) -> None:
    """Raises ValueError."""
    if os.fstat(fd).st_size and not _UUID.fullmatch(_read(fd, 256)):
        raise ValueError("no UUID in it")


# ---- kinds -----------------------------------------------------------------------------------------------------------


class _Shelf(NamedTuple):
    """A directory of which an engine reads files when it starts: how deep, which (None: whatever is there), how much of
    a path goes together when one is none, and what with it."""

    path: str
    depth: int
    names: frozenset[str] | None
    together: int
    loss: Loss


def _shelves(storage: StoragePlan) -> list[_Shelf]:
    image = engine_paths.images(storage.driver)
    of_store = (
        [_Shelf(f"{engine_paths.CONTENT}/ingest", 2, None, 1, Loss.NOTHING)]
        if storage.store is ImageStore.CONTAINERD
        else [
            _Shelf(f"{image}/layerdb/mounts", 2, None, 1, Loss.RECORDS),
            _Shelf(f"{image}/imagedb/content", 2, None, 2, Loss.NAMES),
            _Shelf(f"{image}/imagedb/metadata", 3, None, 2, Loss.NOTHING),
            _Shelf(f"{image}/distribution", 4, None, 4, Loss.NOTHING),
        ]
    )
    return [
        _Shelf("containers", 2, frozenset({"config.v2.json", "hostconfig.json"}), 1, Loss.RECORDS),
        _Shelf("volumes", 1, frozenset(), 1, Loss.RECORDS),
        _Shelf("plugins", 2, frozenset({"config.json"}), 1, Loss.RECORDS),
        _Shelf("swarm", 2, None, 2, Loss.RECORDS),
        *of_store,
    ]


def _check_kinds(root_fd: int, storage: StoragePlan) -> Iterator[Damage]:
    """A pipe where an engine keeps a file is waited for without end, and a link leads it anywhere: "Loading containers:
    start." is the last line of an engine with a pipe for a container's configuration. Directories may be links: people
    put them on other disks."""
    for shelf in _shelves(storage):
        with contextlib.suppress(OSError):
            kind = beneath.look(root_fd, shelf.path).st_mode
            if not stat.S_ISDIR(kind) and not stat.S_ISLNK(kind):
                yield Damage(shelf.path, "it is no directory", shelf.loss)
        for path in beneath.strangers(root_fd, shelf.path, shelf.depth):
            name = path.rpartition("/")[2]
            if shelf.names is None or name in shelf.names:
                parts = path.split("/")[: shelf.path.count("/") + 1 + shelf.together]
                yield Damage("/".join(parts), f"{name} is neither a file nor a directory", shelf.loss)


def _check_volumes(root_fd: int) -> Iterator[Damage]:
    """Options of volumes: "error while unmarshaling volume options" is the end of an engine."""
    for name in beneath.names(root_fd, "volumes"):
        path = f"volumes/{name}/opts.json"
        try:
            parse_object(beneath.read(root_fd, path, _MAX_JSON_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError as error:
            yield Damage(path, str(error), Loss.RECORDS)
        except OSError as error:
            yield Damage(path, f"it is not as an engine made it: {error.strerror}", Loss.RECORDS)


# ---- images ----------------------------------------------------------------------------------------------------------


def _check_configurations(root_fd: int, driver: str) -> Iterator[Damage]:
    home = engine_paths.configurations(driver)
    for name in beneath.names(root_fd, home):
        if not _HEX.fullmatch(name):
            continue
        with contextlib.suppress(FileNotFoundError):
            try:
                if hashlib.sha256(beneath.read(root_fd, f"{home}/{name}", _MAX_JSON_BYTES)).hexdigest() != name:
                    yield Damage(f"{home}/{name}", "its bytes are others than its digest says", Loss.NAMES)
            except ValueError as error:
                yield Damage(f"{home}/{name}", str(error), Loss.NAMES)


def _read(fd: int, limit_bytes: int) -> bytes:
    """Raises ValueError for a larger file."""
    size = os.fstat(fd).st_size
    if size > limit_bytes:
        raise ValueError(f"it has {size} bytes")
    return os.read(fd, size)
