"""A daemon that is started again in the same container: it leases like every other, and never runs beside a lease."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.dind import DATA_ROOT, POOL
from helpers.flavours import Flavour
from helpers.pools import Disk, slot_of
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from typing import Any

    from helpers.dind import Dind
    from helpers.engine import Engine

AGAIN: dict[str, Any] = {
    "entrypoint": ["sh", "-c", "while :; do dockerd-entrypoint.sh; sleep 0.1; done"],
}
LOOPS = (
    Disk("ext4", Flavour("trixie", "graphdriver")),
    Disk("btrfs", Flavour("forky", "containerd")),
)


def starts(dind: Dind) -> list[str]:
    return [text for text in dind.messages if re.match(r"(warm|cold|cloned)", text)]


def end_daemon(dind: Dind, *names: str, signal: str = "KILL") -> None:
    """Kill the daemon (and what else is named), and wait until the next one answers."""
    before = len(starts(dind))
    [old] = dind.daemons()
    pids = [str(process.pid) for process in dind.processes() if process.comm in ("dockerd", *names)]
    dind.exec("kill", f"-{signal}", *pids)
    wait_until(lambda: len(starts(dind)) > before, what="another start", timeout_s=60, diagnose=dind.describe)
    dind.wait_ready()
    [new] = dind.daemons()
    assert new.pid != old.pid


def held_slot(dind: Dind) -> str:
    """The slot whose lock the daemon holds."""
    [daemon] = dind.daemons()
    [found] = {
        match[1] for _, target in daemon.files if (match := re.search(r"/slots/([0-9a-f]{12})/slot\.lock$", target))
    }
    return found


@pytest.mark.parametrize("disk", LOOPS, ids=str)
def test_each_start_leases_a_slot(engine: Engine, disk: Disk) -> None:
    pool = disk.volume(engine)
    first = disk.start(engine, pool, env={"CACHEDIND_POOL": POOL}, **AGAIN)
    project = overlay_project(secrets.token_hex(8))
    first.build(project)
    build_id = first.run_image(project)
    own = held_slot(first)
    for names, signal in (((), "TERM"), ((), "KILL"), (("containerd",), "KILL")):
        end_daemon(first, *names, signal=signal)
        assert held_slot(first) == own, "nobody else was there: it has its own slot again"
        assert starts(first)[-1].startswith("warm")
        assert first.sh(f"ls -A {POOL}") == "", "the pool is hidden again"
        assert first.sh(f"grep -c ' {DATA_ROOT} ' /proc/self/mountinfo") == "2", "the volume of the image, and one slot"
        # Its layers are in the pool by now, which is unmounted.
        assert first.run_image(project) == build_id
    assert first.build(project).uncached == []
    # Others have slots of their own, beside it and under it.
    others = [disk.start(engine, pool) for _ in range(2)]
    assert len({own, *map(held_slot, others)}) == 3
    assert held_slot(first) == own
    assert slot_of(others[0]) == held_slot(others[0])
    for dind in (first, *others):
        assert dind.build(project).uncached == []
        assert not [text for text in dind.warnings if "aside" in text or "no pool" in text], dind.warnings


def start_by_hand(dind: Dind) -> None:
    before = len(starts(dind))
    dind.sh("setsid dockerd-entrypoint.sh >/proc/1/fd/1 2>&1 </dev/null &")
    wait_until(lambda: len(starts(dind)) > before, what="a start", timeout_s=60, diagnose=dind.describe)
    dind.wait_ready()


def test_a_daemon_that_is_started_by_hand_in_a_running_container_is_one_more_start(engine: Engine) -> None:
    """`docker exec` under a PID 1 of the user's own, again after each kill."""
    disk = LOOPS[0]
    pool = disk.volume(engine)
    forever = ["sh", "-c", "while :; do sleep 1; done"]
    dind = disk.start(engine, pool, ready=False, entrypoint=forever, init=True, env={"CACHEDIND_POOL": POOL})
    project = overlay_project(secrets.token_hex(8))
    slots = []
    for signal in ("KILL", "TERM", "KILL"):
        start_by_hand(dind)
        slots.append(held_slot(dind))
        dind.build(project)
        dind.run_image(project)
        [daemon] = dind.daemons()
        dind.exec("kill", f"-{signal}", str(daemon.pid))
        wait_until(lambda: dind.daemons() == [], what="the daemon to end", timeout_s=30, diagnose=dind.describe)
    assert len(set(slots)) == 1, "nobody else was there"
    after = disk.start(engine, pool)
    assert after.build(project).uncached == []
    assert not [text for text in dind.warnings + after.warnings if "aside" in text or "no pool" in text]


