"""Who gets which slot on real filesystems, and with what in it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from cachedind.pool import directory, key_directory, slots, staging
from cachedind.pool.slot_request import Warmth
from helpers import pool_starts
from helpers.pool_starts import KINDS, Opener


@pytest.mark.parametrize("kind", KINDS)
def test_the_life_of_a_key(open_on: Opener, kind: str) -> None:
    pool = open_on(kind)
    first = pool_starts.job(pool, pool_starts.slot_request(), "one")

    again = pool_starts.take(pool, pool_starts.slot_request())
    assert (again.warmth, again.slot.id, again.promoted) == (Warmth.LEASED, first, True)
    assert pool_starts.names(again) == ["one"]
    pool_starts.begin(again)
    pool_starts.write(again, "two")

    beside = pool_starts.take(pool, pool_starts.slot_request())
    assert (beside.warmth, beside.source_key) == (Warmth.CLONED, "k")
    assert beside.slot.id != first
    assert pool_starts.names(beside) == ["one"], "not what runs right now, but what was there before"
    pool_starts.write(beside, "three")
    assert pool_starts.names(again) == ["one", "two"]

    branch = pool_starts.take(pool, pool_starts.slot_request("branch", ("none-such", "k")))
    assert (branch.warmth, branch.source_key) == (Warmth.CLONED, "k")
    stranger = pool_starts.take(pool, pool_starts.slot_request("stranger"))
    assert (stranger.warmth, pool_starts.names(stranger)) == (Warmth.FRESH, [])
    for taken in (again, beside, branch, stranger):
        taken.close()


def test_an_empty_slot_does_not_come_before_the_good_one_that_a_start_could_not_use(open_on: Opener) -> None:
    """The job that got it builds something, and is the newest of all; the good one has the cache."""
    pool = open_on("ext4")
    good = pool_starts.job(pool, pool_starts.slot_request(), "good")
    without = pool_starts.slot_request()._replace(avoid=frozenset({good}))
    cold = pool_starts.take(pool, without)
    assert (cold.warmth, cold.is_throwaway) == (Warmth.FRESH, True)
    cold.close()
    pool_starts.job(pool, without, "built anew")
    again = pool_starts.take(pool, pool_starts.slot_request())
    assert (again.slot.id, pool_starts.names(again)) == (good, ["good"])
    again.close()


@pytest.mark.parametrize("driver", ["vfs", "btrfs", "zfs"])
def test_slots_of_drivers_whose_layers_cannot_be_shared_are_leased_or_fresh(open_on: Opener, driver: str) -> None:
    pool = open_on("ext4")
    first = pool_starts.job(pool, pool_starts.slot_request(), "one", driver=driver)
    again = pool_starts.take(pool, pool_starts.slot_request())
    assert (again.warmth, again.slot.id, again.promoted) == (Warmth.LEASED, first, False)
    beside = pool_starts.take(pool, pool_starts.slot_request())
    assert beside.warmth is Warmth.FRESH
    again.close()
    beside.close()


def test_an_empty_slot_on_which_no_daemon_came_up_has_any_number_of_chances(open_on: Opener) -> None:
    pool = open_on("btrfs")
    ids = set()
    for _ in range(3):
        taken = pool_starts.take(pool, pool_starts.slot_request())
        pool_starts.begin(taken)
        ids.add(taken.slot.id)
        taken.close()
    assert len(ids) == 1
    assert directory.names_in(pool.aside_fd) == []


def test_a_slot_on_which_a_stray_daemon_is_at_work_is_passed_over(open_on: Opener) -> None:
    pool = open_on("btrfs")
    used = pool_starts.job(pool, pool_starts.slot_request(), "good")
    path = Path(pool.path) / "keys/k/slots" / used / "data/volumes/metadata.db"
    path.parent.mkdir()
    path.touch()
    with path.open("r+") as database:
        fcntl.flock(database, fcntl.LOCK_EX)
        other = pool_starts.take(pool, pool_starts.slot_request())
        assert other.slot.id != used
        other.close()
    assert directory.names_in(pool.aside_fd) == []


def test_a_slot_that_goes_between_finding_and_locking_it_is_nobodys(
    open_on: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_on("btrfs")
    slot_id = pool_starts.job(pool, pool_starts.slot_request(), "one")
    with key_directory.locked_key(pool, "k", create=False) as key_fd:
        assert key_fd is not None
        slots_fd = key_directory.open_below(key_fd, "slots")
        lock = directory.try_lock

        def too_late(fd: int) -> bool:
            staging.throw_away(pool, slots_fd, slot_id)
            return lock(fd)

        monkeypatch.setattr(directory, "try_lock", too_late)
        assert slots.try_lease(key_fd, f"slots/{slot_id}") is None
        os.close(slots_fd)
