"""Damage in a data-root, found without a daemon: what is not there or of another kind, and what that costs.

Each start looks at what costs next to nothing and no release of an engine changes: that files are files, not pipes or
links, for which an engine would wait for ever or which would lead it anywhere; that databases have a meta page, and the
length that it says; that lists and options are JSON; that there are words where the engine has its names; that a layer
has its directory. Of releases that the tests run, also what must be there, and `thorough`, when a start has reason to
doubt, small files that no engine syncs.

What is inside a database is nobody's business but its engine's: a file that says something else than before may be a
later release's, or what a kill left and the engine itself puts right. A private daemon tells (mending.py).

Which file is of what use, and what an engine does without it, was tried on 26.1 and 28.5 (docs/reliability.md has the
table); where they lie is moby's daemon/, layer/ and volume/, BuildKit's and containerd's own affair. The last job was
root here: no link is followed, nothing is waited for, and no file is read beyond a limit.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.model import ImageStore, Loss
from cachedind.base.state import parse_object
from cachedind.engine import bolt, containerd_snapshots, databases, graph_layers, paths
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cachedind.base.model import EngineVersion, StoragePlan

TESTED = frozenset({(26, 1), (28, 5)})
"""The releases that the tests run: what others keep where is not known."""
_MAX_JSON_BYTES = 16 << 20
_MAX_WORD_BYTES = 256
_MAX_FOUND = 10_000
_WORD = re.compile(rb"[!-~]{1,200}\n?")


class Damage(NamedTuple):
    """Something at `path`, relative to the data-root, that an engine cannot use. `silent` is what no private daemon can
    tell of: one comes up on it, and then builds fail; or it waits for a pipe without end."""

    path: str
    why: str
    loss: Loss
    silent: bool = False


# ---- what there is ---------------------------------------------------------------------------------------------------


def identity_file(storage: StoragePlan) -> str:
    """The file whose word names this BuildKit worker: with another one the whole build cache is dropped at the next
    start (BuildKit, solver/cachemanager.go, ReleaseUnreferenced)."""
    if storage.store is ImageStore.CONTAINERD:
        return f"buildkit/containerd-{storage.driver}/workerid"
    return "engine-id"


def names_file(storage: StoragePlan) -> str | None:
    """The list of images' names, where that is a file of its own."""
    return None if storage.store is ImageStore.CONTAINERD else paths.references(storage.driver)


# ---- finding ---------------------------------------------------------------------------------------------------------


def find(
    root_fd: int, storage: StoragePlan, *, thorough: bool, engines: Sequence[EngineVersion | None] = ()
) -> list[Damage]:
    """What is damaged in the data-root that `root_fd` is open on, whose lease is held. Raises nothing for what is on
    disk. `engines` are the one that wrote it last and the one that is to start on it: where one of them is not known to
    this version, nothing is missed and nothing closely looked at."""
    tested = are_tested(engines)
    found = [damage for damage in _checked(root_fd, storage, thorough and tested, tested) if damage is not None]
    return found[:_MAX_FOUND]


def are_tested(engines: Sequence[EngineVersion | None]) -> bool:
    return bool(engines) and all(engine is not None and engine.release in TESTED for engine in engines)


def _checked(root_fd: int, storage: StoragePlan, thorough: bool, tested: bool) -> Iterator[Damage | None]:
    for path, loss in databases.known(storage).items():
        yield _check(root_fd, path, loss, _check_database)
    names = names_file(storage)
    if names is not None:
        yield _check(root_fd, names, Loss.NAMES, _check_json)
    yield _check(root_fd, identity_file(storage), Loss.CACHE, _check_word)
    # Engines make these anew when they are empty or gone, and do not come up with noise in them.
    yield _check(root_fd, paths.UUID, Loss.NOTHING, _check_word_or_none)
    if identity_file(storage) != "engine-id":
        yield _check(root_fd, "engine-id", Loss.NOTHING, _check_word_or_none)
    yield from _check_kinds(root_fd, storage)
    yield from _check_volumes(root_fd)
    if tested:
        yield from _check_records(root_fd, storage)
    if thorough and storage.store is ImageStore.CONTAINERD:
        for name, why in containerd_snapshots.find_ahead(root_fd, storage.driver).items():
            yield Damage(f"{paths.snapshots(storage.driver)}/{name}", why, Loss.NOTHING, silent=True)
    if storage.store is ImageStore.GRAPHDRIVER:
        home = paths.layer_records(storage.driver)
        for name, why in graph_layers.find_damaged(root_fd, storage.driver, thorough=thorough).items():
            yield Damage(f"{home}/{name}", why, Loss.IMAGES, silent=True)


