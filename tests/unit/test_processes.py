"""Programs run to their end, and work in a child process whose failure is heard."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from cachedind.errors import CachedindError, CertificateError, ProgramMissingError
from cachedind.processes import Background, Result, run


def test_a_program_tells_status_and_both_streams() -> None:
    assert run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == Result(3, "out\n", "err\n")
    assert run(["true"]).ok
    assert not run(["sh", "-c", "kill -9 $$"]).ok


def test_a_program_gets_no_input_and_the_environment_that_it_is_given() -> None:
    assert run(["cat"]).stdout == ""
    assert run(["/usr/bin/env"], env={"ONLY": "this"}).stdout == "ONLY=this\n"


def test_output_that_is_no_text_is_no_error() -> None:
    assert run(["printf", r"a\377b"]).stdout == "a\N{REPLACEMENT CHARACTER}b"


def test_a_missing_program_is_an_error_of_ours() -> None:
    with pytest.raises(ProgramMissingError, match="no-such-program cannot be run: No such file") as caught:
        run(["no-such-program"])
    assert caught.value.exit_code == 69


def test_a_program_that_does_not_end_is_killed_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(ProgramMissingError, match=r"sleep did not end within 0\.1 s") as caught:
        run(["sleep", "60"], timeout_s=0.1)
    assert time.monotonic() - started < 5
    assert "sleep 60" in caught.value.hint


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

    with pytest.raises(CachedindError, match="a helper of the start died"):
        Background(break_).join()
    assert "ZeroDivisionError: broken" in capfd.readouterr().err


@pytest.mark.parametrize(
    "end",
    [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(7), lambda: sys.exit(0)],
    ids=["killed", "exited", "sys.exit"],
)
def test_background_work_that_dies_is_an_error(end: object, capfd: pytest.CaptureFixture[str]) -> None:
    assert callable(end)
    with pytest.raises(CachedindError, match="a helper of the start died"):
        Background(end).join()
    capfd.readouterr()


def test_joined_work_leaves_neither_process_nor_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    Background(lambda: None).join()
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
