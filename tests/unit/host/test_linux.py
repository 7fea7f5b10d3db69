"""System calls as far as a plain user may make them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from cachedind.host import linux
from cachedind.host.linux import mount as real_mount


def test_directory_entry_types_are_those_of_stat(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    # d_type is the type bits of st_mode, shifted (DIRENT(3), IFTODT).
    expected = {path.name: path.lstat().st_mode >> 12 for path in tmp_path.iterdir()}
    assert linux.directory_entry_types(str(tmp_path)) == expected
    assert linux.directory_entry_types(str(tmp_path / "directory")) == {}


def test_a_directory_of_more_than_one_buffer(tmp_path: Path) -> None:
    for number in range(400):
        (tmp_path / f"{number:0100}").touch()
    assert len(linux.directory_entry_types(str(tmp_path))) == 400


def test_names_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\xfe")).touch()
    assert list(linux.directory_entry_types(str(tmp_path))) == [os.fsdecode(b"\xff\xfe")]


def dirent(name: bytes, kind: int) -> bytes:
    length = (19 + len(name) + 1 + 7) // 8 * 8
    return (struct.pack("=QqHB", 1, 1, length, kind) + name).ljust(length, b"\0")


def test_unknown_types_and_dots() -> None:
    raw = dirent(b".", 4) + dirent(b"..", 4) + dirent(b"old", linux.DT_UNKNOWN) + dirent(b"gone", linux.DT_CHR)
    assert linux._parse_dirents(raw) == {"old": linux.DT_UNKNOWN, "gone": linux.DT_CHR}


def test_errors_carry_errno_and_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        linux.umount(str(tmp_path / "none"))
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(OSError, match=str(tmp_path)) as mounting:
        real_mount("none", str(tmp_path / "none"), "tmpfs")
    assert mounting.value.filename == str(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        linux.directory_entry_types(str(tmp_path / "none"))
