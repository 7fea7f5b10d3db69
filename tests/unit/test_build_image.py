"""scripts/build-image: whose engine a build gets, and what the image is named, with a docker that only says yes."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
REGISTRY = "REGISTRY"
DOCKER = r"""#!/bin/sh
printf '%s\n' "$*" >>"$CALLS"
for last; do :; done
case "$1 $2" in
"import -") cat >/dev/null ;;
"run --rm")
	case $* in *"dockerd --version"*)
		echo 'Docker version 29.7.2, build 0123abc'
		echo 'github.com/docker/buildx v0.36.1 0123abc'
		echo 'Docker Compose version v5.4.0' ;;
	esac ;;
"image inspect")
	case " $IMAGES " in *" $last "*) ;; *) case $* in *--format*) echo 1000000 ;; *) exit 1 ;; esac ;; esac ;;
"pull "*)
	case $REGISTRY in
	answers) echo 'dind: Pulling from library/docker' ;;
	silent) exec sleep 60 ;;
	*) echo 'Error response from daemon: no such host' >&2; exit 1 ;;
	esac ;;
"build "*)
	while [ "$1" != --iidfile ]; do shift; done
	echo sha256:0123 >"$2" ;;
esac
"""


class Built(NamedTuple):
    """How a build ended: what it printed, what it told, and what it asked docker for."""

    status: int
    stdout: str
    stderr: str
    calls: list[str]

    @property
    def tags(self) -> list[str]:
        return [call.split()[2] for call in self.calls if call.startswith("tag ")]

    @property
    def arguments(self) -> set[str]:
        """The build arguments of the last build."""
        words = [call for call in self.calls if call.startswith("build ")][-1].split()
        return {after for word, after in itertools.pairwise(words) if word == "--build-arg"}

    @property
    def pulled(self) -> list[str]:
        return [call.split()[1] for call in self.calls if call.startswith("pull ")]


Build = Callable[..., Built]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Runs the script. `registry` "answers", is "silent", or is not there; `images` are those that the engine has."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(DOCKER)
    (programs / "docker").chmod(0o755)

    def run(*arguments: str, registry: str = "none", images: str = "debian:trixie-slim debian:forky-slim") -> Built:
        calls = tmp_path / "calls"
        calls.write_text("")
        env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "CALLS": str(calls),
            REGISTRY: registry,
            "IMAGES": images,
            "ANSWER_S": "1",
        }
        done = subprocess.run(
            [ROOT / "scripts/build-image", *arguments], env=env, capture_output=True, text=True, check=False
        )
        return Built(done.returncode, done.stdout, done.stderr, calls.read_text().splitlines())

    return run


def test_dockers_newest_where_a_registry_answers(build: Build) -> None:
    built = build(registry="answers")
    assert (built.status, built.stdout) == (0, "cachedind:29.7.2\n"), built.stderr
    assert built.pulled == ["docker:dind"]
    assert built.tags == ["cachedind:29.7.2", "cachedind:latest"]
    assert {"ENGINE_IMAGE=docker:dind", "SUITE=trixie", "BASE=debian:trixie-slim"} < built.arguments
    versions = {"DOCKER_VERSION=29.7.2", "DOCKER_BUILDX_VERSION=0.36.1", "DOCKER_COMPOSE_VERSION=5.4.0"}
    assert versions < built.arguments


@pytest.mark.parametrize("registry", ["none", "silent"])
def test_debians_newest_where_none_does(build: Build, registry: str) -> None:
    began = time.monotonic()
    built = build(registry=registry)
    assert time.monotonic() - began < 10
    assert (built.status, built.stdout) == (0, "cachedind:29.7.2-forky\n"), built.stderr
    assert built.tags == ["cachedind:29.7.2-forky", "cachedind:latest"]
    assert "SUITE=forky" in built.arguments
    assert not [argument for argument in built.arguments if argument.startswith("ENGINE_IMAGE")]
    [line] = [line for line in built.stderr.splitlines() if "no registry gave docker:dind" in line]
    assert "Debian forky's engine" in line


def test_dockers_newest_that_is_here_where_none_does(build: Build) -> None:
    built = build(images="debian:trixie-slim docker:dind")
    assert "ENGINE_IMAGE=docker:dind" in built.arguments
    assert "taking the one that is here" in built.stderr


@pytest.mark.parametrize("words", [("--suite", "trixie"), ("--suite=forky",), ("--engine", "debian")])
def test_debians_engine_by_name_asks_no_registry_and_is_not_the_latest(build: Build, words: tuple[str, ...]) -> None:
    built = build(*words, registry="answers")
    suite = "trixie" if "trixie" in words else "forky"
    assert built.pulled == []
    assert built.tags == [f"cachedind:29.7.2-{suite}"]
    assert f"SUITE={suite}" in built.arguments


def test_an_image_that_is_named_is_the_engine(build: Build) -> None:
    words = ("--engine", "own/engine:1", "--suite", "forky", "--tag", "mine")
    built = build(*words, images="debian:forky-slim own/engine:1")
    assert built.pulled == []
    assert {"ENGINE_IMAGE=own/engine:1", "SUITE=forky"} < built.arguments
    assert built.tags == ["cachedind:29.7.2", "mine"]


def test_a_name_of_its_own_is_the_only_one(build: Build) -> None:
    """So that what is built for a test takes no name of the user's."""
    built = build("--suite", "trixie", "--name", "cachedind-test:x", "--tag", "more")
    assert (built.stdout, built.tags) == ("cachedind-test:x\n", ["cachedind-test:x", "more"])


def test_an_image_that_is_nowhere_is_named(build: Build) -> None:
    built = build("--engine", "own/engine:1")
    assert built.status == 69
    error, hint = built.stderr.splitlines()[-2:]
    assert "own/engine:1" in error
    assert "no such host" in error
    assert "--engine debian" in hint
    assert built.tags == []


@pytest.mark.parametrize("words", [("--engine",), ("--suite", "sid"), ("--tag", ""), ("more",)])
def test_bad_arguments_are_64(build: Build, words: tuple[str, ...]) -> None:
    built = build(*words)
    assert (built.status, built.calls) == (64, [])


def test_the_image_and_the_package_say_the_same_of_themselves() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dockerfile = (ROOT / "image/Dockerfile").read_text()
    assert f'org.opencontainers.image.version="{project["version"]}"' in dockerfile
    assert f'org.opencontainers.image.licenses="{project["license"]}"' in dockerfile
    assert project["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
