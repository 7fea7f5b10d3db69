"""Removing what the last job left without a daemon: what comes before one runs, and what one does not know."""

from __future__ import annotations

import contextlib
import os
import stat
import time

from cachedind.base.errors import CleaningError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import image_uses, networks, paths
from cachedind.engine.leftovers import (
    CONTAINERS,
    IMAGES,
    NETWORKS,
    UNREADABLE_NETWORKS,
    Leftovers,
    opened_directory,
    opened_root,
    read_configs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


def settle(root: str, leftovers: Leftovers, keep: frozenset[str]) -> list[str]:
    """What comes before any daemon. Returns what there is to say. Raises CleaningError."""
    if leftovers.containers:
        _note_uses(root, leftovers.containers)
    if leftovers.swarm:
        empty_directory(root, "swarm")
    if leftovers.plugins:
        empty_directory(root, "plugins")
    if IMAGES not in keep:
        _forget_builds(root)
    return _settle_networks(root, leftovers, keep)


def _settle_networks(data_root: str, leftovers: Leftovers, keep: frozenset[str]) -> list[str]:
    """What is done about networks without a daemon. Returns what there is to say. Raises CleaningError."""
    with opened_root(data_root):
        if UNREADABLE_NETWORKS in leftovers.networks:
            return networks.set_aside(data_root)
        if not keep & {CONTAINERS, NETWORKS}:
            networks.forget(data_root)
    return []


def _note_uses(data_root: str, containers: Iterable[str]) -> None:
    """Which images the last job used, for when some have to go. To have missed one is no loss."""
    with contextlib.suppress(CleaningError), opened_root(data_root) as root_fd:
        used = [str(config.get("Image")) for config in read_configs(root_fd, containers)]
        if used:
            image_uses.note(root_fd, used, time.time())


def _forget_builds(data_root: str) -> None:
    """Remove the history of builds, which has their logs. BuildKit makes it anew, and needs it for nothing."""
    with opened_root(data_root) as root_fd, opened_directory(root_fd, "buildkit") as fd:
        for name in paths.HISTORY if fd is not None else ():
            with contextlib.suppress(FileNotFoundError):
                _remove(name, fd)


def empty_directory(data_root: str, path: str) -> None:
    """Remove what is in a directory of the engine's. Raises CleaningError."""
    with opened_root(data_root) as root_fd, opened_directory(root_fd, path) as fd:
        for name in () if fd is None else os.listdir(fd):
            _remove(name, fd)


def remove_unknown_containers(data_root: str, names: Iterable[str]) -> list[str]:
    """Remove from containers/ what a daemon did not take for containers: records cut off by a crash, or foreign things.

    They would be found again at each start. Returns a sentence for each. Raises CleaningError.
    """
    told = []
    with opened_root(data_root) as root_fd, opened_directory(root_fd, CONTAINERS) as fd:
        for name in () if fd is None else names:
            _remove(name, fd)
            told.append(f"containers/{name[:64]} is removed: the daemon could not read it as a container")
    return told


def _remove(name: str, directory_fd: int | None) -> None:
    from shutil import rmtree

    if stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
        rmtree(name, dir_fd=directory_fd)
    else:
        os.unlink(name, dir_fd=directory_fd)
