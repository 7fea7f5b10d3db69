"""The witness sees the daemon come up, notes it down, and holds nothing of the lease after that or after the daemon."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from cachedind.api import way_in
from cachedind.base import state
from cachedind.base.log import Level, Log
from cachedind.base.model import Holder, ImageStore
from cachedind.dataroot import lease, witness
from cachedind.dataroot.lease import Lease
from cachedind.host import linux
from helpers.children import Child, child
from helpers.waiting import wait_until

ANSWER = b"HTTP/1.0 200 OK\r\n\r\nOK"


class Daemon(NamedTuple):
    """A listening socket in the daemon's place, which answers when it is told to."""

    path: str
    listener: socket.socket
    up: threading.Event

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # a witness that is killed hangs up
            client, _ = self.listener.accept()
            with client:
                self.up.wait(20)
                client.recv(100)
                client.sendall(ANSWER)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    path = str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        found = Daemon(path, listener, threading.Event())
        thread = threading.Thread(target=found.serve, daemon=True)
        thread.start()
        yield found
        found.up.set()


def start(data_root: str, address: str, late: str, hidden: str) -> None:
    """What boot does: lease, fork the witness, hide the pool, become something that runs on."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    witness.NAMESPACE = f"{late}.mnt"
    held = lease.acquire(data_root, Holder("", "parent", time.time()), 0, lambda _: None)
    state.write_state(held.directory_fd, held.state_name, {"engine": "28.5.2", "ready_at": None}, None)

    def work() -> None:
        with open(late, "w", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {is_open_here(held)} {sorted(os.listdir(hidden))}")

    observer = witness.fork(held, [address], time.monotonic(), close=[], late=work, log=Log(level=Level.ERROR))
    Path(f"{late}.pid").write_text(str(observer.pid))
    witness.hide(observer, [hidden])
    Path(f"{late}.hidden").write_text(str(os.listdir(hidden)))
    time.sleep(60)


def is_open_here(held: Lease) -> bool:
    try:
        os.fstat(held.fd)
    except OSError:
        return False
    return True


@pytest.fixture
def hidden(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "pool"
    path.mkdir()
    linux.mount("tmpfs", str(path), "tmpfs")
    (path / "keys").mkdir()
    yield path
    linux.umount(str(path))


@pytest.fixture
def parent(tmp_path: Path, daemon: Daemon, hidden: Path) -> Iterator[Child]:
    """A start with its witness, which waits for the daemon."""
    work = partial(start, str(tmp_path / "root"), f"unix://{daemon.path}", str(tmp_path / "late"), str(hidden))
    with child(work) as started:
        wait_until(lambda: (tmp_path / "late.hidden").exists(), what="the witness to be forked")
        yield started


def exists(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_free(data_root: Path) -> bool:
    return not lease.look(str(data_root))[0]


def noted(data_root: Path) -> dict[str, object]:
    fd = os.open(data_root / ".cachedind", os.O_RDONLY)
    try:
        return state.read_state(fd, lease.STATE_NAME) or {}
    finally:
        os.close(fd)


def test_a_witness_dies_with_its_daemon_and_the_lease_is_free(parent: Child, tmp_path: Path) -> None:
    pid = int((tmp_path / "late.pid").read_text())
    assert exists(pid)
    assert not is_free(tmp_path / "root")
    parent.kill()
    wait_until(lambda: is_free(tmp_path / "root"), what="the lease to be free", timeout_s=2)
    wait_until(lambda: not exists(pid), what="the witness to be gone", timeout_s=2)
    assert noted(tmp_path / "root")["ready_at"] is None, "a daemon that never came up counts as one that did"
    assert not (tmp_path / "late").exists()


def start_without_pool(data_root: str, address: str) -> None:
    """What boot does in direct mode, on a machine so busy that dockerd is executed before the witness has begun."""
    witness._enter_own_namespace = lambda: time.sleep(0.2)
    held = lease.acquire(data_root, Holder("", "parent", time.time()), 0, lambda _: None)
    state.write_state(held.directory_fd, held.state_name, {"engine": "28.5.2", "ready_at": None}, None)
    witness.fork(held, [address], time.monotonic(), close=[], late=lambda: None, log=Log(level=Level.ERROR))
    os.execv("/bin/sleep", ["sleep", "60"])


def test_a_witness_that_nobody_waits_for_notes_it_down_all_the_same(daemon: Daemon, tmp_path: Path) -> None:
    daemon.up.set()
    with child(partial(start_without_pool, str(tmp_path / "root"), f"unix://{daemon.path}")):
        wait_until(lambda: (tmp_path / "root/.cachedind").exists(), what="the lease")
        wait_until(lambda: noted(tmp_path / "root").get("ready_at"), what="the note", timeout_s=10)


def test_a_daemon_that_comes_up_is_noted_and_the_lease_is_its_own_then(
    parent: Child, daemon: Daemon, tmp_path: Path
) -> None:
    before = time.time()
    daemon.up.set()
    late = tmp_path / "late"
    wait_until(lambda: late.exists() and late.read_text(), what="the late work")
    found = noted(tmp_path / "root")
    assert before - 1 <= float(str(found["ready_at"])) <= time.time()
    assert 0 < float(str(found["ready_s"])) < 20
    assert found["engine"] == "28.5.2", "what was noted before is kept"

    pid, still_held, seen = late.read_text().split(" ", 2)
    assert still_held == "False", "late work is done with the lease still open"
    assert seen == "['keys']", "the pool is gone for the witness, too"
    assert (tmp_path / "late.hidden").read_text() == "[]", "the pool is still there for the daemon"
    wait_until(lambda: not exists(int(pid)), what="the witness to end")
    assert not is_free(tmp_path / "root"), "the lease was the witness's"
    parent.kill()
    wait_until(lambda: is_free(tmp_path / "root"), what="the lease to be free", timeout_s=2)


def test_a_closed_connection_is_no_answer(tmp_path: Path) -> None:
    path = str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        with contextlib.suppress(OSError):  # the kernel may tell that as an error
            assert not way_in.answers(path)
        thread.join(5)


# ---- an engine that chooses another store ----------------------------------------------------------------------------


def answer_once(path: str, answer: bytes) -> threading.Thread:
    """A daemon in the place of the real one, for one question."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as client:
            client.recv(1000)
            client.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


