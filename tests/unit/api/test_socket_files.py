"""A socket's file has its real name when nobody is cut off by that, and a start that fails leaves nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cachedind.api.socket_files import SocketFile, is_answered
from cachedind.host.flock import locked


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: None)
    return tmp_path / "docker.sock"


def make(path: Path) -> SocketFile:
    return SocketFile(str(path), 0, 0o660)


def entries(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def test_it_is_there_at_once_where_nobody_answers(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    file = make(path)
    assert file.is_published
    assert entries(path) == ["docker.sock"]
    assert is_answered(str(path))
    file.withdraw()
    assert entries(path) == []


def test_who_answers_there_is_left_alone_until_the_lease_is_held(path: Path) -> None:
    first, second = make(path), make(path)
    assert not second.is_published
    inode = path.stat().st_ino
    second.withdraw()
    assert (entries(path), path.stat().st_ino) == (["docker.sock"], inode), "a refused start left a trace"

    third = make(path)
    assert third.publish() is True, "that somebody answered is to be told"
    assert path.stat().st_ino != inode
    first.withdraw()
    assert is_answered(str(path)), "the first one has taken another one's socket away"
    third.withdraw()
    assert entries(path) == []


def test_one_that_went_away_meanwhile_is_replaced_without_a_word(path: Path) -> None:
    first, second = make(path), make(path)
    first.listener.close()
    assert second.publish() is False
    assert is_answered(str(path))
    second.withdraw()


def test_what_a_killed_start_left_is_tidied_and_a_waiting_ones_is_not(path: Path) -> None:
    first, killed, waiting = make(path), make(path), make(path)
    killed.listener.close()
    assert len(entries(path)) == 3
    fourth = make(path)
    left = entries(path)
    assert len(left) == 3, left
    for file in (first, waiting, fourth):
        file.withdraw()
    assert entries(path) == []


def test_the_deepest_of_directories(tmp_path: Path, path: Path) -> None:
    """The path of a socket has 107 bytes at most; that of its first place is longer."""
    deep = tmp_path / ("x" * (90 - len(str(tmp_path)))) / "docker.sock"
    first = make(deep)
    waiting = make(deep)
    third = make(deep)
    assert len(entries(deep)) == 3, "a waiting start's socket was taken for a dead one"
    for file in (first, waiting, third):
        file.withdraw()


def test_a_directory_that_somebody_holds_ends_no_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachedind.host.flock.PATIENCE_S", 0.05)
    with locked(str(path.parent)) as is_alone:
        assert is_alone
        file = make(path)
    assert file.is_published
    file.withdraw()
