"""A copy that takes its time: who waits for it, what hides its cost, and what is evicted meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cachedind.pool import clone, golden, key_directory, slot_lease, staging, sweeping, upkeep
from cachedind.pool.directory import Pool
from cachedind.pool.mutable import LeftOut
from cachedind.pool.slot_request import TakenSlot, Warmth
from helpers import pool_starts
from helpers.pool_starts import Opener


class Copying(NamedTuple):
    """A start that copies its slot's state and is held amid that."""

    begun: threading.Event
    go_on: threading.Event
    start: Future[TakenSlot]


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Pool], Copying]]:
    begun, go_on = threading.Event(), threading.Event()

    copy = clone.copy

    def held(*args: Any) -> LeftOut:
        if threading.current_thread().name.startswith("copying"):
            begun.set()
            assert go_on.wait(30)
        return copy(*args)

    monkeypatch.setattr(clone, "copy", held)
    with ThreadPoolExecutor(1, thread_name_prefix="copying") as threads:

        def begin(pool: Pool) -> Copying:
            start = threads.submit(pool_starts.take, pool, pool_starts.slot_request())
            assert begun.wait(30)
            return Copying(begun, go_on, start)

        yield begin
        go_on.set()


def test_nobody_waits_for_a_copy_who_has_something_else(open_on: Opener, copying: Callable[[Pool], Copying]) -> None:
    pool = open_on("xfs")
    pool_starts.job(pool, pool_starts.slot_request(), "old")
    pool_starts.job(pool, pool_starts.slot_request(), "new")  # with which the old state becomes the golden
    first = copying(pool)
    started = time.monotonic()
    beside = pool_starts.take(pool, pool_starts.slot_request())
    assert (beside.warmth, pool_starts.names(beside)) == (Warmth.CLONED, ["old"])
    assert not first.start.done(), "it was not waited for"
    assert time.monotonic() - started < slot_lease.WAIT_S
    first.go_on.set()
    own = first.start.result(30)
    assert (own.warmth, own.promoted, sorted(pool_starts.names(own))) == (Warmth.LEASED, True, ["new", "old"])
    later = pool_starts.take(pool, pool_starts.slot_request())
    assert (later.warmth, sorted(pool_starts.names(later))) == (Warmth.CLONED, ["new", "old"])
    for taken in (beside, own, later):
        taken.close()


def test_who_has_nothing_else_waits_for_a_copy(
    open_on: Opener, copying: Callable[[Pool], Copying], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_on("xfs")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    waits, wait = threading.Event(), golden.wait_for_turn

    def seen(key_fd: int, timeout_s: float) -> bool:
        waits.set()
        return wait(key_fd, timeout_s)

    monkeypatch.setattr(golden, "wait_for_turn", seen)
    first = copying(pool)
    with ThreadPoolExecutor(1) as threads:
        beside = threads.submit(pool_starts.take, pool, pool_starts.slot_request())
        assert waits.wait(30)
        first.go_on.set()
        found = beside.result(30)
    assert (found.warmth, pool_starts.names(found)) == (Warmth.CLONED, ["one"])
    found.close()
    first.start.result(30).close()


def test_a_copy_that_gets_its_name_before_anybody_waits_is_not_missed(
    open_on: Opener, copying: Callable[[Pool], Copying], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a key, and the wait for what was copied then."""
    pool = open_on("ext4")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    first = copying(pool)
    choose = slot_lease._choose

    def slowly(*words: Any) -> Any:
        chosen = choose(*words)
        first.go_on.set()
        first.start.result(30)
        return chosen

    monkeypatch.setattr(slot_lease, "_choose", slowly)
    found = pool_starts.take(pool, pool_starts.slot_request())
    assert (found.warmth, pool_starts.names(found)) == (Warmth.CLONED, ["one"])
    found.close()
    first.start.result(30).close()


def test_a_spare_hides_the_cost_of_copying(open_on: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "SLOW_S", 0.0)
    pool = open_on("xfs")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    running = pool_starts.take(pool, pool_starts.slot_request())
    pool_starts.begin(running)
    upkeep.run(pool, pool_starts.settings(Path(pool.path)), "k", time.time())
    beside = pool_starts.take(pool, pool_starts.slot_request())
    assert (beside.warmth, pool_starts.names(beside)) == (Warmth.LEASED, ["one"]), (
        "the spare was not there, or not taken"
    )
    golden = json.loads((Path(pool.path) / "keys/k/scopes/%/golden/golden.json").read_text())
    assert golden["durable"] is True
    running.close()
    beside.close()


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_a_golden_that_is_evicted_while_it_is_copied_is_copied_whole(
    open_on: Opener, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_on(kind)
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    first = pool_starts.take(pool, pool_starts.slot_request())
    copy = clone.copy

    def slowly(*args: Any) -> LeftOut:
        with key_directory.locked_key(pool, "k", create=False) as key_fd:
            assert key_fd is not None
            staging.throw_away(pool, key_fd, "scopes/%/golden")
        assert sweeping.empty_trash(pool) == 0, "deleted while it is copied"
        return copy(*args)

    monkeypatch.setattr(clone, "copy", slowly)
    beside = pool_starts.take(pool, pool_starts.slot_request())
    assert (beside.warmth, pool_starts.names(beside)) == (Warmth.CLONED, ["one"])
    assert sweeping.empty_trash(pool) == 1
    first.close()
    beside.close()
