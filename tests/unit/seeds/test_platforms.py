"""Whether an image is for this machine, and which of several is taken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cachedind.seeds import platforms as platforms_module
from helpers.archives import docker_archive, oci_archive, platforms, the_fault, the_image

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("outer", [True, False])
def test_of_several_platforms_this_machines_is_taken(tmp_path: Path, outer: bool) -> None:
    files = platforms("linux/arm64/v8", "linux/amd64", "windows/amd64", outer=outer)
    image = the_image(tmp_path, files)
    assert json.loads(image.config)["architecture"] == "amd64"
    assert image.names == ("docker.io/x/app:1" if outer else "docker.io/library/my-app:latest",)


def test_blobs_of_other_platforms_need_not_be_there(tmp_path: Path) -> None:
    assert the_image(tmp_path, platforms("linux/arm64", "linux/amd64", lacking="linux/arm64"))
    why = the_fault(tmp_path, platforms("linux/arm64", "linux/amd64", lacking="linux/amd64"))
    assert why.startswith("its manifest sha256:")
    assert why.endswith(" is not in it")


@pytest.mark.parametrize("outer", [True, False])
def test_none_for_this_machine(tmp_path: Path, outer: bool) -> None:
    why = the_fault(tmp_path, platforms("linux/arm64", "linux/arm/v7", outer=outer))
    assert why == "it is for linux/arm64, linux/arm/v7, and this machine is linux/amd64"


@pytest.mark.parametrize("build", [docker_archive, oci_archive])
def test_a_single_image_for_another_machine(tmp_path: Path, build: Any) -> None:
    why = the_fault(tmp_path, build(architecture="arm64", os="linux"))
    assert why == "it is for linux/arm64, and this machine is linux/amd64"


@pytest.mark.parametrize(
    ("platform", "here", "fits"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/amd64/v3", "linux/amd64", True),
        ("windows/amd64", "linux/amd64", False),
        ("linux/386", "linux/amd64", False),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm/v6", "linux/arm/v7", True),
        ("linux/arm", "linux/arm/v7", True),
        ("linux/arm", "linux/arm/v6", False),
        ("linux/arm/v8", "linux/arm/v7", False),
        ("linux/arm/v7", "linux/arm64", False),
        ("linux/s390x", "linux/s390x", True),
    ],
)
def test_what_runs_where(platform: str, here: str, fits: bool) -> None:
    assert bool(platforms_module.rank(platform, here)) is fits


def test_the_best_variant() -> None:
    def best(here: str, *names: str) -> str:
        return max(names, key=lambda name: platforms_module.rank(name, here))

    assert best("linux/arm/v7", "linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm/v8") == "linux/arm/v7"
    assert best("linux/amd64", "linux/amd64/v4", "linux/amd64", "linux/amd64/v2") == "linux/amd64"
    assert best("linux/arm64", "linux/arm64/v9", "linux/arm64/v8") == "linux/arm64/v8"


@pytest.mark.parametrize(
    ("machine", "platform"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7"), ("riscv64", "linux/riscv64")],
)
def test_machines(machine: str, platform: str) -> None:
    assert platforms_module.machine_platform(machine) == platform
