"""A snapshotter's records that cannot be used, as something that they name is not there; and what no record names."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from cachedind import engine_paths
from cachedind.containerd_snapshots import Found, Snapshots
from helpers.boltfiles import bolt_file, show

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.boltfiles import Tree

LIMIT = 1 << 20
LAST_NUMBER = 7
"""What helpers.boltfiles.bucket says has been given out."""
BASE = b"moby/2/sha256:base"
TOP = b"moby/5/sha256:top"
NOTHING = Found({}, "")


def records() -> Tree:
    return {BASE: {b"id": b"\1", b"kind": b"\3"}, TOP: {b"id": b"\5", b"kind": b"\3", b"parent": BASE}}


def look_at(root_fd: int, driver: str, limit_bytes: int) -> Found:
    snapshots = Snapshots(driver)
    return snapshots.find(root_fd, show(root_fd, snapshots.takes, limit_bytes), LIMIT)


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Found]:
    def look(
        snapshots: Tree | bytes | None,
        *directories: object,
        meta: Tree | None = None,
        driver: str = "overlayfs",
        limit_bytes: int = LIMIT,
    ) -> Found:
        if snapshots is None or isinstance(snapshots, bytes):
            own = snapshots
        else:
            own = bolt_file({b"v1": {b"snapshots": snapshots}})
        for path, raw in (
            (engine_paths.snapshots_database(driver), own),
            (engine_paths.META, None if meta is None else bolt_file(meta)),
        ):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            if raw is not None:
                (tmp_path / path).write_bytes(raw)
        for name in directories:
            (tmp_path / engine_paths.snapshots(driver) / str(name)).mkdir(parents=True)
        root_fd = os.open(tmp_path, os.O_RDONLY)
        try:
            return look_at(root_fd, driver, limit_bytes)
        finally:
            os.close(root_fd)

    return look


def named(name: bytes, key: bytes = b"sha256:top", driver: bytes = b"overlayfs") -> Tree:
    return {b"v1": {b"moby": {b"snapshots": {driver: {key: {b"name": name}}}}}}


def test_what_is_whole(look: Callable[..., Found]) -> None:
    assert look(records(), 1, 5, meta=named(TOP)) == NOTHING


def test_nothing_at_all(look: Callable[..., Found]) -> None:
    assert look(None) == NOTHING


@pytest.mark.parametrize("own", [None, b"", bolt_file({}), bolt_file({b"v1": {b"snbpshots": {}, b"parents": {}}})])
def test_directories_without_records(look: Callable[..., Found], own: bytes | None) -> None:
    """An engine would begin to count again, and find the numbers taken."""
    assert look(own) == NOTHING
    assert look(own, 1, 5).broken == "there are 2 snapshots, and no records of them"


def test_a_directory_ahead_of_its_record(look: Callable[..., Found]) -> None:
    why = f"no record of it, as the last number that was given out is {LAST_NUMBER}"
    found = look(records(), 1, 5, LAST_NUMBER, LAST_NUMBER + 1, 70, "new-123", "x9", "²", "9" * 30)
    assert found == Found({"70": why, str(LAST_NUMBER + 1): why}, "")


def test_a_record_without_its_directory(look: Callable[..., Found]) -> None:
    assert look(records(), 1).broken == "snapshot 5 (moby/5/sha256:top) has no directory"


@pytest.mark.parametrize("driver", ["btrfs", "zfs", "devmapper"])
def test_not_every_snapshotter_has_such_directories(look: Callable[..., Found], driver: str) -> None:
    assert look(records(), driver=driver) == NOTHING


def test_a_number_of_more_than_one_byte(look: Callable[..., Found]) -> None:
    large: Tree = {BASE: {b"id": b"\x85\x01"}}
    assert look(large, 133).broken == ""  # and a number that has not been given out: nobody counted on


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\xff" * 11])
def test_a_number_that_is_none(look: Callable[..., Found], raw: bytes) -> None:
    assert look({BASE: {b"id": raw}}, 1).broken == "snapshot moby/2/sha256:base has no number"


def test_what_lies_on_something_that_is_not_there(look: Callable[..., Found]) -> None:
    without = {TOP: records()[TOP]}
    assert look(without, 5).broken == "what snapshot moby/5/sha256:top lies on is not there: moby/2/sha256:base"


def test_a_layer_that_containerd_knows_and_the_snapshotter_does_not(look: Callable[..., Found]) -> None:
    found = look(records(), 1, 5, meta=named(b"moby/9/sha256:gone"))
    assert found.broken == "containerd has a layer moby/9/sha256:gone that is not in it"


@pytest.mark.parametrize(
    "meta",
    [
        named(b"moby/9/extract", key=b"extract-123"),
        named(b"moby/9/sha256:gone", driver=b"native"),
        {b"v1": {b"moby": {b"images": {b"overlayfs": {b"sha256:top": {b"name": b"?"}}}}}},
    ],
    ids=["killed amid a commit", "another snapshotter's", "no snapshot"],
)
def test_what_may_be_gone(look: Callable[..., Found], meta: Tree) -> None:
    assert look(records(), 1, 5, meta=meta) == NOTHING


@pytest.mark.parametrize("pages", [4, 6])
def test_large_databases_are_not_compared(look: Callable[..., Found], pages: int) -> None:
    """What is missing may be in what is not looked at: the last bucket with a page of its own."""
    own = bolt_file({b"a": {b"b": {b"c": {}}}, b"v1": {b"snapshots": {TOP: records()[TOP]}}})
    assert bool(look(own, 5, limit_bytes=pages * 4096).broken) is (pages == 6)


def test_a_database_that_cannot_be_read_is_a_damage_of_its_own(look: Callable[..., Found], tmp_path: Path) -> None:
    path = tmp_path / engine_paths.snapshots_database("overlayfs")
    path.parent.mkdir(parents=True)
    path.write_bytes(struct.pack("=Q", 7) * 100)
    root_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert look_at(root_fd, "overlayfs", LIMIT) == NOTHING
    finally:
        os.close(root_fd)
