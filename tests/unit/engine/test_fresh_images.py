"""What is known of images that no job sees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.engine import fresh_images
from cachedind.engine.fresh_images import Unused
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


def test_what_is_known_is_noted_and_forgotten_with_its_images(root_fd: int) -> None:
    fresh_images.add_unused(root_fd, {A: Unused(1.5, ("a:1",)), B: Unused(2.0, ())}, keep=frozenset())
    assert fresh_images.read_unused(root_fd) == {A: Unused(1.5, ("a:1",)), B: Unused(2.0, ())}
    fresh_images.add_unused(root_fd, {C: Unused(3.0, ("c:1", "c:2", "c:3", "c:4"))}, keep=frozenset({B}))
    assert fresh_images.read_unused(root_fd) == {B: Unused(2.0, ()), C: Unused(3.0, ("c:1", "c:2", "c:3"))}


@pytest.mark.parametrize(
    "images",
    ["[]", '{"a": {"used_at": 1, "names": []}}', f'{{"{A}": []}}', f'{{"{A}": {{"used_at": "x", "names": []}}}}'],
)
def test_notes_that_make_no_sense_are_none(root_fd: int, tmp_path: Path, images: str) -> None:
    (tmp_path / ".cachedind").mkdir()
    (tmp_path / ".cachedind" / fresh_images.NAME).write_text(f'{{"min_reader": 1, "images": {images}}}')
    assert fresh_images.read_unused(root_fd) == {}


def test_what_nobody_had_for_long_goes_at_once_with_what_is_as_old() -> None:
    uses = {A: 895.0, B: 880.0, C: 0.0}
    assert fresh_images.find_expired(uses, 100.0, 985.0) == frozenset(), "nothing is older by a tenth"
    assert fresh_images.find_expired(uses, 100.0, 995.0) == {B}
    assert fresh_images.find_expired(uses, 100.0, 996.0) == {A, B}
    assert fresh_images.find_expired(uses, None, 9999.0) == frozenset()


def test_of_too_many_those_stay_that_were_used_last() -> None:
    uses = {f"sha256:{number}": float(number) for number in range(fresh_images.MAX_IMAGES)}
    assert fresh_images.find_expired(uses, None, 0.0) == frozenset()
    found = fresh_images.find_expired({**uses, "sha256:unknown": 0.0}, None, 0.0)
    assert len(found) == fresh_images.MAX_IMAGES + 1 - fresh_images.KEPT_IMAGES
    assert {"sha256:unknown", "sha256:0"} <= found
    assert f"sha256:{fresh_images.MAX_IMAGES - 1}" not in found
