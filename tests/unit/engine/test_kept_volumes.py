"""Volumes that are kept by their names: which, and how many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachedind.engine.kept_volumes import find_kept, over_the_limit, plan_kept


def words(*patterns: str) -> frozenset[str]:
    return frozenset(f"volumes:{pattern}" for pattern in patterns)


@pytest.mark.parametrize(
    ("going", "keep", "expected"),
    [
        (("b0", "other"), frozenset({"volumes:b*"}), ("b0",)),
        (("b0", "other"), frozenset({"containers"}), ()),
        ((), frozenset({"volumes:*"}), ()),
    ],
)
def test_what_is_too_many_is_told_from_what_nobody_named(
    going: tuple[str, ...], keep: frozenset[str], expected: tuple[str, ...]
) -> None:
    assert over_the_limit(going, keep) == expected


BUILDERS = {"buildx_buildkit_a0_state": 4, "buildx_buildkit_b0_state": 1, "buildx_buildkit_c0_state": 3}


@pytest.mark.parametrize(
    ("last_used", "keep", "expected"),
    [
        ({}, words("*"), set()),
        (BUILDERS, frozenset(), set()),
        (BUILDERS, frozenset({"volumes", "images"}), set()),
        (BUILDERS, words("buildx_buildkit_*_state"), set(BUILDERS)),
        (BUILDERS, words("buildx_buildkit_b0_state"), {"buildx_buildkit_b0_state"}),
        (BUILDERS, words("buildx_buildkit_?0_state", "none"), set(BUILDERS)),
        (BUILDERS, words("BUILDX*", "buildx"), set()),
        # The three that were used last; of two that are as new, the same ones each time.
        ({"v1": 1, "v2": 2, "v3": 3, "v4": 4}, words("v*"), {"v2", "v3", "v4"}),
        ({"v1": 7, "v2": 2, "v3": 3, "v4": 4}, words("v*"), {"v1", "v3", "v4"}),
        ({"v1": 0, "v2": 0, "v3": 0, "v4": 0}, words("v*"), {"v2", "v3", "v4"}),
        # Each pattern has its own.
        ({"a1": 1, "a2": 2, "a3": 3, "a4": 4, "b1": 0}, words("a*", "b*"), {"a2", "a3", "a4", "b1"}),
        ({"a1": 1, "a2": 2, "a3": 3, "a4": 4}, words("a*", "a1"), {"a1", "a2", "a3", "a4"}),
        ({"a1": 1, "a2": 2}, words("a[!2]", "[b]"), {"a1"}),
    ],
)
def test_of_each_pattern_the_newest_stay(last_used: dict[str, int], keep: frozenset[str], expected: set[str]) -> None:
    assert plan_kept(last_used, keep) == expected


def volume(root: Path, name: str, *, made: int, changed: int) -> None:
    """A volume with one file in it; times in seconds."""
    data = root / "volumes" / name / "_data"
    data.mkdir(parents=True)
    (data / "cache.db").touch()
    os.utime(data / "cache.db", (0, changed))
    os.utime(data, (0, made))


def test_a_volume_is_as_new_as_what_changed_in_it_last(tmp_path: Path) -> None:
    """A builder of a month ago that was used today is newer than one of yesterday, which nobody will use again."""
    for number in range(3):
        volume(tmp_path, f"once{number}", made=20 + number, changed=20 + number)
    volume(tmp_path, "old", made=1, changed=30)
    root_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        kept = find_kept(root_fd, "volumes", sorted(os.listdir(tmp_path / "volumes")), words("o*"))
    finally:
        os.close(root_fd)
    assert kept == {"old", "once1", "once2"}


def test_what_a_job_has_planted_in_a_volume_s_place_is_the_oldest(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for number in range(3):
        volume(tmp_path, f"v{number}", made=1, changed=1)
    (tmp_path / "volumes/v8").mkdir()
    (tmp_path / "volumes/v8/_data").symlink_to(outside)
    (tmp_path / "volumes/v9").mkdir()
    os.mkfifo(tmp_path / "volumes/v9/_data")
    before = os.listdir("/proc/self/fd")
    root_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert find_kept(root_fd, "volumes", ("v0", "v1", "v2", "v8", "v9", "gone"), words("*")) == {"v0", "v1", "v2"}
    finally:
        os.close(root_fd)
    assert os.listdir("/proc/self/fd") == before
