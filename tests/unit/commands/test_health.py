"""What HEALTHCHECK asks: which containers have a daemon to ask about, and for how long it is waited for."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from cachedind.api import way_in
from cachedind.commands import health
from cachedind.host import procfs

INIT = ["/sbin/docker-init", "--"]


@pytest.fixture(autouse=True)
def no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's first process is, and what a start in it has noted."""
    monkeypatch.setattr(procfs, "read_argv", lambda pid: ["sh"])
    monkeypatch.setattr(way_in, "read", lambda: None)


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (["docker", "events"], "client"),
        (["/usr/local/bin/docker-compose", "up"], "client"),
        (["sleep", "infinity"], "client"),
        (["tail", "-f", "/dev/null"], "client"),
        ([*INIT, "dockerd-entrypoint.sh", "docker", "events"], "client"),
        (["/usr/bin/docker-init", "-s", "--", "/opt/cachedind/bin/python", "-IS", "/opt/cachedind/boot.py"], "start"),
        (["/bin/sh", "/usr/local/bin/dockerd-entrypoint.sh"], "start"),
        ([*INIT, "dockerd-entrypoint.sh"], "start"),
        ([*INIT, "dockerd-entrypoint.sh", "dockerd", "-D"], "start"),
        ([*INIT, "dockerd-entrypoint.sh", "--debug"], "start"),
        # A shell may start a daemon yet, and so may a program that nobody knows.
        (["sh", "-c", "sleep 20; dockerd-entrypoint.sh"], ""),
        (["/my-job"], ""),
        ([], ""),
    ],
    ids=" ".join,
)
def test_what_a_container_is_for(argv: list[str], kind: str) -> None:
    assert health.is_client(argv) is (kind == "client")
    assert health.is_start(argv) is (kind == "start")


@pytest.mark.parametrize(
    ("words", "timeout_s"),
    [(["--timeout=30"], 30), (["--timeout=0"], 0), ([], None), (["--timeout", "30"], None), (["--timeout=x"], None)],
    ids=str,
)
def test_parse_timeout(words: list[str], timeout_s: int | None) -> None:
    assert health.parse_timeout(words) == timeout_s


def answer_later(path: Path, delay_s: float) -> threading.Thread:
    """A socket that listens at once, and answers one request later, as a start's does."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        time.sleep(delay_s)
        with listener, listener.accept()[0] as client:
            client.recv(1 << 10)
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\nOK")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_the_answer_is_waited_for_and_comes_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    thread = answer_later(tmp_path / "docker.sock", 0.3)
    assert health.wait_for_answer(f"unix://{tmp_path}/docker.sock", 20) is None
    assert 0.3 <= time.monotonic() - started < 10
    thread.join()


def test_a_socket_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    threads: list[threading.Thread] = []
    timer = threading.Timer(0.3, lambda: threads.append(answer_later(tmp_path / "docker.sock", 0)))
    timer.start()
    assert health.wait_for_answer(f"unix://{tmp_path}/docker.sock", 20) is None
    for thread in (timer, *threads):
        thread.join()


def test_a_client_without_a_socket_is_well_and_one_with_a_dead_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "read_argv", lambda pid: ["docker", "events"])
    path = tmp_path / "docker.sock"
    assert health.wait_for_answer(f"unix://{path}", 0) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert (
        health.wait_for_answer(f"unix://{path}", 0) == f"the daemon behind {path} does not answer: Connection refused"
    )


def test_another_containers_daemon_does_not_answer_for_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers share the directory of the socket, and the second one waits for its lease."""
    monkeypatch.setattr(procfs, "read_argv", lambda pid: ["/bin/sh", "/usr/local/bin/dockerd-entrypoint.sh"])
    path = tmp_path / "docker.sock"
    thread = answer_later(path, 0)
    assert health.wait_for_answer(f"unix://{path}", 0) == "the daemon is not started yet"
    monkeypatch.setattr(way_in, "read", lambda: str(path))
    assert health.wait_for_answer("", 0) is None
    thread.join()
