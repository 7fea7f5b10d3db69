"""An engine that comes out of an image (ENGINE_IMAGE) instead of Debian's packages: the contract's core, and what a
build says of an image that has none.

No registry is needed: the image "stand-in" has the programs of Debian's engine, laid out as docker:dind has its own
(tests/data/stand-in). They run where their libraries are, so it is built on the same Debian.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.daemons import LOCK
from helpers.dind import REAL_DOCKERD, Dind
from helpers.flavours import STAND_IN
from helpers.pools import slot_of

if TYPE_CHECKING:
    from helpers.engine import Engine

IMAGE = Path(__file__).parents[2] / "image"
NOTE = "/usr/local/share/cachedind/engine.json"
PROGRAMS = ("dockerd", "docker", "containerd", "ctr", "containerd-shim-runc-v2", "runc", "docker-init", "docker-proxy")
PLUGINS = ("docker-buildx", "docker-compose")


def test_the_engine_is_the_images_own_and_no_package(engine: Engine) -> None:
    dind = engine.dind(STAND_IN, entrypoint=["sleep", "infinity"], privileged=False, init=True)
    places = [f"/usr/local/bin/{name}" for name in PROGRAMS[1:]]
    places += [REAL_DOCKERD, *(f"/usr/local/libexec/docker/cli-plugins/{name}" for name in PLUGINS)]
    assert dind.sh(f"readlink -f {' '.join(places)}").split() == places
    assert dind.sh("dpkg-query -W 'docker*' containerd runc 2>/dev/null || :") == ""
    labels = engine.client.images.get(engine.images[STAND_IN]).labels
    assert labels["cachedind.engine"] == engine.engine_version(STAND_IN) == engine.engine_version("forky")
    assert labels["cachedind.engine-from"] not in ("", "Debian forky")


@pytest.mark.parametrize("place", ["pool", "volume"])
def test_the_cache_survives(engine: Engine, place: str) -> None:
    where = {place: engine.volume("ext4" if place == "pool" else "directory")}
    project = overlay_project(secrets.token_hex(8))
    first = engine.dind(STAND_IN, **where)
    first.wait_ready()
    assert first.warnings == []
    first.build(project)
    build_id = first.run_image(project)
    first.kill()

    second = engine.dind(STAND_IN, **where)
    second.wait_ready()
    assert (second.summary or "").startswith("warm: ")
    assert second.build(project).uncached == []
    assert second.run_image(project) == build_id
    if place == "pool":
        beside = engine.dind(STAND_IN, **where)
        beside.wait_ready()
        assert slot_of(beside) != slot_of(second)
        assert beside.build(project).uncached == []


def test_debians_engine_of_that_release_takes_its_pool_on(engine: Engine) -> None:
    pool = engine.volume()
    project = overlay_project(secrets.token_hex(8))
    first = engine.dind(STAND_IN, pool=pool)
    first.wait_ready()
    first.build(project)
    first.kill()
    second = engine.dind("forky", pool=pool)
    second.wait_ready()
    assert second.build(project).uncached == []


@pytest.mark.parametrize("entrypoint", [["dockerd"], ["/usr/sbin/dockerd"], ["dind", "dockerd"]], ids=" ".join)
def test_every_way_in_leads_to_a_lease(engine: Engine, entrypoint: list[str]) -> None:
    dind = engine.dind(STAND_IN, entrypoint=entrypoint, args=["--host=unix:///var/run/docker.sock"])
    dind.wait_ready()
    [daemon] = dind.daemons()
    assert daemon.has_open(LOCK)
    assert dind.summary is not None
    assert dind.stop() < 9
    assert dind.state["ExitCode"] == 0


# ---- a release that the tests do not run ---------------------------------------------------------------------------


def test_a_release_that_is_not_tested_is_told_in_one_line_and_works(engine: Engine) -> None:
    """Here the image's own note calls the engine another one."""
    note = engine.dind("forky", entrypoint=["sleep", "infinity"], privileged=False, init=True).sh(f"cat {NOTE}")
    noted = {**json.loads(note), "version": "28.4.0"}
    pool, project = engine.volume("ext4"), overlay_project(secrets.token_hex(8))

    def start() -> Dind:
        dind = engine.dind("forky", pool=pool, start=False)
        dind.put(os.path.dirname(NOTE), {os.path.basename(NOTE): json.dumps(noted)})
        dind.start()
        dind.wait_ready()
        [line] = [text for text in dind.messages if "tests do not run" in text]
        assert line.startswith("engine 28.4.0 is of a release that cachedind's tests do not run (they run 26.1, 28.5)")
        assert dind.warnings == []
        return dind

    first = start()
    first.build(project)
    first.docker("network", "create", "left")
    first.kill()
    second, beside = start(), start()
    for dind in (second, beside):
        assert dind.build(project).uncached == []
        assert "left" not in dind.docker("network", "ls")


