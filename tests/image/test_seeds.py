"""Seeds in direct mode: there before the first job, looked at again for nothing, and there again when one is gone."""

from __future__ import annotations

import io
import random
import statistics
import tarfile
import time
from typing import TYPE_CHECKING, Any

import pytest

from helpers.dind import parse_time
from helpers.flavours import Flavour
from helpers.pools import together
from helpers.seeds import (
    FEW,
    FEW_NAMES,
    FILES,
    NAMES,
    SeedVolume,
    Ten,
    check_ten,
    docker_archive,
    first_images,
    halves,
    images,
    looked_closer,
    nameless,
    run_small,
    seed_phase_ms,
    seeded,
    setting,
    small_image,
    status_of_seeds,
)
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

GRAPH = Flavour("forky", "graphdriver")
CONTAINERD = Flavour("forky", "containerd")
KILLED = 137
STARTS = 5


def create(
    engine: Engine, flavour: Flavour, volume: Volume, source: SeedVolume | None, env: Mapping[str, str] | None = None
) -> Dind:
    """An instance in direct mode that is not started yet, with seeds at /seeds."""
    options: dict[str, Any] = {} if source is None else {"volumes": source.mount}
    return engine.dind(flavour.suite, volume=volume, env={**flavour.env, **(env or {})}, start=False, **options)


def start(
    engine: Engine, flavour: Flavour, volume: Volume, source: SeedVolume | None, env: Mapping[str, str] | None = None
) -> Dind:
    dind = create(engine, flavour, volume, source, env)
    dind.start()
    dind.wait_ready(timeout_s=120)
    return dind


# ---- all of them, and only once ----------------------------------------------------------------------------------


@pytest.mark.alone
def test_ten_images_are_in_the_first_answer_and_never_loaded_again(engine: Engine, ten: Ten, flavour: Flavour) -> None:
    volume = engine.volume()
    first = create(engine, flavour, volume, ten.source)
    first.start()
    assert first_images(first) == NAMES
    assert nameless(first) == []
    assert (first.summary or "").startswith("seeded: 10 images, ")
    assert first.warnings == []
    assert set(seeded(first)) == NAMES
    assert len(seeded(first)) == len(NAMES)
    assert first.info().store == flavour.store
    print(f"{flavour}: 1 GB of seeds in {seed_phase_ms(first)} ms")
    check_ten(first, ten)
    first.docker("container", "prune", "--force")
    first.kill()

    phases = []
    for _ in range(STARTS):
        again = start(engine, flavour, volume, ten.source)
        assert images(again) == NAMES
        assert seeded(again) == []
        assert not looked_closer(again)
        assert (again.summary or "").startswith("warm: ")
        phases.append(seed_phase_ms(again))
        last = again
        if len(phases) < STARTS:
            again.kill()
    print(f"{flavour}: seeds that are there already take {sorted(phases)} ms")
    assert statistics.median(phases) <= 20

    # What is gone comes back, and nothing else.
    last.docker("image", "rm", "ten/xz:1")
    assert images(last) == NAMES - {"ten/xz:1"}
    last.kill()
    mended = create(engine, flavour, volume, ten.source)
    mended.start()
    assert first_images(mended) == NAMES
    assert seeded(mended) == ["ten/xz:1"]
    assert mended.warnings == []
    check_ten(mended, ten, ["ten/xz:1"])


def test_one_of_two_in_a_file_comes_back(engine: Engine, ten: Ten, flavour: Flavour) -> None:
    volume = engine.volume()
    env = setting(["pair.tar"])
    first = start(engine, flavour, volume, ten.source, env)
    assert images(first) == {"ten/pair:one", "ten/pair:two"}
    first.docker("image", "rm", "ten/pair:two")
    first.kill()
    second = start(engine, flavour, volume, ten.source, env)
    assert seeded(second) == ["ten/pair:two"]
    check_ten(second, ten, ["ten/pair:one", "ten/pair:two"])


