"""From settings and data to a request: all that was said about storage, wherever it was said."""

from __future__ import annotations

import pytest

from cachedind.base.errors import DriverConflictError
from cachedind.base.model import EngineVersion, ExistingData, ImageStore, Remap, Verdict
from cachedind.dataroot import facts
from cachedind.dataroot.decision import build_request, decide, try_drivers
from cachedind.dataroot.storage_facts import Demand, StorageRequest
from cachedind.settings import config
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.settings.daemon_json import DaemonSettings

NOTHING = ExistingData((), None, None)


def request_of(flags: str = "", file: dict[str, object] | None = None, **environ: str) -> StorageRequest:
    daemon = DaemonSettings(parse_daemon_arguments(flags.split()), file or {}, "/etc/docker/daemon.json")
    return build_request(config.load(environ), daemon)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(request_of(), StorageRequest(), id="nothing"),
        pytest.param(
            request_of("-s vfs"),
            StorageRequest(driver=Demand("vfs", "the argument --storage-driver vfs")),
            id="argument",
        ),
        pytest.param(
            request_of(file={"storage-driver": "btrfs"}),
            StorageRequest(driver=Demand("btrfs", "storage-driver in /etc/docker/daemon.json")),
            id="daemon.json",
        ),
        pytest.param(
            request_of(CACHEDIND_STORAGE_DRIVER="overlay2", CACHEDIND_IMAGE_STORE="graphdriver"),
            StorageRequest(
                driver=Demand("overlay2", "CACHEDIND_STORAGE_DRIVER=overlay2"),
                store=Demand("graphdriver", "CACHEDIND_IMAGE_STORE=graphdriver"),
            ),
            id="environment",
        ),
        pytest.param(
            request_of(
                "--feature containerd-snapshotter=true --userns-remap root",
                DOCKER_DRIVER="overlay2",
                CACHEDIND_ALLOW_VFS="1",
            ),
            StorageRequest(
                store=Demand("containerd", "the argument --feature containerd-snapshotter=true"),
                docker_driver="overlay2",
                userns_remap=Remap("root", 0, 0),
                allow_vfs=True,
            ),
            id="all the rest",
        ),
        pytest.param(
            request_of("--feature containerd-snapshotter=F", TEST_INTEGRATION_USE_GRAPHDRIVER="1"),
            StorageRequest(store=Demand("graphdriver", "the argument --feature containerd-snapshotter=F")),
            id="not containerd's",
        ),
        pytest.param(
            request_of(TEST_INTEGRATION_USE_SNAPSHOTTER="1", TEST_INTEGRATION_USE_GRAPHDRIVER=""),
            StorageRequest(store=Demand("containerd", "the variable TEST_INTEGRATION_USE_SNAPSHOTTER")),
            id="the engine's own variable",
        ),
        pytest.param(
            request_of("-s overlay2", CACHEDIND_STORAGE_DRIVER="overlay2"),
            StorageRequest(driver=Demand("overlay2", "the argument --storage-driver overlay2")),
            id="the same twice",
        ),
    ],
)
def test_build_request(found: StorageRequest, expected: StorageRequest) -> None:
    assert found == expected


def test_two_places_that_say_different_things() -> None:
    with pytest.raises(DriverConflictError, match="overlay2 contradicts CACHEDIND_STORAGE_DRIVER=btrfs"):
        request_of("-s overlay2", CACHEDIND_STORAGE_DRIVER="btrfs")
    with pytest.raises(DriverConflictError, match="contradicts CACHEDIND_IMAGE_STORE=graphdriver"):
        request_of("--feature containerd-snapshotter=true", CACHEDIND_IMAGE_STORE="graphdriver")
    with pytest.raises(DriverConflictError, match="contradicts the variable TEST_INTEGRATION_USE_SNAPSHOTTER"):
        request_of(CACHEDIND_IMAGE_STORE="graphdriver", TEST_INTEGRATION_USE_SNAPSHOTTER="1")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Which drivers were tried, and whether there was data. overlay2 does not work, fuse-overlayfs does."""
    found: list[tuple[str, bool]] = []

    def probe(data_root: str, driver: str, *, has_data: bool) -> Verdict:
        found.append((driver, has_data))
        return Verdict(driver, driver == "fuse-overlayfs", "tried")

    monkeypatch.setattr(facts, "probe_driver", probe)
    return found


def test_fuse_overlayfs_is_tried_where_overlay2_does_not_work(tried: list[tuple[str, bool]]) -> None:
    plan, asked = decide("/d", "overlay", EngineVersion(28, 5, 2), NOTHING, StorageRequest())
    assert asked == ""
    assert plan.driver == "fuse-overlayfs"
    assert tried == [("overlay2", False), ("fuse-overlayfs", False)]


def test_one_trial_is_enough_where_overlay2_works(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def probe(data_root: str, driver: str, *, has_data: bool) -> Verdict:
        tried.append((driver, has_data))
        return Verdict(driver, True, "")

    monkeypatch.setattr(facts, "probe_driver", probe)
    existing = ExistingData(((ImageStore.GRAPHDRIVER, "overlay2"),), None, None)
    try_drivers("/d", existing, StorageRequest())
    assert tried == [("overlay2", True)]
    try_drivers("/d", existing, StorageRequest(), every=True)
    assert tried[1:] == [("overlay2", True), ("fuse-overlayfs", True)]
