"""Archives as wholes, good and bad, and whatever else a file may have in it."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachedind.seeds import archive, documents
from cachedind.seeds.model import SeedError
from helpers.archives import (
    CONFIG,
    LAYERS,
    OCI,
    PLAIN,
    blob,
    contents,
    describe,
    docker_archive,
    dump,
    index_of,
    link,
    new_docker_archive,
    open_bytes,
    platforms,
    read,
    sha,
    tar,
    zstd_compress,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cachedind.seeds.archive import OpenSeed


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd_compress], ids=["gzip", "xz", "zstd"])
def test_compressed_archives_by_what_they_are_and_not_by_name(tmp_path: Path, pack: Any) -> None:
    packed = pack(tar(docker_archive()))
    told: list[int] = []
    checksum = hashlib.sha256(packed).hexdigest()
    with open_bytes(tmp_path, packed, checksum=checksum, on_read=told.append) as opened:
        assert contents(opened.images[0]) == LAYERS
    assert sum(told) == len(packed)
    with pytest.raises(SeedError, match="SHA-256"):
        open_bytes(tmp_path, packed, checksum="0" * 64)
    with pytest.raises(SeedError, match="not a tar archive"):
        open_bytes(tmp_path, pack(b"text " * 500))
    with pytest.raises(SeedError, match="nothing in it"):
        open_bytes(tmp_path, pack(b""))


def test_a_plain_archive_is_read_whole_for_its_checksum_alone(tmp_path: Path) -> None:
    raw = tar(docker_archive())
    told: list[int] = []
    open_bytes(tmp_path, raw, on_read=told.append).close()
    assert told == []
    open_bytes(tmp_path, raw, checksum=hashlib.sha256(raw).hexdigest(), on_read=told.append).close()
    assert sum(told) == len(raw)
    with pytest.raises(SeedError, match=r"but my-app\.tar\.sha256 says") as caught:
        open_bytes(tmp_path, raw, checksum="1" * 64)
    assert caught.value.lasting


def test_the_same_bytes_are_the_same_twice(tmp_path: Path) -> None:
    raw = tar(new_docker_archive())

    def bare(opened: OpenSeed) -> list[object]:
        images, bad = read(opened)
        return [*[(image._replace(layers=()), [each[:3] for each in image.layers]) for image in images], bad]

    assert bare(open_bytes(tmp_path, raw)) == bare(open_bytes(tmp_path, raw))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "it is empty"),
        (bytes(10240), "it is not a tar archive: it begins with zeros"),
        (b"<html>" * 500, "it is not a tar archive"),
        (b"short", "it is not a tar archive"),
        (tar({"a": b"x"})[:1024], "it is cut short: the end of the tar archive is missing"),
        (tar({"a": b"x" * 5000})[:4000], "it ends early: 4000 of 5512 bytes are there"),
        (tar({"a": b"x"})[:1024] + b"garbage" * 100 + bytes(1024), "it is damaged at byte 1024"),
        (tar({"readme": b"x"}), "it has neither manifest.json nor index.json, so it is not an image archive"),
        (tar({"repositories": b"{}", "x/layer.tar": b""}), "it was saved by a Docker before 1.10"),
        (tar({"bin": link("usr/bin"), "etc/passwd": b""}), "it is a root filesystem, not an image, as `docker export`"),
        (tar({"manifest.json": b"[]"}), "there is no image in it"),
        (tar({"index.json": b"{}"}), "there is no image in it"),
        (tar({"manifest.json": b"{}"}), "its manifest.json is not a list of images"),
        (tar({"manifest.json": b"{"}), "its manifest.json is not JSON"),
        (tar({"index.json": b'{"manifests": [1]}'}), "index.json has a malformed list of manifests"),
        (tar({"index.json": b" " * (documents.MAX_JSON_BYTES + 1)}), "index.json has 8388609 bytes"),
        (tar({"manifest.json": dump([{}] * 1001)}), "it has more than 1000 images"),
    ],
)
def test_archives_that_are_none(tmp_path: Path, raw: bytes, why: str) -> None:
    with pytest.raises(SeedError) as caught:
        open_bytes(tmp_path, raw)
    assert str(caught.value).startswith(why)
    assert caught.value.lasting


@pytest.mark.parametrize("raw", [b"", tar({"a": b""})])
def test_a_descriptor_that_was_taken_over_is_closed(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "spool").write_bytes(raw)
    fd = os.open(tmp_path / "spool", os.O_RDONLY)
    with pytest.raises(SeedError):
        archive.open_archive(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


GOOD = {
    "docker": tar(docker_archive(), tarfile.GNU_FORMAT),
    "new docker": tar(new_docker_archive()),
    "platforms": tar({**platforms("linux/amd64", "linux/arm64"), "link": link("index.json")}),
    "gzip": gzip.compress(tar(docker_archive())),
    "xz": lzma.compress(tar(docker_archive())),
    "zstd": zstd_compress(tar(docker_archive())),
}


def survive(path: Path, raw: bytes) -> None:
    """Nothing but SeedError comes of it, and no layer whose digest is known is wrong."""
    why = ""
    try:
        opened = open_bytes(path, raw)
    except SeedError as error:
        why = str(error)
    if why:
        assert why.isprintable()
        return
    with opened:
        for name, why in opened.bad:
            assert (name + why).isprintable()
        for image in opened.images:
            for layer in image.layers:
                try:
                    content = b"".join(layer.content.chunks())
                except SeedError:
                    continue
                assert layer.digest in (None, sha(content))


FUZZ = settings(max_examples=60, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", GOOD)
@FUZZ
@given(data=st.data())
def test_flipped_bytes(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    raw = bytearray(GOOD[kind])
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
        raw[place] = data.draw(st.integers(0, 255))
    survive(tmp_path, bytes(raw))


@pytest.mark.parametrize("kind", GOOD)
@FUZZ
@given(data=st.data())
def test_cut_anywhere(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    raw = GOOD[kind]
    survive(tmp_path, raw[: data.draw(st.integers(0, len(raw)))])


@pytest.mark.parametrize("kind", ["docker", "new docker", "platforms"])
def test_cut_at_every_block(tmp_path: Path, kind: str) -> None:
    """All of the images, or an error: a cut archive never passes for one with fewer."""
    raw = GOOD[kind]
    end = len(raw.rstrip(b"\0"))
    for cut in range(0, end, 512):
        with pytest.raises(SeedError):
            open_bytes(tmp_path, raw[:cut]).close()


KEYS = ["Config", "Layers", "RepoTags", "manifests", "digest", "mediaType", "size", "config", "layers", "platform"]
KEYS += ["annotations", "os", "architecture", "variant", "rootfs", "diff_ids"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([sha(CONFIG), PLAIN, "c.json"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@FUZZ
@given(index=JSON, manifest=JSON, config=JSON)
def test_any_json(tmp_path: Path, index: object, manifest: object, config: object) -> None:
    raw = dump(config)
    entries = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": []}, manifest]
    inner = dump({"config": config, "layers": [index], "manifests": [manifest]})
    descriptors = [index, describe(inner, f"{OCI}index.v1+json"), describe(inner, f"{OCI}manifest.v1+json")]
    files = {"c.json": raw, blob(raw): raw, blob(inner): inner}
    survive(tmp_path, tar({**files, "index.json": index_of(*descriptors), "manifest.json": dump(entries)}))
    survive(tmp_path, tar({**files, "index.json": dump(index)}))
    survive(tmp_path, tar({**files, "manifest.json": dump(manifest)}))
