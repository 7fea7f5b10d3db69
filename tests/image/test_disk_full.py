"""The disk fills up at any moment of a start or a build: whatever that breaks, the next start with room mends."""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
import time
from typing import TYPE_CHECKING

import pytest

from helpers.builds import content_project
from helpers.engine import CommandFailedError
from helpers.estates import Visitor
from helpers.flavours import Flavour
from helpers.pools import DISKS, Disk

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine

ROUNDS = 2
# In large pieces, then in small ones.
FILL = """
for size in 1M 4k; do dd if=/dev/zero bs=$size of=ballast oflag=append conv=notrunc 2>/dev/null || true; done
sync
"""
PLACES = [("pool", disk) for disk in DISKS] + [("data-root", Disk("ext4", Flavour("forky", "containerd")))]


@pytest.mark.everyday("pool-ext4-trixie-graphdriver", "data-root-ext4-forky-containerd")
@pytest.mark.parametrize(("place", "disk"), PLACES, ids=str)
def test_a_disk_that_fills_up_at_any_moment(engine: Engine, place: str, disk: Disk) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    dice = random.Random(seed)
    volume = disk.volume(engine, size_mib=1100)
    visitor = Visitor(engine, volume)
    project = content_project(secrets.token_hex(8))

    def begin() -> Dind:
        where = {"pool" if place == "pool" else "volume": volume}
        return engine.dind(disk.flavour.suite, env=disk.flavour.env, **where)

    def end(dind: Dind) -> None:
        dind.kill()
        assert "Traceback" not in dind.log()
        dind.remove()
        engine.dinds.remove(dind)

    first = begin()
    first.wait_ready()
    first.build(project)
    end(first)
    warm = 0
    for _ in range(ROUNDS):
        dind = begin()
        time.sleep(dice.uniform(0, 3))
        filler = threading.Thread(target=visitor.sh, args=(FILL,))
        filler.start()
        with contextlib.suppress(CommandFailedError, AssertionError):
            dind.wait_ready(timeout_s=20)
            dind.build(content_project(secrets.token_hex(8), tag="new:latest"), check=False)
        filler.join()
        end(dind)

        visitor.sh("rm ballast; sync")
        again = begin()
        again.wait_ready()
        again.keep_image(project)
        warm += not again.build(project).uncached
        again.run_image(project)
        new = content_project(secrets.token_hex(8), tag="new:latest")
        again.build(new)
        again.run_image(new)
        end(again)
    print(f"warm {warm} of {ROUNDS} times")
