"""Looking at what was leased, and deciding what it needs. With daemons and seeds it is tested in tests/image."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachedind import config, daemon_config, dataroot, facts, furnish, pool_lease, pool_start
from cachedind.arguments import parse_daemon_arguments
from cachedind.errors import StrictError
from cachedind.facts import Place
from cachedind.lease import Lease
from cachedind.log import Log
from cachedind.model import DataRootState, EngineVersion, ExistingData, ImageStore, Mount, StoragePlan, Verdict


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    """As of a data-root whose lease is held, though nothing is locked here."""
    directory = tmp_path / "data" / ".cachedind"
    directory.mkdir(parents=True)
    (directory / "lock").touch()
    fd, directory_fd = os.open(directory / "lock", os.O_RDWR), os.open(directory, os.O_RDONLY)
    yield Lease(fd, directory_fd, str(tmp_path / "data"), None, 0.0)
    os.close(fd)
    os.close(directory_fd)


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
    _, existing, _ = furnish.observe(lease, None, Log())
    assert existing == ExistingData((), None, None)
    assert "state.json is unreadable" in capfd.readouterr().err
    assert sorted(os.listdir(path.parent)) == ["lock", "state.json.unreadable"]


@pytest.mark.usefixtures("no_judgement")
def test_what_the_last_start_noted_is_observed(lease: Lease, capfd: pytest.CaptureFixture[str]) -> None:
    state = DataRootState(EngineVersion(28, 5, 2), ImageStore.GRAPHDRIVER, "overlay2", "ext4", "b", 1.0)
    dataroot.write_data_root_state(lease.directory_fd, lease.state_name, state, {})
    (Path(lease.data_root) / "check-overlayfs-support1").mkdir()
    place, existing, noted = furnish.observe(lease, None, Log())
    assert noted == state
    assert existing.recorded == (ImageStore.GRAPHDRIVER, "overlay2")
    assert place.path == lease.data_root
    assert os.listdir(lease.data_root) == [".cachedind"]
    assert capfd.readouterr().err == ""


# ---- deciding ----


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> None:
    """overlay2 works, and the engine is 28.5.2."""
    monkeypatch.setattr(facts, "probe_driver", lambda *args, **kwargs: Verdict("overlay2", True, "tried"))
    monkeypatch.setattr(facts, "read_engine_version", lambda path: EngineVersion(28, 5, 2))


def decide(lease: Lease, log: Log, **environ: str) -> StoragePlan:
    settings = config.load(environ)
    daemon = daemon_config.DaemonSettings(parse_daemon_arguments([]), {}, "daemon.json")
    mount = Mount("/", "/", "ext4", "/dev/sda", frozenset(), frozenset())
    place = Place(lease.data_root, mount, 1, 1, 1, 1)
    return furnish.decide(settings, daemon, lease, None, place, ExistingData((), None, None), log)


@pytest.mark.usefixtures("works")
def test_the_decision_is_noted_down(lease: Lease) -> None:
    assert decide(lease, Log()).driver == "overlay2"
    state = dataroot.read_data_root_state(lease.directory_fd, lease.state_name)
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

    monkeypatch.setattr(dataroot, "write_data_root_state", fail)
    if strict:
        with pytest.raises(StrictError, match="No space left on device"):
            decide(lease, Log(strict=True))
        return
    assert decide(lease, Log()).driver == "overlay2"
    assert "the storage decision cannot be noted down" in capfd.readouterr().err


# ---- moving on ----


@pytest.mark.parametrize(("moves", "left_s", "fresh"), [(0, 10, False), (0, -1, True), (3, 10, True)])
def test_an_empty_slot_is_taken_after_several_or_when_the_time_is_over(
    lease: Lease, monkeypatch: pytest.MonkeyPatch, moves: int, left_s: float, fresh: bool
) -> None:
    orders: list[pool_lease.Order] = []
    deadline = time.monotonic() + left_s

    def move(tenancy: object, order: pool_lease.Order, *rest: object) -> tuple[Lease, None]:
        orders.append(order)
        return lease, None

    def settle(*args: object) -> furnish.Home:
        assert args[-2:] == (moves + 1, deadline)
        return home

    monkeypatch.setattr(pool_start, "move_elsewhere", move)
    monkeypatch.setattr(furnish, "settle", settle)
    monkeypatch.setattr(facts, "read_engine_version", lambda path: EngineVersion(28, 5, 2))
    daemon = daemon_config.DaemonSettings(parse_daemon_arguments([]), {}, "daemon.json")
    site = furnish.Site(config.load({}), daemon, {}, Log())
    tenancy: Any = object()
    plan = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
    place = Place(lease.data_root, Mount("/", "/", "ext4", "/dev/sda", frozenset(), frozenset()), 1, 1, 1, 1)
    home = furnish.Home(lease, tenancy, place, plan)
    assert furnish._move_elsewhere(site, lease, tenancy, "bad", moves, deadline) is home
    assert [order.fresh for order in orders] == [fresh]
