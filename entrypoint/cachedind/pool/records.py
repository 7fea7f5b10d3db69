"""A copy of an owner's data that shares its layers: links for layers, hard links for what is written once, copies of
the records that an engine changes, and nothing of what lives as long as a daemon.

It costs by the layer and by the byte of the mutable records, never by the files in layers. A directory in the place of
a layer that is not shared (a cache mount, a build context, a container's) is copied with all that is in it, by reflink
where the filesystem has that.

The data was a job's, which was root in it: nothing is followed but links to layers that the owner was given, and what
is no directory where an engine has one costs the copy (ValueError), not more.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat

from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import immutable, paths
from cachedind.host import beneath, cp
from cachedind.pool import layer_links, layers
from cachedind.pool.layer_links import BadLinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachedind.base.model import StoragePlan

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REMAPPED = re.compile(r"[0-9]{1,10}\.[0-9]{1,10}")
_LAYER_FILES = frozenset({"link", "lower", "committed"})
"""What overlay drivers keep beside a layer's content; each is written once."""

_LEFT_EMPTY = frozenset(
    {
        "tmp",
        "runtimes",
        "buildkit/executor",
        f"{paths.CONTAINERD}/tmpmounts",
        f"{paths.CONTAINERD}/io.containerd.runtime.v2.task",
        f"{paths.CONTENT}/ingest",
        immutable.SHARED_AT,
        ".cachedind/aside",
    }
)
"""Directories of which no daemon needs the content that another one left."""


class CopyPlan(NamedTuple):
    """What is done with which part of an engine's data. Paths are below the engine's root.

    `layers` is the directory of all layers, `leaf` what in one of them is its content (immutable.shared_directories);
    `linked` are directories of files that get hard links, `results` the names of layers that do; `left_empty` are
    directories that stay empty, `emptied` the names of layers whose content does.
    """

    layers: str
    leaf: str
    linked: frozenset[str]
    left_empty: frozenset[str]
    results: frozenset[str] = frozenset()
    emptied: frozenset[str] = frozenset()

    def is_above_a_part(self, path: str) -> bool:
        """Whether something in that directory is not simply copied."""
        special = (self.layers, *self.linked, *self.left_empty)
        return any(part.startswith(f"{path}/") for part in special)

    def is_linked(self, path: str) -> bool:
        return any(f"{path}/".startswith(f"{part}/") for part in self.linked)


def plan_copy(
    storage: StoragePlan | None, results: frozenset[str] = frozenset(), emptied: frozenset[str] = frozenset()
) -> CopyPlan:
    """Pure. Without a `storage` no daemon has run on the data, and everything is copied. `results` and `emptied` as in
    CopyPlan."""
    if storage is None:
        return CopyPlan("", "", frozenset(), _LEFT_EMPTY)
    parent, leaf = immutable.shared_directories(storage)
    empty = set(_LEFT_EMPTY)
    if storage.store is ImageStore.GRAPHDRIVER:
        empty.add(f"{paths.images(storage.driver)}/layerdb/tmp")
    return CopyPlan(parent, leaf, frozenset(immutable.files_written_once(storage)), frozenset(empty), results, emptied)


def copy(source_fd: int, target_fd: int, root: str, plan: CopyPlan, allowed: frozenset[str]) -> frozenset[str]:
    """Fill the empty directory `target_fd` with a copy of the data that `source_fd` is open on; returns the ids of the
    layers that it links to. `root` is the engine's root below the data (with userns-remap), or an empty word; `allowed`
    what the source may link to.

    Needs root, and that nobody changes the source. Raises BadLinkError, ValueError for what no engine has left so,
    OSError (ENOSPC and the like: the disk's own troubles). What was begun is left for the caller to remove.
    """
    job = _Job(root, plan, allowed)
    job.copy_directory(source_fd, target_fd, "")
    cp.run(source_fd, target_fd, "--link", job.to_link)
    cp.run(source_fd, target_fd, "--reflink=auto", job.to_copy)
    return frozenset(job.linked_layers)


def check_links(data_fd: int, allowed: frozenset[str], store_fd: int) -> frozenset[str]:
    """The layers that the data links to, whatever engines have been there. Raises BadLinkError for one that the owner
    may not have, or that is gone, OSError; what is no directory where an engine has one is somebody else's to find."""
    found = set()
    for path, target in _all_links(data_fd):
        layer_id = layer_links.check_link(path, target, allowed)
        if not layers.is_there(store_fd, layer_id):
            raise BadLinkError(f"{path} is a link to the layer {layer_id}, which is gone")
        found.add(layer_id)
    return frozenset(found)


def find_links(data_fd: int) -> frozenset[str]:
    """The same unchecked: what a list would say that a crash of the host has cut short."""
    found = {layer_links.id_in(path, target) for path, target in _all_links(data_fd)}
    return frozenset(layer_id for layer_id in found if layer_id is not None)


def _all_links(data_fd: int) -> Iterator[tuple[str, str]]:
    for root in ("", *(name for name in beneath.names(data_fd, ".") if _REMAPPED.fullmatch(name))):
        for parent, leaf in immutable.ALL_SHARED:
            yield from _links(data_fd, f"{root}/{parent}" if root else parent, leaf)


