"""What a killed daemon leaves in /run keeps no other from starting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.engine import on
from helpers.inside import MAKE_SOCKET

if TYPE_CHECKING:
    from helpers.engine import Engine

# PID 1 always lives, so whoever believes these files waits for a stranger.
STALE = {"docker.pid": "1", "docker/containerd/containerd.pid": "1", "DOCKER-other.PID": "1"}


def test_stale_pid_files_in_a_kept_container(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, volume=engine.volume())
    dind.wait_ready()
    for _ in range(2):
        dind.kill()
        dind.put("/run", STALE)
        dind.start()
        dind.wait_ready(timeout_s=10)
    assert dind.sh("ls /run/DOCKER-other.PID", check=False) == ""


def test_stale_files_on_a_kept_run_volume(engine: Engine, suite: str) -> None:
    """A pod's emptyDir over /run outlives its containers."""
    run, data = engine.volume(), engine.volume()
    options: dict[str, Any] = {"volume": data, "volumes": on(run, "/run")}
    first = engine.dind(suite, **options)
    first.wait_ready()
    first.kill()
    script = "\n".join(
        f"mkdir -p $(dirname /volume/{path}); echo {text} >/volume/{path}" for path, text in STALE.items()
    )
    # A socket at the system's address makes dockerd use a containerd that is not there.
    bind = f"mkdir -p /volume/containerd; python3 -c '{MAKE_SOCKET}' /volume/containerd/containerd.sock"
    engine.in_volume(run, f"{script}\n{bind}")
    second = engine.dind(suite, **options)
    second.wait_ready(timeout_s=10)
    second.load_base()
    assert second.docker("run", "--rm", "--network=none", "base:latest", "sh", "-c", "echo works") == "works"
