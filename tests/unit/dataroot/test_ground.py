"""The ground of a trial: its verdict is believed only where nothing that it hangs on has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cachedind.base.model import DataRootState, EngineVersion, ImageStore, Mount
from cachedind.dataroot import ground
from cachedind.host import procfs

ENGINE = EngineVersion(28, 5, 2)
MOUNT = Mount("/d", "/", "ext4", "/dev/sda1", frozenset({"rw", "relatime"}), frozenset({"rw"}))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ground.Ground:
    monkeypatch.setattr(procfs, "read_rights", lambda: "all")
    found = ground.read(str(tmp_path), MOUNT, ENGINE)
    assert found is not None
    return found


def came_up_on(found: ground.Ground | None) -> DataRootState:
    state = DataRootState(ENGINE, ImageStore.GRAPHDRIVER, "overlay2", "ext4", "b00t", 1000.5)
    return state._replace(ready_at=1001.0, ground=found)


def test_the_same_ground_is_believed_also_from_a_file(here: ground.Ground) -> None:
    assert ground.is_proven(came_up_on(json.loads(json.dumps(here))), here)
    assert ground.is_proven(came_up_on(here)._replace(driver="overlayfs", store=ImageStore.CONTAINERD), here)


@pytest.mark.parametrize(
    "name",
    [
        *("trial", "boot", "engine", "device", "filesystem", "bytes", "fstype", "source", "options", "super_options"),
        "rights",
    ],
)
def test_nothing_that_it_hangs_on_may_differ_or_be_missing(here: ground.Ground, name: str) -> None:
    values: tuple[object, ...] = ("other", None, [])
    for changed in values:
        assert not ground.is_proven(came_up_on({**here, name: changed}), here)
    assert not ground.is_proven(came_up_on({key: value for key, value in here.items() if key != name}), here)
    assert not ground.is_proven(came_up_on({**here, "more": 1}), here)


def test_every_part_is_in_the_test_above(here: ground.Ground) -> None:
    assert len(here) == 11


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"ready_at": None}, id="no daemon came up"),
        pytest.param({"doubt": "a crash"}, id="doubted"),
        pytest.param({"driver": "vfs"}, id="with another driver"),
        pytest.param({"ground": None}, id="of an older version"),
    ],
)
def test_a_ground_without_a_daemon_that_came_up_proves_nothing(here: ground.Ground, changed: dict[str, object]) -> None:
    assert not ground.is_proven(came_up_on(here)._replace(**changed), here)  # type: ignore[arg-type]


def test_what_cannot_be_told_is_not_believed(here: ground.Ground) -> None:
    assert not ground.is_proven(None, here)
    assert not ground.is_proven(came_up_on(None), None)


@pytest.mark.parametrize(
    ("mount", "engine", "name"),
    [
        (MOUNT._replace(fstype="xfs"), ENGINE, "fstype"),
        (MOUNT._replace(source="/dev/sdb"), ENGINE, "source"),
        (MOUNT._replace(options=frozenset({"ro"})), ENGINE, "options"),
        (MOUNT._replace(super_options=frozenset({"rw", "userxattr"})), ENGINE, "super_options"),
        (MOUNT, EngineVersion(28, 5, 3), "engine"),
    ],
)
def test_what_is_read_is_what_is_there(
    here: ground.Ground, tmp_path: Path, mount: Mount, engine: EngineVersion, name: str
) -> None:
    now = ground.read(str(tmp_path), mount, engine)
    assert now is not None
    assert [key for key in here if here[key] != now[key]] == [name]


def test_another_boot_and_other_rights_are_another_ground(
    here: ground.Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "read_boot_id", lambda: "another")
    monkeypatch.setattr(procfs, "read_rights", lambda: "fewer")
    now = ground.read(str(tmp_path), MOUNT, ENGINE)
    assert now is not None
    assert [key for key in here if here[key] != now[key]] == ["boot", "rights"]


def test_there_is_none_under_seccomp_or_where_layers_have_a_mount_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "read_rights", lambda: None)
    assert ground.read(str(tmp_path), MOUNT, ENGINE) is None
    monkeypatch.setattr(procfs, "read_rights", lambda: "all")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == f"{tmp_path}/overlay2")
    assert ground.read(str(tmp_path), MOUNT, ENGINE) is None
