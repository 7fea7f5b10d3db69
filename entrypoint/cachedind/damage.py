"""Damage in a data-root, found without a daemon: what is no longer as an engine left it, and what that costs.

    quick       at each start: the meta pages of every database, the lists that must parse, the words that make the
                build cache this engine's own; pipes and the like among what a daemon reads at its start, for which it
                would wait for ever; the records of layers, with their directories, or of blobs
    thorough    when a start has reason to doubt: whole databases, and every image's configuration

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
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from cachedind import beneath, bolt, containerd_blobs, engine_paths, graph_layers
from cachedind.model import ImageStore
from cachedind.state import parse_object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.model import StoragePlan

_MAX_JSON_BYTES = 16 << 20
_MAX_DATABASE_BYTES = 256 << 20
_MAX_FOUND = 10_000
_WORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9:_-]{3,127}\n?")
_HEX = re.compile(r"[0-9a-f]{64}")


class Loss(IntEnum):
    """What goes with something that is damaged, from little to all."""

    NOTHING = 0
    """The engine makes it anew out of what else there is."""
    RECORDS = 1
    """Build history, labels of volumes, networks, a container: what no build and no image needs."""
    NAMES = 2
    """Images lose their names."""
    RECENT = 3
    """Images and build cache of the last minutes."""
    CACHE = 4
    """The build cache."""
    IMAGES = 5
    """Images and build cache."""


class Damage(NamedTuple):
    """Something at `path`, relative to the data-root, that an engine cannot use."""

    path: str
    why: str
    loss: Loss


# ---- what there is ---------------------------------------------------------------------------------------------------


def databases(storage: StoragePlan) -> dict[str, Loss]:
    """Every bolt file that an engine with this store opens, and what goes with it."""
    of_containerd = storage.store is ImageStore.CONTAINERD
    found = {
        "buildkit/cache.db": Loss.CACHE,
        "buildkit/history.db": Loss.RECORDS,
        "buildkit/history_c8d.db": Loss.RECORDS,
        "volumes/metadata.db": Loss.RECORDS,
        "network/files/local-kv.db": Loss.RECORDS,
        "content/metadata.db": Loss.NOTHING,
        # Graph drivers keep neither images nor build cache in containerd.
        engine_paths.META: Loss.IMAGES if of_containerd else Loss.NOTHING,
    }
    if of_containerd:
        found[f"buildkit/containerd-{storage.driver}/metadata_v2.db"] = Loss.CACHE
        found[engine_paths.snapshots_database(storage.driver)] = Loss.IMAGES
    else:
        found |= {f"buildkit/{name}": Loss.CACHE for name in ("metadata_v2.db", "snapshots.db", "containerdmeta.db")}
    return found


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
    for path, loss in databases(storage).items():
        yield _check(root_fd, path, loss, _walk_database if thorough else _check_database)
    names = names_file(storage)
    if names is not None:
        yield _check(root_fd, names, Loss.NAMES, _check_names)
    yield _check(root_fd, identity_file(storage), Loss.CACHE, _check_word)
    # Engines make these anew when they are empty or gone, and do not come up with anything else in them.
    for path in ("engine-id", f"{engine_paths.CONTAINERD}/io.containerd.grpc.v1.introspection/uuid"):
        if path != identity_file(storage):
            yield _check(root_fd, path, Loss.NOTHING, _check_word_or_none)
    yield from _check_kinds(root_fd, storage)
    if storage.store is ImageStore.CONTAINERD:
        yield from _check_snapshots(root_fd, storage.driver)
        for name, why in containerd_blobs.find_damaged(root_fd, _MAX_DATABASE_BYTES).items():
            yield Damage(f"{engine_paths.BLOBS}/{name}", why, Loss.IMAGES)
        return
    yield from _check_builders_snapshots(root_fd)
    home = engine_paths.layer_records(storage.driver)
    for name, why in graph_layers.find_damaged(root_fd, storage.driver).items():
        yield Damage(f"{home}/{name}", why, Loss.IMAGES)
    if thorough:
        yield from _check_configurations(root_fd, storage.driver)


def _check(root_fd: int, path: str, loss: Loss, look: object) -> Damage | None:
    assert callable(look)
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


def _check_database(fd: int) -> None:
    """Raises ValueError. An empty file is one that an engine was about to make, and makes then."""
    if os.fstat(fd).st_size == 0:
        return
    meta = bolt.check_meta(fd)
    if not meta.is_complete:
        raise ValueError(f"cut short: {meta.size_bytes} bytes of {meta.pages * meta.page_size}")


def _walk_database(fd: int) -> None:
    """Every page that is in use. Raises ValueError."""
    _check_database(fd)
    if os.fstat(fd).st_size == 0:
        return
    database = bolt.open(fd, _MAX_DATABASE_BYTES)
    waiting: list[tuple[bytes, ...]] = [()]
    while waiting:
        path = waiting.pop()
        waiting += [(*path, name) for name in database.buckets(path)] if len(path) < 8 else []


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
        _Shelf("volumes", 2, frozenset({"opts.json"}), 2, Loss.RECORDS),
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


# ---- images and layers -----------------------------------------------------------------------------------------------


def _check_snapshots(root_fd: int, driver: str) -> Iterator[Damage]:
    """Directories with numbers that the snapshotter has not given out yet. A kill between the renaming of such a
    directory and the end of the transaction leaves one, and the engine that draws its number next fails: "failed to
    rename: … file exists" (containerd, plugins/snapshots/overlay/overlay.go, createSnapshot). Nobody knows of what is
    in it."""
    home, database = engine_paths.snapshots(driver), engine_paths.snapshots_database(driver)
    numbers = [name for name in beneath.names(root_fd, home) if name.isascii() and name.isdigit() and len(name) < 19]
    try:
        fd, size = beneath.open_file(root_fd, database)
    except FileNotFoundError:
        size = 0
    except (OSError, ValueError):
        return  # a damage of its own
    else:
        try:
            last = bolt.open(fd, _MAX_DATABASE_BYTES).sequence([b"v1", b"snapshots"]) if size else 0
        except (OSError, ValueError):
            return
        finally:
            os.close(fd)
    if not size:
        if numbers:
            yield Damage(database, f"it is empty, and there are {len(numbers)} snapshots", Loss.IMAGES)
        return
    for name in numbers:
        if int(name) > last:
            why = f"no record of it, as the last number that was given out is {last}"
            yield Damage(f"{home}/{name}", why, Loss.NOTHING)


def _check_builders_snapshots(root_fd: int) -> Iterator[Damage]:
    """BuildKit with a graph driver makes this one before cache.db. Without it every build is CACHED, and fails when it
    comes to be an image: "can not convert active … to layer"."""
    path = "buildkit/snapshots.db"
    if _size(root_fd, path) == 0 and _size(root_fd, "buildkit/cache.db"):
        yield Damage(path, "it is empty, and there is a build cache", Loss.CACHE)


def _size(root_fd: int, path: str) -> int | None:
    """Bytes of a file, 0 where there is none, None for anything else."""
    try:
        found = beneath.look(root_fd, path)
    except FileNotFoundError:
        return 0
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


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
