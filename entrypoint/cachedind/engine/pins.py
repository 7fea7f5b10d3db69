"""Pins: one more user for the layers of images that no job sees (graph_view.py), so that no prune takes them.

    image/<driver>/layerdb/mounts/cachedind-<digits of the image's ID>/
        parent      the image's uppermost layer, by its chain ID
        mount-id    a name that nothing is mounted under

An engine reads these two of each directory there when it starts, as if a container was on that layer, counts a user for
the layer, and looks at no directory of it (moby, layer/layer_store.go, loadMount). Where one of them is empty, as a
crash of the host may leave it, it counts none, without a word. Tried with 26.1 and 28.5.

The directory is the one that the engine keeps of that image's times, where there is one: a new directory costs most of
what a pin takes. Needs the lease, and no daemon on the data. The last job was root here: no link is followed.
"""

from __future__ import annotations

import contextlib
import os
import re

from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import paths
from cachedind.engine.store_files import DIGEST, digits
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_HALF = f"{paths.PIN}half"
_PARENT, _MOUNT_ID = "parent", "mount-id"
_NOTHING_MOUNTED = "0" * 64
_WORDS = {_PARENT: DIGEST, _MOUNT_ID: re.compile(r"[0-9a-f]{64}")}
_MAX_WORD_BYTES = 256
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def add(root_fd: int, driver: str, tops: Mapping[str, str]) -> None:
    """Pin the layers of images, which are given by ID with their uppermost layers' chain IDs. Each pin is whole or not
    there at all, wherever this is killed. Raises OSError."""
    with (
        beneath.made_directory(root_fd, paths.mounts(driver)) as mounts_fd,
        beneath.made_directory(root_fd, paths.image_metadata(driver)) as metadata_fd,
    ):
        there = set(os.listdir(mounts_fd))
        if _HALF in there:
            _remove_tree(mounts_fd, _HALF)
        for image_id, top in tops.items():
            name = f"{paths.PIN}{digits(image_id)}"
            if name in there:
                continue
            half_fd = _new_half(mounts_fd, metadata_fd, digits(image_id))
            try:
                _write(half_fd, _PARENT, top)
                # A file of its own: as one file of them all, it would have as many names as there are images in all
                # clones, and ext4 ends at 65,000.
                _write(half_fd, _MOUNT_ID, _NOTHING_MOUNTED)
            finally:
                os.close(half_fd)
            os.rename(_HALF, name, src_dir_fd=mounts_fd, dst_dir_fd=mounts_fd)


def remove(root_fd: int, driver: str, image_ids: Iterable[str]) -> None:
    """Take the pins of images away. Raises OSError."""
    for name in {f"{paths.PIN}{digits(image_id)}" for image_id in image_ids}.intersection(_names(root_fd, driver)):
        with beneath.directory(root_fd, paths.mounts(driver)) as mounts_fd:
            _remove_tree(mounts_fd, name)


def find_emptied(root_fd: int, driver: str) -> list[str]:
    """The IDs of the images whose pins a crash of the host has emptied. Raises nothing for what is on disk."""
    mounts = paths.mounts(driver)
    emptied = [name for name in _names(root_fd, driver) if not _is_whole(root_fd, f"{mounts}/{name}")]
    images = [f"sha256:{name.removeprefix(paths.PIN)}" for name in emptied]
    return [image_id for image_id in images if DIGEST.fullmatch(image_id)]


def _names(root_fd: int, driver: str) -> list[str]:
    return [name for name in beneath.names(root_fd, paths.mounts(driver)) if name.startswith(paths.PIN)]


def _is_whole(root_fd: int, path: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        words = {name: beneath.read(root_fd, f"{path}/{name}", _MAX_WORD_BYTES).decode() for name in _WORDS}
        return all(expected.fullmatch(words[name]) for name, expected in _WORDS.items())
    return False


def _new_half(mounts_fd: int, metadata_fd: int, image: str) -> int:
    """A descriptor of the directory that becomes a pin; there is nothing in it that an engine would read."""
    try:
        half_fd = os.open(image, _DIRECTORY, dir_fd=metadata_fd)
    except OSError:
        pass
    else:
        try:
            os.rename(image, _HALF, src_dir_fd=metadata_fd, dst_dir_fd=mounts_fd)
            for name in _WORDS:  # "parent" is an image there, not a layer
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=half_fd)
            return half_fd
        except OSError:  # overlayfs renames no directory of an image; a job can have put anything there
            os.close(half_fd)
            _remove_tree(mounts_fd, _HALF)
    os.mkdir(_HALF, 0o700, dir_fd=mounts_fd)
    return os.open(_HALF, _DIRECTORY, dir_fd=mounts_fd)


def _write(directory_fd: int, name: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory_fd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _remove_tree(directory_fd: int, name: str) -> None:
    from shutil import rmtree

    with contextlib.suppress(FileNotFoundError):
        rmtree(name, dir_fd=directory_fd)
