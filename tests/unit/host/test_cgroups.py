"""Nesting in cgroup v2, as far as it is decided; tests/system does it on a real hierarchy."""

from __future__ import annotations

import errno
import os
import time

import pytest

from cachedind.base.errors import HostPreparationError
from cachedind.host import cgroups
from cachedind.host.cgroups import plan_controllers, prepare, skip_reason


@pytest.mark.parametrize(
    ("is_v2", "own_path", "reason"),
    [
        (True, "/", None),
        (False, "/", "not cgroup v2"),
        (False, None, "not cgroup v2"),
        (True, "/docker/0123", "--cgroupns=host"),
        (True, "/../..", "--cgroupns=host"),
        (True, None, "--cgroupns=host"),
    ],
)
def test_skip_reason(is_v2: bool, own_path: str | None, reason: str | None) -> None:
    found = skip_reason(is_v2=is_v2, own_path=own_path)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


@pytest.mark.parametrize(
    ("available", "enabled", "written"),
    [
        ("cpu io memory pids\n", "\n", "+cpu +io +memory +pids"),
        ("cpu io memory pids\n", "memory cpu\n", "+io +pids"),
        ("cpu memory\n", "cpu memory\n", ""),
        ("\n", "\n", ""),
        ("cpu\n", "cpu misc\n", ""),
    ],
)
def test_plan_controllers(available: str, enabled: str, written: str) -> None:
    assert plan_controllers(available, enabled) == written


def failing(number: int, calls: list[int], times: int = 1 << 30) -> object:
    def attempt() -> None:
        calls.append(number)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number), "/sys/fs/cgroup/cgroup.subtree_control")

    return attempt


def test_a_busy_group_is_tried_again() -> None:
    calls: list[int] = []
    cgroups._retry(failing(errno.EBUSY, calls, times=3), "/sys/fs/cgroup", 5.0)  # type: ignore[arg-type]
    assert len(calls) == 4


def test_but_not_for_ever_and_the_error_names_the_file() -> None:
    calls: list[int] = []
    started = time.monotonic()
    with pytest.raises(HostPreparationError, match=r"cgroup\.subtree_control: Device or resource busy") as caught:
        cgroups._retry(failing(errno.EBUSY, calls), "/sys/fs/cgroup", 0.1)  # type: ignore[arg-type]
    assert time.monotonic() - started < 2
    assert len(calls) > 2
    assert caught.value.exit_code == 71


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EINVAL])
def test_what_no_try_will_mend_is_tried_once(number: int) -> None:
    calls: list[int] = []
    with pytest.raises(HostPreparationError, match="cgroup v2 nesting") as caught:
        cgroups._retry(failing(number, calls), "/sys/fs/cgroup", 5.0)  # type: ignore[arg-type]
    assert len(calls) == 1
    assert "read-only" in caught.value.hint


def test_an_error_without_a_file_names_the_hierarchy() -> None:
    def attempt() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(HostPreparationError, match="/sys/fs/cgroup: Input/output error"):
        cgroups._retry(attempt, "/sys/fs/cgroup", 0.1)


def test_where_there_is_no_cgroup_v2_nothing_is_done(tmp_path: object) -> None:
    assert prepare(str(tmp_path)) == "not cgroup v2"
