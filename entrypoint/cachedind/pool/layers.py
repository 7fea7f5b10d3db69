"""The layer store: directories with the content of a layer, there once for a whole pool (<pool>/layers).

    layers/<id>/                 id: 128 random bits in hexadecimal, the same layer on every machine
      layer.json                 {made_at, bytes, inodes}; sizes once somebody has measured it
      content/                   the layer: never written again

In the data of a slot or a golden (an *owner*), what an engine takes for a layer's directory is a relative link to
<data-root>/.cachedind/layers/<id>/content, where the store is bound read-only while a daemon runs. Each owner has a
list of the layers that it may link to (`layers.list`, beside its data, out of a job's reach). A link to anything else
was planted, and is never followed.

Sharing a layer moves its directory into the store and leaves a link in its place. Each step of that can be the last
one of this process: the list is written first, then what is about to be done (`sharing.json`), and `finish` goes on
from wherever it ended. A layer that no owner lists goes by `sweep`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.engine.immutable import LINK, SHARED_AT
from cachedind.host import beneath, linux, trees
from cachedind.pool import directory
from cachedind.pool.limits import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cachedind.base.trace import Trace

LIST = "layers.list"
RECORD = "layer.json"
CONTENT = "content"

_SHARING = "sharing.json"
_ID = re.compile(r"[0-9a-f]{32}")
_LIST_END = re.compile(rb"end ([0-9]{1,9})\n")
_MAX_LIST_BYTES = 64 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FILE = frozenset({errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO})


class BadLinkError(ValueError):
    """A link in an owner's data that does not lead to a layer which the owner may have, or to one that is gone. Says
    where, and what it is."""


class BadListError(ValueError):
    """A list of layers that is not whole: the host went down before it was on disk, or somebody wrote to it."""


def new_id() -> str:
    return os.urandom(16).hex()


# ---- links: pure -----------------------------------------------------------------------------------------------------


def target_of(path: str, layer_id: str) -> str:
    """What the link at `path` (below the data-root) has to say to lead to a layer."""
    return f"{'../' * path.count('/')}{SHARED_AT}/{layer_id}/{CONTENT}"


def id_in(path: str, target: str) -> str | None:
    """The layer that the link at `path` leads to; None for a link that is none of ours."""
    match = LINK.fullmatch(target)
    return match[2] if match and len(match[1]) == 3 * path.count("/") else None


def check_link(path: str, target: str, allowed: frozenset[str]) -> str:
    """The layer that a link leads to. Raises BadLinkError."""
    layer_id = id_in(path, target)
    if layer_id is None:
        raise BadLinkError(f"{path} is a link to {target[:200]!r}, which is no layer of the pool")
    if layer_id not in allowed:
        raise BadLinkError(f"{path} is a link to the layer {layer_id}, which this slot has not been given")
    return layer_id


# ---- lists -----------------------------------------------------------------------------------------------------------


def write_list(owner_fd: int, ids: Iterable[str], *, durable: bool = False) -> None:
    """Note down what an owner may link to. Whole or not at all for everybody who looks; unless it is `durable`, a crash
    of the host may cut it short, which its last line tells. Raises OSError."""
    wanted = sorted(set(ids))
    text = "".join(f"{layer_id}\n" for layer_id in wanted) + f"end {len(wanted)}\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{LIST}.new", flags, 0o600, dir_fd=owner_fd)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.rename(f"{LIST}.new", LIST, src_dir_fd=owner_fd, dst_dir_fd=owner_fd)


def read_list(owner_fd: int) -> frozenset[str]:
    """What an owner may link to. Raises BadListError, also where there is none, OSError."""
    try:
        raw = beneath.read(owner_fd, LIST, _MAX_LIST_BYTES)
    except ValueError as error:
        raise BadListError(str(error)) from error
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise BadListError(f"{LIST}: {error.strerror}") from error
    return parse_list(raw)


def parse_list(raw: bytes) -> frozenset[str]:
    """Pure. Raises BadListError."""
    lines = raw.splitlines(keepends=True)
    end = _LIST_END.fullmatch(lines[-1]) if lines else None
    if end is None or int(end[1]) != len(lines) - 1:
        raise BadListError(f"{LIST} is cut short")
    ids = frozenset(line.decode("ascii", "replace").rstrip("\n") for line in lines[:-1])
    if not all(_ID.fullmatch(layer_id) for layer_id in ids):
        raise BadListError(f"{LIST} names something that is no layer")
    return ids


# ---- sharing ---------------------------------------------------------------------------------------------------------


class Owner(NamedTuple):
    """A slot or a golden: its directory, where its list is, and its data. Both are open; the lease is held."""

    directory_fd: int
    data_fd: int


def share(store_fd: int, owner: Owner, paths: Iterable[str], marker: str, trace: Trace) -> list[str]:
    """Move directories of an owner's data (paths below the data-root) into the store, with links in their places, and
    an empty file `marker` beside each (no such file where that is an empty word).

    Returns the ids of the new layers. What cannot be moved (EXDEV: a project quota of xfs) stays as it is, and after an
    error everything is a directory or a link to a layer.
    Needs the owner's lease and no daemon on its data; `finish` was called before. Raises OSError.
    """
    planned = {path: new_id() for path in paths}
    if not planned:
        return []
    write_list(owner.directory_fd, read_list(owner.directory_fd) | set(planned.values()), durable=True)
    trace.reach("share.listed")
    state.write_state(owner.directory_fd, _SHARING, {"layers": planned, "marker": marker}, None, durable=False)
    trace.reach("share.planned")
    moved = [
        layer_id
        for path, layer_id in planned.items()
        if _share_one(store_fd, owner.data_fd, _Move(path, layer_id, marker), trace)
    ]
    os.unlink(_SHARING, dir_fd=owner.directory_fd)
    trace.reach("share.done")
    return moved


def finish(store_fd: int, owner: Owner) -> bool:
    """End what a process was killed amid, or gave up with an error: afterwards each layer is a directory, or a link to
    a layer that is in the store. Whether there was anything; costs one system call where there is not.

    Raises OSError, ValueError when what was planned cannot be read (the data may then have links to nothing).
    """
    try:
        raw = state.read_state(owner.directory_fd, _SHARING)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise ValueError(f"{_SHARING} is not a file") from error
    if raw is None:
        return False
    planned = raw.get("layers")
    if not isinstance(planned, dict) or not all(_ID.fullmatch(str(layer_id)) for layer_id in planned.values()):
        raise ValueError(f"{_SHARING} names something that is not a layer")
    for path, layer_id in planned.items():
        _finish_one(store_fd, owner.data_fd, str(path), str(layer_id))
    os.unlink(_SHARING, dir_fd=owner.directory_fd)
    return True


def _finish_one(store_fd: int, data_fd: int, path: str, layer_id: str) -> None:
    parent, _, name = path.rpartition("/")
    beside = f".{name}.{layer_id}"
    try:
        with beneath.directory(data_fd, parent) as parent_fd:
            kind = _kind(parent_fd, beside)
            if kind == stat.S_IFLNK:
                os.unlink(beside, dir_fd=parent_fd)
            elif kind == stat.S_IFDIR:
                with _opened(store_fd, layer_id) as layer_fd:
                    os.rename(beside, CONTENT, src_dir_fd=parent_fd, dst_dir_fd=layer_fd)
    except (FileNotFoundError, NotADirectoryError):
        pass  # its engine has removed that since


class _Move(NamedTuple):
    path: str
    layer_id: str
    marker: str


def _share_one(store_fd: int, data_fd: int, move: _Move, trace: Trace) -> bool:
    """The steps of one layer: a link beside the directory; the two exchanged; the directory in the store. False where
    it cannot be moved there. After an error the directory is in its place."""
    parent, _, name = move.path.rpartition("/")
    beside = f".{name}.{move.layer_id}"
    with beneath.directory(data_fd, parent) as parent_fd:
        if _kind(parent_fd, name) != stat.S_IFDIR:
            return False
        _put_link_in_place(store_fd, parent_fd, move, name, beside, trace)
        try:
            with _opened(store_fd, move.layer_id) as layer_fd:
                os.rename(beside, CONTENT, src_dir_fd=parent_fd, dst_dir_fd=layer_fd)
        except OSError as error:
            linux.exchange(parent_fd, beside, name)
            os.unlink(beside, dir_fd=parent_fd)
            if error.errno != errno.EXDEV:
                raise
            return False
        trace.reach("share.moved")
    return True


def _put_link_in_place(store_fd: int, parent_fd: int, move: _Move, name: str, beside: str, trace: Trace) -> None:
    _make_layer(store_fd, move.layer_id)
    if move.marker:
        os.close(os.open(move.marker, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent_fd))
    os.symlink(target_of(move.path, move.layer_id), beside, dir_fd=parent_fd)
    trace.reach("share.linked")
    try:
        linux.exchange(parent_fd, beside, name)
    except OSError:  # something is mounted there
        os.unlink(beside, dir_fd=parent_fd)
        raise
    trace.reach("share.exchanged")


def _make_layer(store_fd: int, layer_id: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(layer_id, 0o700, dir_fd=store_fd)
    with _opened(store_fd, layer_id) as fd:
        state.write_state(fd, RECORD, {"made_at": round(time.time(), 3)}, None, durable=False)


@contextlib.contextmanager
def _opened(store_fd: int, layer_id: str) -> Iterator[int]:
    fd = os.open(layer_id, _DIRECTORY, dir_fd=store_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _kind(directory_fd: int, name: str) -> int:
    """The file type of what has this name; 0 where there is nothing."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0


