"""The supervisor passes signals on, ends as its daemon ends, and notes that end down."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import termios
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cachedind.base import state
from cachedind.host import linux
from cachedind.start import reload, supervisor
from cachedind.start.reload import Copied
from helpers.children import Child, child, forever
from helpers.waiting import wait_until

# Says that it is there, and what it was told, until it is told to end.
DAEMON = """
import signal, sys
def note(number, frame):
    print(number, flush=True)
    if number == signal.SIGTERM:
        sys.exit(STATUS)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, note)
print("up", flush=True)
while True:
    signal.pause()
"""


class Place:
    """A directory with a state file, and what its daemon wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY)

    def note(self, **values: object) -> None:
        state.write_state(self.fd, "state.json", values, None)

    @property
    def ended(self) -> dict[str, object]:
        found = json.loads((self.path / "state.json").read_text())
        assert found["kept"] == "as it was"
        ended = dict(found["ended"])
        assert isinstance(ended.pop("at"), float)
        return ended

    @property
    def heard(self) -> list[str]:
        file = self.path / "heard"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    os.close(found.fd)


def supervise(place: Place, program: list[str], early: int = 0, copied: Copied | None = None) -> None:
    """What boot does at its end, with another program in dockerd's place."""
    lock_fd = os.open(place.path / "lock", os.O_RDWR | os.O_CREAT)
    mask = supervisor.block_signals()
    witness = os.fork()
    if witness == 0:
        forever()
    if early:
        os.kill(os.getpid(), early)
    if copied is not None:
        reload.tell(copied)
    daemon = os.fork()
    if daemon == 0:
        supervisor.become_child(mask)
        os.dup2(os.open(place.path / "heard", os.O_WRONLY | os.O_CREAT, 0o600), 1)
        os.execv(program[0], program)
    for fd in (lock_fd, place.fd, *([copied.watch_fd] if copied else [])):
        os.set_inheritable(fd, True)
    argv = supervisor.command(daemon, witness, lock_fd, place.fd, "state.json", str(place.path))
    argv += map(str, copied or ())
    os.execv(argv[0], argv)


def run(place: Place, source: str, early: int = 0, copied: Copied | None = None) -> Child:
    return Child(partial(supervise, place, [sys.executable, "-IS", "-c", source], early, copied))


def exit_code(started: Child) -> int:
    status = started.wait()
    assert status is not None
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize(("status", "clean"), [(0, True), (3, False)])
def test_signals_are_passed_on_and_the_end_is_noted(place: Place, status: int, clean: bool) -> None:
    place.note(kept="as it was", ready_at=1.0, ended=None)
    started = run(place, DAEMON.replace("STATUS", str(status)))
    wait_until(lambda: place.heard == ["up"], what="the daemon")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
        before = len(place.heard)
        started.kill(number)
        wait_until(lambda: len(place.heard) > before, what="the signal")  # noqa: B023
    assert exit_code(started) == status
    assert place.heard == ["up", str(int(signal.SIGHUP)), str(int(signal.SIGUSR1)), str(int(signal.SIGTERM))]
    assert place.ended == {"status": status, "clean": clean}


@pytest.mark.parametrize("edited", [False, True], ids=["read", "edited, and not to be renewed"])
def test_who_reads_a_copy_makes_no_noise(place: Place, tmp_path: Path, edited: bool) -> None:
    """Where nothing is to be renewed, or cannot be, dockerd gets no signal: that would have it read for ever."""
    place.note(kept="as it was", ready_at=1.0)
    mine, copy = tmp_path / "mine.json", tmp_path / "daemon.json"
    for path in (mine, copy):
        path.write_text("{}")
    os.utime(copy, ns=(0 if edited else mine.stat().st_mtime_ns,) * 2)
    copied = Copied(linux.watch_reads(str(tmp_path)), str(mine), str(copy))
    started = run(place, DAEMON.replace("STATUS", "0"), copied=copied)
    wait_until(lambda: place.heard == ["up"], what="the daemon")
    for _ in range(2):
        copy.read_text()
        wait_until(lambda: pending_bytes(copied.watch_fd) == 0, what="the supervisor to notice")
    started.kill(signal.SIGTERM)
    assert exit_code(started) == 0
    assert place.heard == ["up", str(int(signal.SIGTERM))]
    os.close(copied.watch_fd)


def pending_bytes(fd: int) -> int:
    found = fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4)
    return int.from_bytes(found, sys.byteorder)


def test_a_daemon_that_never_answered_is_not_clean(place: Place) -> None:
    place.note(kept="as it was", ready_at=None)
    assert exit_code(run(place, "")) == 0
    assert place.ended == {"status": 0, "clean": False}


def test_a_killed_daemon(place: Place) -> None:
    place.note(kept="as it was", ready_at=1.0)
    assert exit_code(run(place, "import os; os.kill(os.getpid(), 9)")) == 128 + 9
    assert place.ended == {"status": 128 + 9, "clean": False}


def test_a_signal_between_blocking_and_exec_is_not_lost(place: Place) -> None:
    place.note(kept="as it was", ready_at=1.0)
    started = run(place, "import signal; signal.pause()", early=signal.SIGTERM)
    assert exit_code(started) == 128 + signal.SIGTERM


def test_what_cannot_be_noted_down_changes_no_exit_code(place: Place) -> None:
    (place.path / "state.json").write_text("{")
    assert exit_code(run(place, "raise SystemExit(5)")) == 5
    assert (place.path / "state.json").read_text() == "{"


def test_its_witness_ends_with_it(place: Place) -> None:
    place.note(kept="as it was", ready_at=1.0)
    with child(partial(supervise, place, [sys.executable, "-IS", "-c", DAEMON.replace("STATUS", "0")])) as started:
        wait_until(lambda: place.heard == ["up"], what="the daemon")
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        assert len(children.read_text().split()) == 2
        witness = int(children.read_text().split()[0])
        started.kill(signal.SIGTERM)
        started.wait()
        assert not Path(f"/proc/{witness}").exists()
