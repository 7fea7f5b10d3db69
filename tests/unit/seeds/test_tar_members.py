"""The members of a tar: links, names that lead out, and archives that are damaged."""

from __future__ import annotations

import copy
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from cachedind.seeds import archive, tar_members
from cachedind.seeds.model import SeedError
from helpers.archives import (
    LAYERS,
    Files,
    config_of,
    contents,
    docker_archive,
    dump,
    link,
    open_bytes,
    read,
    tar,
    the_fault,
    the_image,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_layer_that_occurs_twice_is_a_link_to_the_first_one(tmp_path: Path) -> None:
    layers = [LAYERS[0], LAYERS[1], LAYERS[0], LAYERS[1]]
    paths = ["a/layer.tar", "b/layer.tar", "c/layer.tar", "d/layer.tar"]
    files: Files = {
        "./a/layer.tar": LAYERS[0],
        "b/layer.tar": LAYERS[1],
        "c/layer.tar": link("../a/layer.tar"),
        "d/layer.tar": link("b/layer.tar", tarfile.LNKTYPE),
        "config.json": config_of(layers),
        "manifest.json": dump([{"Config": "config.json", "RepoTags": ["app:1"], "Layers": paths}]),
    }
    with open_bytes(tmp_path, tar(files)) as opened:
        assert contents(opened.images[0]) == layers


def test_a_later_member_of_the_same_name_counts(tmp_path: Path) -> None:
    first = tar({"manifest.json": b"[]"})
    raw = first[: len(first) // 10240 * 10240 - 10240 + 1024] + tar(docker_archive())
    images, _ = read(open_bytes(tmp_path, raw))
    assert len(images) == 1


def test_layers_beyond_8_gib_are_found_without_being_read(tmp_path: Path) -> None:
    size = 9 << 30
    info = tarfile.TarInfo("a/layer.tar")
    info.size = size
    path = tmp_path / "big.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(size, os.SEEK_CUR)
        entry = {"Config": "c.json", "RepoTags": ["big:1"], "Layers": ["a/layer.tar"]}
        file.write(tar({"c.json": config_of([b""]), "manifest.json": dump([entry])}))
    with archive.open_archive(os.open(path, os.O_RDONLY)) as opened:
        assert opened.images[0].layers[0].content.size_bytes == size


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd"])
def test_members_that_lead_out(tmp_path: Path, path: str) -> None:
    with pytest.raises(SeedError, match=f"it names a path outside of the seed: {path}") as caught:
        open_bytes(tmp_path, tar({**docker_archive(), path: b"root"}))
    assert caught.value.lasting


@pytest.mark.parametrize(
    ("links", "why"),
    [
        ({"a": link("b"), "b": link("a")}, "its links form a loop: a"),
        ({"a": link("a")}, "its links form a loop: a"),
        ({"a": link("a", tarfile.LNKTYPE)}, "its links form a loop: a"),
        ({"a": link("../../../etc/passwd")}, "it names a path outside of the seed: ../../../etc/passwd"),
        ({"a": link("/etc/passwd")}, "it names a path outside of the seed: /etc/passwd"),
        ({"a": link("nowhere")}, "its manifest.json names a, which is not in it"),
        ({"a": link("", tarfile.FIFOTYPE)}, "its manifest.json names a, which is not in it"),
    ],
)
def test_links_that_lead_nowhere(tmp_path: Path, links: Files, why: str) -> None:
    entry = {"Config": "a", "RepoTags": ["app:1"], "Layers": []}
    assert the_fault(tmp_path, {**copy.deepcopy(links), "manifest.json": dump([entry])}) == why


def test_a_sparse_member(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": "9",
    }
    with pytest.raises(SeedError, match="it has a sparse file: a"):
        open_bytes(tmp_path, tar({"a": info}))


def test_an_endless_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5 << 30
    with pytest.raises(SeedError, match="it has a header of 5368709120 bytes"):
        open_bytes(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def test_headers_of_headers_of_headers(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    with pytest.raises(SeedError, match="it is damaged at byte 0"):
        open_bytes(tmp_path, info.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(4096))


def test_more_files_than_an_image_archive_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = docker_archive()
    monkeypatch.setattr(tar_members, "MAX_MEMBERS", len(files))
    assert the_image(tmp_path, files)
    monkeypatch.setattr(tar_members, "MAX_MEMBERS", len(files) - 1)
    with pytest.raises(SeedError, match="files, so it is not an image archive"):
        open_bytes(tmp_path, tar(files))
