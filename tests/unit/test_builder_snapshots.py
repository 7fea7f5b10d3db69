"""A build cache whose layers are not there: every build would be CACHED, and fail."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cachedind import builder_snapshots
from helpers.boltfiles import bolt_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.boltfiles import Tree

LIMIT = 1 << 20
BROKEN = "the build cache has a layer 'layer1' that is not in it"


def record(name: bytes = b"layer1", committed: bytes = b"true", mutable: bytes = b"") -> Tree:
    found: Tree = {
        b"cache.snapshot": b'{"value":"' + name + b'"}',
        b"snapshot.committed": b'{"value":' + committed + b"}",
        b"cache.equalMutable": mutable,
    }
    return {b"_main": {b"one": found}}


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., str]:
    def find(metadata: Tree | bytes | None, snapshots: Tree | bytes | None, limit_bytes: int = LIMIT) -> str:
        (tmp_path / "buildkit").mkdir()
        for name, tree in (("metadata_v2.db", metadata), ("snapshots.db", snapshots)):
            if tree is not None:
                raw = tree if isinstance(tree, bytes) else bolt_file(tree)
                (tmp_path / "buildkit" / name).write_bytes(raw)
        root_fd = os.open(tmp_path, os.O_RDONLY)
        try:
            return builder_snapshots.find_broken(root_fd, limit_bytes)
        finally:
            os.close(root_fd)

    return find


@pytest.mark.parametrize("key", [b"chainid", b"committed", b"iscommitted"])
def test_a_layer_that_is_there(find: Callable[..., str], key: bytes) -> None:
    assert find(record(), {b"layer1": {key: b"some"}, b"other": {b"parent": b""}}) == ""


@pytest.mark.parametrize(
    "snapshots",
    [{b"layer2": {b"chainid": b"some"}}, {b"layer1": {b"parent": b""}}, {b"layer1": {b"commitved": b"x"}}],
    ids=["another", "not finished", "a flipped bit"],
)
def test_a_layer_that_is_not_there(find: Callable[..., str], snapshots: Tree) -> None:
    assert find(record(), snapshots) == BROKEN


@pytest.mark.parametrize(
    "metadata",
    [
        record(committed=b"false"),
        record(mutable=b'{"value":"layer2"}'),
        record(name=b"sha256:image"),
        {b"_external": {b"one": {b"cache.snapshot": b"raw"}}},
    ],
    ids=["not finished", "not committed before somebody builds on it", "an image's", "no record"],
)
def test_what_needs_no_layer(find: Callable[..., str], metadata: Tree) -> None:
    assert find(metadata, {b"layer2": {b"chainid": b"some"}}) == ""


def test_databases_that_are_not_there(find: Callable[..., str]) -> None:
    assert find(None, None) == ""


@pytest.mark.parametrize("metadata", [b"noise", {b"_main": {b"one": {b"cache.snapshot": b"no JSON"}}}])
def test_what_cannot_be_read_is_a_damage_of_its_own(find: Callable[..., str], metadata: Tree | bytes) -> None:
    assert find(metadata, {b"layer2": {b"chainid": b"some"}}) == ""


@pytest.mark.parametrize("pages", [1, 2])
def test_large_databases_are_not_compared(find: Callable[..., str], pages: int) -> None:
    assert find(record(), {b"layer2": {b"chainid": b"some"}}, limit_bytes=pages * 4096) == ""
