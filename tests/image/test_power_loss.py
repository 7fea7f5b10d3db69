"""The host's power fails amid a build: then there is a daemon, with all that was built long before, and nothing wrong.

`scripts/chaos --power-loss` does the same fifty times.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from helpers.pools import DISKS, Disk
from helpers.powerloss import Ordeal

if TYPE_CHECKING:
    from helpers.engine import Engine

EXT4, _, XFS = DISKS
PLACES = [*(("pool", disk) for disk in DISKS), ("data-root", EXT4), ("data-root", XFS)]


@pytest.mark.everyday("pool-btrfs-forky-containerd", "data-root-ext4-trixie-graphdriver")
@pytest.mark.parametrize(("place", "disk"), PLACES, ids=str)
def test_after_a_loss_of_power(engine: Engine, place: str, disk: Disk) -> None:
    lose_power(engine, disk, pooled=place == "pool", empty_note=False)


def test_after_a_loss_that_has_emptied_the_state_file(engine: Engine) -> None:
    """What xfs leaves of a rename that was not synced (decisions/0020)."""
    lose_power(engine, XFS, pooled=False, empty_note=True)


def lose_power(engine: Engine, disk: Disk, *, pooled: bool, empty_note: bool) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    ordeal = Ordeal(engine, disk, pooled=pooled, dice=random.Random(seed))
    ordeal.suffer(empty_note=empty_note)
    ordeal.close()
    print(dict(ordeal.counts))
    assert ordeal.counts["before: CACHED"] > 0, "the cache was lost each time"
