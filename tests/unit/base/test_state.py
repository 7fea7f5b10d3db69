"""State files: written whole or not at all, read with doubt, tolerant of what a later version adds."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.state import VERSION, parse_state, read_state, set_aside, write_state


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_what_is_written_is_read_with_its_version(directory: int) -> None:
    assert read_state(directory, "state.json") is None
    write_state(directory, "state.json", {"driver": "overlay2"}, None)
    assert read_state(directory, "state.json") == {"driver": "overlay2", "version": VERSION, "min_reader": VERSION}


def test_keys_of_a_later_version_are_kept(directory: int) -> None:
    later = {"version": VERSION + 7, "min_reader": VERSION, "driver": "vfs", "colour": {"deep": [1]}}
    write_state(directory, "state.json", {"driver": "overlay2"}, parse_state(json.dumps(later).encode()))
    found = read_state(directory, "state.json")
    assert found == {"version": VERSION, "min_reader": VERSION, "driver": "overlay2", "colour": {"deep": [1]}}


def test_the_file_is_for_root_alone(directory: int, tmp_path: Path) -> None:
    write_state(directory, "state.json", {}, None)
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        pytest.param(b"", "Expecting value", id="empty"),
        pytest.param(b'{"min_reader": 1', "Expecting", id="cut off"),
        pytest.param(b"\xff\xfe\x00", r".", id="not UTF-8"),
        pytest.param(b"[]", "not a JSON object", id="a list"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="nested deeply"),
        pytest.param(b"{}", "min_reader is missing", id="no min_reader"),
        pytest.param(b'{"min_reader": true}', "min_reader is missing", id="min_reader is no number"),
        pytest.param(b'{"min_reader": "1"}', "min_reader is missing", id="min_reader is text"),
        pytest.param(b'{"min_reader": 2}', "written for readers of version 2 or later", id="for later readers"),
        pytest.param(b"\0" * 4096, r".", id="zeros, as a crashed filesystem leaves them"),
    ],
)
def test_what_cannot_be_understood_is_a_value_error(raw: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_state(raw)


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_a_state_or_a_value_error(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert "min_reader" in parse_state(raw)


def test_a_link_is_not_followed_when_reading(directory: int, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"min_reader": 1}')
    (tmp_path / "state.json").symlink_to("elsewhere")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read_state(directory, "state.json")


def test_a_link_is_not_followed_when_writing(directory: int, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "state.json").symlink_to(victim)
    (tmp_path / "state.json.new").symlink_to(victim)
    write_state(directory, "state.json", {"driver": "overlay2"}, None)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "state.json").is_symlink()
    assert read_state(directory, "state.json") is not None


def test_a_pipe_in_its_place_does_not_block(directory: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_state(directory, "state.json")


def test_a_directory_in_its_place_is_an_os_error(directory: int, tmp_path: Path) -> None:
    (tmp_path / "state.json").mkdir()
    with pytest.raises(IsADirectoryError):
        read_state(directory, "state.json")


class Killed(BaseException):
    """A SIGKILL, as far as one process can play it: nothing after it is run."""


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_crash_before_the_rename_leaves_the_old_state_and_the_next_write_succeeds(
    directory: int, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write_state(directory, "state.json", {"driver": "overlay2"}, None)

    def kill(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, moment, kill)
        with pytest.raises(Killed):
            write_state(directory, "state.json", {"driver": "vfs"}, None)
    found = read_state(directory, "state.json")
    assert found is not None
    assert found["driver"] == "overlay2"
    write_state(directory, "state.json", {"driver": "btrfs"}, None)
    assert (read_state(directory, "state.json") or {})["driver"] == "btrfs"
    assert os.listdir(directory) == ["state.json"]


def test_the_content_is_on_disk_before_it_gets_its_name(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename")}

    def note(name: str) -> object:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(name)
            return real[name](*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", note("fsync"))
    monkeypatch.setattr(os, "rename", note("rename"))
    write_state(directory, "state.json", {}, None)
    assert calls == ["fsync", "rename", "fsync"]


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_cannot_be_used_is_moved_out_of_the_way(directory: int, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "state.json"
    {"file": path.touch, "link": lambda: path.symlink_to("/nowhere"), "directory": path.mkdir}[kind]()
    assert set_aside(directory, "state.json") == "state.json.unreadable"
    assert os.listdir(tmp_path) == ["state.json.unreadable"]


def test_a_second_one_of_another_kind_is_moved_out_of_the_way_too(directory: int, tmp_path: Path) -> None:
    (tmp_path / "state.json").mkdir()
    (tmp_path / "state.json" / "something").touch()
    first = set_aside(directory, "state.json")
    for make in ((tmp_path / "state.json").touch, (tmp_path / "state.json").mkdir):
        make()
        name = set_aside(directory, "state.json")
        assert name.startswith(first + "-")
        assert not (tmp_path / "state.json").exists()
    assert (tmp_path / first / "something").exists()
