"""Steps of a start on a real data-root. Whole starts are tested in tests/image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.base.errors import DataRootUnwritableError
from cachedind.base.log import Log
from cachedind.base.model import Holder, ImageStore
from cachedind.dataroot import stale_trials
from cachedind.dataroot.lease import Lease, acquire
from cachedind.host import linux
from cachedind.start import storage_plan
from helpers.filesystems import Filesystems

HOLDER = Holder("", "box", 1.0)


def take(data_root: Path) -> Lease:
    return acquire(str(data_root), HOLDER, 0.0, lambda holder: None)


def give_up(lease: Lease) -> None:
    os.close(lease.fd)
    os.close(lease.directory_fd)


@pytest.fixture
def data_root(filesystems: Filesystems) -> Iterator[Path]:
    """A data-root whose layers have a filesystem of their own."""
    path = filesystems.make("tmpfs")
    layers = filesystems.make("ext4", size_mib=64)
    (path / "overlay2").mkdir()
    linux.mount(str(layers), str(path / "overlay2"), flags=linux.MS_BIND)
    yield path
    linux.umount(str(path / "overlay2"))


def test_what_a_killed_trial_left_among_the_layers_is_swept_and_no_layer(data_root: Path) -> None:
    (data_root / "image" / "overlay2").mkdir(parents=True)
    for directory in (data_root, data_root / "overlay2"):
        (directory / f"{stale_trials.PROBE_PREFIX}1-2" / "upper").mkdir(parents=True)
    lease = take(data_root)
    try:
        _, existing, _, _ = storage_plan.observe(lease, None, Log())
    finally:
        give_up(lease)
    assert existing.pairs == ()
    assert os.listdir(data_root / "overlay2") == ["lost+found"]
    assert sorted(os.listdir(data_root)) == [".cachedind", "image", "overlay2"]


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "with data"])
def test_a_full_data_root(filesystems: Filesystems, capfd: pytest.CaptureFixture[str], fresh: bool) -> None:
    data_root = filesystems.make("ext4", size_mib=64)
    if not fresh:
        (data_root / "image" / "vfs" / "layerdb" / "sha256" / "x").mkdir(parents=True)
    lease = take(data_root)
    filesystems.fill(data_root)
    try:
        if fresh:
            with pytest.raises(DataRootUnwritableError, match=r"\(ext4\) is full: 0 B of"):
                storage_plan.observe(lease, None, Log())
        else:
            _, existing, _, _ = storage_plan.observe(lease, None, Log())
            assert existing.pairs == ((ImageStore.GRAPHDRIVER, "vfs"),)
            assert "warning: the filesystem of" in capfd.readouterr().err
    finally:
        give_up(lease)
