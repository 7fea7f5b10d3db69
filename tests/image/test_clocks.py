"""Clocks that are wrong: an instance that lives a year ahead or behind finds the newest state, and loses nobody's."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.estates import in_pool
from helpers.pools import HOMES, Home, slot_of
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

BTRFS = HOMES[1]
MAX_AGE = {"CACHEDIND_MAX_AGE": "30d"}


def start_with_clock(engine: Engine, home: Home, pool: Volume, offset: str, **env: str) -> Dind:
    """An instance whose C library tells another time; Go asks the kernel itself."""
    [library] = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    clock = {"LD_PRELOAD": "/faketime/lib.so", "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    dind = home.start(engine, pool, ready=False, start=False, env={**clock, **MAX_AGE, **env})
    dind.put("/faketime", {"lib.so": library.read_bytes()})
    dind.start()
    dind.wait_ready()
    return dind


def await_upkeep(dind: Dind) -> None:
    """The witness's last work is done: it ends."""
    script = "! grep -qs '[b]oot.py' $(ls -d /proc/[0-9]*/cmdline | grep -vx /proc/1/cmdline)"
    wait_until(lambda: dind.exec("sh", "-c", script, check=False).status == 0, what="the witness to end")


@pytest.mark.parametrize("offset", ["-365d", "+365d"])
def test_a_year_apart(engine: Engine, offset: str) -> None:
    pool = BTRFS.volume(engine)
    other, mine, new = (overlay_project(secrets.token_hex(8), tag=f"{tag}:latest") for tag in ("other", "mine", "new"))
    for key, project in (("other", other), ("default", mine)):
        first = BTRFS.start(engine, pool, env={"CACHEDIND_KEY": key, **MAX_AGE})
        first.build(project)
        await_upkeep(first)
        first.kill()

    wrong = start_with_clock(engine, BTRFS, pool, offset)
    year = int(wrong.sh("date +%Y")) - int(wrong.sh("LD_PRELOAD= date +%Y"))
    assert year in (-1, 1)
    assert wrong.build(mine).uncached == []
    wrong.build(new)
    await_upkeep(wrong)
    beside = BTRFS.start(engine, pool, env=MAX_AGE)
    assert slot_of(beside) != slot_of(wrong)
    assert beside.build(mine).uncached == []
    await_upkeep(beside)
    beside.kill()
    wrong.kill()

    right = BTRFS.start(engine, pool, env=MAX_AGE)
    # What the one beside had is a later start's, so it is newer: whatever the time was in either.
    assert slot_of(right) == slot_of(beside)
    assert right.build(mine).uncached == []
    await_upkeep(right)
    assert {"other", "default"} <= set(in_pool(right, "ls keys").split())
    right.kill()
    last = BTRFS.start(engine, pool, env={"CACHEDIND_KEY": "other", **MAX_AGE})
    assert last.build(other).uncached == []
    assert last.warnings == []