def _check(root_fd: int, path: str, loss: Loss, look: Callable[[int], None]) -> Damage | None:
    try:
        fd, _ = beneath.open_file(root_fd, path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return Damage(path, str(error), loss, silent=True)
    except OSError as error:
        # Without a pool a directory may be a link to another disk; in one, that was looked for before (directories.py).
        if beneath.leads_away(root_fd, path):
            return None
        return Damage(path, f"it is not as an engine made it: {error.strerror}", loss, silent=True)
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
    """Its meta pages, the only ones with checksums (bolt.py). An empty file is one that bbolt was about to make,
    and makes then. Raises ValueError, OSError."""
    if os.fstat(fd).st_size:
        bolt.open(fd)


def _check_json(fd: int) -> None:
    """Raises ValueError."""
    size = os.fstat(fd).st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"it has {size} bytes")
    parse_object(os.read(fd, size))


def _check_word(fd: int) -> None:
    """Raises ValueError."""
    if not _WORD.fullmatch(os.read(fd, _MAX_WORD_BYTES)):
        raise ValueError("no name in it")


def _check_word_or_none(fd: int) -> None:
    """Raises ValueError."""
    if os.fstat(fd).st_size:
        _check_word(fd)


# ---- records ---------------------------------------------------------------------------------------------------------


def _check_records(root_fd: int, storage: StoragePlan) -> Iterator[Damage]:
    """Whether what is there has its records. Without them an engine begins to count again, and finds what it makes in
    the way ("already exists"), or has steps CACHED of which it has no layers ("can not convert active … to layer"):
    each build fails."""
    if storage.store is ImageStore.CONTAINERD:
        snapshots = paths.snapshots(storage.driver)
        needed = [
            (paths.META, Loss.IMAGES, snapshots),
            (paths.META, Loss.IMAGES, paths.BLOBS),
            (paths.snapshots_database(storage.driver), Loss.IMAGES, snapshots),
        ]
    else:
        needed = [("buildkit/snapshots.db", Loss.CACHE, "buildkit/cache.db")]
    told: set[str] = set()
    for path, loss, other in needed:
        if path not in told and not _has_content(root_fd, path) and _has_content(root_fd, other):
            told.add(path)
            yield Damage(path, f"it is empty or gone, and there is {other}", loss, silent=True)


def _has_content(root_fd: int, path: str) -> bool:
    """Whether there is a file with something in it, or a directory; something else is another damage."""
    try:
        found = beneath.look(root_fd, path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return bool(beneath.names(root_fd, path)) if stat.S_ISDIR(found.st_mode) else found.st_size > 0


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
    image = paths.images(storage.driver)
    of_store = (
        [_Shelf(f"{paths.CONTENT}/ingest", 2, None, 1, Loss.NOTHING)]
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
                yield Damage(shelf.path, "it is no directory", shelf.loss, silent=True)
        for path in beneath.strangers(root_fd, shelf.path, shelf.depth):
            name = path.rpartition("/")[2]
            if shelf.names is None or name in shelf.names:
                parts = path.split("/")[: shelf.path.count("/") + 1 + shelf.together]
                yield Damage("/".join(parts), f"{name} is neither a file nor a directory", shelf.loss, silent=True)


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