def test_a_newer_archive_takes_the_place_of_the_older(engine: Engine, flavour: Flavour) -> None:
    source, volume = SeedVolume(engine), engine.volume()
    old, new, other = (small_image(engine, name) for name in ("app:1", "app:1", "other:1"))
    source.put({"app.tar": docker_archive(old), "other.tar": docker_archive(other)})
    first = start(engine, flavour, volume, source)
    run_small(first, [old, other])
    first.kill()

    source.put({"app.tar": docker_archive(new)})
    second = start(engine, flavour, volume, source)
    assert seeded(second) == ["app:1"]
    assert second.warnings == []
    run_small(second, [new, other])
    # Nothing has its name any longer, and nothing uses it.
    assert nameless(second) == []
    assert len(second.docker("image", "ls", "--all", "--quiet").split()) == 2
    second.docker("run", "--name=user", "app:1")
    second.kill()

    newest = small_image(engine, "app:1")
    source.put({"app.tar": docker_archive(newest)})
    third = start(engine, flavour, volume, source)
    run_small(third, [newest, other])
    assert third.docker("start", "--attach", "user") == new.text.rstrip("\n"), "a container's image must stay"


def test_a_name_that_a_job_has_taken_stays_with_it(engine: Engine, flavour: Flavour) -> None:
    source, volume = SeedVolume(engine), engine.volume()
    seed, other = small_image(engine, "app:1"), small_image(engine, "other:1")
    source.put({"app.tar": docker_archive(seed), "other.tar": docker_archive(other)})
    first = start(engine, flavour, volume, source)
    first.docker("tag", "other:1", "app:1")
    first.kill()
    second = start(engine, flavour, volume, source)
    assert second.docker("run", "--rm", "--network=none", "app:1") == other.text.rstrip("\n")
    assert seeded(second) == []
    # A newer seed takes it back.
    newer = small_image(engine, "app:1")
    second.kill()
    source.put({"app.tar": docker_archive(newer)})
    third = start(engine, flavour, volume, source)
    run_small(third, [newer, other])


# ---- killed amid it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["seed.started", "seed.loaded", "seed.stopped", "seed.recorded"])
def test_a_start_is_killed_amid_seeding_and_the_next_has_all(engine: Engine, ten: Ten, point: str) -> None:
    """With the other store, and in a pool: test_seeds_pool.py."""
    volume, env, flavour = engine.volume(), setting(FEW), CONTAINERD
    victim = create(engine, flavour, volume, ten.source, {**env, "CACHEDIND_KILL_AT": point})
    victim.start()
    assert victim.wait_exit() == KILLED
    assert victim.summary is None
    loaded = victim.messages
    assert bool(seeded(victim)) == (point != "seed.started"), loaded
    survivor = create(engine, flavour, volume, ten.source, env)
    survivor.start()
    assert first_images(survivor) == FEW_NAMES
    assert halves(survivor) == set()
    assert survivor.warnings == []
    if point == "seed.recorded":
        assert not looked_closer(survivor)
    check_ten(survivor, ten, sorted(FEW_NAMES))


@pytest.mark.parametrize("flavour", [GRAPH, CONTAINERD], ids=str)
def test_kills_at_any_moment_of_loading_lose_nothing(engine: Engine, ten: Ten, flavour: Flavour) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    dice = random.Random(seed)
    files = [file for file in FILES if file != "big.tar"]
    names = NAMES - {"ten/big:latest"}
    env = setting(files)
    timed = start(engine, flavour, engine.volume(), ten.source, env)
    whole_s = seed_phase_ms(timed) / 1000
    timed.kill()
    timed.remove()
    engine.dinds.remove(timed)
    volume = engine.volume()
    for _ in range(2):  # a third one in a row would make the next go without
        victim = create(engine, flavour, volume, ten.source, env)
        moment = time.monotonic() + 0.15 + dice.uniform(0, whole_s)
        victim.start()
        time.sleep(max(0.0, moment - time.monotonic()))
        victim.kill()
        print(f"killed after {seeded(victim)}")
    survivor = create(engine, flavour, volume, ten.source, env)
    survivor.start()
    assert first_images(survivor) == names
    assert halves(survivor) == set()
    assert survivor.warnings == []
    check_ten(survivor, ten, sorted(names))


def test_after_three_kills_in_a_row_one_start_goes_without(engine: Engine, ten: Ten) -> None:
    volume, env = engine.volume(), setting(["xz.tar.xz"])
    for _ in range(3):
        victim = create(engine, GRAPH, volume, ten.source, {**env, "CACHEDIND_KILL_AT": "seed.started"})
        victim.start()
        assert victim.wait_exit() == KILLED
    without = start(engine, GRAPH, volume, ten.source, env)
    assert images(without) == frozenset()
    [warning] = without.warnings
    assert "no seeds are put in" in warning
    without.kill()
    tried_again = start(engine, GRAPH, volume, ten.source, env)
    assert images(tried_again) == {"ten/xz:1"}
    assert tried_again.warnings == []


