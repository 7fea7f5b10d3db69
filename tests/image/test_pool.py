"""Promise 2 beside others: every concurrent instance starts warm, with a slot of its own, for next to no disk.

CACHEDIND_TEST_ROUNDS plays more rounds of kills on each filesystem than the few of CI.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.pools import DISKS, Disk, big_project, slot_of, together, used_bytes

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

CROWD = 8
ROUNDS = int(os.environ.get("CACHEDIND_TEST_ROUNDS", "4"))


@pytest.fixture(params=DISKS, ids=str)
def disk(request: pytest.FixtureRequest) -> Disk:
    found: Disk = request.param
    return found


def crowd_on(engine: Engine, disk: Disk, pool: Volume) -> list[Dind]:
    return [disk.start(engine, pool, ready=False, start=False) for _ in range(CROWD)]


@pytest.mark.everyday("ext4-trixie-graphdriver", "btrfs-forky-containerd")
@pytest.mark.timeout(600)
def test_eight_at_once_are_all_warm(engine: Engine, disk: Disk) -> None:
    pool = disk.volume(engine)
    project = overlay_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    assert first.summary is not None
    assert first.summary.startswith("cold: ")
    empty = used_bytes(first)
    first.build(big_project(secrets.token_hex(8), megabytes=1024))
    first.build(project)
    build_id = first.run_image(project)
    first.docker("container", "prune", "--force")
    full = used_bytes(first)
    first.kill()

    crowd = crowd_on(engine, disk, pool)
    together(lambda dind: dind.start(), crowd)
    together(lambda dind: dind.wait_ready(timeout_s=120), crowd)
    # One of them has the slot itself, and others may have a clone that was made in advance.
    assert {(dind.summary or "").partition(":")[0] for dind in crowd} == {"cloned", "warm"}
    assert len({slot_of(dind) for dind in crowd}) == CROWD
    extra = used_bytes(crowd[0]) - full
    print(f"{disk}: golden {(full - empty) / 1e6:.0f} MB, eight instances {extra / 1e6:.1f} MB more")
    assert extra <= 0.02 * (full - empty), "records and databases: some 1.5 MB for each, however large the cache"

    builds = together(lambda dind: dind.build(project), crowd)
    assert [build.uncached for build in builds] == [[]] * CROWD
    assert {dind.run_image(project) for dind in crowd} == {build_id}


@pytest.mark.everyday("btrfs-forky-containerd")
@pytest.mark.timeout(900)
def test_rounds_of_sigkill(engine: Engine, disk: Disk) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    dice = random.Random(seed)
    pool = disk.volume(engine)
    project = overlay_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    first.build(project)
    build_id = first.run_image(project)
    first.kill()

    crowd = crowd_on(engine, disk, pool)
    started = time.monotonic()
    together(lambda dind: dind.start(), crowd)
    together(lambda dind: dind.wait_ready(timeout_s=120), crowd)
    whole = time.monotonic() - started
    died_early = 0
    for number in range(ROUNDS):
        survivor = dice.choice(crowd)
        moments = {dind.id: dice.uniform(0, 1.2 * whole) for dind in crowd}
        if number > 0:
            started = time.monotonic()
            together(lambda dind: dind.start(), crowd)

        def live(dind: Dind, started: float = started, moments: dict[str, float] = moments) -> bool:
            time.sleep(max(0.0, started + moments[dind.id] - time.monotonic()))
            early = dind.docker_status("version", timeout_s=1) != 0
            dind.kill()
            return early

        rest = [dind for dind in crowd if dind is not survivor]
        died_early += sum(together(live, rest))
        survivor.wait_ready(timeout_s=120)
        assert survivor.build(project).uncached == [], f"round {number}"
        assert survivor.run_image(project) == build_id
        survivor.kill()
    assert died_early > 0, "nobody was killed amid a start"

    together(lambda dind: dind.start(), crowd)
    together(lambda dind: dind.wait_ready(timeout_s=120), crowd)
    assert len({dind.sh("stat -c %d:%i /var/lib/docker") for dind in crowd}) == CROWD, "two on one slot"
    builds = together(lambda dind: dind.build(project), crowd)
    assert [build.uncached for build in builds] == [[]] * CROWD
