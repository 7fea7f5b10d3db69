"""Images as archives list them: their names, and both formats in one file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from cachedind.seeds import archive
from helpers.archives import (
    LAYERS,
    NAME,
    OCI,
    REF,
    Files,
    describe,
    docker_archive,
    dump,
    index_of,
    new_docker_archive,
    oci_archive,
    oci_image,
    platforms,
    read_files,
    sha,
    tar,
    the_image,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_names_of_one_image_come_together(tmp_path: Path) -> None:
    files, manifest = oci_image()
    kind = f"{OCI}manifest.v1+json"
    named = [describe(manifest, kind, annotations={NAME: name}) for name in ("docker.io/x/a:1", "docker.io/x/b:1")]
    image = the_image(tmp_path, {**files, "index.json": index_of(*named)})
    assert image.names == ("docker.io/x/a:1", "docker.io/x/b:1")


@pytest.mark.parametrize(
    ("annotations", "names"),
    [
        ({NAME: "ghcr.io/x/app:2", REF: "2"}, ("ghcr.io/x/app:2",)),
        ({NAME: "ghcr.io/x/app:2", REF: "docker.io/y/app:3"}, ("ghcr.io/x/app:2", "docker.io/y/app:3")),
        ({REF: "redis:7"}, ("docker.io/library/redis:7",)),
        ({REF: "7-alpine"}, ("docker.io/library/my-app:7-alpine",)),
        ({}, ("docker.io/library/my-app:latest",)),
        ({NAME: f"docker.io/library/redis@{sha(b'')}"}, ("docker.io/library/my-app:latest",)),
        ({NAME: "ghcr.io/x/app:2", REF: "No Such:Name"}, ("ghcr.io/x/app:2",)),
    ],
)
def test_names_in_an_oci_archive(tmp_path: Path, annotations: dict[str, str], names: tuple[str, ...]) -> None:
    assert the_image(tmp_path, oci_archive(annotations)).names == names


@pytest.mark.parametrize(
    "name", ["My-App.tar", "my-app.TAR.GZ", "my-app.tgz", "my-app.oci", "my-app.tar.zst", "my-app"]
)
def test_names_from_a_file(tmp_path: Path, name: str) -> None:
    assert the_image(tmp_path, oci_archive(), name).names == ("docker.io/library/my-app:latest",)


def test_a_files_name_that_is_none_for_an_image(tmp_path: Path) -> None:
    images, [(label, why)] = read_files(tmp_path, oci_archive(), "Über.tar")
    assert (images, label) == ([], "image 1")
    assert why == "it has no name, and its file's name cannot be one: über:latest"


def test_only_one_image_gets_the_files_name(tmp_path: Path) -> None:
    first, one = oci_image()
    second, two = oci_image([LAYERS[1]])
    kind = f"{OCI}manifest.v1+json"
    images, bad = read_files(
        tmp_path, {**first, **second, "index.json": index_of(describe(one, kind), describe(two, kind))}
    )
    assert [image.names for image in images] == [("docker.io/library/my-app:latest",), ()]
    assert bad == []


@pytest.mark.parametrize("files", [docker_archive(tags=None), new_docker_archive(None, {})], ids=["old", "new"])
def test_an_image_of_a_docker_archive_without_names_has_none(tmp_path: Path, files: Files) -> None:
    assert the_image(tmp_path, files).names == ()


def test_an_archive_of_another_daemon_has_no_file_to_be_named_for(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.write_bytes(tar(oci_archive({REF: "1"})))
    with archive.open_archive(os.open(path, os.O_RDONLY)) as opened:
        assert opened.images[0].names == ()


def test_names_that_are_none(tmp_path: Path) -> None:
    images, bad = read_files(tmp_path, docker_archive(tags=["UPPER/case:1"]))
    assert images == []
    assert bad == [("UPPER/case:1", "none of its names is valid: UPPER/case:1")]
    assert the_image(tmp_path, docker_archive(tags=["UPPER/case:1", "app:2"])).names == ("docker.io/library/app:2",)


def test_without_its_blobs_the_index_gives_way_to_the_old_format(tmp_path: Path) -> None:
    files = new_docker_archive()
    digest = json.loads(files["index.json"])["manifests"][0]["digest"]
    del files[f"blobs/sha256/{digest[7:]}"]
    image = the_image(tmp_path, files)
    assert image.manifest is None
    assert image.names == ("docker.io/library/app:1",)
    assert [layer.digest for layer in image.layers] == [sha(layer) for layer in LAYERS]


def test_a_platform_that_the_old_format_left_out(tmp_path: Path) -> None:
    files = platforms("linux/arm64", "linux/amd64")
    other = docker_archive(tags=["x/app:1"], architecture="arm64")
    assert json.loads(the_image(tmp_path, {**other, **files}).config)["architecture"] == "amd64"


def test_one_bad_image_leaves_the_others(tmp_path: Path) -> None:
    good, bad = docker_archive(), docker_archive([LAYERS[1]], tags=["broken:1"], architecture="s390x")
    both = json.loads(bad["manifest.json"]) + json.loads(good["manifest.json"])
    images, faults = read_files(tmp_path, {**bad, **good, "manifest.json": dump(both)})
    assert [image.names for image in images] == [("docker.io/library/app:1",)]
    assert faults == [("broken:1", "it is for linux/s390x, and this machine is linux/amd64")]


def test_what_a_seed_says_goes_into_one_line(tmp_path: Path) -> None:
    entry = {"Config": "a\n\x1b[31mb" + "c" * 500, "RepoTags": ["evil\nname\ud800:1"], "Layers": []}
    _, [(label, why)] = read_files(tmp_path, {"manifest.json": dump([entry])})
    assert label.isprintable()
    assert why.isprintable()
    assert len(why) < 250