def _links(data_fd: int, parent: str, leaf: str) -> Iterator[tuple[str, str]]:
    """The links in the places of layers: their paths, and what they say."""
    try:
        fd = beneath.open_path(data_fd, parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        for entry in _entries(fd):
            target = _link_of(fd, entry, leaf)
            if target is not None:
                yield immutable.place(parent, entry.name, leaf), target
    finally:
        os.close(fd)


def _link_of(directory_fd: int, entry: os.DirEntry[str], leaf: str) -> str | None:
    """What the link in a layer's place says; None where that is no link. A link on the way there is not followed."""
    if not (entry.is_dir(follow_symlinks=False) if leaf else entry.is_symlink()):
        return None
    with contextlib.suppress(OSError):  # a directory, or nothing
        return os.readlink(f"{entry.name}/{leaf}" if leaf else entry.name, dir_fd=directory_fd)
    return None


class _Job:
    def __init__(self, root: str, plan: CopyPlan, allowed: frozenset[str]) -> None:
        self._prefix = f"{root}/" if root else ""
        self._plan = plan
        self._allowed = allowed
        self.to_link: list[str] = []
        self.to_copy: list[str] = []
        self.linked_layers: set[str] = set()

    def _inside(self, path: str) -> str:
        """The path below the engine's root, or below the data-root where it is outside of that."""
        return path.removeprefix(self._prefix)

    def copy_directory(self, source_fd: int, target_fd: int, path: str) -> None:
        """What is in a directory of which some parts are special."""
        for entry in _entries(source_fd):
            below = f"{path}/{entry.name}" if path else entry.name
            inside = self._inside(below)
            is_directory = entry.is_dir(follow_symlinks=False)
            if is_directory and inside in self._plan.left_empty:
                _make_directory(source_fd, target_fd, entry.name)
            elif is_directory and inside == self._plan.layers:
                self._enter(source_fd, target_fd, below, self._copy_layers)
            elif is_directory and (self._plan.is_above_a_part(inside) or self._prefix.startswith(f"{below}/")):
                self._enter(source_fd, target_fd, below, self.copy_directory)
            else:
                (self.to_link if self._plan.is_linked(inside) else self.to_copy).append(below)

    def _enter(self, source_fd: int, target_fd: int, path: str, fill: Callable[[int, int, str], None]) -> None:
        name = path.rpartition("/")[2]
        _make_directory(source_fd, target_fd, name)
        below_fd = os.open(name, _DIRECTORY, dir_fd=source_fd)
        new_fd = os.open(name, _DIRECTORY, dir_fd=target_fd)
        try:
            fill(below_fd, new_fd, path)
        finally:
            os.close(below_fd)
            os.close(new_fd)

    def _copy_layers(self, source_fd: int, target_fd: int, path: str) -> None:
        leaf = self._plan.leaf
        for entry in _entries(source_fd):
            name = entry.name
            target = _link_of(source_fd, entry, leaf)
            if target is None and name in self._plan.emptied and entry.is_dir(follow_symlinks=False):
                self._enter(source_fd, target_fd, f"{path}/{name}", self._copy_emptied)
                continue
            if target is None:
                (self.to_link if name in self._plan.results else self.to_copy).append(f"{path}/{name}")
                continue
            self.linked_layers.add(layer_links.check_link(immutable.place(path, name, leaf), target, self._allowed))
            if leaf:
                self._copy_shared(source_fd, target_fd, name, target)
            else:
                os.symlink(target, name, dir_fd=target_fd)

    def _copy_emptied(self, source_fd: int, target_fd: int, path: str) -> None:
        """A layer's directory, with nothing in it but what engines keep beside the content."""
        for entry in _entries(source_fd):
            if entry.name == (self._plan.leaf or "fs") and entry.is_dir(follow_symlinks=False):
                _make_directory(source_fd, target_fd, entry.name)
            else:
                self.to_copy.append(f"{path}/{entry.name}")

    def _copy_shared(self, source_fd: int, target_fd: int, name: str, target: str) -> None:
        _make_directory(source_fd, target_fd, name)
        below_fd = os.open(name, _DIRECTORY, dir_fd=source_fd)
        try:
            for entry in _entries(below_fd):
                new = f"{name}/{entry.name}"
                if entry.name in _LAYER_FILES and entry.is_file(follow_symlinks=False):
                    os.link(entry.name, new, src_dir_fd=below_fd, dst_dir_fd=target_fd, follow_symlinks=False)
                elif entry.name == "work" and entry.is_dir(follow_symlinks=False):
                    os.mkdir(new, 0o700, dir_fd=target_fd)
        finally:
            os.close(below_fd)
        os.symlink(target, f"{name}/{self._plan.leaf}", dir_fd=target_fd)


def _entries(directory_fd: int) -> list[os.DirEntry[str]]:
    # Opened anew: btrfs shows a descriptor the entries of the moment it was opened (see directory.names_in).
    fd = os.open(".", _DIRECTORY, dir_fd=directory_fd)
    try:
        with os.scandir(fd) as entries:
            return list(entries)
    finally:
        os.close(fd)


def _make_directory(source_fd: int, target_fd: int, name: str) -> None:
    """A directory with the owner and mode of the one of that name."""
    status = os.stat(name, dir_fd=source_fd, follow_symlinks=False)
    os.mkdir(name, 0o700, dir_fd=target_fd)
    if status.st_uid or status.st_gid:
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target_fd, follow_symlinks=False)
    if stat.S_IMODE(status.st_mode) != 0o700:
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target_fd)
