"""The system lane: real filesystems, mounts, locks and cgroups, in mount namespaces of its own. Root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachedind import linux, procfs
from helpers import capabilities
from helpers.children import adopting_orphans, private_mounts, wait_for_no_children

NEEDS = (
    capabilities.root,
    capabilities.programs(
        "mount", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "fuse-overlayfs", "fusermount3", "setpriv", "ip"
    ),
    *(capabilities.filesystem(name) for name in ("ext4", "xfs", "btrfs", "overlay", "tmpfs", "ramfs", "fuse")),
    capabilities.device("/dev/fuse"),
    capabilities.device("/dev/loop-control"),
)

MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"], "btrfs": ["mkfs.btrfs", "-q", "-f"]}
IMAGE_BYTES = 512 << 20

Filesystem = Callable[[str], Path]


def _load_modules() -> None:
    # A module that is not loaded yet is no missing capability: mounting would load it.
    for name in ("ext4", "xfs", "btrfs", "overlay", "fuse", "loop"):
        with contextlib.suppress(OSError):
            subprocess.run(["modprobe", "-q", name], check=False)


@pytest.fixture(autouse=True, scope="module")
def namespace() -> Iterator[None]:
    """Mounts of a module's tests are seen by nobody else, and orphans stay in the family."""
    _load_modules()
    absent = capabilities.missing(NEEDS)
    assert not absent, "this lane cannot run here: " + "; ".join(absent)
    with private_mounts(), adopting_orphans():
        yield


def mount_points() -> list[tuple[str, str]]:
    return sorted((mount.mount_point, mount.fstype) for mount in procfs.read_mounts())


@pytest.fixture(scope="module")
def kept() -> set[str]:
    """Mount points that live as long as the module."""
    return set()


@pytest.fixture(autouse=True)
def nothing_left(namespace: None, kept: set[str]) -> Iterator[None]:
    """After a test there are no more mounts and no more processes than before."""
    before = mount_points()
    yield
    wait_for_no_children()
    left = [mount for mount in mount_points() if mount not in before and mount[0] not in kept]
    assert not left, "mounts were left behind"


@pytest.fixture(scope="module")
def filesystem(namespace: None, kept: set[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filesystem]:
    """A freshly made filesystem of that name, mounted for as long as the module runs; one for each name.

    "overlay" is one with its layers on tmpfs, as a container's own root filesystem is.
    """
    made: dict[str, Path] = {}
    with contextlib.ExitStack() as undo:

        def mounted(name: str) -> Path:
            if name not in made:
                top = tmp_path_factory.mktemp(name)
                kept.update((f"{top}/mounted", f"{top}/layers"))
                made[name] = _mount(name, top, undo)
            return made[name]

        yield mounted


def _mount(name: str, top: Path, undo: contextlib.ExitStack) -> Path:
    where = top / "mounted"
    where.mkdir()
    if name in MKFS:
        image = top / "image"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run([*MKFS[name], str(image)], check=True)
        # The mount holds the loop device, which frees itself with it.
        subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True)
        undo.callback(image.unlink)
    elif name == "overlay":
        layers = top / "layers"
        layers.mkdir()
        linux.mount("none", str(layers), "tmpfs")
        undo.callback(linux.umount, str(layers))
        for part in ("lower", "upper", "work"):
            (layers / part).mkdir()
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        linux.mount("overlay", str(where), "overlay", data=options)
    else:
        linux.mount("none", str(where), name)
    undo.callback(linux.umount, str(where))
    return where


@pytest.fixture
def directory(filesystem: Filesystem, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory on the filesystem that the test is parametrized with (indirectly); empty again afterwards."""
    path = filesystem(request.param) / "test"
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    linux.mount("none", str(path), "tmpfs", data="size=64k")
    yield path
    linux.umount(str(path))


def fill(path: Path) -> None:
    """Until nothing at all can be written to that filesystem."""
    with contextlib.suppress(OSError), (path / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(path).f_bavail == 0


def remount_read_only(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
