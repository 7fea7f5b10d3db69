"""`cachedind doctor`: facts, trials and plan, and nothing changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cachedind.base.errors import NotPrivilegedError
from cachedind.base.model import EngineVersion, Holder, Verdict
from cachedind.commands import doctor, tables
from cachedind.dataroot import decision, facts, lease


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine 28.5.2 in a privileged container, where overlay2 works."""
    verdicts = {
        "overlay2": Verdict("overlay2", True, "tried"),
        "fuse-overlayfs": Verdict("fuse-overlayfs", False, "no"),
    }
    monkeypatch.setattr(facts, "read_engine_version", lambda path: EngineVersion(28, 5, 2))
    monkeypatch.setattr(facts, "check_privileges", lambda: None)
    monkeypatch.setattr(facts, "check_room", lambda place, fresh: None)
    monkeypatch.setattr(facts, "check_lock_filesystem", lambda mount, data_root, allowed: None)
    monkeypatch.setattr(decision, "try_drivers", lambda *args, **kwargs: verdicts)


def snapshot(root: Path) -> list[tuple[str, float]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))


def examine(data_root: Path, *words: str, **environ: str) -> dict[str, object]:
    before = snapshot(data_root)
    report = doctor.examine([*words, "--data-root", str(data_root)], environ)
    assert snapshot(data_root) == before, "doctor changed something"
    json.dumps(report)
    tables.print_report(report)
    return report


def test_an_empty_data_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(tmp_path)
    assert "error" not in report
    assert report["engine"] == "28.5.2"
    assert report["lease"] == "free"
    assert report["plan"] == {
        "image_store": "graphdriver",
        "driver": "overlay2",
        "why": report["plan"]["why"],  # type: ignore[index]
        "notes": [],
    }
    assert report["data"]["holds"] == ["nothing"]  # type: ignore[index]
    assert report["dockerd"]["arguments"][-2:] == ["--data-root", str(tmp_path)]  # type: ignore[index]
    assert report["trials"]["fuse-overlayfs"] == {"works": False, "why": "no"}  # type: ignore[index]
    printed = capsys.readouterr().out
    assert "does not work: no" in printed
    assert "overlay2" in printed


def test_what_a_start_would_refuse(tmp_path: Path) -> None:
    for name in ("image/vfs/layerdb/sha256/x", "vfs/dir/x"):
        (tmp_path / name).mkdir(parents=True)
    report = examine(tmp_path, "--storage-driver=overlay2")
    error = report["error"]
    assert isinstance(error, dict)
    assert error["exit_code"] == 78
    assert "holds vfs data" in error["cause"]
    assert report["data"]["holds"] == ["vfs (graphdriver)"]  # type: ignore[index]


def test_a_held_lease_is_told_with_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "look", lambda data_root: (True, Holder("0123456789ab", "box", 0)))
    assert str(examine(tmp_path)["lease"]).startswith("held by container 0123456789ab (host name box")
    monkeypatch.setattr(lease, "look", lambda data_root: (False, Holder("0123456789ab", "box", 0)))
    assert str(examine(tmp_path)["lease"]).startswith("free; last held by container 0123456789ab")


def test_without_privileges_the_rest_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NotPrivilegedError("no CAP_SYS_ADMIN", "run it with --privileged")

    monkeypatch.setattr(facts, "check_privileges", refuse)
    report = examine(tmp_path)
    assert report["error"] == {"cause": "no CAP_SYS_ADMIN", "hint": "run it with --privileged", "exit_code": 77}
    assert report["data_root"]["path"] == os.path.realpath(tmp_path)  # type: ignore[index]


def test_a_data_root_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    report = examine(tmp_path / "none")
    assert "does not exist yet" in report["error"]["cause"]  # type: ignore[index]
    assert not (tmp_path / "none").exists()


def test_the_explicit_form_listens_where_it_says(tmp_path: Path) -> None:
    report = doctor.examine(["dockerd", "--data-root", str(tmp_path), "-H", "tcp://127.0.0.1:99", "-H", "ssh://x"], {})
    listen = {"at": ["unix:///run/cachedind/docker.sock", "tcp://127.0.0.1:99", "ssh://x"], "tls": False}
    assert report["listen"] == listen
    assert "--host fd:// --host ssh://x" in " ".join(report["dockerd"]["arguments"])  # type: ignore[index]


@pytest.mark.parametrize("kind", ["garbage", "a link"])
def test_an_unreadable_note_does_not_hinder(tmp_path: Path, kind: str) -> None:
    (tmp_path / ".cachedind").mkdir()
    path = tmp_path / ".cachedind" / "state.json"
    if kind == "garbage":
        path.write_text("{")
    else:
        path.symlink_to("/nowhere")
    report = doctor.examine(["--data-root", str(tmp_path)], {})
    assert report["data"]["noted"] is None  # type: ignore[index]
    assert path.is_symlink() or path.read_text() == "{"
