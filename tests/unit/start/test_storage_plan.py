"""Looking at what was leased, and deciding store and driver for it. Trials of drivers are tested in tests/system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cachedind.base.errors import StrictError
from cachedind.base.log import Log
from cachedind.base.model import (
    DataRootState,
    EngineVersion,
    ExistingData,
    Holder,
    ImageStore,
    Mount,
    StoragePlan,
    Verdict,
)
from cachedind.dataroot import contents, facts
from cachedind.dataroot.facts import Place
from cachedind.dataroot.lease import Lease
from cachedind.host import procfs
from cachedind.settings import config, daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.start import storage_plan

# ---- observing ----


@pytest.fixture
def no_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever disk the tests run on: it has room, and lasts."""
    monkeypatch.setattr(facts, "check_room", lambda place, fresh: None)
    monkeypatch.setattr(facts, "persistence", lambda place: None)


@pytest.mark.usefixtures("no_judgement")
@pytest.mark.parametrize("kind", ["garbage", "of a later version", "a link", "a directory", "a pipe"])
def test_a_state_file_that_cannot_be_used_is_set_aside_and_named(
    lease: Lease, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    path = Path(lease.data_root) / ".cachedind" / "state.json"
    if kind == "a link":
        path.symlink_to("/etc/passwd")
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.write_text({"garbage": "{", "of a later version": '{"min_reader": 99}'}[kind])
    _, existing, _, lost_note = storage_plan.observe(lease, None, Log())
    assert existing == ExistingData((), None, None)
    assert not lost_note, "there are no data that it could speak of"
    assert "state.json is unreadable" in capfd.readouterr().err
    assert sorted(os.listdir(path.parent)) == ["lock", "state.json.unreadable"]


@pytest.mark.usefixtures("no_judgement")
def test_what_the_last_start_noted_is_observed(lease: Lease, capfd: pytest.CaptureFixture[str]) -> None:
    state = DataRootState(EngineVersion(28, 5, 2), ImageStore.GRAPHDRIVER, "overlay2", "ext4", "b", 1.0)
    contents.write_data_root_state(lease.directory_fd, lease.state_name, state, {})
    (Path(lease.data_root) / "check-overlayfs-support1").mkdir()
    place, existing, noted, lost_note = storage_plan.observe(lease, None, Log())
    assert (noted, lost_note) == (state, False)
    assert existing.recorded == (ImageStore.GRAPHDRIVER, "overlay2")
    assert place.path == lease.data_root
    assert os.listdir(lease.data_root) == [".cachedind"]
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("no_judgement")
@pytest.mark.parametrize(
    ("left", "previous", "lost"),
    [
        ({"state.json": ""}, None, True),
        ({"state.json.unreadable": ""}, None, True),
        ({}, Holder("c0ffee", "host", 1.0), True),
        # What docker:dind has left: nothing of ours was ever there, but the lock that this start holds.
        ({}, None, False),
    ],
)
def test_a_note_that_is_lost_beside_data_is_told_from_one_that_never_was(
    lease: Lease, left: dict[str, str], previous: Holder | None, lost: bool
) -> None:
    root = Path(lease.data_root)
    (root / "image/overlay2/layerdb/sha256/x").mkdir(parents=True)
    for name, text in left.items():
        (root / ".cachedind" / name).write_text(text)
    assert storage_plan.observe(lease._replace(previous=previous), None, Log())[3] is lost


# ---- deciding ----


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> None:
    """overlay2 works, and the engine is 28.5.2."""
    monkeypatch.setattr(facts, "probe_driver", lambda *args, **kwargs: Verdict("overlay2", True, "tried"))
    monkeypatch.setattr(facts, "read_engine_version", lambda path: EngineVersion(28, 5, 2))


def decide(lease: Lease, log: Log, noted: DataRootState | None = None, **environ: str) -> StoragePlan:
    settings = config.load(environ)
    daemon = daemon_json.DaemonSettings(parse_daemon_arguments([]), {}, "daemon.json")
    mount = Mount("/", "/", "ext4", "/dev/sda", frozenset(), frozenset())
    place = Place(lease.data_root, mount, 1, 1, 1, 1)
    existing = ExistingData((), None, None)
    return storage_plan.decide(settings, daemon, lease, None, place, existing, log, noted=noted)


@pytest.mark.usefixtures("works")
def test_the_decision_is_noted_down(lease: Lease) -> None:
    assert decide(lease, Log()).driver == "overlay2"
    state = contents.read_data_root_state(lease.directory_fd, lease.state_name)
    assert state is not None
    assert (state.driver, state.store, str(state.engine), state.fstype) == ("overlay2", "graphdriver", "28.5.2", "ext4")
    assert state.ready_at is None, "it has not come up yet"


@pytest.mark.usefixtures("works")
def test_what_was_passed_over_is_told(lease: Lease, capfd: pytest.CaptureFixture[str]) -> None:
    decide(lease, Log(), DOCKER_DRIVER="vfs")
    assert "warning: DOCKER_DRIVER=vfs is ignored" in capfd.readouterr().err


@pytest.mark.usefixtures("works")
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_a_full_disk_costs_the_note_not_the_start(
    lease: Lease, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], strict: bool
) -> None:
    def fail(directory_fd: int, name: str, state: object, more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(contents, "write_data_root_state", fail)
    if strict:
        with pytest.raises(StrictError, match="No space left on device"):
            decide(lease, Log(strict=True))
        return
    assert decide(lease, Log()).driver == "overlay2"
    assert "the storage decision cannot be noted down" in capfd.readouterr().err


@pytest.fixture
def tried(works: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The drivers that were tried; all work. Nothing keeps the ground from being told."""
    found: list[str] = []

    def probe(data_root: str, driver: str, *, has_data: bool) -> Verdict:
        found.append(driver)
        return Verdict(driver, True, "tried")

    monkeypatch.setattr(facts, "probe_driver", probe)
    monkeypatch.setattr(procfs, "read_rights", lambda: "all")
    return found


def note_of(lease: Lease, *, ready: bool = True) -> DataRootState:
    noted = contents.read_data_root_state(lease.directory_fd, lease.state_name)
    assert noted is not None
    return noted._replace(ready_at=noted.started_at if ready else None)


def test_where_a_daemon_came_up_nothing_is_tried_again(lease: Lease, tried: list[str]) -> None:
    first = decide(lease, Log())
    assert tried == ["overlay2"]
    for _ in range(2):  # the ground is handed on
        assert decide(lease, Log(), note_of(lease)) == first
    assert tried == ["overlay2"]


def test_where_none_came_up_it_is_tried_again(lease: Lease, tried: list[str]) -> None:
    decide(lease, Log())
    decide(lease, Log(), note_of(lease, ready=False))
    assert tried == ["overlay2"] * 2


def test_on_another_ground_it_is_tried_again(lease: Lease, tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    decide(lease, Log())
    monkeypatch.setattr(procfs, "read_boot_id", lambda: "another")
    decide(lease, Log(), note_of(lease))
    assert tried == ["overlay2"] * 2


def test_a_driver_that_the_trial_says_nothing_of_leaves_no_ground(lease: Lease, tried: list[str]) -> None:
    decide(lease, Log(), CACHEDIND_STORAGE_DRIVER="fuse-overlayfs")
    assert note_of(lease).ground is None


def test_where_nothing_can_be_noted_a_trial_says_why(
    lease: Lease, tried: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    decide(lease, Log())
    noted = note_of(lease)

    def fail(directory_fd: int, name: str, state: object, more: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(contents, "write_data_root_state", fail)
    decide(lease, Log(), noted)
    assert tried == ["overlay2"] * 2
    assert "the storage decision cannot be noted down" in capfd.readouterr().err
