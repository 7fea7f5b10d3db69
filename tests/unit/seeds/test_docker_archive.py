"""The images of a docker-archive, good and bad."""

from __future__ import annotations

import gzip
import json
import lzma
import tarfile
from typing import TYPE_CHECKING

import pytest

from helpers.archives import (
    CONFIG,
    GZIP,
    LAYERS,
    OCI,
    PLAIN,
    Files,
    blob,
    config_of,
    contents,
    docker_archive,
    dump,
    new_docker_archive,
    open_bytes,
    read_files,
    sha,
    tar,
    the_fault,
    the_image,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_an_archive_of_an_old_docker(tmp_path: Path, tar_format: int) -> None:
    with open_bytes(tmp_path, tar(docker_archive(), tar_format)) as opened:
        [image] = opened.images
        assert image.names == ("docker.io/library/app:1",)
        assert (image.config, image.config_digest) == (CONFIG, sha(CONFIG))
        assert (image.manifest, image.manifest_type) == (None, "")
        assert [(layer.diff_id, layer.digest, layer.media_type) for layer in image.layers] == [
            (sha(layer), None, PLAIN) for layer in LAYERS
        ]
        assert contents(image) == LAYERS
        assert opened.bad == ()


def test_an_archive_of_a_new_docker(tmp_path: Path) -> None:
    with open_bytes(tmp_path, tar(new_docker_archive(("app:1", "ghcr.io/x/app:2")))) as opened:
        [image] = opened.images
        assert image.names == ("docker.io/library/app:1", "ghcr.io/x/app:2")
        assert image.manifest is not None
        assert (
            sha(image.manifest) == json.loads(tar_member(new_docker_archive(), "index.json"))["manifests"][0]["digest"]
        )
        assert image.manifest_type == f"{OCI}manifest.v1+json"
        assert [(layer.digest, layer.media_type) for layer in image.layers] == [(sha(raw), PLAIN) for raw in LAYERS]
        assert contents(image) == LAYERS


def tar_member(files: Files, name: str) -> bytes:
    raw = files[name]
    assert isinstance(raw, bytes)
    return raw


def test_layers_of_a_docker_archive_are_what_they_begin_with(tmp_path: Path) -> None:
    from backports import zstd

    packed = [gzip.compress(LAYERS[0]), zstd.compress(LAYERS[1])]
    paths = ["a.tar.gz", blob(packed[1])]
    files = {**dict(zip(paths, packed, strict=True)), "c.json": CONFIG}
    files["manifest.json"] = dump(
        [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": [f"./{path}" for path in paths]}]
    )
    image = the_image(tmp_path, files)
    assert [(layer.digest, layer.media_type) for layer in image.layers] == [
        (None, GZIP),
        (sha(packed[1]), f"{OCI}layer.v1.tar+zstd"),
    ]
    files["a.tar.gz"] = lzma.compress(LAYERS[0])
    assert the_fault(tmp_path, files) == "layer ./a.tar.gz is compressed in a way that is not supported"


def test_several_images_that_share_a_layer(tmp_path: Path) -> None:
    first, second = docker_archive(), docker_archive([LAYERS[0]], tags=["other:1"])
    both = json.loads(first["manifest.json"]) + json.loads(second["manifest.json"])
    images, bad = read_files(tmp_path, {**first, **second, "manifest.json": dump(both)})
    assert [image.names[0] for image in images] == ["docker.io/library/app:1", "docker.io/library/other:1"]
    assert images[0].layers[0] == images[1].layers[0]._replace(content=images[0].layers[0].content)
    assert bad == []


def test_an_image_without_layers(tmp_path: Path) -> None:
    files = docker_archive([], tags=["app:1"])
    assert the_image(tmp_path, files).layers == ()
    entry = {**json.loads(files["manifest.json"])[0], "Layers": None}
    assert the_image(tmp_path, {**files, "manifest.json": dump([entry])}).top_chain == ""


def test_a_member_that_is_not_there(tmp_path: Path) -> None:
    files = docker_archive()
    gone = next(name for name in files if name.endswith("layer.tar"))
    del files[gone]
    assert the_fault(tmp_path, files) == f"its manifest.json names {gone}, which is not in it"


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "x/../../y", "x/../config.json"])
@pytest.mark.parametrize("key", ["Config", "Layers"])
def test_paths_that_lead_out(tmp_path: Path, path: str, key: str) -> None:
    files = docker_archive()
    entry = json.loads(files["manifest.json"])[0]
    entry[key] = path if key == "Config" else [path, path]
    assert (
        the_fault(tmp_path, {**files, "manifest.json": dump([entry])}) == f"it names a path outside of the seed: {path}"
    )


def test_configurations_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    files = docker_archive()
    path = json.loads(files["manifest.json"])[0]["Config"]
    assert the_fault(tmp_path, {**files, path: CONFIG + b" "}) == "its configuration does not match its digest"
    for config, why in (
        (b"{", "its configuration is not JSON"),
        (b"[" * 100_000, "its configuration is not JSON"),
        (b"[]", "it has 2 layers, and its configuration names 0"),
        (config_of(LAYERS[:1]), "it has 2 layers, and its configuration names 1"),
        (
            dump({"rootfs": {"diff_ids": ["sha256:x", "md5:y"]}}),
            "a diff ID in its configuration is not a sha256 digest: sha256:x",
        ),
        (dump({"rootfs": {"diff_ids": "sha256:x"}}), "its diff_ids are not a list of strings"),
    ):
        entry = {**json.loads(files["manifest.json"])[0], "Config": "c.json"}
        assert the_fault(tmp_path, {**files, "c.json": config, "manifest.json": dump([entry])}) == why
