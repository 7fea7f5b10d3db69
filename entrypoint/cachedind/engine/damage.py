"""Damage in a data-root, found without a daemon: files that are missing or unusable, and what each costs.

Each start checks what takes next to no time and is the same in every release of an engine: that files are files (an
engine waits without end for a pipe, and follows a link anywhere); that databases have a valid meta page, and the length
that it says; that lists and options are JSON; that files with a name have one in them; that a layer has its directory.
For releases that the tests run, a start also checks that records are there, and, when it has reason to doubt
(`thorough`), small files that no engine syncs.

The content of databases is not checked: what differs may be a later release's, or what a kill left and the engine
repairs itself. That is for a private daemon to tell (mending.py).

What each file is for, and what an engine does without it, was tried on 26.1 and 28.5 (docs/reliability.md has the
table). The last job was root here: no link is followed, nothing is waited for, and no file is read beyond a limit.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat

from cachedind.base.model import ImageStore, Loss
from cachedind.base.releases import are_tested
from cachedind.base.state import parse_object
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import bolt, containerd_snapshots, databases, graph_layers, paths
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cachedind.base.model import EngineVersion, StoragePlan

_MAX_JSON_BYTES = 16 << 20
_MAX_WORD_BYTES = 256
_MAX_FOUND = 10_000
_WORD = re.compile(rb"[!-~]{1,200}\n?")


class Damage(NamedTuple):
    """Something at `path`, relative to the data-root, that an engine cannot use. `silent` damage shows in no private
    daemon: it comes up, and builds fail later; or it waits for a pipe without end."""

    path: str
    why: str
    loss: Loss
    silent: bool = False


# ---- names -----------------------------------------------------------------------------------------------------------


def identity_file(storage: StoragePlan) -> str:
    """The file with the name of this BuildKit worker. With another name the whole build cache is dropped at the next
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
    disk. `engines` are the one that wrote it last and the one that is to start on it: unless the tests run both,
    missing files and small files are not checked."""
    tested = are_tested(engines)
    found = [damage for damage in _checked(root_fd, storage, thorough and tested, tested) if damage is not None]
    return found[:_MAX_FOUND]


def _checked(root_fd: int, storage: StoragePlan, thorough: bool, tested: bool) -> Iterator[Damage | None]:
    for path, loss in databases.known(storage).items():
        yield _check(root_fd, path, loss, _check_database)
    names = names_file(storage)
    if names is not None:
        yield _check(root_fd, names, Loss.NAMES, _check_json)
    yield _check(root_fd, identity_file(storage), Loss.CACHE, _check_word)
    # Engines write these anew when they are empty or gone, and do not come up when something else is in them.
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
        records = paths.layer_records(storage.driver)
        for name, why in graph_layers.find_damaged(root_fd, storage.driver, thorough=thorough).items():
            yield Damage(f"{records}/{name}", why, Loss.IMAGES, silent=True)


def _check(root_fd: int, path: str, loss: Loss, look: Callable[[int], None]) -> Damage | None:
    try:
        fd, _ = beneath.open_file(root_fd, path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return Damage(path, str(error), loss, silent=True)
    except OSError as error:
        # In direct mode a directory may be a link to another disk; in a pool, links were ruled out (directories.py).
        if beneath.leads_away(root_fd, path):
            return None
        return Damage(path, f"it cannot be opened: {error.strerror}", loss, silent=True)
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
    """Checks the meta pages, the only ones with checksums (bolt.py). An empty file is fine: bbolt was about to make it,
    and makes it then. Raises ValueError, OSError."""
    if os.fstat(fd).st_size:
        bolt.open(fd)


def _check_json(fd: int) -> None:
    """Raises ValueError."""
    size = os.fstat(fd).st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"it is too large: {size} bytes")
    parse_object(os.read(fd, size))


def _check_word(fd: int) -> None:
    """Raises ValueError."""
    if not _WORD.fullmatch(os.read(fd, _MAX_WORD_BYTES)):
        raise ValueError("there is no name in it")


def _check_word_or_none(fd: int) -> None:
    """Raises ValueError."""
    if os.fstat(fd).st_size:
        _check_word(fd)


# ---- records ---------------------------------------------------------------------------------------------------------


def _check_records(root_fd: int, storage: StoragePlan) -> Iterator[Damage]:
    """Whether layers and blobs have their records. Without records an engine counts from the beginning, and what exists
    is in its way ("already exists"), or it takes steps as CACHED whose layers it does not have ("can not convert active
    … to layer"): each build fails."""
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
            yield Damage(path, f"it is empty or gone, although there is {other}", loss, silent=True)


def _has_content(root_fd: int, path: str) -> bool:
    """Whether a file or directory is there and not empty. What cannot be looked at counts as there: other checks find
    it."""
    try:
        found = beneath.look(root_fd, path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return bool(beneath.names(root_fd, path)) if stat.S_ISDIR(found.st_mode) else found.st_size > 0


# ---- kinds -----------------------------------------------------------------------------------------------------------


class _Tree(NamedTuple):
    """A directory from which an engine reads files when it starts: how many levels, which names (None: all), how many
    parts of a path below it are set aside together when a file is something else, and what that costs."""

    path: str
    depth: int
    names: frozenset[str] | None
    together: int
    loss: Loss


def _trees(storage: StoragePlan) -> list[_Tree]:
    image = paths.images(storage.driver)
    of_store = (
        [_Tree(f"{paths.CONTENT}/ingest", 2, None, 1, Loss.NOTHING)]
        if storage.store is ImageStore.CONTAINERD
        else [
            _Tree(f"{image}/layerdb/mounts", 2, None, 1, Loss.RECORDS),
            _Tree(f"{image}/imagedb/content", 2, None, 2, Loss.NAMES),
            _Tree(f"{image}/imagedb/metadata", 3, None, 2, Loss.NOTHING),
            _Tree(f"{image}/distribution", 4, None, 4, Loss.NOTHING),
        ]
    )
    return [
        _Tree("containers", 2, frozenset({"config.v2.json", "hostconfig.json"}), 1, Loss.RECORDS),
        _Tree("volumes", 1, frozenset(), 1, Loss.RECORDS),
        _Tree("plugins", 2, frozenset({"config.json"}), 1, Loss.RECORDS),
        _Tree("swarm", 2, None, 2, Loss.RECORDS),
        *of_store,
    ]


def _check_kinds(root_fd: int, storage: StoragePlan) -> Iterator[Damage]:
    """An engine waits without end for a pipe in the place of a file, and follows a link anywhere: "Loading containers:
    start." is the last line of an engine with a pipe for a container's configuration. The directories themselves may be
    links: people put them on other disks."""
    for tree in _trees(storage):
        with contextlib.suppress(OSError):
            kind = beneath.look(root_fd, tree.path).st_mode
            if not stat.S_ISDIR(kind) and not stat.S_ISLNK(kind):
                yield Damage(tree.path, "it is not a directory", tree.loss, silent=True)
        for path in beneath.special_files(root_fd, tree.path, tree.depth):
            name = path.rpartition("/")[2]
            if tree.names is None or name in tree.names:
                parts = path.split("/")[: tree.path.count("/") + 1 + tree.together]
                yield Damage("/".join(parts), f"{name} is neither a file nor a directory", tree.loss, silent=True)


def _check_volumes(root_fd: int) -> Iterator[Damage]:
    """Options of volumes: an engine ends with "error while unmarshaling volume options"."""
    for name in beneath.names(root_fd, "volumes"):
        path = f"volumes/{name}/opts.json"
        try:
            parse_object(beneath.read(root_fd, path, _MAX_JSON_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError as error:
            yield Damage(path, str(error), Loss.RECORDS)
        except OSError as error:
            yield Damage(path, f"it cannot be read: {error.strerror}", Loss.RECORDS)
