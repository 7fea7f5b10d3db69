"""`docker stop` ends everything in time, and how a daemon ended is noted down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.engine import Engine, Volume


def test_stop_with_an_inner_container_running(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    dind = engine.dind(suite, volume=volume)
    dind.wait_ready()
    dind.load_base()
    dind.docker("run", "--detach", "--init", "base:latest", "sleep", "1000")
    wait_until(lambda: _state(engine, volume)["ready_at"], what="the witness's note")
    assert _state(engine, volume)["ended"] is None
    assert dind.stop() < 9
    assert dind.state["ExitCode"] == 0
    assert "Daemon shutdown complete" in dind.log()
    ended = _state(engine, volume)["ended"]
    assert (ended["status"], ended["clean"]) == (0, True)

    # Another one: the end of the last does not speak for it; one that is killed is not clean.
    again = engine.dind(suite, volume=volume)
    again.wait_ready()
    assert _state(engine, volume)["ended"] is None
    [daemon] = again.daemons()
    again.exec("kill", "-KILL", str(daemon.pid), check=False)
    assert again.wait_exit(15) == 128 + 9
    ended = _state(engine, volume)["ended"]
    assert (ended["status"], ended["clean"]) == (128 + 9, False)


def _state(engine: Engine, volume: Volume) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(engine.in_volume(volume, "cat /volume/.cachedind/state.json"))
    return state
