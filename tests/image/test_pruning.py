"""A pool over its budget with nothing left to evict: the next start has its slot give up what was used longest ago."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from helpers.builds import Project
from helpers.pools import Disk, big_project
from helpers.seeds import SeedVolume, docker_archive, images, small_image
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour

IMAGE_MB = 60


def build(dind: Dind, tag: str) -> Project:
    found = big_project(secrets.token_hex(8), IMAGE_MB)
    project = Project(f"{tag}:latest", found.files, found.expected, found.step_count)
    dind.build(project)
    return project


def slot_bytes(dind: Dind) -> int:
    """How large the data of the only slot is."""
    dind.sh("sync -f /var/lib/docker")
    rows = json.loads(dind.exec("cachedind", "ls", "--json").stdout)["entries"]
    return sum(int(row["unique_bytes"]) + int(row["shared_bytes"]) for row in rows if row["here"])


def noted_bytes(dind: Dind) -> int:
    """What the upkeep says that the pool has too much; it runs when the daemon has answered."""
    script = "nsenter --mount=/run/cachedind/pool.mnt cat /cachedind/over-budget.json 2>/dev/null || true"
    text = dind.sh(script)
    return int(json.loads(text)["lacking_bytes"]) if text else 0


def unused_images(dind: Dind) -> int:
    """How many images there are that no job sees."""
    rows = json.loads(dind.exec("cachedind", "ls", "--json").stdout)["entries"]
    return sum(int(row["unused_images"]) for row in rows if row["here"])


def test_what_was_used_longest_ago_goes(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("btrfs", flavour)
    pool = disk.volume(engine)
    source = SeedVolume(engine)
    source.put({"seed.tar": docker_archive(small_image(engine, "seed:1"))})
    first = disk.start(engine, pool, volumes=source.mount)
    used, _, recent = (build(first, tag) for tag in ("used", "unused", "recent"))
    before = slot_bytes(first)
    first.kill()

    limits = {"CACHEDIND_POOL_MAX_SIZE": f"{before - IMAGE_MB * 10**6 // 2}"}
    second = disk.start(engine, pool, volumes=source.mount, env=limits)
    for project in (used, recent):
        assert second.build(project).uncached == []
    wait_until(lambda: noted_bytes(second) > 0, what="the upkeep to tell of too much", timeout_s=60)
    second.kill()

    third = disk.start(engine, pool, volumes=source.mount, env=limits)
    assert images(third) == {"seed:1"}
    # The base, and two that both jobs had: with the containerd store each build makes another manifest of the same.
    assert unused_images(third) == (3 if flavour.store == "graphdriver" else 5)
    [warning] = [line for line in third.warnings if "over its budget" in line]
    assert "unused:latest" in warning
    assert third.build(used).uncached == []
    assert third.build(recent).uncached == []
    # With containerd it is up to the engine's collector.
    wait_until(
        lambda: slot_bytes(third) < before - IMAGE_MB * 10**6 * 9 // 10, what="the slot to be smaller", timeout_s=75
    )
    wait_until(lambda: noted_bytes(third) == 0, what="the note to be gone")
    third.kill()

    fourth = disk.start(engine, pool, volumes=source.mount, env=limits)
    assert not [line for line in fourth.warnings if "over its budget" in line]
    assert images(fourth) == {"seed:1"}
    assert fourth.build(recent).uncached == []


def test_a_start_that_is_killed_amid_pruning_costs_nothing_more(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("btrfs", flavour)
    pool = disk.volume(engine)
    first = disk.start(engine, pool)
    for tag in ("one", "two", "three"):
        project = build(first, tag)
    limits = {"CACHEDIND_POOL_MAX_SIZE": f"{slot_bytes(first) - IMAGE_MB * 10**6 // 2}"}
    first.kill()
    second = disk.start(engine, pool, env=limits)
    wait_until(lambda: noted_bytes(second) > 0, what="the upkeep to tell of too much", timeout_s=60)
    second.kill()
    killed = disk.start(engine, pool, ready=False, env={**limits, "CACHEDIND_KILL_AT": "maintain.pruned"})
    assert killed.wait_exit() == 137
    last = disk.start(engine, pool, env=limits)
    assert images(last) == set()
    assert unused_images(last) == 3, "the base, and two of three"
    assert last.build(project).uncached == []
