"""HEALTHCHECK as the outer engine sees it: starting for as long as a start takes, healthy when the daemon answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine


def asking(timeout_s: int) -> dict[str, Any]:
    """The image's own check, with less patience. What is not said here is the image's."""
    return {
        "test": ["CMD", "cachedind", "healthcheck", f"--timeout={timeout_s}"],
        "interval": 300_000_000,
        "retries": 2,
    }


def health(dind: Dind) -> dict[str, Any]:
    found: dict[str, Any] = dind.state["Health"]
    return found


def failures(dind: Dind) -> list[str]:
    """What the failed checks said."""
    log = health(dind)["Log"] or []
    assert all(entry["ExitCode"] in (0, 1) for entry in log), log
    return [entry["Output"] for entry in log if entry["ExitCode"] == 1]


def wait_health(dind: Dind, status: str) -> None:
    wait_until(
        lambda: health(dind)["Status"] == status,
        what=f"{dind.name} to be {status}",
        hopeless=dind.why_not_running,
        diagnose=lambda: f"{health(dind)}\n{dind.describe()}",
    )


@pytest.mark.everyday("forky")
def test_a_start_is_starting_for_as_long_as_it_takes(engine: Engine, suite: str) -> None:
    """Here it waits for a volume, as others do for seeds, and more checks fail than make a container unhealthy."""
    volume = engine.volume()
    first = engine.dind(suite, volume=volume, healthcheck=None)
    wait_health(first, "healthy")
    assert first.docker_status("version") == 0
    second = engine.dind(suite, volume=volume, env={"CACHEDIND_LOCK_TIMEOUT": "2m"}, healthcheck=asking(0))
    wait_until(lambda: len(failures(second)) >= 2, what="checks to fail", diagnose=second.describe)
    assert (health(second)["Status"], health(second)["FailingStreak"]) == ("starting", 0)
    assert "the daemon is not started yet" in failures(second)[0]
    first.kill()
    wait_health(second, "healthy")
    assert second.docker_status("version") == 0


@pytest.mark.everyday("forky")
def test_a_daemon_that_hangs_is_unhealthy_until_it_answers(engine: Engine, suite: str) -> None:
    """With a socket of its own and no other way in, which the check has to find."""
    socket = "/run/elsewhere/docker.sock"
    env = {"DOCKER_HOST": f"unix://{socket}", "CACHEDIND_LISTEN": "none"}
    dind = engine.dind(suite, volume=engine.volume(), env=env, healthcheck=asking(1))
    wait_health(dind, "healthy")
    [daemon] = dind.daemons()
    dind.sh(f"kill -STOP {daemon.pid}")
    wait_health(dind, "unhealthy")
    assert f"the daemon behind {socket} does not answer: timed out" in failures(dind)[-1]
    dind.sh(f"kill -CONT {daemon.pid}")
    wait_health(dind, "healthy")


def test_a_client_is_no_daemon_that_fails(engine: Engine) -> None:
    """Whoever waits for all containers of a project to be healthy must not wait for that; a shell may start one yet."""
    client = engine.dind("forky", args=["sleep", "infinity"], privileged=False, healthcheck=None)
    shell = engine.dind("forky", args=["sh", "-c", "sleep 1000; :"], privileged=False, healthcheck=asking(0))
    wait_health(client, "healthy")
    wait_until(lambda: failures(shell), what="a check to fail", diagnose=shell.describe)
    assert (health(shell)["Status"], health(shell)["FailingStreak"]) == ("starting", 0)
    assert client.exec("cachedind", "healthcheck", "--tiemout=1", check=False).status == 1
