"""What upkeep evicts of a pool, and what never: what is held, what is newest, what somebody had meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cachedind.host import linux
from cachedind.pool import directory, eviction, survey, upkeep
from cachedind.pool.limits import EntryKind
from cachedind.pool.slot_request import Warmth
from helpers import pool_starts
from helpers.pool_starts import Opener


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
