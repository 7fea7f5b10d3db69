"""The system lane: this machine's own kernel, with real filesystems, mounts, locks and cgroups. Needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers import capabilities
from helpers.children import adopting_orphans, private_mounts, wait_for_no_children
from helpers.filesystems import FSTYPES, MKFS, Filesystems, filesystems_below, mount_points

NEEDS = (
    capabilities.root,
    capabilities.programs("losetup", *(command[0] for command in MKFS.values())),
    capabilities.programs("fuse-overlayfs", "fusermount3", "ip", "setpriv"),
    capabilities.device("/dev/loop-control"),
    capabilities.device("/dev/fuse"),
    *(capabilities.filesystem(name) for name in FSTYPES),
)


@pytest.fixture(scope="session")
def lane() -> None:
    """What every test here stands on."""
    absent = capabilities.missing(NEEDS)
    assert not absent, "this lane cannot run here: " + "; ".join(absent)


@pytest.fixture(autouse=True, scope="module")
def namespace(lane: None) -> Iterator[None]:
    """Nobody else sees what a module's tests mount, and orphaned processes come to light."""
    with private_mounts(), adopting_orphans():
        yield


@pytest.fixture(scope="module")
def kept() -> list[tuple[str, str]]:
    """Mounts that live as long as the module."""
    return []


@pytest.fixture(autouse=True)
def nothing_left(namespace: None, kept: list[tuple[str, str]]) -> Iterator[None]:
    """After a test there are no more mounts and no more processes than before."""
    before = mount_points()
    yield
    wait_for_no_children()
    left = [mount for mount in mount_points() if mount not in before and mount not in kept]
    assert not left, "mounts were left behind"


@pytest.fixture
def filesystems(tmp_path: Path) -> Iterator[Filesystems]:
    """Makes real filesystems that only this process and its children see.

    `filesystems.make("xfs")` is the mount point of a new one.
    """
    with filesystems_below(tmp_path) as made:
        yield made


@pytest.fixture
def small(filesystems: Filesystems) -> Path:
    """A tmpfs of 1 MiB."""
    return filesystems.make("tmpfs", size_mib=1)


@pytest.fixture(scope="module")
def filesystem(
    namespace: None, kept: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """The mount point of a filesystem of that type, made when it is first asked for and kept for the module."""
    found: dict[str, Path] = {}
    with filesystems_below(tmp_path_factory.mktemp("shared")) as filesystems:

        def mounted(fstype: str) -> Path:
            if fstype not in found:
                before = mount_points()
                found[fstype] = filesystems.make(fstype)
                kept.extend(mount for mount in mount_points() if mount not in before)
            return found[fstype]

        yield mounted


@pytest.fixture
def directory(filesystem: Callable[[str], Path], request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory on a filesystem of the type that the test is parametrized with (indirectly)."""
    path = filesystem(request.param) / "test"
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True)
