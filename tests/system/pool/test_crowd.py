"""Many starts at once, killed at any moment: no slot has two holders, and no golden breaks."""

from __future__ import annotations

import contextlib
import os
import random
import time
from functools import partial
from pathlib import Path

import pytest

from cachedind.host import linux
from cachedind.pool import directory, key_directory, upkeep
from cachedind.pool.slot_request import TakenSlot
from helpers import pool_starts
from helpers.children import child
from helpers.pool_starts import KINDS, Opener


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
