"""What dockerd reads again on SIGHUP is what the user's file says by then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cachedind.base.errors import CachedindError, HostPreparationError
from cachedind.base.model import EngineVersion, ImageStore, StoragePlan
from cachedind.base.modified import modified_ns
from cachedind.settings import daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.settings.build_cache import CacheLimit, plan_gc
from cachedind.start import daemon_plan, reload

ENGINE = EngineVersion(28, 5, 2)
LIMIT = CacheLimit(10**10, ENGINE, requested=True)
OVERLAY2 = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "it works")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setattr(reload, "RUN_DIRECTORY", str(path))
    monkeypatch.setattr(reload, "MERGED_CONFIG", str(path / "daemon.json"))
    monkeypatch.setattr(reload, "_GIVEN", str(path / "given.json"))
    return path


def begin(mine: Path, run: Path) -> dict[str, object]:
    """What a start does; returns what dockerd reads."""
    settings = daemon_json.read_settings(parse_daemon_arguments(["-D", "--config-file", str(mine)]))
    file = daemon_plan.plan_file(settings, OVERLAY2, ENGINE, LIMIT)
    assert not file.is_users
    reload.write_merged(file.text, settings, OVERLAY2, LIMIT, ENGINE)
    return read(run)


def read(run: Path) -> dict[str, object]:
    found = json.loads((run / "daemon.json").read_text())
    assert isinstance(found, dict)
    return found


def test_an_edited_file_is_merged_again(tmp_path: Path, run: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"labels": ["a"], "hosts": ["unix:///x"]}')
    gc = plan_gc(LIMIT)
    assert begin(mine, run) == {"labels": ["a"], "builder": {"gc": gc}}
    mine.write_text('{"labels": ["b"], "hosts": ["unix:///y"], "builder": {"entitlements": {}}}')
    reload.merge_again()
    assert read(run) == {"labels": ["b"], "builder": {"entitlements": {}, "gc": gc}}


def test_the_copy_tells_when_its_source_was_modified(tmp_path: Path, run: Path) -> None:
    mine = tmp_path / "mine.json"
    for text, act in (("{}", lambda: begin(mine, run)), ('{"debug": true}', reload.merge_again)):
        mine.write_text(text)
        act()
        assert (run / "daemon.json").stat().st_mtime_ns == mine.stat().st_mtime_ns


@pytest.mark.parametrize("text", ["{", None], ids=["broken", "gone"])
def test_what_cannot_be_merged_is_told_and_refused_by_dockerd(tmp_path: Path, run: Path, text: str | None) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    begin(mine, run)
    mine.unlink() if text is None else mine.write_text(text)
    with pytest.raises(CachedindError, match=str(mine)):
        reload.merge_again()
    assert str(mine) in (run / "daemon.json").read_text()
    assert modified_ns(str(run / "daemon.json")) == modified_ns(str(mine)), "it is not told again and again"
    with pytest.raises(ValueError, match="Expecting value"):
        read(run)


def test_nothing_to_merge(run: Path) -> None:
    reload.merge_again()
    assert not run.exists()


def test_the_merged_configuration_is_roots_and_follows_no_link(tmp_path: Path, run: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    run.mkdir()
    (run / "daemon.json").symlink_to(victim)
    begin(mine, run)
    assert (run / "daemon.json").stat().st_mode & 0o777 == 0o600
    (run / "daemon.json.new").symlink_to(victim)
    with pytest.raises(HostPreparationError, match="cannot be written"):
        begin(mine, run)
    assert victim.read_text() == "precious"
