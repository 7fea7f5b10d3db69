"""The layers of a graph driver: their records (image/<driver>/layerdb/sha256/<chain ID>), and the directories that
these name (<driver>/<cache ID>), as overlay2 and fuse-overlayfs have them.

An engine that cannot load a layer says so in its log and goes on. When it makes the same layer again, the record is in
its way, and each build fails: "rename …/layerdb/tmp/… : file exists". No private daemon shows that, so each start looks
at all layers. The layout is that of moby's layer/filestore.go and daemon/graphdriver/overlay2; both write a record when
the layer is whole, and rename it before they remove the layer, so no kill leaves damage.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat

from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import paths
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEX = re.compile(r"[0-9a-f]{64}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_BYTES = 1 << 16


def find_damaged(root_fd: int, driver: str, *, thorough: bool) -> dict[str, str]:
    """Which layers an engine could not use, by chain ID, and why; and the layers above them. `thorough` also looks at
    the small files that overlay drivers keep beside a layer and do not sync: a layer whose `lower` a crash of the host
    has emptied is mounted on nothing.

    Raises nothing for what is on disk. Where the directory of all layers is a link, people have put it on another disk:
    then only the records are checked.
    """
    bad: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        try:
            records_fd = _enter(stack, root_fd, paths.layer_records(driver))
            names = _names(records_fd)
        except OSError:
            return {}
        layers_fd, all_gone = None, ""
        if driver in paths.OVERLAYS and not _is_link(root_fd, driver):
            try:
                layers_fd = _enter(stack, root_fd, driver)
            except OSError as error:
                all_gone = f"its directory in {driver} is gone: {error.strerror}"
        for name, is_directory in names.items():
            try:
                if all_gone or not is_directory:
                    raise ValueError(all_gone or "it is not a directory")
                _check_kinds(records_fd, name)
                if layers_fd is not None:
                    _check(records_fd, name, layers_fd, thorough=thorough)
            except ValueError as error:
                bad[name] = str(error)
            except OSError as error:
                bad[name] = f"{os.path.basename(error.filename or 'its record')}: {error.strerror}"
        return _with_those_above(records_fd, names, bad) if bad else {}


def _enter(stack: contextlib.ExitStack, root_fd: int, path: str) -> int:
    fd = beneath.open_path(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, fd)
    return fd


def _names(records_fd: int) -> dict[str, bool]:
    """The names of all layers' records, and whether each is a directory. A record that a killed engine was about to
    remove has a longer name."""
    with os.scandir(records_fd) as entries:
        return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries if _HEX.fullmatch(entry.name)}


def _is_link(root_fd: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISLNK(beneath.look(root_fd, path).st_mode)
    return False


def _check_kinds(records_fd: int, name: str) -> None:
    """An engine reads all files of a record when it starts, and would wait for a pipe. Raises ValueError, OSError."""
    fd = os.open(name, _DIRECTORY, dir_fd=records_fd)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    raise ValueError(f"its {entry.name} is not a file")
    finally:
        os.close(fd)


def _check(records_fd: int, name: str, layers_fd: int, *, thorough: bool) -> None:
    """Raises ValueError, OSError."""
    cache_id = _read(records_fd, f"{name}/cache-id").strip()
    if not paths.CACHE_ID.fullmatch(cache_id):
        raise ValueError("its cache-id is not a name")
    if not stat.S_ISDIR(os.stat(cache_id, dir_fd=layers_fd, follow_symlinks=False).st_mode):
        raise ValueError(f"its layer {cache_id} is not a directory")
    if not thorough:
        return
    if not _read(layers_fd, f"{cache_id}/link").strip("\0\n "):
        raise ValueError("the file link of its layer is empty")
    if _parent_of(records_fd, name) and not _read(layers_fd, f"{cache_id}/lower").strip("\0\n "):
        raise ValueError("the file lower of its layer is empty")


def _parent_of(records_fd: int, name: str) -> str:
    """The chain ID of the layer below; empty for the lowest. Raises OSError."""
    try:
        return _read(records_fd, f"{name}/parent").strip().removeprefix("sha256:")
    except FileNotFoundError:
        return ""


def _with_those_above(records_fd: int, names: Iterable[str], bad: dict[str, str]) -> dict[str, str]:
    parents: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(OSError):
            parents[name] = _parent_of(records_fd, name)
    while fallen := {name: parent for name, parent in parents.items() if parent in bad and name not in bad}:
        bad |= {name: f"a layer below it is damaged: {parent[:12]}" for name, parent in fallen.items()}
    return bad


def _read(directory_fd: int, path: str) -> str:
    """The beginning of a file; of a pipe nothing, without waiting for it. Raises OSError."""
    fd = os.open(path, _FILE, dir_fd=directory_fd)
    try:
        return os.read(fd, _MAX_BYTES).decode("ascii", "replace")
    finally:
        os.close(fd)
