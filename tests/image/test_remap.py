"""userns-remap, also in a pool: a job finds what docker:dind would show it, warm; one without remap beside it, too."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.dind import DATA_ROOT
from helpers.pools import slot_of
from helpers.seeds import SeedVolume, docker_archive, images, run_small, seeded, small_image

if TYPE_CHECKING:
    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine

REMAP = ("--userns-remap=default",)
ROOT = f"{DATA_ROOT}/165536.165536"


def leave_behind(dind: Dind, project: Project) -> None:
    dind.build(project)
    dind.docker("network", "create", "left")
    dind.docker("volume", "create", "left")
    options = ("-d", "--restart=always", "--network=left", "--name=zombie")
    dind.docker("run", *options, "base:latest", "sleep", "1000")


def left(dind: Dind) -> list[str]:
    asked = (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q", "--filter=type=custom"))
    return [word for words in asked for word in dind.docker(*words).split()]


def test_userns_remap(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, volume=engine.volume(), args=REMAP)
    dind.wait_ready()
    dind.load_base()
    seen = dind.docker("run", "--rm", "--network=none", "base:latest", "cat", "/proc/self/uid_map").split()
    assert seen == ["0", "165536", "65536"]


@pytest.mark.everyday("forky")
def test_a_remapped_job_and_one_without_share_a_key_and_see_nothing_of_others(engine: Engine, suite: str) -> None:
    pool = engine.volume()
    project = overlay_project(secrets.token_hex(8))
    first = engine.dind(suite, pool=pool, args=REMAP)
    first.wait_ready()
    leave_behind(first, project)
    slots = {slot_of(first)}
    first.kill()

    plain = engine.dind(suite, pool=pool)
    plain.wait_ready()
    assert (plain.summary or "").startswith("cold")
    assert slot_of(plain) not in slots
    leave_behind(plain, project)
    plain.kill()

    for args in (REMAP, (), REMAP):
        dind = engine.dind(suite, pool=pool, args=args)
        dind.wait_ready()
        assert left(dind) == []
        assert dind.docker("info", "--format={{.DockerRootDir}}") == (ROOT if args else DATA_ROOT)
        assert (dind.summary or "").startswith("warm")
        assert dind.build(project).uncached == []
        # The containers that a private daemon removed were its own: nothing lies in the other root.
        assert dind.sh(f"ls {DATA_ROOT} | grep -c '^165536' || true") == ("1" if args else "0")
        leave_behind(dind, project)
        dind.kill()


def test_seeds_are_put_in_once_for_remapped_jobs(engine: Engine, suite: str) -> None:
    pool, source = engine.volume(), SeedVolume(engine)
    seed = small_image(engine, "seed:1")
    source.put({"seed.tar": docker_archive(seed)})
    for loaded in (["seed:1"], []):
        dind = engine.dind(suite, pool=pool, args=REMAP, volumes=source.mount)
        dind.wait_ready()
        assert images(dind) == {"seed:1"}
        assert seeded(dind) == loaded
        assert dind.warnings == []
        run_small(dind, [seed])
        # As the remap has it: root in the image is nobody's here.
        owner = dind.sh(f"stat -c %u {ROOT}/overlay2/*/diff/data")
        assert owner == "165536"
        dind.kill()


@pytest.mark.parametrize("damaged", [f"{ROOT}/image/overlay2/repositories.json", f"{ROOT}/network/files/local-kv.db"])
def test_damage_is_looked_for_in_the_remapped_root(engine: Engine, suite: str, damaged: str) -> None:
    volume = engine.volume()
    dind = engine.dind(suite, volume=volume, args=REMAP)
    dind.wait_ready()
    dind.load_base()
    dind.stop()
    mender = engine.dind(suite, volume=volume, entrypoint=["sleep", "infinity"])
    mender.sh(f"echo garbage >{damaged}")
    mender.kill()
    dind = engine.dind(suite, volume=volume, args=REMAP)
    dind.wait_ready()
    assert damaged.removeprefix(f"{ROOT}/") in dind.log()
    assert dind.sh(f"ls {DATA_ROOT}/.cachedind") == "lock\nstate-165536.165536.json"
    # The daemon of nobody's remap has nothing there, and loses nothing of it.
    dind.stop()
    plain = engine.dind(suite, volume=volume)
    plain.wait_ready()
    assert plain.docker("images", "-q") == ""
    plain.stop()
    dind = engine.dind(suite, volume=volume, args=REMAP)
    dind.wait_ready()
    assert dind.docker("images", "-q") != ""