INFO = b'{"Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}'


@pytest.mark.parametrize(
    ("answer", "noted_driver", "line"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n" + INFO, "overlayfs", "runs with overlayfs in the containerd image store"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"Driver": "overlay2"}', "overlay2", ""),
        (b"HTTP/1.0 500 Oops\r\n\r\n", "overlay2", "cannot note down"),
    ],
    ids=["another", "as planned", "no answer"],
)
def test_what_is_noted_is_what_the_daemon_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: bytes, noted_driver: str, line: str
) -> None:
    held = lease.acquire(str(tmp_path / "root"), Holder("", "me", time.time()), 0, lambda _: None)
    before: dict[str, object] = {
        "engine": "29.7.2",
        "image_store": "graphdriver",
        "driver": "overlay2",
        "ready_at": 1.0,
    }
    state.write_state(held.directory_fd, held.state_name, before, None)
    thread = answer_once(str(tmp_path / "docker.sock"), answer)
    planned = (ImageStore.GRAPHDRIVER, "overlay2")
    witness.correct_note(held, str(tmp_path / "docker.sock"), planned, Log(level=Level.INFO))
    thread.join(10)
    found = noted(tmp_path / "root")
    assert found["driver"] == noted_driver
    assert found["image_store"] == ("containerd" if noted_driver == "overlayfs" else "graphdriver")
    assert (found["engine"], found["ready_at"]) == ("29.7.2", 1.0), "what was noted before is kept"
    said = capfd.readouterr().err.splitlines()
    assert len(said) == (1 if line else 0)
    assert line in "".join(said)
