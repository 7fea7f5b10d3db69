"""What is no directory where an engine has one is found, whatever stands there; what engines leave is not."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cachedind.engine.directories import find_odd_in

GRAPH = (
    "buildkit/content/blobs",
    "containers/0123",
    "image/overlay2/distribution/diffid-by-digest",
    "image/overlay2/imagedb/content/sha256",
    "image/overlay2/layerdb/sha256",
    "network/files",
    "overlay2/l",
    "plugins/storage",
    "runtimes",
    "swarm",
    "tmp",
    "volumes/mine/_data",
    ".cachedind/aside/20260101-000000",
    ".cachedind/kept/image/overlay2",
)
CONTAINERD = (
    "buildkit/containerd-overlayfs",
    "containerd/daemon/io.containerd.content.v1.content/blobs/sha256",
    "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs",
    "containerd/daemon/io.containerd.metadata.v1.bolt",
)


def listen(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


PLANTED: dict[str, Callable[[Path], None]] = {
    "link": lambda path: path.symlink_to("/etc"),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "file": lambda path: path.touch(),
    "pipe": os.mkfifo,
    "socket": listen,
}
PLACES = sorted(
    {
        *("buildkit", "buildkit/content", "buildkit/containerd-overlayfs", "containers", "containerd"),
        *("containerd/daemon", "containerd/daemon/io.containerd.content.v1.content"),
        *("containerd/daemon/io.containerd.snapshotter.v1.overlayfs", "image", "image/overlay2"),
        *("image/overlay2/imagedb", "image/overlay2/imagedb/content/sha256", "image/overlay2/layerdb/sha256"),
        *("image/overlay2/distribution", "network", "network/files", "overlay2", "plugins", "runtimes", "swarm"),
        *("tmp", "volumes", ".cachedind", ".cachedind/aside", ".cachedind/kept", ".cachedind/kept/image"),
    }
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for path in (*GRAPH, *CONTAINERD):
        (root / path).mkdir(parents=True)
    for name in ("engine-id", "network/files/local-kv.db", "volumes/metadata.db", "volumes/backingFsBlockDev"):
        (root / name).touch()
    for name in ("buildkit/cache.db", "buildkit/snapshots.db", "image/overlay2/repositories.json"):
        (root / name).touch()
    # What an engine has as links itself, and what nobody reads at a start.
    (root / "overlay2/l/ABC").symlink_to("../0123/diff")
    (root / "mine").symlink_to("/etc")
    return root


def test_what_engines_leave_is_not_odd(root: Path, tmp_path: Path) -> None:
    assert find_odd_in(str(root)) is None
    (tmp_path / "empty").mkdir()
    assert find_odd_in(str(tmp_path / "empty")) is None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PLANTED)
def test_what_stands_in_a_directory_s_place_is_odd(root: Path, place: str, kind: str) -> None:
    (root / place).rename(root.parent / "away")
    PLANTED[kind](root / place)
    assert find_odd_in(str(root)) == place
