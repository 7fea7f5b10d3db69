"""The host's power fails amid a build: afterwards there is a daemon, and nothing wrong in its cache.

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

LOSSES = 1
PLACES = [("pool", disk) for disk in DISKS] + [("data-root", DISKS[0])]


@pytest.mark.everyday("pool-btrfs-forky-containerd", "data-root-ext4-trixie-graphdriver")
@pytest.mark.parametrize(("place", "disk"), PLACES, ids=str)
def test_after_a_loss_of_power(engine: Engine, place: str, disk: Disk) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    ordeal = Ordeal(engine, disk, pooled=place == "pool", dice=random.Random(seed))
    for _ in range(LOSSES):
        ordeal.suffer()
    ordeal.close()
    print(dict(ordeal.counts))
    assert ordeal.counts["before: CACHED"] > 0, "the cache was lost each time"
