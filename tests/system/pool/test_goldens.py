"""What becomes a golden, what is no longer one, and which of them stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cachedind.base.log import Level, Log
from cachedind.base.model import EngineVersion
from cachedind.pool import directory, slot_lease, slot_state
from cachedind.pool.slot_request import Warmth
from helpers import pool_starts
from helpers.pool_starts import Opener


def test_a_state_of_which_no_daemon_came_up_is_neither_promoted_nor_lost(open_on: Opener) -> None:
    pool = open_on("btrfs")
    slot_id = pool_starts.job(pool, pool_starts.slot_request(), "good")
    for _ in range(12):
        cancelled = pool_starts.take(pool, pool_starts.slot_request())
        assert (cancelled.warmth, cancelled.slot.id, pool_starts.names(cancelled)) == (Warmth.LEASED, slot_id, ["good"])
        pool_starts.begin(cancelled)
        beside = pool_starts.take(pool, pool_starts.slot_request())
        assert pool_starts.names(beside) == ["good"]
        beside.close()  # killed, and even before it was noted down
        cancelled.close()
        slot_id = cancelled.slot.id
    assert directory.names_in(pool.aside_fd) == []
    sequence = pool_starts.golden(pool)["sequence"]
    assert isinstance(sequence, int)
    assert sequence < cancelled.sequence, "what no daemon has answered on is no golden"


def test_what_ended_cleanly_before_a_reboot_becomes_a_golden_that_is_trusted(open_on: Opener) -> None:
    pool = open_on("btrfs")
    slot_id = pool_starts.job(pool, pool_starts.slot_request(), "good")
    path = Path(pool.path) / "keys/k/slots" / slot_id / slot_state.STATE_NAME
    noted = json.loads(path.read_text())
    path.write_text(json.dumps({**noted, "boot_id": "of-before", "ended": {"status": 0, "clean": True}}))
    leased = pool_starts.take(pool, pool_starts.slot_request())
    assert (leased.warmth, leased.slot.id, leased.promoted) == (Warmth.LEASED, slot_id, True)
    beside = pool_starts.take(pool, pool_starts.slot_request())
    assert (beside.warmth, pool_starts.names(beside)) == (Warmth.CLONED, ["good"])
    assert beside.raw["doubt"] == ""
    for taken in (leased, beside):
        taken.close()


@pytest.mark.parametrize("how", ["leased", "cloned"])
def test_a_golden_goes_only_with_its_own_clone(open_on: Opener, how: str) -> None:
    """The slot that was proven bad has gone on since the golden was made of it."""
    pool = open_on("btrfs")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    pool_starts.job(pool, pool_starts.slot_request(), "two")
    held = pool_starts.take(pool, pool_starts.slot_request())
    if how == "leased":
        pool_starts.begin(held)
        held.close()
        held = pool_starts.take(pool, pool_starts.slot_request())
        bad = held
    else:
        bad = pool_starts.take(pool, pool_starts.slot_request())
    assert bad.warmth is (Warmth.LEASED if how == "leased" else Warmth.CLONED)
    slot_lease.give_up(bad, "a private daemon ended by itself", Log(level=Level.ERROR))
    left = pool_starts.take(pool, pool_starts.slot_request())
    expected = ["one", "two"] if how == "leased" else ["one"]
    assert pool_starts.names(left) == expected
    assert len(directory.names_in(pool.aside_fd)) == (1 if how == "leased" else 2)
    left.close()
    if held is not bad:
        held.close()


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_the_golden_before_is_kept(open_on: Opener, kind: str) -> None:
    pool = open_on(kind)
    for number in range(4):
        pool_starts.job(pool, pool_starts.slot_request(), f"file-{number}")
    key = Path(pool.path) / "keys/k"
    assert sorted(path.name for path in (key / "scopes/%/golden/data").glob("file*")) == ["file-0", "file-1", "file-2"]
    assert sorted(path.name for path in (key / "scopes/%/golden.previous/data").glob("file*")) == ["file-0", "file-1"]
    assert list((key / "scopes/%/golden.other").iterdir()) == []


def test_goldens_of_other_engines_and_stores_stay(open_on: Opener) -> None:
    pool = open_on("btrfs")
    old = EngineVersion(26, 1, 5)
    for _ in range(2):
        pool_starts.job(pool, pool_starts.slot_request(engine=old), "old", old)
    for number in range(4):
        pool_starts.job(pool, pool_starts.slot_request(), f"new-{number}")
    others = [path.name for path in (Path(pool.path) / "keys/k/scopes/%/golden.other").iterdir()]
    assert others == [f"26.1-graphdriver-overlay2-{pool_starts.ARCH}"]
    back = pool_starts.take(pool, pool_starts.slot_request(engine=old))
    assert (back.warmth, pool_starts.names(back)) == (Warmth.CLONED, ["old"])
    back.close()
