"""Which files below /run are stale. tests/system sweeps a real tree."""

from __future__ import annotations

import pytest

from cachedind.start.leftovers import plan_removals

EXEC_ROOT = "/run-of-the-test/docker"
PIDFILE = "/run-of-the-test/my.pid"


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        ("/run/docker.pid", True),
        ("/run/docker-1.pid", True),
        ("/run/DOCKERD.PID", True),
        ("/run/deep/docker.pid", True),
        ("/run/containerd.pid", False),
        ("/run/mydocker.pid", False),
        ("/run/docker.pid.old", False),
        ("/run/docker.sock", False),
        ("/run/sshd.pid", False),
        (PIDFILE, True),
        (f"{EXEC_ROOT}/containerd/containerd.pid", True),
        (f"{EXEC_ROOT}/containerd/containerd.sock", True),
        (f"{EXEC_ROOT}/containerd/containerd.sock.ttrpc", True),
        (f"{EXEC_ROOT}/containerd/containerd-debug.sock", True),
        (f"{EXEC_ROOT}/metrics.sock", True),
        (f"{EXEC_ROOT}/containerd/containerd.toml", False),
        (f"{EXEC_ROOT}/netns/default", False),
        (f"{EXEC_ROOT}-other/containerd/containerd.sock", False),
    ],
)
def test_plan_removals(path: str, stale: bool) -> None:
    assert plan_removals([path], EXEC_ROOT, PIDFILE) == ([path] if stale else [])
