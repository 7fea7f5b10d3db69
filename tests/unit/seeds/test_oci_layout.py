"""The images of an OCI layout, good and bad."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from helpers.archives import (
    CONFIG,
    DOCKER_MANIFEST,
    GZIP,
    LAYERS,
    NAME,
    OCI,
    blob,
    describe,
    dump,
    index_of,
    oci_archive,
    oci_image,
    platforms,
    sha,
    the_fault,
    the_image,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_an_oci_archive_with_compressed_layers(tmp_path: Path) -> None:
    packed = [gzip.compress(layer) for layer in LAYERS]
    files = oci_archive({NAME: "ghcr.io/x/app:2"}, packed=packed, layer_type=GZIP)
    image = the_image(tmp_path, files)
    assert image.names == ("ghcr.io/x/app:2",)
    assert [(layer.diff_id, layer.digest, layer.media_type) for layer in image.layers] == [
        (sha(raw), sha(small), GZIP) for raw, small in zip(LAYERS, packed, strict=True)
    ]


def test_dockers_own_types_go_on_as_they_are(tmp_path: Path) -> None:
    own = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    files, manifest = oci_image(media_type=DOCKER_MANIFEST, layer_type=own)
    image = the_image(tmp_path, {**files, "index.json": index_of(describe(manifest, DOCKER_MANIFEST))})
    assert (image.manifest, image.manifest_type) == (manifest, DOCKER_MANIFEST)
    assert {layer.media_type for layer in image.layers} == {own}


def test_indexes_in_indexes_in_indexes(tmp_path: Path) -> None:
    files = platforms("linux/amd64")
    for depth in range(2, 5):
        inner = files["index.json"]
        files |= {blob(inner): inner, "index.json": index_of(describe(inner, f"{OCI}index.v1+json"))}
        if depth <= 3:
            assert the_image(tmp_path, files)
    assert the_fault(tmp_path, files) == "its indexes are nested more than 3 deep"


def test_blobs_of_an_index_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    files = oci_archive()
    for what, name in (
        ("manifest", json.loads(files["index.json"])["manifests"][0]["digest"]),
        ("configuration", sha(CONFIG)),
    ):
        path = f"blobs/sha256/{name[7:]}"
        changed = files[path].replace(b"a", b"b", 1)
        assert the_fault(tmp_path, {**files, path: changed}) == f"its {what} does not match its digest"
        assert the_fault(tmp_path, {**files, path: b""}).startswith(f"its {what} is cut short: 0 of")
        assert the_fault(tmp_path, {**files, path: files[path] + b" "}).startswith(f"its {what} has ")


def test_layers_of_an_index_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    files = oci_archive()
    path = blob(LAYERS[0])
    short = f"layer {sha(LAYERS[0])[:19]}…"
    size = len(LAYERS[0])
    assert (
        the_fault(tmp_path, {**files, path: LAYERS[0][:-1]})
        == f"{short} is cut short: {size - 1} of {size} bytes are there"
    )
    assert the_fault(tmp_path, {key: value for key, value in files.items() if key != path}) == f"{short} is not in it"


@pytest.mark.parametrize(
    ("layer_type", "why"),
    [
        (f"{OCI}layer.v1.tar+gzip+encrypted", "is encrypted"),
        (f"{OCI}layer.v1.tar+lz4", "has an unknown media type: application/vnd.oci.image.layer.v1.tar+lz4"),
        ("application/vnd.in-toto+json", "has an unknown media type: application/vnd.in-toto+json"),
    ],
)
def test_kinds_of_layers_that_nobody_can_unpack(tmp_path: Path, layer_type: str, why: str) -> None:
    assert the_fault(tmp_path, oci_archive(layer_type=layer_type)) == f"layer {sha(LAYERS[0])[:19]}… {why}"


@pytest.mark.parametrize(
    "layer_type",
    [f"{OCI}layer.nondistributable.v1.tar+gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"],
)
def test_layers_that_may_not_be_distributed(tmp_path: Path, layer_type: str) -> None:
    files = oci_archive(layer_type=layer_type)
    assert the_image(tmp_path, files).layers[0].media_type == layer_type
    del files[blob(LAYERS[0])]
    assert the_fault(tmp_path, files).endswith("is not in it, because it may not be distributed")


def test_what_is_no_image(tmp_path: Path) -> None:
    config = dump({})
    manifest = dump({"config": describe(config, "application/vnd.cncf.helm.config.v1+json"), "layers": []})
    kind = f"{OCI}manifest.v1+json"
    files = {blob(config): config, blob(manifest): manifest, "index.json": index_of(describe(manifest, kind))}
    assert the_fault(tmp_path, files) == "it is not an image but application/vnd.cncf.helm.config.v1+json"
    for descriptor, why in (
        (describe(manifest, "text/plain"), "its media type is unknown: text/plain"),
        (describe(manifest, kind, digest="sha512:" + "0" * 128), "a digest in it is not a sha256 digest: sha512:"),
        (
            describe(manifest, kind, digest="sha256:../../../etc/passwd"),
            "a digest in it is not a sha256 digest: sha256:..",
        ),
        (describe(manifest, kind, size="1"), "no size is given for its manifest"),
    ):
        assert the_fault(tmp_path, {**files, "index.json": index_of({**descriptor})}).startswith(why)