# ---- no seeds ----------------------------------------------------------------------------------------------------


def test_without_seeds_a_fresh_start_has_no_image(engine: Engine, ten: Ten, flavour: Flavour) -> None:
    cases: list[tuple[SeedVolume | None, dict[str, str]]] = [
        (None, {}),
        (SeedVolume(engine), {}),
        (ten.source, {"CACHEDIND_SEED": ""}),
    ]
    for source, env in cases:
        dind = create(engine, flavour, engine.volume(), source, env)
        dind.start()
        assert first_images(dind) == frozenset()
        assert dind.docker("image", "ls", "--all", "--quiet") == ""
        assert dind.warnings == []
        assert (dind.summary or "").startswith("cold: ")
        assert not looked_closer(dind)
        dind.kill()


# ---- after the daemon --------------------------------------------------------------------------------------------


def answer_s(dind: Dind) -> float:
    """From the container's start until its daemon listens."""
    return dind.wait_log("API listen on ").time - parse_time(dind.state["StartedAt"])


COUNT_THREADS = """
import os
def count():
    with open("/threads", "a") as file:
        print(len(os.listdir("/proc/self/task")), file=file)
os.register_at_fork(before=count)
"""


def test_a_start_at_a_terminal_forks_no_second_thread(engine: Engine, suite: str) -> None:
    """Bars drawn by a thread of their own would be copied amid whatever that thread holds; and whoever waits is told
    so before anything else happens."""
    source = SeedVolume(engine)
    source.put({"app.tar": docker_archive(*(small_image(engine, name) for name in ("app:1", "app:2")))})
    dind = engine.dind(suite, volume=engine.volume(), volumes=source.mount, tty=True, start=False)
    boot = "/opt/cachedind/boot.py"
    own = dind.container.get_archive(boot)[0]
    with tarfile.open(fileobj=io.BytesIO(b"".join(own))) as archive:
        file = archive.extractfile("boot.py")
        assert file is not None
        dind.put("/opt/cachedind", {"boot.py": COUNT_THREADS.encode() + file.read()})
    dind.start()
    dind.wait_ready()
    assert images(dind) == {"app:1", "app:2"}
    threads = dind.sh("cat /threads").split()
    assert len(threads) >= 4  # the certificates, a trial, two private programs
    assert set(threads) == {"1"}
    told = [text for text in dind.log().splitlines() if "putting in 1 seed (" in text]
    assert len(told) == 1
    assert "clients wait" in told[0]


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_seeds_may_come_after_the_daemon(engine: Engine, ten: Ten, flavour: Flavour) -> None:
    late = {"CACHEDIND_SEED_WHEN": "after"}
    without = [start(engine, flavour, engine.volume(), None) for _ in range(3)]
    bare_s = statistics.median(answer_s(dind) for dind in without)
    together(lambda dind: dind.kill(), without)
    volume = engine.volume()
    dind = create(engine, flavour, volume, ten.source, late)
    dind.start()
    early = first_images(dind)
    took_s = answer_s(dind)
    print(f"{flavour}: the daemon answers after {took_s:.2f} s, without seeds after {bare_s:.2f} s")
    assert took_s <= bare_s + 0.5
    assert early < NAMES

    seen = wait_until(
        lambda: progress if (progress := status_of_seeds(dind)).get("now") else {},
        what="the status to tell about a step",
        diagnose=lambda: str(status_of_seeds(dind)) + dind.describe(),
        timeout_s=120,
    )
    assert seen["finished_at"] is None
    assert seen["seeds"] == len(FILES)
    assert seen["now"][0]["total_bytes"] > 0
    done = wait_until(
        lambda: progress if (progress := status_of_seeds(dind)).get("finished_at") else {},
        what="the seeds to be there",
        diagnose=lambda: str(status_of_seeds(dind)) + dind.describe(),
        timeout_s=240,  # it lets everybody go first
    )
    assert (done["seeds_done"], done["failed"], done["now"]) == (len(FILES), [], [])
    assert set(done["images"]) == NAMES
    assert 0 < done["started_at"] <= done["finished_at"] <= time.time() + 1
    assert images(dind) == NAMES
    dind.wait_log("10 images of the seeds are there")
    assert "done, after" in dind.exec("cachedind", "status").stdout
    check_ten(dind, ten)
    dind.kill()

    again = start(engine, flavour, volume, ten.source, late)
    assert images(again) == NAMES
    assert seeded(again) == []
    assert not looked_closer(again)
