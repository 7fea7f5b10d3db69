"""Blobs of the containerd store are compared with their digests."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from cachedind.engine import blobs, paths

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def content(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    directory = tmp_path / paths.BLOBS
    directory.mkdir(parents=True)
    for raw in (b"manifest", b"layer" * 1000, b""):
        (directory / hashlib.sha256(raw).hexdigest()).write_bytes(raw)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd, directory
    os.close(fd)


def test_blobs_that_are_what_their_names_say_pass(content: tuple[int, Path]) -> None:
    found = blobs.find(content[0])
    assert (found.bad, found.held, found.unchecked) == ({}, {}, ())
    assert len(found.whole) == 3


@pytest.mark.parametrize(("raw", "says"), [(b"", "it is empty"), (b"short", "does not match its digest")])
def test_a_blob_with_other_bytes_is_told_and_stays(content: tuple[int, Path], raw: bytes, says: str) -> None:
    fd, directory = content
    name = hashlib.sha256(b"manifest").hexdigest()
    (directory / name).write_bytes(raw)
    found = blobs.find(fd)
    assert list(found.held) == [f"{paths.BLOBS}/{name}"]
    assert says in found.held[f"{paths.BLOBS}/{name}"]
    assert f"sha256:{name}" not in found.whole
    late = blobs.find(fd, time_s=0)
    assert "no time left" in late.unchecked[0]


def test_what_was_found_whole_before_is_not_read_again(content: tuple[int, Path]) -> None:
    fd, _ = content
    late = blobs.find(fd, time_s=0)
    assert (late.late, late.looked) == (True, frozenset())
    whole = blobs.find(fd).whole
    assert not blobs.find(fd).late
    found = blobs.find(fd, time_s=0, looked=whole)
    assert (found.late, found.whole, found.unchecked) == (False, whole, ())
