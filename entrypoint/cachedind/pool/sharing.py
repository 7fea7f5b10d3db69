"""Sharing layers: an owner's directories move into the layer store, and links take their places.

Each step of that can be the last one of this process: the list is written first, then what is about to be done
(`sharing.json`), and `finish` goes on from wherever it ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.host import beneath, linux
from cachedind.pool import layer_links, layer_list, layers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachedind.base.trace import Trace
    from cachedind.pool.layers import Owner

_SHARING = "sharing.json"
_AT_ONCE = 2000
"""How many layers a plan names at most: state files are of limited size."""


def share(store_fd: int, owner: Owner, paths: Iterable[str], marker: str, trace: Trace) -> list[str]:
    """Move directories of an owner's data (paths below the data-root) into the store, with links in their places, and
    an empty file `marker` beside each (no such file where that is an empty word).

    Returns the ids of the new layers. What cannot be moved (EXDEV: a project quota of xfs) stays as it is, and after an
    error everything is a directory or a link to a layer.
    Needs the owner's lease and no daemon on its data; `finish` was called before. Raises OSError.
    """
    moved: list[str] = []
    wanted = list(paths)
    for start in range(0, len(wanted), _AT_ONCE):
        planned = {path: layers.new_id() for path in wanted[start : start + _AT_ONCE]}
        moved += _share_some(store_fd, owner, planned, marker, trace)
    return moved


def _share_some(store_fd: int, owner: Owner, planned: dict[str, str], marker: str, trace: Trace) -> list[str]:
    layer_list.write_list(
        owner.directory_fd, layer_list.read_list(owner.directory_fd) | set(planned.values()), durable=True
    )
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
        if error.errno not in layer_list.NO_FILE:
            raise
        raise ValueError(f"{_SHARING} is not a file") from error
    if raw is None:
        return False
    planned = raw.get("layers")
    if not isinstance(planned, dict) or not all(layers.ID.fullmatch(str(layer_id)) for layer_id in planned.values()):
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
                with layers.opened(store_fd, layer_id) as layer_fd:
                    os.rename(beside, layers.CONTENT, src_dir_fd=parent_fd, dst_dir_fd=layer_fd)
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
            with layers.opened(store_fd, move.layer_id) as layer_fd:
                os.rename(beside, layers.CONTENT, src_dir_fd=parent_fd, dst_dir_fd=layer_fd)
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
    os.symlink(layer_links.target_of(move.path, move.layer_id), beside, dir_fd=parent_fd)
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
    with layers.opened(store_fd, layer_id) as fd:
        state.write_state(fd, layers.RECORD, {"made_at": round(time.time(), 3)}, None, durable=False)


def _kind(directory_fd: int, name: str) -> int:
    """The file type of what has this name; 0 where there is nothing."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0
