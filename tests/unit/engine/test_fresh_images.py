"""What is known of images that no job sees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.engine import fresh_images
from cachedind.engine.images import Record

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_view_is_of_the_names_of_seeds() -> None:
    records = [Record(("docker.io/library/a:1", "docker.io/library/a:2"), A, C), Record((), B, C)]
    view = fresh_images.view_of(records, [C])
    assert view.names == {"docker.io/library/a:1": A, "docker.io/library/a:2": A}
    assert view.ids == {C}


def test_names_are_noted_and_forgotten_with_their_images(root_fd: int) -> None:
    fresh_images.add_unused(root_fd, {A: ["a:1"], B: []}, keep=frozenset())
    assert fresh_images.read_unused(root_fd) == {A: ("a:1",), B: ()}
    fresh_images.add_unused(root_fd, {C: ["c:1", "c:2", "c:3", "c:4"]}, keep=frozenset({B}))
    assert fresh_images.read_unused(root_fd) == {B: (), C: ("c:1", "c:2", "c:3")}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"min_reader": 1, "images": []}', '{"min_reader": 1, "images": {"a": []}}']
)
def test_notes_that_make_no_sense_are_none(root_fd: int, tmp_path: Path, text: str) -> None:
    (tmp_path / ".cachedind").mkdir()
    (tmp_path / ".cachedind" / fresh_images.NAME).write_text(text)
    assert fresh_images.read_unused(root_fd) == {}


def test_only_what_is_known_to_be_old_is_too_old() -> None:
    uses = {A: 100.0, B: 50.0}
    assert fresh_images.find_expired([A, B, C], uses, 60.0) == {B}
    assert fresh_images.find_expired([A, B, C], uses, 0.0) == frozenset()
