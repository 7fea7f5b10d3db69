"""Slots and goldens that share layers: each is there once, and goes with the last that lists it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cachedind.pool import directory, layers, sweeping, upkeep
from cachedind.pool.slot_request import Warmth
from helpers import pool_starts
from helpers.children import Child
from helpers.pool_starts import KINDS, Opener


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_there_once(open_on: Opener, kind: str) -> None:
    pool = open_on(kind)
    first = pool_starts.take(pool, pool_starts.slot_request())
    pool_starts.begin(first)
    pool_starts.build(first, "a", "b")
    pool_starts.come_up(first)
    first.close()
    again = pool_starts.take(pool, pool_starts.slot_request())
    assert again.promoted
    beside = [pool_starts.take(pool, pool_starts.slot_request()) for _ in range(3)]
    assert [pool_starts.layers_of(taken) for taken in (again, *beside)] == [["a", "b"]] * 4
    assert len(layers.names(pool.layers_fd)) == 2
    pool_starts.begin(again)
    pool_starts.build(again, "c")
    assert pool_starts.layers_of(beside[0]) == ["a", "b"]
    for taken in (again, *beside):
        taken.close()


def test_layers_go_with_the_last_that_lists_them(open_on: Opener) -> None:
    pool = open_on("ext4")
    first = pool_starts.take(pool, pool_starts.slot_request())
    pool_starts.begin(first)
    pool_starts.build(first, "a")
    pool_starts.come_up(first)
    first.close()
    held = pool_starts.take(pool, pool_starts.slot_request())
    time.sleep(sweeping.GRACE_S + 0.1)
    settings = pool_starts.settings(Path(pool.path), POOL_MAX_SIZE="1")
    upkeep.run(pool, settings, None, time.time())
    assert pool_starts.layers_of(held) == ["a"], "the golden has gone, and a slot in use has the layer still"
    held.close()
    upkeep.run(pool, settings, None, time.time())
    assert layers.names(pool.layers_fd) == []
    assert directory.names_in(pool.trash_fd) == []


def test_a_slot_with_a_planted_link_is_set_aside_and_never_cloned(open_on: Opener) -> None:
    pool = open_on("ext4")
    for name in ("a", "b"):
        taken = pool_starts.take(pool, pool_starts.slot_request())
        pool_starts.begin(taken)
        pool_starts.build(taken, name)
        pool_starts.come_up(taken)
        taken.close()
    bad = Path(pool.path) / "keys/k/slots" / taken.slot.id / "data/overlay2/planted"
    bad.mkdir()
    (bad / "diff").symlink_to("/etc")
    fresh = pool_starts.take(pool, pool_starts.slot_request())
    assert (fresh.warmth, pool_starts.layers_of(fresh)) == (Warmth.CLONED, ["a"])
    assert len(directory.names_in(pool.aside_fd)) == 1
    fresh.close()


@pytest.mark.parametrize("what", [".cachedind", ".cachedind/layers"])
def test_a_link_where_the_layers_are_to_be_costs_the_slot(open_on: Opener, tmp_path: Path, what: str) -> None:
    pool = open_on("ext4")
    slot_id = pool_starts.job(pool, pool_starts.slot_request(), "one")
    planted = Path(pool.path) / "keys/k/slots" / slot_id / "data" / what
    planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(tmp_path)
    again = pool_starts.take(pool, pool_starts.slot_request())
    assert again.slot.id != slot_id
    assert len(directory.names_in(pool.aside_fd)) == 1
    assert list(tmp_path.glob("layers")) == []
    again.close()


@pytest.mark.parametrize("step", ["share.planned", "share.exchanged", "share.moved"])
def test_sharing_that_was_killed_is_finished_before_a_daemon_sees_the_slot(open_on: Opener, step: str) -> None:
    pool = open_on("ext4")
    first = pool_starts.take(pool, pool_starts.slot_request())
    pool_starts.begin(first)
    pool_starts.build(first, "a", "b", "c")
    pool_starts.come_up(first)
    first.close()
    killed = Child(lambda: pool_starts.take(pool_starts.open_pool(Path(pool.path), step), pool_starts.slot_request()))
    assert killed.wait() == 9
    killed.end()
    again = pool_starts.take(pool, pool_starts.slot_request())
    assert (again.slot.id, again.promoted, pool_starts.layers_of(again)) == (first.slot.id, True, ["a", "b", "c"])
    again.close()
