"""A data-root stays what it is: stale settings, other engines and plain daemons do not cost its cache."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import Project, overlay_project
from helpers.dind import REAL_DOCKERD
from helpers.flavours import DEFAULT_STORE, FLAVOURS

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume
    from helpers.flavours import Flavour

FORKY = [flavour for flavour in FLAVOURS if flavour.suite == "forky"]


class Built:
    """A volume in which a project was built, and the proof of whether it still is."""

    def __init__(self, engine: Engine, suite: str, **options: object) -> None:
        self.engine = engine
        self.suite = suite
        self.volume: Volume = engine.volume()
        self.project: Project = overlay_project(secrets.token_hex(8))
        dind = engine.dind(suite, volume=self.volume, **options)
        dind.wait_ready()
        dind.build(self.project)
        self.build_id = dind.run_image(self.project)
        self.info = dind.info()
        dind.kill()

    def start(self, suite: str | None = None, **options: object) -> Dind:
        return self.engine.dind(suite or self.suite, volume=self.volume, **options)

    def check_cached(self, dind: Dind) -> None:
        """All steps CACHED, the image runs, and it is the one that was built at first."""
        dind.wait_ready()
        assert dind.run_image(self.project) == self.build_id
        dind.docker("image", "rm", "--force", self.project.tag)
        build = dind.build(self.project)
        assert build.summary == f"{self.project.step_count} of {self.project.step_count} CACHED"
        assert dind.run_image(self.project) == self.build_id


@pytest.mark.parametrize("driver", ["overlay2", "vfs"])
def test_stale_docker_driver_loses_with_one_warning(engine: Engine, flavour: Flavour, driver: str) -> None:
    """CI templates set DOCKER_DRIVER, and it would beat everything: the images would be gone, or worse, half gone."""
    built = Built(engine, flavour.suite, env=flavour.env)
    dind = built.start(env={**flavour.env, "DOCKER_DRIVER": driver})
    built.check_cached(dind)
    assert dind.info() == built.info
    told = [warning for warning in dind.warnings if "DOCKER_DRIVER" in warning]
    if driver == built.info.driver:
        assert told == []
    else:
        assert len(told) == 1
        assert driver in told[0]
        assert built.info.driver in told[0]


def test_contradicting_argument_is_78_and_names_both(engine: Engine, flavour: Flavour) -> None:
    built = Built(engine, flavour.suite, env=flavour.env)
    dind = built.start(env=flavour.env, args=["--storage-driver", "vfs"])
    assert dind.wait_exit() == 78
    [error] = dind.errors
    assert "vfs" in error
    assert built.info.driver in error
    # It was refused before anything was touched.
    built.check_cached(built.start(env=flavour.env))


def test_fitting_argument_is_fine(engine: Engine, suite: str) -> None:
    """The documented `docker:dind --storage-driver overlay2`."""
    built = Built(engine, suite, args=["--storage-driver", "overlay2"])
    assert built.info.driver == "overlay2"
    built.check_cached(built.start(args=["--storage-driver", "overlay2"]))


def test_vfs_is_sticky(engine: Engine, suite: str) -> None:
    """No engine takes vfs for prior data: left to itself it would start over with overlay2."""
    built = Built(engine, suite, env={"CACHEDIND_ALLOW_VFS": "1", "CACHEDIND_STORAGE_DRIVER": "vfs"})
    assert built.info.driver == "vfs"
    dind = built.start()
    built.check_cached(dind)
    assert dind.info().driver == "vfs"


@pytest.mark.parametrize("flavour", FORKY, ids=str)
def test_newer_engines_data_is_65_and_names_both(engine: Engine, flavour: Flavour) -> None:
    built = Built(engine, flavour.suite, env=flavour.env)
    dind = built.start("trixie")
    assert dind.wait_exit() == 65
    [error] = dind.errors
    assert built.info.version.partition("+")[0] in error
    assert engine.engine_version("trixie") in error
    # The newer engine finds everything as it was.
    built.check_cached(built.start(env=flavour.env))


def test_older_engines_data_is_taken_on(engine: Engine) -> None:
    built = Built(engine, "trixie")
    dind = built.start("forky")
    built.check_cached(dind)
    assert (dind.info().store, dind.info().driver) == (built.info.store, built.info.driver)


def test_a_plain_daemons_data_is_recognised(engine: Engine, flavour: Flavour) -> None:
    """A volume of docker:dind's: no state of ours in it, only the engine's own marks."""
    built = Built(engine, flavour.suite, entrypoint=[REAL_DOCKERD], args=plain_arguments(flavour))
    assert (built.info.store, built.info.driver) == (flavour.store, flavour.overlay)

    # Nothing tells cachedind which store it is to be.
    dind = built.start()
    built.check_cached(dind)
    assert dind.info() == built.info
    assert dind.summary is not None
    assert dind.summary.startswith("warm")


def plain_arguments(flavour: Flavour) -> list[str]:
    """What has a plain dockerd take that store."""
    if flavour.suite == "trixie" or flavour.store == DEFAULT_STORE:
        return []
    return [f"--feature=containerd-snapshotter={str(flavour.store == 'containerd').lower()}"]


@pytest.mark.parametrize("flavour", FORKY, ids=str)
def test_a_plain_newer_daemons_data_is_65_and_names_both(engine: Engine, flavour: Flavour) -> None:
    """The engine's own records do not say who wrote them; its containerd's do."""
    built = Built(engine, flavour.suite, entrypoint=[REAL_DOCKERD], args=plain_arguments(flavour))
    dind = built.start("trixie")
    assert dind.wait_exit() == 65
    [error] = dind.errors
    assert "an engine with containerd 2.0 or later" in error
    assert f"engine {engine.engine_version('trixie')} with the older containerd 1.7" in error
    # The newer engine finds everything as it was, and from then on it is noted who wrote it.
    dind = built.start()
    built.check_cached(dind)
    dind.kill()
    dind = built.start("trixie")
    assert dind.wait_exit() == 65
    assert built.info.version.partition("+")[0] in dind.errors[0]


def test_a_plain_older_daemons_data_is_taken_on_and_noted(engine: Engine) -> None:
    built = Built(engine, "trixie", entrypoint=[REAL_DOCKERD])
    dind = built.start("forky")
    built.check_cached(dind)
    assert engine.engine_version("forky") in dind.sh("cat /var/lib/docker/.cachedind/state.json")
