"""The layers of a graph driver: their records (image/<driver>/layerdb/sha256/<chain ID>), and the directories that
these name (<driver>/<cache ID>), as overlay2 and fuse-overlayfs have them.

An engine that cannot load a layer says so in its log and goes on; when it comes to make the same one anew, it finds the
record in the way, and each build fails: "rename …/layerdb/tmp/… : file exists". So all of them are looked at in each
start: about 40 us of CPU for a layer. What is where is moby's layer/filestore.go and daemon/graphdriver/overlay2; both
write a record when the layer is whole, and rename it before they remove the layer, so no kill leaves damage.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import NamedTuple

from cachedind import beneath, engine_paths
from cachedind.engine_paths import CACHE_ID
from cachedind.seeds import chain_id

_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\n?")
_NUMBER = re.compile(r"-?[0-9]{1,19}\n?")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_BYTES = 1 << 16


class _Directories(NamedTuple):
    """A driver's own directory, and the one of the layers' short names, open."""

    layers: int
    short: int


def find_damaged(root_fd: int, driver: str) -> dict[str, str]:
    """Which layers an engine could not use, by chain ID, and why; with each those that lie on it.

    Raises nothing for what is on disk. A link in place of the directory of all layers is people's own, who put them on
    another disk: nothing is known of those.
    """
    bad: dict[str, str] = {}
    parents: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        try:
            records_fd = _enter(stack, root_fd, engine_paths.layer_records(driver))
        except OSError:
            return {}
        directories, all_gone = None, ""
        if driver in engine_paths.OVERLAYS:
            try:
                directories = _open_directories(stack, root_fd, driver)
            except OSError as error:
                all_gone = f"its directory in {driver} is gone: {error.strerror}"
        for name in sorted(os.listdir(records_fd)):
            if not _HEX.fullmatch(name):
                continue  # what a killed engine was about to remove is called so, too
            if all_gone:
                bad[name] = all_gone
                continue
            try:
                parents[name] = _check(records_fd, name, directories)
            except ValueError as error:
                bad[name] = str(error)
            except OSError as error:
                bad[name] = f"{os.path.basename(error.filename or 'its record')}: {error.strerror}"
    while fallen := {name: parent for name, parent in parents.items() if parent and parent not in parents}:
        for name, parent in fallen.items():
            del parents[name]
            bad[name] = f"what it lies on is damaged or gone: {parent[:12]}"
    return bad


def _enter(stack: contextlib.ExitStack, root_fd: int, path: str) -> int:
    fd = beneath.open_path(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, fd)
    return fd


def _open_directories(stack: contextlib.ExitStack, root_fd: int, driver: str) -> _Directories | None:
    """None where the driver's directory is a link. Raises OSError."""
    if stat.S_ISLNK(beneath.look(root_fd, driver).st_mode):
        return None
    return _Directories(_enter(stack, root_fd, driver), _enter(stack, root_fd, f"{driver}/l"))


def _check(records_fd: int, name: str, directories: _Directories | None) -> str:
    """Returns the parent's chain ID, or nothing. Raises ValueError, OSError."""
    fd = os.open(name, _DIRECTORY, dir_fd=records_fd)
    try:
        with os.scandir(fd) as entries:
            names = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
        for other, is_file in names.items():
            if not is_file:
                raise ValueError(f"its {other} is no file")
        cache_id = _read(fd, "cache-id").strip()
        if not CACHE_ID.fullmatch(cache_id):
            raise ValueError("its cache-id is none")
        diff = _DIGEST.fullmatch(_read(fd, "diff"))
        if diff is None:
            raise ValueError("its diff ID is none")
        if not _NUMBER.fullmatch(_read(fd, "size")):
            raise ValueError("its size is none")
        parent = _DIGEST.fullmatch(_read(fd, "parent")) if "parent" in names else None
        if parent is None and "parent" in names:
            raise ValueError("its parent is none")
        if chain_id(diff[0].strip(), parent[0].strip() if parent else "") != f"sha256:{name}":
            raise ValueError("its diff ID and its parent make another layer")
    finally:
        os.close(fd)
    if directories is not None:
        _check_overlay(directories, cache_id, has_parent=parent is not None)
    return parent[1] if parent else ""


def _check_overlay(directories: _Directories, cache_id: str, *, has_parent: bool) -> None:
    """Raises ValueError, OSError."""
    fd = os.open(cache_id, _DIRECTORY, dir_fd=directories.layers)
    try:
        if not stat.S_ISDIR(os.stat("diff", dir_fd=fd, follow_symlinks=False).st_mode):
            raise ValueError("its diff is no directory")
        link = _read(fd, "link").strip()
        if not CACHE_ID.fullmatch(link):
            raise ValueError("its link is none")
        if has_parent and not _read(fd, "lower").strip("\0\n "):
            raise ValueError("its lower is empty")
    finally:
        os.close(fd)
    if not stat.S_ISLNK(os.stat(link, dir_fd=directories.short, follow_symlinks=False).st_mode):
        raise ValueError("its short name is no link")


def _read(directory_fd: int, name: str) -> str:
    """The beginning of a file, nothing of a pipe: beneath.read without its questions, a third of the time of a layer.
    Raises OSError."""
    fd = os.open(name, _FILE, dir_fd=directory_fd)
    try:
        return os.read(fd, _MAX_BYTES).decode("ascii", "replace")
    finally:
        os.close(fd)
