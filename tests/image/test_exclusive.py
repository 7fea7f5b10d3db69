"""Promise 1: two daemons never run on one data-root, and a data-root that comes free is taken over at once."""

from __future__ import annotations

import random
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.recorder import Hold, overlaps, recording
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour

LOCK = "/var/lib/docker/.cachedind/lock"
CROWD = 30


def lock_until_killed(engine: Engine, suite: str, **options: object) -> Dind:
    return engine.dind(suite, env={"CACHEDIND_LOCK_TIMEOUT": "20m"}, **options)


def test_the_waiting_one_takes_over_at_once(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    project = overlay_project(secrets.token_hex(8))
    with recording(engine) as recorder:
        first = lock_until_killed(engine, suite, volume=volume)
        first.wait_ready()
        first.build(project)
        build_id = first.run_image(project)
        [daemon] = first.daemons()

        second = lock_until_killed(engine, suite, volume=volume)
        waiting = second.wait_log(r"^cachedind: .*wait")
        assert first.id[:12] in waiting.text, "does not name the holder"
        # While one waits, the other one works as if alone.
        assert first.run_image(project) == build_id
        assert first.build(project).uncached == []
        assert [process.pid for process in first.daemons()] == [daemon.pid]
        assert second.daemons() == []
        assert second.summary is None

        first.kill()
        second.wait_ready()

        looks = [look for look in recorder.looks() if look.holders & {first.id, second.id}]
        gap = min(look.time for look in looks if second.id in look.holders) - max(
            look.time for look in looks if first.id in look.holders
        )
        assert 0 < gap < 1, f"took over {gap:.2f} s after the holder's end"
        assert overlaps(recorder.holds([first.id, second.id])) == []

    assert second.build(project).uncached == []
    assert second.run_image(project) == build_id


def test_busy_is_75_and_harms_nobody(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    holder = engine.dind(suite, volume=volume, hostname="the-holder")
    holder.wait_ready()
    holder.load_base()
    holder.docker("run", "--detach", "--name=job", "base:latest", "sleep", "1000")
    [daemon] = holder.daemons()

    started = time.monotonic()
    late = engine.dind(suite, volume=volume, env={"CACHEDIND_LOCK_TIMEOUT": "2s"})
    assert late.wait_exit() == 75
    assert 2 <= time.monotonic() - started < 8
    [error] = late.errors
    assert holder.id[:12] in error
    assert "the-holder" in error
    assert "CACHEDIND_LOCK_TIMEOUT" in error, "does not tell the remedy"
    assert late.summary is None

    assert [process.pid for process in holder.daemons()] == [daemon.pid]
    assert holder.docker("inspect", "--format", "{{.State.Running}}", "job") == "true"


def test_busy_waits_ten_seconds_unless_told_otherwise(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    engine.dind(suite, volume=volume).wait_ready()
    started = time.monotonic()
    assert engine.dind(suite, volume=volume).wait_exit() == 75
    assert 10 <= time.monotonic() - started < 16


@pytest.mark.everyday("forky")
@pytest.mark.timeout(600)
def test_thirty_at_once_hold_one_after_the_other(engine: Engine, suite: str) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    dice = random.Random(seed)
    volume = engine.volume()
    with recording(engine) as recorder:
        crowd = {
            dind.id: dind
            for dind in (lock_until_killed(engine, suite, volume=volume, start=False) for _ in range(CROWD))
        }
        with ThreadPoolExecutor(max_workers=CROWD) as pool:
            list(pool.map(lambda dind: dind.start(), crowd.values()))

        left = dict(crowd)
        while left:
            holder = wait_until(
                lambda: recorder.holder(left),
                what=f"one of {len(left)} to hold the data-root",
                timeout_s=30,
                diagnose=lambda: "\n".join(dind.describe() for dind in left.values()),
            )
            dind = left.pop(holder)
            # Killed at any stage: some before they have a daemon, some with a daemon that answers.
            if not left or dice.random() < 0.4:
                dind.wait_ready()
            dind.kill()

        ids = list(crowd)
        holds = recorder.holds(ids)
        assert sorted(hold.container for hold in holds) == sorted(ids), "not everybody had a turn"
        assert overlaps(holds) == []
        for look in recorder.looks():
            assert len(look.holders & crowd.keys()) <= 1, look
            assert len(look.daemons & crowd.keys()) <= 1, look
        # Ends are not compared: a killed daemon loses its files a moment before it counts as gone.
        held_from = {hold.container: hold.first for hold in holds}
        for look in recorder.looks():
            for daemon in look.daemons & crowd.keys():
                assert held_from[daemon] <= look.time, "a daemon before the lock"
        assert recorder.longest_gap() < 2, "the recorder stood still; its record proves nothing"

    # Thirty kills at all stages of a start later, the data-root is still good.
    last = engine.dind(suite, volume=volume)
    last.wait_ready()
    project = overlay_project(secrets.token_hex(8))
    last.build(project)
    last.run_image(project)


def test_the_record_would_show_two_at_once(engine: Engine) -> None:
    """The proof above stands on the recorder: it has to see two daemons that do run side by side."""
    with recording(engine) as recorder:
        pair = [engine.dind("trixie", volume=engine.volume()) for _ in range(2)]
        for dind in pair:
            dind.wait_ready()
        ids = {dind.id for dind in pair}
        wait_until(
            lambda: any(ids <= look.holders and ids <= look.daemons for look in recorder.looks()),
            what="a look that shows both",
            timeout_s=5,
        )
        assert len(overlaps(recorder.holds(ids))) == 1


def test_overlapping_intervals_are_told() -> None:
    assert overlaps([Hold("a", 0, 1), Hold("b", 1.1, 2)]) == []
    assert len(overlaps([Hold("a", 0, 1), Hold("b", 0.9, 2)])) == 1
    assert len(overlaps([Hold("a", 0, 3), Hold("b", 1, 2), Hold("c", 4, 5)])) == 1


def test_the_lock_is_held_by_the_daemon_and_by_nothing_inside_it(engine: Engine, flavour: Flavour) -> None:
    """The lease lives as long as a process that may touch the data-root, and no inner container can prolong it."""
    dind = engine.dind(flavour.suite, volume=engine.volume(), env=flavour.env)
    dind.wait_ready()
    dind.load_base()
    dind.docker("run", "--detach", "--name=job", "--publish=8080:80", "base:latest", "sleep", "1000")
    processes = dind.processes()
    own_namespace = next(process.pid_namespace for process in processes if process.pid == 1)
    holding = [process for process in processes if process.has_open(LOCK)]

    assert {"python", "dockerd", "containerd"} <= {process.comm for process in holding}
    [daemon] = [process for process in processes if process.comm == "dockerd"]
    parent = next(process for process in processes if process.pid == daemon.ppid)
    assert parent.comm == "python"
    assert parent.has_open(LOCK), "the supervisor above the daemon does not hold"

    inside = [process for process in processes if process.pid_namespace != own_namespace]
    assert any(process.argv[:1] == ("sleep",) for process in inside), "the inner container is not seen"
    assert [process.command for process in inside if process.has_open(LOCK)] == []
    # Go programs hand descriptors that they do not know on to what they start. These helpers of the daemon end with
    # the container's PID 1 as the daemon does, so they cannot prolong a lease either; anything else could.
    helpers = {"containerd-shim", "docker-proxy"}
    assert {process.comm for process in holding} <= {"python", "dockerd", "containerd"} | helpers
