"""What a value of --userns-remap means: the IDs that dockerd would take, and the directory that is named after them."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from cachedind.base.errors import DaemonConfigError
from cachedind.base.model import Remap
from cachedind.engine import remapping
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.settings.daemon_json import DaemonSettings, parse_daemon_json

USERS = {"dockremap": 998, "ci": 1000, "root": 0}
SUBUID = """
# comment
other:1:65536
dockremap:165536:65536
dockremap:900000:65536
1000:300000:65536
broken:line
"""
SUBGID = "dockremap:265536:65536\nci:400000:65536\n"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", USERS[name], USERS[name], "", "/", "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwnam", entry)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry({number: name for name, number in USERS.items()}[uid]))
    for name, text in (("_SUBUID", SUBUID), ("_SUBGID", SUBGID)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(remapping, name, str(tmp_path / name))


@pytest.mark.parametrize(
    ("setting", "ids"),
    [
        ("default", (165536, 265536)),
        ("dockremap", (165536, 265536)),
        ("998", (165536, 265536)),
        ("998:998", (165536, 265536)),
        ("ci", (300000, 400000)),
        ("ci:whoever", (300000, 400000)),
        ("root", (0, 0)),
        ("0", (0, 0)),
    ],
)
def test_what_a_remap_means(setting: str, ids: tuple[int, int]) -> None:
    remap = remapping.read_remap(setting)
    assert remap == Remap(setting, *ids)
    assert remapping.engine_root("/d", remap) == f"/d/{ids[0]}.{ids[1]}"


@pytest.mark.parametrize("setting", [None, ""])
def test_without_a_remap_the_data_is_in_the_data_root(setting: str | None, tmp_path: Path) -> None:
    assert remapping.read_remap(setting) is None
    assert remapping.make(str(tmp_path), None) == remapping.engine_root(str(tmp_path), None) == str(tmp_path)


@pytest.mark.parametrize(("setting", "says"), [("nobody-here", "no user"), ("4242", "no user"), ("9" * 30, "no user")])
def test_an_unknown_user_ends_the_start(setting: str, says: str) -> None:
    with pytest.raises(DaemonConfigError, match=says):
        remapping.read_remap(setting)


def test_a_user_without_a_range_ends_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remapping, "_SUBGID", str(tmp_path / "none"))
    with pytest.raises(DaemonConfigError, match="has no range for dockremap"):
        remapping.read_remap("default")


@pytest.mark.parametrize(
    ("words", "file", "setting"),
    [
        ([], {}, None),
        (["--userns-remap", "default"], {}, "default"),
        ([], {"userns-remap": "ci:ci"}, "ci:ci"),
        ([], {"userns-remap": ""}, None),
        (["--userns-remap="], {"userns-remap": "default"}, ""),
    ],
)
def test_where_it_is_said(words: list[str], file: dict[str, str], setting: str | None) -> None:
    parsed = parse_daemon_json(json.dumps(file), "daemon.json")
    settings = DaemonSettings(parse_daemon_arguments(words), parsed, "daemon.json")
    assert settings.text("userns-remap") == setting


def test_a_slot_s_engine_root_is_opened_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "165536.265536").mkdir()
    (tmp_path / "1.1").symlink_to("/etc")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for directory in ("", "165536.265536"):
            found = remapping.open_in(fd, directory)
            assert os.path.samestat(os.fstat(found), (tmp_path / directory).stat())
            os.close(found)
        with pytest.raises(OSError, match=r"1\.1"):
            remapping.open_in(fd, "1.1")
    finally:
        os.close(fd)
