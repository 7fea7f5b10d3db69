"""When a container of each image was last seen: noted in the data-root, where a job may have written anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.engine import image_uses


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_uses_are_noted_and_the_oldest_forgotten(root_fd: int) -> None:
    assert image_uses.read(root_fd) == {}
    image_uses.note(root_fd, ["sha256:a", "sha256:b"], 10.0)
    image_uses.note(root_fd, ["sha256:b"], 20.0)
    assert image_uses.read(root_fd) == {"sha256:a": 10.0, "sha256:b": 20.0}
    image_uses.note(root_fd, [f"sha256:{number}" for number in range(image_uses.MAX_USES)], 30.0)
    assert len(image_uses.read(root_fd)) == image_uses.MAX_USES
    assert "sha256:b" not in image_uses.read(root_fd)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"min_reader": 1, "uses": []}', '{"min_reader": 1, "uses": {"a": "b", "c": true}}']
)
def test_uses_that_make_no_sense_are_none(root_fd: int, tmp_path: Path, text: str) -> None:
    (tmp_path / ".cachedind").mkdir()
    (tmp_path / ".cachedind" / image_uses.NAME).write_text(text)
    assert image_uses.read(root_fd) == {}


def test_uses_never_come_from_outside_nor_go_there(root_fd: int, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / image_uses.NAME).write_text('{"min_reader": 1, "uses": {"a": 1}}')
    (tmp_path / ".cachedind").symlink_to(outside)
    before = (outside / image_uses.NAME).read_text()
    assert image_uses.read(root_fd) == {}
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        image_uses.note(root_fd, ["b"], 2.0)
    assert (outside / image_uses.NAME).read_text() == before
