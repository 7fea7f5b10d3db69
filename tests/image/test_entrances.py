"""Whatever name a daemon is started by in the image, it enters boot: no daemon without a lease."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.clients import run_once
from helpers.dind import DATA_ROOT, REAL_DOCKERD
from helpers.flavours import own_overlay
from helpers.signals import start_and_terminate

if TYPE_CHECKING:
    from helpers.engine import Engine

LOCK = f"{DATA_ROOT}/.cachedind/lock"
HOST = "--host=unix:///var/run/docker.sock"
ENTRANCES: dict[str, dict[str, Any]] = {
    "entrypoint": {"entrypoint": ["dockerd"], "args": [HOST]},
    "debian's path": {"entrypoint": ["/usr/sbin/dockerd"], "args": [HOST]},
    "shell": {"entrypoint": ["sh", "-c"], "args": [f"dockerd {HOST}"]},
    "dind": {"args": ["dind", "dockerd", HOST]},
    "dind and another program": {"entrypoint": ["dind", "/usr/bin/env"], "args": ["dockerd", HOST]},
}


@pytest.mark.parametrize("how", ENTRANCES)
def test_every_way_in_leads_to_a_lease(engine: Engine, suite: str, how: str) -> None:
    volume = engine.volume()
    dind = engine.dind(suite, volume=volume, **ENTRANCES[how])
    dind.wait_ready()
    [daemon] = dind.daemons()
    assert daemon.has_open(LOCK)
    assert daemon.argv[0] == "dockerd"
    assert dind.summary is not None
    assert not any(word.startswith("--tls") for word in daemon.argv), "it binds only what it names"
    # Another one on the same volume is refused, and the first lives on.
    second = engine.dind(suite, volume=volume, env={"CACHEDIND_LOCK_TIMEOUT": "1s"})
    assert second.wait_exit() == 75
    assert dind.docker("info", "--format={{.Driver}}") == own_overlay(suite)
    if how != "shell":  # which is PID 1, and has no handler for the signal
        assert dind.stop() < 9
        assert dind.state["ExitCode"] == 0


def test_a_pool_is_used(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, pool=engine.volume("btrfs"), entrypoint=["dockerd"], args=[HOST])
    dind.wait_ready()
    assert "slot" in (dind.summary or "")


def test_a_script_of_the_user_s_around_dockerd(engine: Engine, suite: str) -> None:
    """It calls dockerd by its name, and gets the engine."""
    dind = engine.dind(suite, start=False)
    dind.put("/usr/local/sbin", {"dockerd": '#!/bin/sh\nexec /usr/sbin/dockerd --label=by=script "$@"\n'}, mode=0o755)
    dind.start()
    dind.wait_ready()
    [daemon] = dind.daemons()
    assert "--label=by=script" in daemon.argv
    assert "fd://" in daemon.argv


@pytest.mark.parametrize("delay_ms", [0, 40])
def test_term_ends_a_start_by_dockerd_s_own_name(engine: Engine, suite: str, delay_ms: int) -> None:
    dind = engine.dind(suite, entrypoint=["dockerd"], args=[HOST], start=False)
    start_and_terminate(dind, delay_ms / 1000)
    assert dind.wait_exit(5) in (0, 143)


@pytest.mark.parametrize("words", [["--version"], ["-v"], ["--help"], ["--validate"]], ids=" ".join)
def test_questions_are_answered_by_the_engine(engine: Engine, suite: str, words: list[str]) -> None:
    """Without privileges, whatever the settings are, with its own words and exit code."""
    options: dict[str, Any] = {"read_only": True, "network_mode": "none", "env": {"CACHEDIND_STRICT": "perhaps"}}
    asked = run_once(engine, suite, *words, entrypoint=["dockerd"], **options)
    engine_itself = run_once(engine, suite, *words, entrypoint=[REAL_DOCKERD], **options)
    assert (asked.status, asked.stdout) == (engine_itself.status, engine_itself.stdout), asked.output
    assert asked.status == 0


def test_an_unknown_flag_is_refused_by_the_engine(engine: Engine, suite: str) -> None:
    ended = []
    for entrypoint in ("dockerd", REAL_DOCKERD):
        dind = engine.dind(suite, entrypoint=[entrypoint], args=["--no-such-flag=1"])
        ended.append(dind.wait_exit())
        assert "unknown flag: --no-such-flag" in dind.log()
    assert ended[0] == ended[1] != 0
