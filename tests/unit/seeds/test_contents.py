"""Layers as they are read, each with its digest checked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from cachedind.seeds import archive
from cachedind.seeds import contents as contents_module
from cachedind.seeds.model import SeedError
from helpers.archives import (
    LAYERS,
    blob,
    contents,
    docker_archive,
    new_docker_archive,
    oci_archive,
    open_bytes,
    sha,
    tar,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cachedind.seeds.contents import File


def test_the_last_piece_of_a_wrong_layer_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "CHUNK_BYTES", 1000)
    files = oci_archive()
    wrong = LAYERS[1][:-1] + b"x"
    with open_bytes(tmp_path, tar({**files, blob(LAYERS[1]): wrong})) as opened:
        layer = opened.images[0].layers[1]
        got = b""
        chunks = layer.content.chunks()
        for _ in range((len(wrong) - 1) // 1000):
            got += next(chunks)
        with pytest.raises(SeedError, match=f"layer {sha(LAYERS[1])[:19]}… does not match its digest") as caught:
            next(chunks)
        assert caught.value.lasting
        assert got == wrong[: (len(wrong) - 1) // 1000 * 1000]
        assert b"".join(opened.images[0].layers[0].content.chunks()) == LAYERS[0]


def test_a_wrong_layer_of_the_old_format_whose_path_is_its_digest(tmp_path: Path) -> None:
    files = {**new_docker_archive(), blob(LAYERS[0]): LAYERS[0][:-1] + b"x"}
    del files["index.json"]
    with open_bytes(tmp_path, tar(files)) as opened, pytest.raises(SeedError, match="does not match its digest"):
        contents(opened.images[0])


@pytest.mark.parametrize("build", [docker_archive, oci_archive])
def test_a_disk_that_fails_is_no_fault_of_an_image(tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: File, offset: int, size_bytes: int) -> Iterator[bytes]:
        if offset > where:
            raise SeedError("it cannot be read (Input/output error)", lasting=False)
        yield os.pread(file.fd, size_bytes, offset)

    # The configuration lies behind the first layer, and what names it at the beginning.
    files = build()
    first = "manifest.json" if "manifest.json" in files else "index.json"
    files = {first: files.pop(first), **files}
    where = 512
    monkeypatch.setattr(contents_module, "read_slice", fail)
    with pytest.raises(SeedError, match="Input/output error") as caught:
        open_bytes(tmp_path, tar(files))
    assert not caught.value.lasting


@pytest.mark.parametrize("build", [docker_archive, oci_archive])
def test_a_file_that_becomes_shorter(tmp_path: Path, build: Any) -> None:
    raw = tar(build())
    path = tmp_path / "a.tar"
    path.write_bytes(raw)
    with archive.open_archive(os.open(path, os.O_RDWR)) as opened:
        os.truncate(path, 1024)
        with pytest.raises(SeedError, match="it has become shorter while it was read") as caught:
            [list(layer.content.chunks()) for layer in opened.images[0].layers]
    assert not caught.value.lasting


def test_after_the_end_nothing_is_read_from_another_file(tmp_path: Path) -> None:
    opened = open_bytes(tmp_path, tar(docker_archive()))
    opened.close()
    opened.close()
    with (tmp_path / "other").open("wb+") as other:
        other.write(b"x" * 100_000)
        with pytest.raises(SeedError, match="cannot be read"):
            list(opened.images[0].layers[0].content.chunks())
