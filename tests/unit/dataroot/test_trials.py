"""What trials mean. The trials themselves run in tests/system."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.dataroot import stale_trials
from cachedind.dataroot.stale_trials import PROBE_PREFIX
from cachedind.dataroot.trials import _read_outcome, explain


def test_a_trial_that_went_well() -> None:
    verdict = explain("overlay2", None)
    assert (verdict.driver, verdict.works, verdict.privilege) == ("overlay2", True, False)


@pytest.mark.parametrize(
    ("number", "what", "said", "privilege"),
    [
        (errno.EPERM, "merged: Operation not permitted", "the container lacks privileges", True),
        (errno.EACCES, "merged: Permission denied", "the container lacks privileges", True),
        (errno.EINVAL, "merged: Invalid argument", "the backing filesystem is unfit", False),
        (errno.ENODEV, "merged: No such device", "load its module on the host", False),
        (errno.ENOSPC, "merged/new: No space left on device", "No space left on device", False),
        (errno.EIO, "merged/dir: Input/output error", "Input/output error", False),
        (errno.ETIMEDOUT, "the trial did not end within 10 s", "did not end", False),
        (0, "directory entries carry no d_type", "d_type", False),
    ],
    ids=lambda value: errno.errorcode.get(value, "0") if isinstance(value, int) and not isinstance(value, bool) else "",
)
def test_a_trial_that_failed(number: int, what: str, said: str, privilege: bool) -> None:
    verdict = explain("overlay2", (number, what))
    assert not verdict.works
    assert said in verdict.why
    assert what in verdict.why
    assert verdict.privilege is privilege


@given(st.integers(0, 200), st.text())
def test_no_failure_is_a_success(number: int, what: str) -> None:
    verdict = explain("overlay2", (number, what))
    assert not verdict.works
    assert verdict.privilege is (number in (errno.EPERM, errno.EACCES))


def outcome_of(script: object) -> tuple[int, str] | None:
    """What the parent makes of a child that does this with its end of the pipe."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        assert callable(script)
        script(write_fd)
        os._exit(0)
    os.close(write_fd)
    try:
        return _read_outcome(read_fd, pid)
    finally:
        os.close(read_fd)
        os.waitpid(pid, 0)


def test_a_child_that_is_killed_proves_nothing() -> None:
    outcome = outcome_of(lambda fd: os.kill(os.getpid(), signal.SIGKILL))
    assert outcome is not None
    assert "killed" in outcome[1]
    assert not explain("overlay2", outcome).works


def test_a_child_that_ends_without_a_word_proves_nothing() -> None:
    assert outcome_of(lambda fd: None) is not None


def test_a_childs_errno_arrives() -> None:
    assert outcome_of(lambda fd: os.write(fd, b"22 merged: Invalid argument")) == (22, "merged: Invalid argument")


def test_stale_trials_are_swept_and_nothing_else(tmp_path: Path) -> None:
    stale = [
        f"{PROBE_PREFIX}1-2",
        "check-overlayfs-support123",
        "opaque-bug-check1",
        "metacopy-check1",
        "userxattr-check1",
        "multiple-lowerdir-check1",
        "fsutils-dummy1",
    ]
    kept = ["overlay2", ".cachedind", "containers", "my-metacopy-check", "opaque"]
    for name in (*stale, *kept):
        (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / stale[0] / "inside").chmod(0)
    assert sorted(stale_trials.sweep(str(tmp_path))) == sorted(stale)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    assert stale_trials.sweep(str(tmp_path)) == []
