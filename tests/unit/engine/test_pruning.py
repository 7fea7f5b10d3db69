"""What a slot gives up when its pool is over its budget: enough, the oldest first, and nothing that is spared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.engine.pruning import (
    NAME,
    Inventory,
    Pruned,
    StoredImage,
    note,
    parse_time,
    plan_cache,
    plan_images,
    take_note,
)

MB = 10**6


def image(name: str, unique_mb: int, used: float, *, size_mb: int = 0, spared: bool = False) -> StoredImage:
    return StoredImage(f"sha256:{name}", name, (size_mb or unique_mb) * MB, unique_mb * MB, used, spared)


THREE = (image("new", 100, 30), image("old", 100, 10), image("middle", 100, 20))


@pytest.fixture
def tree_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def names(found: Inventory, wanted_mb: int, limit_mb: int | None = None) -> list[str]:
    limit = None if limit_mb is None else limit_mb * MB
    return [image.name for image in plan_images(found, wanted_mb * MB, limit)]


def test_images_go_by_last_use_until_it_is_enough() -> None:
    found = Inventory(THREE, 300 * MB, 0)
    assert names(found, 1) == ["old"]
    assert names(found, 100) == ["old"]
    assert names(found, 101) == ["old", "middle"]
    assert names(found, 10_000) == ["old", "middle", "new"]
    assert names(found, 0) == []


def test_an_image_that_is_spared_or_frees_nothing_stays() -> None:
    images = (image("seed", 100, 1, spared=True), image("alias", 0, 2), image("own", 100, 3))
    assert names(Inventory(images, 200 * MB, 0), 10_000) == ["own"]


def test_an_image_that_others_are_built_on_goes_after_those() -> None:
    base = image("base", 5, 1, size_mb=80)
    found = Inventory((base, *THREE), 300 * MB, 0)
    assert names(found, 101) == ["old", "middle"]
    assert names(found, 301) == ["old", "middle", "new", "base"]


def test_build_cache_above_its_limit_goes_before_any_image() -> None:
    found = Inventory(THREE, 300 * MB, 500 * MB)
    assert names(found, 100, limit_mb=400) == []
    assert names(found, 101, limit_mb=400) == ["old"]
    assert names(found, 100) == ["old"], "without a limit the cache is worth more than an old image"


def test_of_the_build_cache_goes_what_is_still_lacking() -> None:
    before = Inventory(THREE, 300 * MB, 500 * MB)
    assert plan_cache(before, before, 100 * MB, None) == 400 * MB
    assert plan_cache(before, before, 10_000 * MB, None) == 0
    # An image went, and freed nothing but a name: the build cache had its layers too.
    assert plan_cache(before, Inventory(THREE[1:], 200 * MB, 600 * MB), 100 * MB, None) == 500 * MB
    assert plan_cache(before, Inventory(THREE[1:], 200 * MB, 500 * MB), 100 * MB, None) is None
    assert plan_cache(before, Inventory(THREE[1:], 200 * MB, 500 * MB), 100 * MB, 300 * MB) == 300 * MB


stored = st.builds(
    StoredImage,
    st.uuids().map(str),
    st.text(max_size=5),
    st.just(0),
    st.integers(0, 1000),
    st.floats(0, 1e10),
    st.booleans(),
)


@given(st.lists(stored, max_size=12), st.integers(0, 5000), st.integers(0, 8000), st.none() | st.integers(0, 5000))
def test_a_plan_frees_enough_or_all_that_may_go_and_no_more_than_it_must(
    images: list[StoredImage], cache: int, wanted: int, limit: int | None
) -> None:
    found = Inventory(tuple(images), sum(image.unique_bytes for image in images), cache)
    going = plan_images(found, wanted, limit)
    assert not any(image.spared for image in going)
    from_cache = 0 if limit is None else max(0, cache - limit)
    freed = [image.unique_bytes for image in going]
    assert sum(freed[:-1]) + from_cache < wanted or not going
    stays = [image for image in images if image not in going and not image.spared and image.unique_bytes]
    assert sum(freed) + from_cache >= wanted or not stays
    assert all(one.last_used <= other.last_used for one in going for other in stays)
    keep = plan_cache(found, found, wanted, limit)
    assert keep is None or 0 <= keep < cache


def test_a_note_is_taken_once(tree_fd: int) -> None:
    assert take_note(tree_fd) == 0
    note(tree_fd, 5 * MB)
    note(tree_fd, 7 * MB)
    assert take_note(tree_fd) == 7 * MB
    assert take_note(tree_fd) == 0
    note(tree_fd, 5 * MB)
    note(tree_fd, 0)
    assert take_note(tree_fd) == 0


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"min_reader": 1, "lacking_bytes": "x"}', '{"min_reader": 99}'])
def test_a_note_that_makes_no_sense_is_dropped(tree_fd: int, tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert take_note(tree_fd) == 0
    assert not (tmp_path / NAME).exists()


def test_times_are_read_as_engines_write_them() -> None:
    assert parse_time("2026-11-26T04:13:51.518182779Z") == parse_time("2026-11-26T04:13:51Z") == 1795666431
    assert parse_time("2026-11-26T05:13:51.5+01:00") == 1795666431
    assert [parse_time(text) for text in ("0001-01-01T00:00:00Z", "", "None", "soon")] == [0, 0, 0, 0]


@given(st.text() | st.none() | st.integers())
def test_any_moment_is_a_number(moment: object) -> None:
    assert parse_time(moment) >= 0


def test_what_went_is_told() -> None:
    assert str(Pruned((), 0, ())) == "no image and 0 MB of build cache"
    assert str(Pruned(("a:1",), 5 * MB, ())) == "1 image (a:1) and 5 MB of build cache"
    assert str(Pruned(("a", "b", "c", "d"), 0, ())) == "4 images (a, b, c, …) and 0 MB of build cache"
