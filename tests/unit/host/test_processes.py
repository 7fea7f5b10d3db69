"""Programs run to their end or beside this process, and which dockerd is the engine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from cachedind.base.errors import ProgramMissingError
from cachedind.host import processes
from cachedind.host.processes import Program, Question, Result, run


def test_a_program_tells_status_and_both_streams() -> None:
    assert run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == Result(3, "out\n", "err\n")
    assert run(["true"]).ok
    assert not run(["sh", "-c", "kill -9 $$"]).ok


def test_a_program_gets_no_input_and_the_environment_that_it_is_given() -> None:
    assert run(["cat"]).stdout == ""
    assert run(["/usr/bin/env"], env={"ONLY": "this"}).stdout == "ONLY=this\n"


def test_a_program_has_the_descriptors_that_it_is_passed_and_no_others(tmp_path: Path) -> None:
    passed, kept = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        listed = run(["ls", "/proc/self/fd"], pass_fds=[passed]).stdout.split()
        assert run(["readlink", f"/proc/self/fd/{passed}"], pass_fds=[passed]).stdout == f"{tmp_path}\n"
    finally:
        os.close(passed)
        os.close(kept)
    assert str(passed) in listed
    assert str(kept) not in listed


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


def test_a_question_is_answered_with_status_and_both_streams() -> None:
    before = os.listdir("/proc/self/fd")
    question = Question(["sh", "-c", "cat; echo out; echo err >&2; exit 3"])
    assert question.answer() == Result(3, "out\n", "err\n")
    assert Question(["sh", "-c", "kill -9 $$"]).answer().status == -signal.SIGKILL
    assert Question(["sh", "-c", "kill -PIPE $$"]).answer().status == -signal.SIGPIPE, "Python ignores it"
    assert os.listdir("/proc/self/fd") == before


def test_several_questions_wait_side_by_side_and_know_nothing_of_each_other(tmp_path: Path) -> None:
    ours = os.open(tmp_path, os.O_RDONLY)
    try:
        questions = [Question(["sh", "-c", f"echo {number}; ls -l /proc/self/fd"]) for number in range(3)]
        answers = [question.answer().stdout for question in reversed(questions)]
    finally:
        os.close(ours)
    assert [answer.split()[0] for answer in answers] == ["2", "1", "0"]
    assert not any(str(tmp_path) in answer for answer in answers)


def test_a_question_that_nobody_can_answer() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ProgramMissingError, match="no-such-program cannot be run: No such file"):
        Question(["no-such-program"])
    started = time.monotonic()
    with pytest.raises(ProgramMissingError, match=r"sleep did not end within 0\.1 s"):
        Question(["sleep", "60"]).answer(timeout_s=0.1)
    assert time.monotonic() - started < 5
    assert os.listdir("/proc/self/fd") == before


def test_a_program_beside_us_logs_and_is_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    script = "echo $ONLY; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.01; done"
    program = Program(["sh", "-c", script], env={"ONLY": "this", "PATH": os.defpath}, log_path=str(log))
    while log.read_text() != "before\nthis\nerr\n":
        assert program.status is None
        time.sleep(0.01)
    # The trap is set right after the last line.
    time.sleep(0.1)
    assert program.stop(5) == 7
    assert program.status == 7
    assert program.stop(5) == 7
    with pytest.raises(ProcessLookupError):
        os.kill(program.pid, 0)


def test_a_program_beside_us_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = Program(["sh", "-c", "trap '' TERM; echo ready; sleep 60"], env={}, log_path=str(log))
    while log.read_text() != "ready\n":
        time.sleep(0.01)
    started = time.monotonic()
    assert program.stop(0.1) == -signal.SIGKILL
    assert time.monotonic() - started < 5


def test_a_program_beside_us_gets_what_it_is_given_and_no_more(tmp_path: Path) -> None:
    log = tmp_path / "log"
    passed_fd, other_fd = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(other_fd, True)
    program = Program(
        ["/bin/sh", "-c", "echo $(pwd) /proc/$$/fd/*; exec sleep 60"],
        env={},
        log_path=str(log),
        pass_fds=[passed_fd],
        in_child=lambda: os.chdir("/usr"),
    )
    os.close(passed_fd)
    os.close(other_fd)
    while not log.read_text().endswith("\n"):
        time.sleep(0.01)
    program.stop(5)
    directory, *descriptors = log.read_text().split()
    assert directory == "/usr"
    numbers = {int(name.rpartition("/")[2]) for name in descriptors}
    assert passed_fd in numbers
    assert other_fd not in numbers


@pytest.mark.parametrize("argv", [["no-such-program"], ["/dev/null"]])
def test_a_program_beside_us_that_cannot_run_is_an_error_of_ours(argv: list[str], tmp_path: Path) -> None:
    with pytest.raises(ProgramMissingError, match=f"{argv[0]} cannot be run: "):
        Program(argv, env={}, log_path=str(tmp_path / "log"))


def test_what_fails_in_the_new_process_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissingError, match="true cannot be run: Exception occurred in preexec_fn"):
        Program(["true"], env={}, log_path=str(tmp_path / "log"), in_child=lambda: os.chdir("/no/such"))


ENTRANCE = "#!/bin/sh\n# cachedind: enters boot, whatever\n"


def dockerd_in(directory: Path, text: str) -> str:
    directory.mkdir()
    program = directory / "dockerd"
    program.write_text(text)
    program.chmod(0o755)
    return str(program)


def test_the_engine_is_the_first_that_is_no_entrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entrance = dockerd_in(tmp_path / "entrance", ENTRANCE)
    link = tmp_path / "link"
    link.mkdir()
    (link / "dockerd").symlink_to(entrance)
    real, own = dockerd_in(tmp_path / "real", "\x7fELF"), dockerd_in(tmp_path / "own", "#!/bin/sh\nexec dockerd -D\n")
    monkeypatch.setattr(processes, "ENGINE", real)
    assert processes.engine_program(f"{tmp_path}/entrance:{tmp_path}/link:/no-such") == real
    assert processes.engine_program(f"{tmp_path}/entrance:{tmp_path}/own") == own, "the user's own goes first"
    assert processes.engine_environment(real) == {}
    assert processes.engine_environment(own) != {}, "or it would enter boot by dockerd's name"


def test_no_engine_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dockerd_in(tmp_path / "entrance", ENTRANCE)
    monkeypatch.setattr(processes, "ENGINE", str(tmp_path / "none" / "dockerd"))
    with pytest.raises(ProgramMissingError, match="no dockerd"):
        processes.engine_program(str(tmp_path / "entrance"))
