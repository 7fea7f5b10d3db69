"""Pools on real filesystems, without daemons: who gets which slot, what clones cost, what is evicted, and that kills at
any moment neither give a slot two holders nor break a golden."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cachedind.base.errors import PoolUnusableError
from cachedind.base.log import Level, Log
from cachedind.base.model import EngineVersion
from cachedind.base.trace import Trace
from cachedind.host import linux
from cachedind.pool import (
    clone,
    directory,
    eviction,
    golden,
    key_directory,
    layers,
    slot_lease,
    slot_state,
    slots,
    staging,
    survey,
    sweeping,
    upkeep,
)
from cachedind.pool.directory import Pool
from cachedind.pool.limits import EntryKind
from cachedind.pool.mutable import LeftOut
from cachedind.pool.slot_request import TakenSlot, Warmth
from helpers import pool_starts
from helpers.children import Child, child
from helpers.filesystems import Filesystems

KINDS = ("btrfs", "xfs", "ext4")


Opener = Callable[..., Pool]


@pytest.fixture
def open_on(filesystems: Filesystems) -> Iterator[Opener]:
    """Opens the pool on a filesystem of a kind, anew with each call."""
    places: dict[str, Path] = {}
    opened: list[Pool] = []

    def open_on(kind: str, *, size_mib: int = 2048, **environ: str) -> Pool:
        if kind not in places:
            places[kind] = filesystems.make(kind, size_mib=size_mib)
        opened.append(pool_starts.open_pool(places[kind], **environ))
        return opened[-1]

    yield open_on
    for pool in opened:
        pool.close()


def test_a_new_pool_says_what_it_is(open_on: Opener) -> None:
    pool = open_on("ext4")
    assert pool.is_new
    assert not open_on("ext4").is_new
    raw = json.loads((Path(pool.path) / "pool.json").read_text())
    assert (raw["version"], raw["min_reader"]) == (2, 2)
    assert (Path(pool.path) / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")


def older(path: Path) -> None:
    (path / "pool.json").write_text('{"version": 1, "min_reader": 1, "backing": "image", "clone": "subvolume"}')
    for name in ("keys/k/scopes/%/golden/data", "stage/x", "trash/x", "aside/earlier"):
        (path / name).mkdir(parents=True)
    (path / "pool.img").write_bytes(b"an image")


def test_a_pool_of_version_1_is_set_aside_in_one_piece(filesystems: Filesystems) -> None:
    path = filesystems.make("ext4")
    older(path)
    pool, [note] = directory.open_pool(str(path), pool_starts.settings(path), Trace())
    with contextlib.closing(pool):
        assert "was a pool of version 1" in str(note)
        taken = pool_starts.take(pool, pool_starts.slot_request())
        assert taken.warmth is Warmth.FRESH
        taken.close()
        [where] = set(directory.names_in(pool.aside_fd)) - {"earlier"}
        assert f"aside/{where}" in str(note)
        kept = path / "aside" / where / "slot"
        assert sorted(os.listdir(kept)) == ["keys", "pool.img", "pool.json", "stage", "trash"]
        assert (kept / "keys/k/scopes/%/golden/data").is_dir()


@pytest.mark.parametrize("left", ["pool.json", "pool.img", "trash"])
def test_setting_a_pool_aside_is_gone_on_with_after_a_kill(filesystems: Filesystems, left: str) -> None:
    path = filesystems.make("ext4")
    older(path)
    for name in ("pool.img", "keys", "stage", "trash"):
        if name != left:
            os.rename(path / name, path / f"moved-{name}")
    pool_starts.open_pool(path).close()
    assert not (path / "pool.img").exists()
    assert json.loads((path / "pool.json").read_text())["version"] == 2


@pytest.mark.parametrize("text", ["garbage", "", None])
def test_a_record_that_cannot_be_read_costs_nothing(open_on: Opener, text: str | None) -> None:
    pool = open_on("ext4")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    record = Path(pool.path) / "pool.json"
    record.unlink() if text is None else record.write_text(text)
    again = pool_starts.take(open_on("ext4"), pool_starts.slot_request())
    assert (again.warmth, pool_starts.names(again)) == (Warmth.LEASED, ["one"])
    assert json.loads(record.read_text())["version"] == 2
    again.close()


def test_strict_sets_no_pool_aside(filesystems: Filesystems) -> None:
    path = filesystems.make("ext4")
    older(path)
    with pytest.raises(PoolUnusableError, match="version 1"):
        pool_starts.open_pool(path, STRICT="1")
    assert (path / "pool.img").exists()


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


def test_throw_aways_are_evicted_and_held_slots_never(open_on: Opener) -> None:
    pool = open_on("btrfs")
    stale = pool_starts.job(pool, pool_starts.slot_request(), "one")
    held = pool_starts.take(pool, pool_starts.slot_request(read_only=True))
    freed = pool_starts.take(pool, pool_starts.slot_request(read_only=True))
    freed.close()
    pool_starts.job(pool, pool_starts.slot_request(), "two")
    pool_starts.take(pool, pool_starts.slot_request()).close()
    now = time.time()
    report = upkeep.run(pool, pool_starts.settings(Path(pool.path), MAX_AGE="1s", POOL_MAX_SIZE="1"), "k", now + 3600)
    gone = {eviction.entry.name for eviction in report.evicted}
    assert f"slots/{freed.slot.id}" in gone
    assert f"slots/{stale}" in gone, "unused for longer than MAX_AGE"
    left = os.listdir(f"{pool.path}/keys/k/slots")
    assert left == [held.slot.id]
    assert pool_starts.names(held) == ["one"]
    assert directory.names_in(pool.trash_fd) == []
    held.close()


def test_what_a_slot_in_use_shares_with_its_golden_is_not_freed_with_that(open_on: Opener) -> None:
    pool = open_on("btrfs")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    first = pool_starts.take(pool, pool_starts.slot_request())
    pool_starts.write(first, "large", "x" * (4 << 20))
    linux.syncfs(first.slot.data_fd)
    pool_starts.begin(first)
    pool_starts.come_up(first)
    first.close()
    held = pool_starts.take(pool, pool_starts.slot_request())
    linux.syncfs(held.slot.data_fd)
    evicted = eviction.evict(pool, pool_starts.settings(Path(pool.path), POOL_MAX_SIZE="1MB"), time.time())
    assert "scopes/%/golden" in {eviction.entry.name for eviction in evicted.evictions}
    assert 2 << 20 < evicted.own_lacking_bytes < 5 << 20
    held.close()


def test_the_newest_state_survives_upkeep(open_on: Opener) -> None:
    pool = open_on("btrfs")
    for number in range(4):
        pool_starts.job(pool, pool_starts.slot_request(), f"file-{number}")
        upkeep.run(pool, pool_starts.settings(Path(pool.path)), "k", time.time())
    last = pool_starts.take(pool, pool_starts.slot_request())
    assert (last.warmth, len(pool_starts.names(last))) == (Warmth.LEASED, 4)
    last.close()


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


def test_a_held_slot_is_known_as_held_and_cannot_be_removed_by_anyone_who_does_not_know(open_on: Opener) -> None:
    pool = open_on("btrfs")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    held = pool_starts.take(pool, pool_starts.slot_request())
    entries = survey.survey(pool, sizes=True, now=time.time()).entries
    [entry] = [entry for entry in entries if entry.name == f"slots/{held.slot.id}"]
    assert entry.held
    assert eviction.remove_entry(pool, entry._replace(held=False, superseded=True)) is False
    assert pool_starts.names(held) == ["one"]
    held.close()
    assert eviction.remove_entry(pool, entry._replace(held=False)) is True


def test_a_slot_that_somebody_had_meanwhile_is_not_what_was_judged(open_on: Opener) -> None:
    pool = open_on("btrfs")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    [entry] = survey.survey(pool, sizes=False, now=time.time()).entries
    pool_starts.job(pool, pool_starts.slot_request(), "two")
    assert eviction.remove_entry(pool, entry) is False
    again = pool_starts.take(pool, pool_starts.slot_request())
    assert pool_starts.names(again) == ["one", "two"]
    again.close()


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


# ---- what a clone costs ------------------------------------------------------------


def fill(taken: TakenSlot, layer_count: int, file_count: int) -> None:
    """So many layers with so many small files in all."""
    names = [f"layer-{number}" for number in range(layer_count)]
    pool_starts.build(taken, *names)
    each = file_count // layer_count
    for name in names:
        directory_fd = os.open(f"overlay2/{name}/diff", os.O_RDONLY | os.O_DIRECTORY, dir_fd=taken.slot.data_fd)
        for number in range(each):
            fd = os.open(f"f{number}", os.O_WRONLY | os.O_CREAT, dir_fd=directory_fd)
            os.write(fd, b"a layer's file")
            os.close(fd)
        os.close(directory_fd)


def cpu_ms() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (time.process_time() + children.ru_utime + children.ru_stime) * 1000


@contextlib.contextmanager
def clone_ms(pool: Pool, key: str) -> Iterator[float]:
    """What it costs to take a clone of the key's golden, in milliseconds of the processor, its children's included: the
    least of five, which stay held meanwhile. Neighbours on the machine do not count, as they would by a clock."""
    another, times = [], []
    for _ in range(5):
        started = cpu_ms()
        another.append(pool_starts.take(pool, pool_starts.slot_request(key)))
        times.append(cpu_ms() - started)
        assert another[-1].warmth is Warmth.CLONED
    yield min(times)
    for taken in another:
        taken.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KINDS)
def test_a_clone_costs_by_the_layer_and_not_by_the_file(open_on: Opener, kind: str) -> None:
    pool = open_on(kind, size_mib=4096)
    costs = {}
    for layer_count, file_count in ((300, 300), (300, 60_000)):
        key = f"files-{file_count}"
        first = pool_starts.take(pool, pool_starts.slot_request(key))
        pool_starts.begin(first)
        fill(first, layer_count, file_count)
        pool_starts.come_up(first)
        first.close()
        holder = pool_starts.take(pool, pool_starts.slot_request(key))
        assert holder.promoted
        os.sync()  # what is measured is the clone, not the disk that still writes what was just made
        with clone_ms(pool, key) as costs[file_count]:
            pass
        holder.close()
    print(f"{kind}, 300 layers: " + ", ".join(f"{count} files {ms:.1f} ms" for count, ms in costs.items()))
    assert costs[60_000] <= 2 * costs[300]


# ---- many at once, killed at any moment --------------------------------------------------


def restless(path: Path, seed: int, end: float) -> list[str]:
    """Take slots, use them, give them back, until `end`; returns violations of their exclusiveness."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    dice = random.Random(seed)
    found: list[str] = []
    while time.time() < end:
        pool = pool_starts.open_pool(path)
        taken = pool_starts.take(pool, pool_starts.slot_request())
        found += use(taken, dice)
        if dice.random() < 0.8:
            pool_starts.come_up(taken)
        taken.close()
        if dice.random() < 0.3:
            upkeep.run(pool, pool_starts.settings(path), "k", time.time())
        pool.close()
    return found


