"""Certificate files appear whole, with their mode, and follow no link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachedind.api.certificates import write_file


def test_write_file_replaces_at_once_with_the_right_mode(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("old")
    path.chmod(0o666)
    opened = path.open()
    before = os.umask(0)
    try:
        write_file(str(path), b"new", 0o640)
    finally:
        os.umask(before)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    with opened:
        assert opened.read() == "old", "a reader of the old file sees a part of the new one"
    assert os.listdir(tmp_path) == ["key.pem"]


def test_write_file_is_never_readable_by_others_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    real = os.fchmod

    def fchmod(fd: int, mode: int) -> None:
        modes.append(os.fstat(fd).st_mode & 0o777)
        real(fd, mode)

    monkeypatch.setattr(os, "fchmod", fchmod)
    before = os.umask(0)
    try:
        write_file(str(tmp_path / "key.pem"), b"secret", 0o600)
    finally:
        os.umask(before)
    assert modes == [0o600]


@pytest.mark.parametrize("name", ["key.pem"])
def test_write_file_does_not_follow_links(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / name).symlink_to(victim)
    write_file(str(tmp_path / "key.pem"), b"new", 0o600)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "key.pem").is_symlink()
