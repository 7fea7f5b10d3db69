"""The files of a directory that is an OCI layout."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from cachedind.seeds import archive
from cachedind.seeds.model import Seed, SeedError, SeedKind
from helpers.archives import LAYERS, Files, blob, contents, dump, fds, oci_archive

if TYPE_CHECKING:
    from pathlib import Path

    from cachedind.seeds.archive import OpenSeed


def lay_out(path: Path, files: Files) -> Seed:
    for name, raw in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(raw)
    return Seed(SeedKind.LAYOUT, str(path), "identity", 0)


def open_layout(seed: Seed, told: list[int] | None = None) -> OpenSeed:
    on_read = (told if told is not None else []).append
    before = fds()
    try:
        opened = archive.open_seed(seed, spool_directory="/nowhere", room_bytes=0, on_read=on_read)
    except BaseException:
        assert fds() == before
        raise
    assert len(fds() - before) == 1
    return opened


def test_a_layout(tmp_path: Path) -> None:
    seed = lay_out(tmp_path / "my-app", oci_archive())
    with open_layout(seed) as opened:
        [image] = opened.images
        assert image.names == ("docker.io/library/my-app:latest",)
        assert contents(image) == LAYERS
        assert contents(image) == LAYERS
        assert opened.bad == ()


def test_the_checksum_of_a_layout_is_that_of_its_index(tmp_path: Path) -> None:
    files = oci_archive()
    seed = lay_out(tmp_path / "my-app", files)
    told: list[int] = []
    open_layout(seed._replace(checksum=hashlib.sha256(files["index.json"]).hexdigest()), told).close()
    assert sum(told) == len(files["index.json"])
    with pytest.raises(SeedError, match=r"SHA-256 is .* but my-app\.sha256 says"):
        open_layout(seed._replace(checksum="0" * 64))


def test_layouts_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SeedError, match=r"it has no index\.json, so it is not an OCI layout"):
        open_layout(lay_out(tmp_path / "a", {"x": b""}))
    with pytest.raises(SeedError, match="not there any longer") as caught:
        open_layout(Seed(SeedKind.LAYOUT, str(tmp_path / "gone"), "", 0))
    assert not caught.value.lasting
    with pytest.raises(SeedError, match="it is not a directory"):
        open_layout(Seed(SeedKind.LAYOUT, str(tmp_path / "a" / "x"), "", 0))


@pytest.mark.parametrize("what", ["file", "directory"])
def test_symbolic_links_in_a_layout_are_not_followed(tmp_path: Path, what: str) -> None:
    path = tmp_path / "my-app"
    seed = lay_out(path, oci_archive())
    moved = path / (blob(LAYERS[0]) if what == "file" else "blobs/sha256")
    moved.rename(tmp_path / "outside")
    moved.symlink_to(tmp_path / "outside")
    with open_layout(seed) as opened:
        assert opened.images == ()
        assert "symbolic link" in opened.bad[0][1]


def test_what_is_no_file_in_a_layout(tmp_path: Path) -> None:
    path = tmp_path / "my-app"
    seed = lay_out(path, oci_archive())
    (path / blob(LAYERS[0])).unlink()
    os.mkfifo(path / blob(LAYERS[0]))
    with open_layout(seed) as opened:
        assert opened.bad[0][1].endswith("is not a regular file")


def test_a_layout_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "my-app"
    with open_layout(lay_out(path, oci_archive())) as opened:
        first, second = (layer.content for layer in opened.images[0].layers)
        os.truncate(path / blob(LAYERS[0]), 10)
        with pytest.raises(SeedError, match="become shorter") as caught:
            list(first.chunks())
        assert not caught.value.lasting
        (path / blob(LAYERS[1])).unlink()
        with pytest.raises(SeedError, match="not there any longer") as caught:
            list(second.chunks())
        assert not caught.value.lasting


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 300, ".", "", "index.json/x"])
def test_paths_that_no_file_has(tmp_path: Path, path: str) -> None:
    files = {**oci_archive(), "manifest.json": dump([{"Config": path, "RepoTags": ["app:1"], "Layers": []}])}
    with open_layout(lay_out(tmp_path / "my-app", files)) as opened:
        assert [label for label, _ in opened.bad] == ["app:1"]