def use(taken: TakenSlot, dice: random.Random) -> list[str]:
    """Write one's name into the slot, and see that nobody else does."""
    mine = str(os.getpid()).encode()
    pool_starts.layers_of(taken)  # each of them is there
    pool_starts.begin(taken)
    fd = os.open("owner", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=taken.slot.data_fd)
    try:
        for _ in range(5):
            os.pwrite(fd, mine.ljust(16), 0)
            pool_starts.write(taken, f"file-{dice.random()}", "x" * 1000)
            pool_starts.build(taken, f"layer-{dice.random()}")
            time.sleep(dice.uniform(0, 0.004))
            if os.pread(fd, 16, 0).strip() != mine:
                return [f"somebody else wrote into {taken.slot.id} while {mine.decode()} held it"]
        return []
    finally:
        os.close(fd)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_no_slot_has_two_holders_and_no_golden_breaks_amid_kills(open_on: Opener, kind: str) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    dice = random.Random(seed)
    pool = open_on(kind, size_mib=1024)
    pool_starts.job(pool, pool_starts.slot_request(), "first")
    path, end = Path(pool.path), time.time() + 8
    violations: list[str] = []
    kills = 0
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(child(partial(restless, path, seed + number, end))) for number in range(8)]
        while time.time() < end - 1:
            time.sleep(dice.uniform(0, 0.2))
            victim = dice.randrange(len(crowd))
            crowd[victim].kill()
            kills += 1
            crowd[victim] = stack.enter_context(child(partial(restless, path, seed + 1000 + kills, end)))
        for one in crowd:
            violations += one.result(timeout_s=40)
    assert violations == []
    assert kills > 20

    again = open_on(kind)
    final = pool_starts.take(again, pool_starts.slot_request())
    assert "first" in pool_starts.names(final), "the golden's content was lost"
    assert len(pool_starts.layers_of(final)) > 3
    final.close()
    upkeep.run(again, pool_starts.settings(path), "k", time.time())
    assert directory.names_in(again.stage_fd) == []
    assert directory.names_in(again.trash_fd) == []
    with key_directory.locked_key(again, "k", create=False) as key_fd:
        assert key_fd is not None
        candidates, bad = key_directory.read_candidates(key_fd)
    assert bad == []
    assert sum(candidate.name == "scopes/%/golden" for candidate in candidates) == 1


def test_a_golden_that_was_promoted_since_the_limits_were_asked_is_not_evicted(open_on: Opener) -> None:
    pool = open_on("ext4")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    pool_starts.job(pool, pool_starts.slot_request(), "two")
    [old] = [one for one in survey.survey(pool, sizes=False, now=time.time()).entries if one.kind is EntryKind.GOLDEN]
    pool_starts.job(pool, pool_starts.slot_request(), "three")
    assert not eviction.remove_entry(pool, old)
    assert (Path(pool.path) / "keys/k" / old.name).is_dir()
    [new] = [one for one in survey.survey(pool, sizes=False, now=time.time()).entries if one.kind is EntryKind.GOLDEN]
    assert eviction.remove_entry(pool, new)