# ---- what is there ---------------------------------------------------------------------------------------------------


def is_there(store_fd: int, layer_id: str) -> bool:
    """Whether the store has a layer, with its content."""
    try:
        # Each by itself: the last part alone is not followed.
        return all(
            stat.S_ISDIR(os.stat(path, dir_fd=store_fd, follow_symlinks=False).st_mode)
            for path in (layer_id, f"{layer_id}/{CONTENT}")
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


def names(store_fd: int) -> list[str]:
    """The ids of all layers. Raises OSError."""
    return [name for name in directory.names_in(store_fd) if _ID.fullmatch(name)]


def measure(store_fd: int, layer_id: str) -> Size:
    """How large a layer is; measured and noted down by the first who asks. Raises OSError, ValueError."""
    with _opened(store_fd, layer_id) as fd:
        raw = _read_record(fd)
        counted, inodes = raw.get("bytes"), raw.get("inodes")
        if isinstance(counted, int) and isinstance(inodes, int):
            return Size(counted, inodes)
        content_fd = os.open(CONTENT, _DIRECTORY, dir_fd=fd)
        try:
            found = trees.measure(content_fd)
        finally:
            os.close(content_fd)
        size = Size(found.bytes, found.files + found.directories + 1)
        with contextlib.suppress(OSError):  # a read-only mount, or no room
            state.write_state(fd, RECORD, size._asdict(), raw, durable=False)
        return size


def _read_record(layer_fd: int) -> dict[str, object]:
    """Nothing where a crash of the host has cut it short: it is written anew then."""
    with contextlib.suppress(ValueError):
        return state.read_state(layer_fd, RECORD) or {}
    return {}


def plan_sweep(born: Mapping[str, float], listed: frozenset[str], started: float, grace_s: float) -> list[str]:
    """Which layers go: those that no owner lists and that were there well before the lists were read. Pure.

    `born` are the times at which layers were made, by the same clock as `started`. What was made after that may belong
    to an owner that was read before it was shared.
    """
    return sorted(layer_id for layer_id, at in born.items() if layer_id not in listed and at < started - grace_s)


def sweep(
    store_fd: int, listed: Callable[[], frozenset[str]], throw_away: Callable[[str], None], grace_s: float
) -> int:
    """Throw away what no owner lists; returns how many. `listed` reads all lists, in the order in which owners move
    (stage, keys, aside, trash), while nothing is deleted from trash. Raises OSError, BadListError."""
    started = time.time()
    born = {}
    for layer_id in names(store_fd):
        with contextlib.suppress(FileNotFoundError):
            # Nothing changes that of the content once it is there.
            name = f"{layer_id}/{CONTENT}" if is_there(store_fd, layer_id) else layer_id
            born[layer_id] = os.stat(name, dir_fd=store_fd, follow_symlinks=False).st_ctime
    going = plan_sweep(born, listed(), started, grace_s)
    for layer_id in going:
        throw_away(layer_id)
    return len(going)
