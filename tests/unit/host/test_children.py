"""Work in a forked child, whose failure is heard."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from cachedind.base.errors import CachedindError, CertificateError
from cachedind.host.children import Ahead, Background
from cachedind.host.processes import Result, run


def test_background_work_runs_beside_us_and_ends_quietly() -> None:
    read_fd, write_fd = os.pipe()
    background = Background(lambda: os.write(write_fd, str(os.getpid()).encode()))
    assert int(os.read(read_fd, 16)) != os.getpid()
    background.join()
    os.close(read_fd)
    os.close(write_fd)


def test_an_error_of_background_work_arrives_with_its_kind_cause_and_hint() -> None:
    def fail() -> None:
        raise CertificateError("no room", "make room")

    with pytest.raises(CertificateError) as caught:
        Background(fail).join()
    assert (caught.value.cause, caught.value.hint, caught.value.exit_code) == ("no room", "make room", 73)


def test_background_work_that_breaks_shows_where_and_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def break_() -> None:
        raise ZeroDivisionError("broken")

    with pytest.raises(CachedindError, match="a child process of the start died"):
        Background(break_).join()
    assert "ZeroDivisionError: broken" in capfd.readouterr().err


@pytest.mark.parametrize(
    "end",
    [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(7), lambda: sys.exit(0)],
    ids=["killed", "exited", "sys.exit"],
)
def test_background_work_that_dies_is_an_error(end: object, capfd: pytest.CaptureFixture[str]) -> None:
    assert callable(end)
    with pytest.raises(CachedindError, match="a child process of the start died"):
        Background(end).join()
    capfd.readouterr()


@pytest.mark.parametrize("make", ["Background(lambda: time.sleep(0.2))", "Ahead(lambda: time.sleep(0.2), print)"])
def test_background_work_whose_parent_was_killed_ends_quietly(make: str) -> None:
    script = f"""
import os, signal, time
from cachedind.host.children import Ahead, Background
from cachedind.host.processes import Result, run
work = {make}
os.kill(os.getpid(), signal.SIGTERM)
"""
    # Read to the end, and so until the child has ended too.
    done = run([sys.executable, "-c", script], env={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done == Result(-signal.SIGTERM, "", "")


def test_joined_work_leaves_neither_process_nor_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    Background(lambda: None).join()
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_child_that_was_made_ahead_gets_its_work_and_descriptors() -> None:
    ready_fd, done_fd = os.pipe()
    answer_fd, write_fd = os.pipe()
    ahead = Ahead(
        lambda: os.write(done_fd, b"r"),
        lambda wanted, fds: os.write(fds[0], f"{wanted['word']} {os.getpid()}".encode()),
    )
    assert os.read(ready_fd, 1) == b"r", "it gets ready before it is told what to do"
    ahead.begin({"word": "hello"}, [write_fd])
    ahead.join()
    word, pid = os.read(answer_fd, 64).split()
    assert word == b"hello"
    assert int(pid) != os.getpid()
    for fd in (ready_fd, done_fd, answer_fd, write_fd):
        os.close(fd)


def test_a_child_that_was_made_ahead_for_nothing_ends_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    before = os.listdir("/proc/self/fd")
    Ahead(lambda: None, lambda *wanted: pytest.fail("nothing was wanted")).join()
    assert os.listdir("/proc/self/fd") == before
    assert capfd.readouterr().err == ""


def test_a_child_that_was_made_ahead_ends_while_another_one_lives() -> None:
    """The witness is forked in between, and inherits what the two talk over."""
    ahead = Ahead(lambda: None, lambda *wanted: pytest.fail("nothing was wanted"))
    read_fd, write_fd = os.pipe()
    other = os.fork()
    if other == 0:
        os.close(write_fd)
        os.read(read_fd, 1)
        os._exit(0)
    try:
        ahead.join()
    finally:
        os.close(write_fd)
        os.close(read_fd)
        os.waitpid(other, 0)


def test_an_error_of_a_child_that_was_made_ahead_arrives() -> None:
    def fail(*wanted: object) -> None:
        raise CertificateError("no room", "make room")

    ahead = Ahead(lambda: None, fail)
    ahead.begin({}, [])
    with pytest.raises(CertificateError, match="no room"):
        ahead.join()
