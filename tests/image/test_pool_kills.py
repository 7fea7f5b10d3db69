"""SIGKILL at every named step of everything that changes a pool: the next start has a working daemon and a warm cache.

Each test kills one start at one step (`CACHEDIND_KILL_AT`, base/trace.py) and looks at what the next one makes of it.
The tests of one disk share a pool, each finding what the last ones left.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cachedind.base.trace import POINTS
from helpers.estates import KEY, Estate, Estates, in_pool, small_project
from helpers.flavours import Flavour
from helpers.pools import Disk, slot_of
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helpers.dind import Dind
    from helpers.engine import Engine

BTRFS = Disk("btrfs", Flavour("forky", "containerd"))
EXT4 = Disk("ext4", Flavour("forky", "graphdriver"))
"""One way to share on every filesystem, and between them both stores."""


@pytest.fixture(scope="module")
def engine(module_engine: Engine) -> Engine:
    return module_engine


# ---- how a start comes to a step -----------------------------------------------------------------------------------


def idle(estate: Estate) -> None:
    """Nobody is there: the next start leases the newest slot, and promotes it."""
    estate.vacate()


def with_new_layers(estate: Estate) -> None:
    """The last job has built something new: the next start shares its layers, and promotes it."""
    dind = estate.occupied()
    dind.build(replace(small_project(secrets.token_hex(8)), tag="new:latest"))
    estate.vacate()


def beside(estate: Estate) -> None:
    """Somebody has the newest slot, and what it was made the golden: the next start clones that."""
    estate.vacate()
    estate.await_upkeep(estate.occupied())


def unknown(estate: Estate) -> None:
    """A pool without its record, as if it were new. What is in it stays."""
    estate.vacate()
    estate.visitor.sh("rm pool.json")


def with_leftovers(estate: Estate) -> None:
    """The last job has left a container."""
    dind = estate.occupied()
    dind.load_base()
    dind.docker("create", "base:latest", "true")
    estate.vacate()


def over_budget(estate: Estate) -> None:
    """The upkeep has noted that the pool is too large, and nothing is left to evict."""
    estate.vacate()
    estate.visitor.sh("""echo '{"version": 1, "min_reader": 1, "lacking_bytes": 1000000}' >over-budget.json""")


def with_garbage(estate: Estate) -> None:
    """The newest slot has a state file that means nothing."""
    slot = slot_of(estate.occupied())
    estate.vacate()
    estate.visitor.sh(f"echo garbage >{KEY}/slots/{slot}/slot.json")


def with_history(estate: Estate) -> None:
    """There is a golden.previous, which has to go for the next promotion."""
    for _ in range(3):
        with_new_layers(estate)
        if "golden.previous" in estate.goldens():
            return
    raise AssertionError("no promotion in three starts")


def beside_rubbish(estate: Estate) -> None:
    """The same, and stage and trash have things in them that killed starts have left."""
    beside(estate)
    in_pool(estate.occupied(), "mkdir -p stage/half trash/old trash/older; touch stage/half/file trash/old/file")


NEW_KEY = {"CACHEDIND_KEY": "a new branch", "CACHEDIND_FALLBACK_KEYS": "default"}
READ_ONLY = {"CACHEDIND_ACCESS": "ro"}
"""Such a start clones, even where a slot is free."""


class Scenario(NamedTuple):
    """How to kill a start at `point`. `env` are further settings of that start; the next one has its key, too."""

    disk: Disk
    point: str
    prepare: Callable[[Estate], None]
    env: Mapping[str, str] = {}

    def __str__(self) -> str:
        return f"{self.disk.fstype}-{self.point}-{self.prepare.__name__}"

    @property
    def survivor_env(self) -> dict[str, str]:
        return {name: value for name, value in self.env.items() if "KEY" in name}


CLONE = ("clone.staged", "clone.copied", "clone.recorded", "clone.named")
SHARE = ("share.listed", "share.planned", "share.linked", "share.exchanged", "share.moved", "share.done")
PROMOTE = ("promote.staged", "promote.copied", "promote.recorded", "promote.retired", "promote.named")

SCENARIOS = (
    Scenario(BTRFS, "pool.recorded", unknown),
    Scenario(BTRFS, "lease.locked", idle),
    Scenario(BTRFS, "lease.recorded", idle),
    Scenario(BTRFS, "bind.bound", idle),
    Scenario(BTRFS, "hide.unmounted", idle),
    Scenario(BTRFS, "evict.renamed", with_history),
    Scenario(BTRFS, "aside.renamed", with_garbage),
    Scenario(BTRFS, "maintain.started", with_leftovers),
    Scenario(BTRFS, "maintain.cleaned", with_leftovers),
    Scenario(BTRFS, "maintain.pruned", over_budget),
    Scenario(BTRFS, "maintain.stopped", with_leftovers),
    *(Scenario(BTRFS, point, with_new_layers) for point in SHARE),
    *(Scenario(BTRFS, point, with_new_layers) for point in PROMOTE),
    *(Scenario(BTRFS, point, beside, READ_ONLY) for point in CLONE),
    # The second finds the first one's key, and makes none.
    Scenario(BTRFS, "key.staged", idle, NEW_KEY | {"CACHEDIND_KEY": "a"}),
    Scenario(BTRFS, "key.named", idle, NEW_KEY | {"CACHEDIND_KEY": "b"}),
    Scenario(EXT4, "share.exchanged", with_new_layers),
    Scenario(EXT4, "promote.retired", with_new_layers),
    Scenario(EXT4, "clone.copied", beside, READ_ONLY),
)

LATE = (
    Scenario(BTRFS, "evict.renamed", beside_rubbish),
    Scenario(BTRFS, "evict.emptied", beside_rubbish),
)
"""Steps of the witness beside a daemon that is up: deletions."""


ELSEWHERE = ("seed.", "mend.", "view.")
"""Steps at which test_seeds_pool.py, test_damage.py and test_view_kills.py kill."""


def test_every_step_has_a_scenario() -> None:
    covered = {scenario.point for scenario in (*SCENARIOS, *LATE)}
    covered |= {point for point in POINTS if point.startswith(ELSEWHERE)}
    assert sorted(set(POINTS) - covered) == []
    assert sorted(covered - set(POINTS)) == []


# ---- kills -----------------------------------------------------------------------------------------------------------


def kill_at(victim: Dind) -> None:
    """Start an instance that kills itself; makes sure that it did, and in time."""
    victim.start()
    wait_until(
        lambda: not victim.running,
        what="the start to come to the step",
        hopeless=lambda: "the daemon came up" if "API listen on" in victim.log() else None,
        diagnose=victim.describe,
    )
    assert victim.wait_exit() == 137
    assert not victim.state["OOMKilled"]
    assert victim.errors == []
    # It never came as far as its summary, which is followed by dockerd.
    assert victim.summary is None
    assert "API listen on" not in victim.log()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_start_is_killed_and_the_next_is_warm(estates: Estates, scenario: Scenario) -> None:
    with estates.lend(scenario.disk) as estate:
        scenario.prepare(estate)
        neighbours = () if estate.current is None else (estate.current,)
        victim = estate.create({**scenario.env, "CACHEDIND_KILL_AT": scenario.point})
        kill_at(victim)
        estate.drop(victim)
        assert estate.goldens() != []
        assert estate.held_slots() == {slot_of(dind) for dind in neighbours}

        survivor = estate.enter(scenario.survivor_env)
        assert survivor.warnings == []
        estate.check(survivor, beside=neighbours)
        if scenario.survivor_env:
            estate.drop(survivor)
        else:
            estate.succeed(survivor)


@pytest.mark.parametrize("scenario", LATE, ids=str)
def test_a_witness_is_killed_and_the_next_does_its_work(estates: Estates, scenario: Scenario) -> None:
    with estates.lend(scenario.disk) as estate:
        scenario.prepare(estate)
        neighbour = estate.occupied()
        victim = estate.enter({"CACHEDIND_KILL_AT": scenario.point})
        estate.await_witness(victim)
        stage, trash = (in_pool(victim, f"ls {name}").split() for name in ("stage", "trash"))
        if scenario.point == "evict.renamed":
            # What was half-made is in trash, under another name, and nothing is deleted yet.
            assert stage == []
            assert len(trash) == 3
            assert {"old", "older"} < set(trash)
        elif scenario.point == "evict.emptied":
            # One of three is deleted.
            assert stage == []
            assert len(trash) == 2
        estate.check(victim, beside=(neighbour,), upkeep=False)
        estate.drop(victim)

        survivor = estate.enter()
        assert survivor.warnings == []
        estate.check(survivor, beside=(neighbour,))
        estate.succeed(survivor)
