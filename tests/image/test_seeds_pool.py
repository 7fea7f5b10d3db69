"""Seeds in a pool: each image is put in once for all instances and keys, and every clone has it for nothing."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import pytest

from helpers.flavours import Flavour
from helpers.pools import DISKS, Disk, slot_of, together, used_bytes
from helpers.seeds import (
    FEW,
    FEW_NAMES,
    NAMES,
    SeedVolume,
    Ten,
    check_ten,
    docker_archive,
    first_images,
    halves,
    images,
    looked_closer,
    run_small,
    seed_phase_ms,
    seeded,
    setting,
    small_image,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

CROWD = 8
KILLED = 137
BTRFS = Disk("btrfs", Flavour("forky", "graphdriver"))
POINTS = ("seed.started", "seed.loaded", "seed.stopped", "seed.recorded", "seed.promoted")


@pytest.fixture(params=DISKS, ids=str)
def disk(request: pytest.FixtureRequest) -> Disk:
    found: Disk = request.param
    return found


def create(
    engine: Engine,
    disk: Disk,
    pool: Volume,
    source: SeedVolume,
    env: Mapping[str, str] | None = None,
    **more: str,
) -> Dind:
    """An instance on the pool that is not started yet; `more` are further settings of cachedind's."""
    settings = {**(env or {}), **{f"CACHEDIND_{name}": value for name, value in more.items()}}
    return disk.start(engine, pool, ready=False, start=False, volumes=source.mount, env=settings)


def enter(
    engine: Engine,
    disk: Disk,
    pool: Volume,
    source: SeedVolume,
    env: Mapping[str, str] | None = None,
    **more: str,
) -> Dind:
    dind = create(engine, disk, pool, source, env, **more)
    dind.start()
    dind.wait_ready(timeout_s=120)
    return dind


def assert_nothing_loaded(dind: Dind) -> None:
    assert seeded(dind) == []
    assert not looked_closer(dind)
    assert dind.warnings == []


@pytest.mark.alone
@pytest.mark.everyday("ext4-trixie-graphdriver", "btrfs-forky-containerd")
@pytest.mark.timeout(600)
def test_eight_at_once_share_one_copy(engine: Engine, ten: Ten, disk: Disk) -> None:
    twin = disk.start(engine, disk.volume(engine, 8192))
    empty = used_bytes(twin)
    twin.kill()
    pool = disk.volume(engine, 8192)
    crowd = [create(engine, disk, pool, ten.source) for _ in range(CROWD)]
    together(lambda dind: dind.start(), crowd)
    assert together(first_images, crowd) == [NAMES] * CROWD
    # One of them has put all in, and the others have waited for it.
    loads = sorted((seeded(dind) for dind in crowd), key=len)
    assert loads[:-1] == [[]] * (CROWD - 1)
    assert frozenset(loads[-1]) == NAMES
    assert len(loads[-1]) == len(NAMES)
    assert {dind.name: dind.warnings for dind in crowd} == {dind.name: [] for dind in crowd}
    assert len({slot_of(dind) for dind in crowd}) == CROWD
    copy = int(crowd[0].sh("du -s --block-size=1 /var/lib/docker").split()[0])
    used = used_bytes(crowd[0]) - empty
    print(f"{disk}: one copy has {copy / 1e6:.0f} MB, eight instances use {used / 1e6:.0f} MB")
    assert copy > 600e6
    assert used <= 1.1 * copy
    check_ten(crowd[-1], ten)
    together(lambda dind: dind.kill(), crowd)

    phases = []
    for number in range(CROWD - 1):
        dind = enter(engine, disk, pool, ten.source, KEY=f"key-{number}")
        assert images(dind) == NAMES
        assert_nothing_loaded(dind)
        assert " of seeds, from the pool; " in (dind.summary or "")
        phases.append(seed_phase_ms(dind))
        dind.kill()  # with all that its witness does: the machine is the next one's alone
    print(f"{disk}: seeds that a clone has already take {sorted(phases)} ms")
    assert statistics.median(phases) <= 20


def test_the_next_and_the_one_beside_have_them_for_nothing(engine: Engine, ten: Ten, disk: Disk) -> None:
    pool, env = disk.volume(engine), setting(FEW)
    first = enter(engine, disk, pool, ten.source, env)
    assert frozenset(seeded(first)) == FEW_NAMES
    assert " of seeds, put in; " in (first.summary or "")
    beside = create(engine, disk, pool, ten.source, env)
    beside.start()
    assert first_images(beside) == FEW_NAMES
    assert_nothing_loaded(beside)
    check_ten(beside, ten, FEW_NAMES)
    beside.kill()
    first.docker("image", "rm", "ten/xz:1")
    first.kill()

    # One of the slots has lost an image: who gets it puts that in again.
    pair = [create(engine, disk, pool, ten.source, env) for _ in range(2)]
    together(lambda dind: dind.start(), pair)
    assert together(first_images, pair) == [FEW_NAMES] * 2
    assert [name for dind in pair for name in seeded(dind)] in ([], ["ten/xz:1"])
    for dind in pair:
        assert (dind.summary or "").startswith(("warm: ", "cloned: "))
        assert dind.warnings == []
        check_ten(dind, ten, ["ten/xz:1"])


