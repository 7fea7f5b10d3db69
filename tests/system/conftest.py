"""The system lane: this machine's own kernel, with real filesystems, mounts and locks. Needs root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import capabilities
from helpers.filesystems import FSTYPES, MKFS, Filesystems, enter_private_mount_namespace, filesystems_below


@pytest.fixture(scope="session", autouse=True)
def lane() -> None:
    """What every test here stands on."""
    absent = capabilities.missing(
        [
            capabilities.root,
            capabilities.programs("losetup", *(command[0] for command in MKFS.values())),
            capabilities.programs("fuse-overlayfs", "fusermount3", "ip", "iptables"),
            capabilities.device("/dev/loop-control"),
            capabilities.device("/dev/fuse"),
            *(capabilities.filesystem(name) for name in FSTYPES),
        ]
    )
    assert not absent, "this lane cannot run here: " + "; ".join(absent)
    enter_private_mount_namespace()


@pytest.fixture
def filesystems(tmp_path: Path) -> Iterator[Filesystems]:
    """Makes real filesystems that only this process and its children see.

    `filesystems.make("xfs")` is the mount point of a new one.
    """
    with filesystems_below(tmp_path) as made:
        yield made
