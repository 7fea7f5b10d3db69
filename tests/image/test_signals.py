"""SIGTERM ends a start at any moment within a second, and the daemon's own end is the container's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.dind import parse_time
from helpers.signals import start_and_terminate

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine

# How far a start has come after so many milliseconds depends on who else is at work.
pytestmark = pytest.mark.alone

TERMINATED = 128 + 15
KILLED = 128 + 9


def seconds_until_end(dind: Dind, sent: float) -> float:
    return parse_time(dind.state["FinishedAt"]) - sent


def check_end(dind: Dind, sent: float) -> None:
    """Before the summary line nothing but cachedind ran; after it dockerd may do the ending."""
    status = dind.wait_exit(15)
    if dind.summary is None:
        assert status == TERMINATED
        assert seconds_until_end(dind, sent) < 1
    else:
        # dockerd in its first instants has no handler yet, then ends as from any SIGTERM.
        assert status in (0, TERMINATED)
        assert seconds_until_end(dind, sent) < 10
    assert "Traceback" not in dind.log()
    assert dind.errors == []


# In the few milliseconds before docker-init takes signals nobody can help: the first process of a container gets only
# those that it has asked for.
@pytest.mark.everyday(*map(str, (0, 5, 10, 30, 50, 90, 130, 170, 250, 800)))
@pytest.mark.parametrize("delay_ms", [0, 2, 5, *range(10, 200, 20), 250, 400, 800])
def test_term_during_the_start(engine: Engine, delay_ms: int) -> None:
    suite = "trixie" if delay_ms % 20 else "forky"
    dind = engine.dind(suite, start=False)
    sent = start_and_terminate(dind, delay_ms / 1000)
    print(
        f"docker-init took signals after {(sent.guarded - sent.began) * 1000:.1f} ms, got one "
        f"{(sent.sent - sent.guarded) * 1000:.0f} ms later"
    )
    check_end(dind, sent.sent)


@pytest.mark.parametrize("delay_ms", [150, 700])
def test_term_while_waiting_for_the_lock(engine: Engine, suite: str, delay_ms: int) -> None:
    volume = engine.volume()
    holder = engine.dind(suite, volume=volume)
    # Not ready yet, but the lock is taken long before.
    holder.wait_log(r"^cachedind: (warm|cold)")
    waiting = engine.dind(suite, volume=volume, env={"CACHEDIND_LOCK_TIMEOUT": "1m"}, start=False)
    sent = start_and_terminate(waiting, delay_ms / 1000)
    assert waiting.wait_exit(15) == TERMINATED
    assert seconds_until_end(waiting, sent.sent) < 1
    assert waiting.summary is None
    holder.wait_ready()


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_ends_a_ready_daemon(engine: Engine, suite: str, name: str) -> None:
    dind = engine.dind(suite)
    dind.wait_ready()
    dind.signal(name)
    assert dind.wait_exit(15) == 0
    assert "Daemon shutdown complete" in dind.log()


def test_the_exit_code_of_a_killed_daemon(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite)
    dind.wait_ready()
    [daemon] = dind.daemons()
    # The shell's own kill may be cut short by the end of everything.
    dind.exec("kill", "-KILL", str(daemon.pid), check=False)
    assert dind.wait_exit(15) == KILLED


def test_the_exit_code_of_a_daemon_that_refuses(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, args=["--no-such-flag=1"])
    status = dind.wait_exit()
    direct = engine.dind(suite, entrypoint=["dockerd"], args=["--no-such-flag=1"])
    assert status == direct.wait_exit() != 0
    assert "no-such-flag" in dind.log()