def test_what_a_job_removed_is_back_for_the_next(engine: Engine, ten: Ten, disk: Disk) -> None:
    pool, env = disk.volume(engine), setting(FEW)
    first = enter(engine, disk, pool, ten.source, env)
    first.docker("image", "rm", "ten/xz:1")
    first.kill()
    second = create(engine, disk, pool, ten.source, env)
    second.start()
    assert first_images(second) == FEW_NAMES
    assert seeded(second) == ["ten/xz:1"]
    assert (second.summary or "").startswith("warm: ")
    check_ten(second, ten, FEW_NAMES)
    second.kill()
    assert_nothing_loaded(enter(engine, disk, pool, ten.source, env))


@pytest.mark.everyday(*(f"btrfs-forky-containerd-{point}" for point in POINTS))
@pytest.mark.parametrize("point", POINTS)
def test_a_start_is_killed_amid_seeding_and_the_next_has_all(engine: Engine, ten: Ten, disk: Disk, point: str) -> None:
    pool, env = disk.volume(engine), setting(FEW)
    victim = create(engine, disk, pool, ten.source, env, KILL_AT=point)
    victim.start()
    assert victim.wait_exit() == KILLED
    assert victim.summary is None
    survivor = create(engine, disk, pool, ten.source, env)
    survivor.start()
    assert first_images(survivor) == FEW_NAMES
    beside = create(engine, disk, pool, ten.source, env)
    beside.start()
    assert first_images(beside) == FEW_NAMES
    assert_nothing_loaded(beside)
    for dind in (survivor, beside):
        assert halves(dind) == set()
        assert dind.warnings == []
        check_ten(dind, ten, FEW_NAMES)


def test_whoever_waits_for_one_that_is_killed_has_all(engine: Engine, ten: Ten) -> None:
    pool, env = BTRFS.volume(engine), setting(FEW)
    victim = create(engine, BTRFS, pool, ten.source, env, KILL_AT="seed.loaded")
    victim.start()
    victim.wait_log("seeded ")
    waiting = create(engine, BTRFS, pool, ten.source, env)
    waiting.start()
    assert victim.wait_exit() == KILLED
    assert first_images(waiting) == FEW_NAMES
    assert waiting.warnings == []
    check_ten(waiting, ten, FEW_NAMES)
    # The killed one's slot is free, and lacks some: whoever finds it takes what the other one has put in instead.
    third = create(engine, BTRFS, pool, ten.source, env)
    third.start()
    assert first_images(third) == FEW_NAMES
    assert seeded(third) == []
    assert third.warnings == []


def test_other_keys_begin_with_the_seeds_and_get_later_ones_once(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("btrfs", flavour)
    pool, source = disk.volume(engine), SeedVolume(engine)
    old, new = small_image(engine, "old:1"), small_image(engine, "new:1")
    source.put({"old.tar": docker_archive(old)})

    def job(key: str) -> Dind:
        dind = create(engine, disk, pool, source, KEY=key)
        dind.start()
        first_images(dind)
        assert dind.warnings == []
        return dind

    first = job("a")
    assert seeded(first) == ["old:1"]
    second = job("b")
    assert_nothing_loaded(second)
    assert (second.summary or "").startswith("seeded: ")
    for dind, key in ((first, "a"), (second, "b")):
        dind.docker("create", "--name=job", "old:1")
        dind.docker("cp", "/etc/hostname", "job:/made")
        dind.docker("commit", "job", f"of-{key}:1")  # a layer that nobody else has
        dind.docker("container", "prune", "--force")
        dind.kill()

    source.put({"new.tar": docker_archive(new)})
    for key in ("a", "b"):
        dind = job(key)
        assert images(dind) == {"old:1", "new:1"}
        assert seeded(dind) == ["new:1"]
        assert (dind.summary or "").startswith("warm: ")
        assert ", and 1 image of seeds, " in (dind.summary or "")
        run_small(dind, [old, new])
        beside = job(key)
        assert images(beside) == {"old:1", "new:1"}
        assert_nothing_loaded(beside)
        beside.kill()
        dind.docker("container", "prune", "--force")
        dind.kill()
        again = job(key)
        assert_nothing_loaded(again)
        again.kill()
    third = job("c")
    assert seeded(third) == ["new:1"]
    assert images(third) == {"old:1", "new:1"}, "no job's images are in what new keys begin with"
    fourth = job("d")
    assert_nothing_loaded(fourth)
    run_small(fourth, [old, new])


def test_a_read_only_instance_loads_for_itself_alone(engine: Engine) -> None:
    pool, source = BTRFS.volume(engine), SeedVolume(engine)
    seed = small_image(engine, "seed:1")
    source.put({"seed.tar": docker_archive(seed)})
    reader = enter(engine, BTRFS, pool, source, ACCESS="ro")
    assert seeded(reader) == ["seed:1"]
    assert engine.in_volume(pool, "ls -d /volume/keys/*/scopes/%/golden 2>/dev/null || true") == ""
    writer = enter(engine, BTRFS, pool, source)
    assert seeded(writer) == ["seed:1"]
    later = enter(engine, BTRFS, pool, source, ACCESS="ro")
    assert_nothing_loaded(later)
    run_small(later, [seed])


def test_seeds_may_come_after_the_daemon(engine: Engine, ten: Ten) -> None:
    pool, env = BTRFS.volume(engine), setting(FEW)
    late = enter(engine, BTRFS, pool, ten.source, env, SEED_WHEN="after")
    late.wait_log("4 images of the seeds are there", timeout_s=120)  # it lets everybody go first
    assert images(late) == FEW_NAMES
    assert late.warnings == []
    late.kill()
    again = enter(engine, BTRFS, pool, ten.source, env, SEED_WHEN="after")
    assert images(again) == FEW_NAMES
    assert_nothing_loaded(again)
