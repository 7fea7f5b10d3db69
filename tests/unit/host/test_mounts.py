"""Which mounts a nested daemon lacks, and what a failing one means."""

from __future__ import annotations

import errno
import os

import pytest

from cachedind.base.errors import HostPreparationError
from cachedind.host import linux
from cachedind.host.mounts import MountOp, apply_mounts, plan_mounts

ALL = frozenset({"/", "/tmp", "/sys/kernel/security"})
SHARED = linux.MS_REC | linux.MS_SHARED


@pytest.mark.parametrize(
    ("points", "securityfs", "targets"),
    [
        (frozenset({"/"}), True, ["/sys/kernel/security", "/tmp", "/"]),
        (frozenset({"/"}), False, ["/tmp", "/"]),
        (frozenset({"/", "/tmp"}), True, ["/sys/kernel/security", "/"]),
        (ALL, True, ["/"]),
    ],
    ids=["all", "no securityfs", "/tmp is there", "only propagation"],
)
def test_plan_mounts(points: frozenset[str], securityfs: bool, targets: list[str]) -> None:
    planned = plan_mounts(points, has_securityfs_directory=securityfs)
    assert [operation.target for operation in planned] == targets
    assert planned[-1].flags == SHARED, "propagation comes last, so that the others are shared as well"
    assert [operation.target for operation in planned if not operation.needed] == [
        target for target in targets if target == "/sys/kernel/security"
    ]


def test_every_operation_says_what_it_is_for() -> None:
    described = [operation.describe() for operation in plan_mounts(frozenset(), has_securityfs_directory=True)]
    assert described == [
        "securityfs on /sys/kernel/security (LSM detection)",
        "tmpfs on /tmp (temporary files)",
        "/ (shared propagation for volumes)",
    ]


def fail_on(target: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    def mount(source: str, where: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
        if where == target:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), where)
        made.append(where)

    monkeypatch.setattr(linux, "mount", mount)
    return made


def test_what_is_needed_and_fails_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on("/tmp", monkeypatch)
    with pytest.raises(HostPreparationError, match=r"mount tmpfs on /tmp .*: Operation not permitted") as caught:
        apply_mounts(plan_mounts(frozenset(), has_securityfs_directory=True))
    assert "--privileged" in caught.value.hint


def test_what_is_not_needed_and_fails_is_told_and_the_rest_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fail_on("/sys/kernel/security", monkeypatch)
    failed = apply_mounts(plan_mounts(frozenset(), has_securityfs_directory=True))
    assert made == ["/tmp", "/"]
    assert failed == ["could not mount securityfs on /sys/kernel/security (LSM detection): Operation not permitted"]


def test_nothing_to_do() -> None:
    assert apply_mounts([]) == []
    assert MountOp("none", "/x", "", 0, needed=True, purpose="p").describe() == "/x (p)"
