"""SIGKILL at every named step of everything that changes a pool: the next start has a working daemon and a warm cache.

Each test kills one start at one step (`CACHEDIND_KILL_AT`, base/trace.py) and looks at what the next one makes of it.
The tests of one home share a pool, each finding what the last ones left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from cachedind.base.trace import POINTS
from helpers.estates import KEY, Estate, Estates, in_pool
from helpers.flavours import Flavour
from helpers.pools import Home, slot_of
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helpers.dind import Dind
    from helpers.engine import Engine

BTRFS = Home("btrfs", Flavour("forky", "containerd"))
XFS = Home("xfs", Flavour("forky", "graphdriver"))
EXT4 = Home("ext4", Flavour("forky", "graphdriver"))
"""Subvolumes, reflinks, and the image backing."""


@pytest.fixture(scope="module")
def engine(module_engine: Engine) -> Engine:
    return module_engine


# ---- how a start comes to a step -----------------------------------------------------------------------------------


def idle(estate: Estate) -> None:
    """Nobody is there: the next start leases the newest slot, and promotes it."""
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
        estate.vacate()
        if "golden.previous" in estate.goldens():
            return
    raise AssertionError("no promotion in three starts")


def beside_rubbish(estate: Estate) -> None:
    """The same, and stage and trash have things in them that killed starts have left."""
    beside(estate)
    in_pool(estate.occupied(), "mkdir -p stage/half trash/old trash/older; touch stage/half/file trash/old/file")


NEW_KEY = {"CACHEDIND_KEY": "a new branch", "CACHEDIND_FALLBACK_KEYS": "default"}
READ_ONLY = {"CACHEDIND_ACCESS": "ro"}
"""Such a start clones, even where the witness of another one has left a spare slot for it (xfs)."""


class Scenario(NamedTuple):
    """How to kill a start at `point`. `env` are further settings of that start; the next one has its key, too."""

    home: Home
    point: str
    prepare: Callable[[Estate], None]
    env: Mapping[str, str] = {}

    def __str__(self) -> str:
        return f"{self.home.fstype}-{self.point}-{self.prepare.__name__}"

    @property
    def survivor_env(self) -> dict[str, str]:
        return {name: value for name, value in self.env.items() if "KEY" in name}


CLONE = ("clone.staged", "clone.copied", "clone.recorded", "clone.named")
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
    *(Scenario(BTRFS, point, idle) for point in PROMOTE),
    *(Scenario(BTRFS, point, beside) for point in CLONE),
    # The second finds the first one's key, and makes none.
    Scenario(BTRFS, "key.staged", idle, NEW_KEY | {"CACHEDIND_KEY": "a"}),
    Scenario(BTRFS, "key.named", idle, NEW_KEY | {"CACHEDIND_KEY": "b"}),
    *(Scenario(XFS, point, idle) for point in PROMOTE),
    *(Scenario(XFS, point, beside, READ_ONLY) for point in CLONE),
    Scenario(EXT4, "image.attached", idle),
    Scenario(EXT4, "image.mounted", idle),
    Scenario(EXT4, "image.mounted", beside),
    Scenario(EXT4, "hide.unmounted", idle),
)

BIRTHS = ("image.sized", "image.formatted", "image.named", "image.attached", "image.mounted", "pool.recorded")
"""Steps of making an image, before which there is nothing."""

LATE = (
    Scenario(BTRFS, "evict.renamed", beside_rubbish),
    Scenario(BTRFS, "evict.emptied", beside_rubbish),
    *(Scenario(XFS, point, beside) for point in CLONE),
)
"""Steps of the witness beside a daemon that is up: deletions, and the spare slot that it makes on xfs."""


ELSEWHERE = ("seed.", "mend.")
"""Steps at which test_seeds_pool.py and test_damage.py kill."""


def test_every_step_has_a_scenario() -> None:
    covered = {scenario.point for scenario in (*SCENARIOS, *LATE)} | set(BIRTHS)
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
    with estates.lend(scenario.home) as estate:
        scenario.prepare(estate)
        neighbours = () if estate.current is None else (estate.current,)
        victim = estate.create({**scenario.env, "CACHEDIND_KILL_AT": scenario.point})
        kill_at(victim)
        estate.drop(victim)
        if estate.is_image:
            wait_until(
                lambda: len(estate.attached_images()) == len(neighbours),
                what="the image to be attached for those who are left, or not at all",
                diagnose=lambda: str(estate.attached_images()),
            )
        else:
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
    with estates.lend(scenario.home) as estate:
        scenario.prepare(estate)
        neighbour = estate.occupied()
        slots_before = in_pool(neighbour, f"ls {KEY}/slots").split()
        victim = estate.enter({"CACHEDIND_KILL_AT": scenario.point})
        estate.await_witness(victim)
        stage, trash = (in_pool(victim, f"ls {name}").split() for name in ("stage", "trash"))
        slots = in_pool(victim, f"ls {KEY}/slots").split()
        if scenario.point == "evict.renamed":
            # What was half-made is in trash, under another name, and nothing is deleted yet.
            assert stage == []
            assert len(trash) == 3
            assert {"old", "older"} < set(trash)
        elif scenario.point == "evict.emptied":
            # One of three is deleted.
            assert stage == []
            assert len(trash) == 2
        elif scenario.point == "clone.named":
            # The spare is there, and nobody holds it.
            assert stage == []
            assert len(set(slots) - set(slots_before)) == 1
        else:
            assert len(stage) == 1
            assert set(slots) <= set(slots_before)
        estate.check(victim, beside=(neighbour,), upkeep=False)
        estate.drop(victim)

        survivor = estate.enter()
        assert survivor.warnings == []
        estate.check(survivor, beside=(neighbour,))
        estate.succeed(survivor)


@pytest.mark.parametrize("point", BIRTHS)
def test_a_start_is_killed_while_it_makes_an_image(engine: Engine, point: str) -> None:
    estate = Estate(engine, EXT4)
    victim = estate.create({"CACHEDIND_KILL_AT": point})
    kill_at(victim)
    estate.drop(victim)
    wait_until(lambda: not estate.attached_images(), what="the image to be detached")

    estate.current = estate.enter()
    assert (estate.current.summary or "").startswith("cold: ")
    assert estate.current.warnings == []
    estate.check(estate.current, warm=False)
    assert set(estate.visitor.sh("ls").split()) == {"CACHEDIR.TAG", "lost+found", "pool.img", "pool.json", "pool.lock"}
    estate.close()