def test_what_survives_keeps_its_slot(engine: Engine) -> None:
    """A container of the killed daemon's has its slot's lock: the next daemon gets another slot."""
    disk = LOOPS[1]
    pool = disk.volume(engine)
    dind = disk.start(engine, pool, **AGAIN)
    dind.load_base()
    dind.docker("run", "--detach", "--network=none", "base:latest", "sleep", "1000")
    own = held_slot(dind)
    end_daemon(dind)
    assert held_slot(dind) != own
    assert not [text for text in dind.warnings if "aside" in text or "no pool" in text], dind.warnings


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_direct_mode_goes_on_with_its_volume(engine: Engine, suite: str, signal: str) -> None:
    dind = engine.dind(suite, volume=engine.volume(), **AGAIN)
    dind.wait_ready()
    dind.docker("volume", "create", "mine")
    end_daemon(dind, signal=signal)
    assert dind.docker("volume", "ls", "--quiet") == "mine"
    [daemon] = dind.daemons()
    assert daemon.has_open(f"{DATA_ROOT}/.cachedind/lock")


def test_direct_mode_takes_over_from_what_survives(engine: Engine, suite: str) -> None:
    """The shim of a running container has the lock of the daemon that was killed."""
    volume = engine.volume()
    dind = engine.dind(suite, volume=volume, **AGAIN)
    dind.wait_ready()
    dind.load_base()
    inner = dind.docker("run", "--detach", "--network=none", "base:latest", "sleep", "1000")
    end_daemon(dind)
    assert dind.docker("inspect", "--format={{.State.Running}}", inner) == "false", "as with docker:dind"
    dind.docker("start", inner)
    # The lock is one: who comes from outside waits for it, as before.
    other = engine.dind(suite, volume=volume, env={"CACHEDIND_LOCK_TIMEOUT": "100ms"})
    assert other.wait_exit() == 75


@pytest.mark.parametrize("mode", ["pool", "direct"])
def test_a_second_daemon_in_the_container_is_refused(engine: Engine, suite: str, mode: str) -> None:
    volume = engine.volume("btrfs")
    dind = engine.dind(suite, **{"pool" if mode == "pool" else "volume": volume})
    dind.wait_ready()
    [daemon] = dind.daemons()
    second = dind.exec("dockerd", check=False, env={"CACHEDIND_LOCK_TIMEOUT": "100ms"})
    assert second.status == 75, second.output
    assert f"a daemon runs in this container already (PID {daemon.pid})" in second.output
    assert dind.docker("info", "--format={{.Driver}}") == "overlay2"
    assert [process.pid for process in dind.daemons()] == [daemon.pid]


def test_a_slot_mounted_by_hand_is_refused(engine: Engine, suite: str) -> None:
    pool = engine.volume("btrfs")
    first = engine.dind(suite, pool=pool)
    first.wait_ready()
    mounted_at = engine.client.volumes.get(pool.name).attrs["Mountpoint"]
    place = f"{mounted_at}/keys/default/slots/{held_slot(first)}/data"
    second = engine.dind(suite, volumes={place: {"bind": DATA_ROOT, "mode": "rw"}})
    assert second.wait_exit() == 65
    assert "is a slot of a pool, whose lock is out of reach" in second.log()
    assert first.docker("info", "--format={{.Driver}}") == "overlay2"
