"""`cachedind promote`: which slot becomes the golden, beside starts that go on."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import pytest

from cachedind.base import state
from cachedind.host import procfs
from cachedind.pool import directory, golden, key_directory, slot_state, slots
from cachedind.pool.directory import Pool
from helpers import pool_starts
from helpers.children import child
from helpers.commands import Command, key_path
from helpers.filesystems import Filesystems


def test_promote_takes_the_newest_that_is_free_and_good(pool: Pool, cachedind: Command) -> None:
    first = pool_starts.take(pool, pool_starts.slot_request())
    second = pool_starts.take(pool, pool_starts.slot_request())
    third = pool_starts.take(pool, pool_starts.slot_request())
    for taken in (first, second, third):
        pool_starts.begin(taken)
        pool_starts.write(taken, taken.slot.id)
    for taken in (first, second):
        pool_starts.come_up(taken)
    first.slot.close()
    third.slot.close()  # the newest, but no daemon came up on it; the second is held

    done = cachedind("promote", "k", "--pool", pool.path)
    assert (done.status, done.stdout) == (0, f"key k: slot {first.slot.id}: its state is the golden now\n")
    assert set(os.listdir(f"{pool.path}/keys/k/scopes/%/golden/data")) == {".cachedind", first.slot.id}
    done = cachedind("promote", "k", "--json", "--pool", pool.path)
    assert done.status == 1
    assert json.loads(done.stdout) == [
        {
            "key": "k",
            "scope": "",
            "slot": None,
            "why": "what is newer than the golden is held by running instances",
        }
    ]
    second.slot.close()
    assert cachedind("promote", "k", "--pool", pool.path).status == 0
    assert set(os.listdir(f"{pool.path}/keys/k/scopes/%/golden/data")) == {".cachedind", second.slot.id}
    done = cachedind("promote", "k", "--pool", pool.path)
    assert (done.status, done.stdout) == (1, "key k: no slot has anything that the golden lacks\n")
    done = cachedind("promote", "nope", "--pool", pool.path)
    assert (done.status, done.stdout) == (1, "key nope: the pool has nothing of this key\n")


def test_a_slot_that_somebody_had_since_is_not_promoted(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool_starts.job(pool, pool_starts.slot_request(), "good")
    lease = slots.try_lease

    def after_a_bad_start(key_fd: int, name: str) -> Any:
        slot = lease(key_fd, name)
        assert slot is not None
        before = state.read_state(slot.directory_fd, slot_state.STATE_NAME)
        state.write_state(slot.directory_fd, slot_state.STATE_NAME, {"ready_at": None}, before)
        return slot

    monkeypatch.setattr(slots, "try_lease", after_a_bad_start)
    assert golden.promote_newest(pool, "k", procfs.read_boot_id())[0].slot_id is None
    assert not (key_path(pool) / "scopes/%/golden").exists()


def test_why_nothing_is_promoted(pool: Pool, filesystems: Filesystems, cachedind: Command) -> None:
    pool_starts.take(pool, pool_starts.slot_request("fresh")).slot.close()
    assert "no slot is in a state that can be trusted" in cachedind("promote", "fresh", "--pool", pool.path).stdout
    pool_starts.job(pool, pool_starts.slot_request("copies"), "one", driver="vfs")
    done = cachedind("promote", "copies", "--pool", pool.path)
    assert (done.status, done.stdout) == (1, "key copies: layers of the driver vfs cannot be shared\n")


def test_a_promoted_copy_is_on_the_disk(filesystems: Filesystems, cachedind: Command) -> None:
    with contextlib.closing(pool_starts.open_pool(filesystems.make("xfs"))) as pool:
        pool_starts.job(pool, pool_starts.slot_request(), "one")
        assert cachedind("promote", "k", "--pool", pool.path).status == 0
        fd = key_directory.open_below(pool.keys_fd, "k/scopes/%/golden")
        assert (state.read_state(fd, slot_state.GOLDEN_NAME) or {})["durable"] is True
        os.close(fd)


def test_promotion_can_be_asked_for_while_starts_go_on(pool: Pool) -> None:
    def promote_again_and_again() -> None:
        own = directory.open_existing(pool.path, pool.trace)
        while True:
            golden.promote_newest(own, "k", procfs.read_boot_id())

    with child(promote_again_and_again):
        for number in range(60):
            taken = pool_starts.take(pool, pool_starts.slot_request())
            pool_starts.begin(taken)
            pool_starts.write(taken, str(number))
            pool_starts.come_up(taken)
            taken.slot.close()
    last = pool_starts.take(pool, pool_starts.slot_request())
    assert str(59) in pool_starts.names(last)
    last.slot.close()
