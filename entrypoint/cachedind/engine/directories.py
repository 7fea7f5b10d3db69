"""Directories of an engine's data that a start reads from: is each of them a directory?

Whoever is root in a job can put a link, a file, a pipe or a socket where one of them was. In a slot of a pool that is
proof that the slot is not as an engine made it, and another one is taken. In direct mode people put such directories on
other disks by links, which an engine follows; there this is not checked.
"""

from __future__ import annotations

import os
import stat

from cachedind.base.model import GRAPH_DRIVERS
from cachedind.engine import paths
from cachedind.host import beneath

_PLAIN = (
    ".cachedind/aside",
    ".cachedind/kept/buildkit",
    ".cachedind/kept/image",
    "buildkit/content",
    "containers",
    "content",
    "network/files",
    "plugins",
    "rootfs",
    "runtimes",
    "swarm",
    "tmp",
    "volumes",
    paths.BLOBS,
)
_WITH_ANY = ("buildkit", "image", paths.CONTAINERD)
"""In these, all names that begin with one of _BEGINNINGS are directories."""
_BEGINNINGS = ("containerd-", "io.containerd.", *GRAPH_DRIVERS)


def _known() -> tuple[str, ...]:
    """Paths of directories, each after the one that it lies in."""
    found = {*_PLAIN, *_WITH_ANY}
    for driver in GRAPH_DRIVERS:
        found |= {paths.layers(driver), paths.configurations(driver), paths.layer_records(driver)}
        found.add(f"{paths.images(driver)}/distribution")
    for path in tuple(found):
        while path := path.rpartition("/")[0]:
            found.add(path)
    return tuple(sorted(found))


_KNOWN = _known()


def find_odd(data_fd: int, remap: str = "") -> str | None:
    """The path of something else in the place of a directory of the engine's or of cachedind's, if there is any.

    `remap` names the engine's own directory in a data-root, where it has one. A directory that cannot be opened counts
    too. Costs some dozens of system calls, and raises nothing.
    """
    odd = _find_odd(data_fd)
    if odd is not None or not remap:
        return odd
    try:
        root_fd = beneath.open_path(data_fd, remap, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    except OSError:
        return remap
    try:
        odd = _find_odd(root_fd)
        return odd and f"{remap}/{odd}"
    finally:
        os.close(root_fd)


def _find_odd(root_fd: int) -> str | None:
    missing: set[str] = set()
    for path in _KNOWN:
        if path.rpartition("/")[0] in missing:
            missing.add(path)
            continue
        try:
            is_directory = stat.S_ISDIR(beneath.look(root_fd, path).st_mode)
        except FileNotFoundError:
            missing.add(path)
        except OSError:
            return path
        else:
            if not is_directory:
                return path
    for above in _WITH_ANY:
        for name in beneath.names(root_fd, above):
            path = f"{above}/{name}"
            if name.startswith(_BEGINNINGS) and not stat.S_ISDIR(beneath.look(root_fd, path).st_mode):
                return path
    return None


def find_odd_in(data_root: str, remap: str = "") -> str | None:
    """The same for a path."""
    fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return find_odd(fd, remap)
    finally:
        os.close(fd)