# ---- what a build says -----------------------------------------------------------------------------------------------


def install_from(dind: Dind, *absent: str, broken: str = "", version: str = "29.7.2") -> tuple[int, str]:
    """image/install-engine with an image at /engine that has all programs but some: its status, and what it says."""
    for directory, names in (("bin", PROGRAMS), ("libexec/docker/cli-plugins", PLUGINS)):
        there = {
            name: f"#!/bin/sh\necho Docker version {version}, build 0123abc\n" for name in names if name not in absent
        }
        if broken in there:
            there[broken] = "\x7fELF of another machine"
        dind.put(f"/engine/usr/local/{directory}", there, mode=0o755)
    dind.put("/build", {"install-engine": (IMAGE / "install-engine").read_bytes()}, mode=0o755)
    # In the image the links to Debian's programs are there already, which a build begins without.
    dind.sh("rm -f /usr/sbin/dockerd /usr/local/bin/docker-compose")
    done = dind.exec("/build/install-engine", env={"ENGINE_IMAGE": "own/engine:1"}, check=False)
    return done.status, done.output


@pytest.fixture
def bare(engine: Engine) -> Dind:
    return engine.dind("forky", entrypoint=["sleep", "infinity"], privileged=False, init=True)


def test_what_an_image_lacks_is_named_at_once(bare: Dind) -> None:
    status, said = install_from(bare, "docker-init", "docker-compose")
    assert status == 1
    assert said.splitlines()[0] == "error: ENGINE_IMAGE=own/engine:1 lacks: docker-init cli-plugins/docker-compose"
    assert "laid out as docker:dind" in said.splitlines()[1]
    assert len(said.splitlines()) == 2


def test_a_program_for_another_machine_is_named(bare: Dind) -> None:
    status, said = install_from(bare, broken="runc")
    assert status == 1
    assert "error: runc of own/engine:1 does not run in this image: " in said
    assert "Debian GNU/Linux" in said


def test_an_engine_that_does_not_know_our_questions_is_named(bare: Dind) -> None:
    status, said = install_from(bare, version="24.0.9")
    assert status == 1
    assert said.splitlines() == ["error: own/engine:1 has Docker Engine 24.0.9", "       cachedind needs 25.0 or later"]


def test_an_image_does_not_say_what_its_programs_do_not(bare: Dind, engine: Engine) -> None:
    bare.put("/build", {"check-versions": (IMAGE / "check-versions").read_bytes()}, mode=0o755)
    assert bare.exec("/build/check-versions").output == ""
    done = bare.exec(
        "/build/check-versions", env={"DOCKER_VERSION": "29.7.2", "DOCKER_BUILDX_VERSION": ""}, check=False
    )
    assert done.status == 1
    error, hint = done.output.splitlines()
    assert error.endswith(": DOCKER_VERSION=29.7.2 DOCKER_BUILDX_VERSION=(not set)")
    assert f"--build-arg DOCKER_VERSION={engine.engine_version('forky')} " in hint
