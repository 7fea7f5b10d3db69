"""A build cache to which something is missing: every build would be CACHED, and fail."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cachedind import engine_paths
from cachedind.builder_records import Broken, BuilderRecords
from cachedind.model import ImageStore, StoragePlan
from helpers.boltfiles import bolt_file, show

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.boltfiles import Tree

LIMIT = 1 << 20
GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
CONTAINERD = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
METADATA = {GRAPH: "buildkit/metadata_v2.db", CONTAINERD: "buildkit/containerd-overlayfs/metadata_v2.db"}
LAYER: Tree = {b"layer1": {b"chainid": b"some"}}
NO_LAYER = Broken("buildkit/snapshots.db", "the build cache has a layer 'layer1' that is not in it")


def record(*names: bytes, layer: bytes = b"layer1", committed: bytes = b"true", mutable: bytes = b"") -> Tree:
    found: Tree = {
        b"cache.snapshot": b'{"value":"' + layer + b'"}',
        b"snapshot.committed": b'{"value":' + committed + b"}",
        b"cache.equalMutable": mutable,
    }
    return {b"_main": dict.fromkeys(names or (b"one",), found)}


def leases(*names: bytes, bucket: bytes = b"leases") -> Tree:
    return {b"v1": {b"moby": {bucket: {name: {b"createdat": b"?"} for name in names}}}}


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., Broken | None]:
    def find(
        metadata: Tree | bytes | None,
        snapshots: Tree | bytes | None = LAYER,
        kept: Tree | bytes | None = None,
        *,
        storage: StoragePlan = GRAPH,
        limit_bytes: int = LIMIT,
    ) -> Broken | None:
        of_graph = storage is GRAPH
        for path, tree in (
            (METADATA[storage], metadata),
            ("buildkit/snapshots.db", snapshots),
            ("buildkit/containerdmeta.db" if of_graph else engine_paths.META, kept),
        ):
            if tree is not None:
                raw = tree if isinstance(tree, bytes) else bolt_file(tree)
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_bytes(raw)
        root_fd = os.open(tmp_path, os.O_RDONLY)
        try:
            records = BuilderRecords(storage)
            return records.find(root_fd, show(root_fd, records.takes, limit_bytes))
        finally:
            os.close(root_fd)

    return find


@pytest.mark.parametrize("key", [b"chainid", b"committed", b"iscommitted"])
def test_a_layer_that_is_there(find: Callable[..., Broken | None], key: bytes) -> None:
    assert find(record(), {b"layer1": {key: b"some"}, b"other": {b"parent": b""}}) is None


@pytest.mark.parametrize(
    "snapshots",
    [{b"layer2": {b"chainid": b"some"}}, {b"layer1": {b"parent": b""}}, {b"layer1": {b"commitved": b"x"}}],
    ids=["another", "not finished", "a flipped bit"],
)
def test_a_layer_that_is_not_there(find: Callable[..., Broken | None], snapshots: Tree) -> None:
    assert find(record(), snapshots) == NO_LAYER


@pytest.mark.parametrize(
    "metadata",
    [
        record(committed=b"false"),
        record(mutable=b'{"value":"layer2"}'),
        record(layer=b"sha256:image"),
        {b"_external": record()[b"_main"]},
    ],
    ids=["not finished", "not committed before somebody builds on it", "an image's", "no record"],
)
def test_what_needs_no_layer(find: Callable[..., Broken | None], metadata: Tree) -> None:
    assert find(metadata, {b"layer2": {b"chainid": b"some"}}) is None


@pytest.mark.parametrize("storage", [GRAPH, CONTAINERD])
@pytest.mark.parametrize(
    ("kept", "foreign"),
    [
        (leases(b"one"), False),
        (leases(b"one", b"other"), False),
        (leases(b"other"), True),
        (leases(b"one", bucket=b"images"), True),
        ({b"v1": {}}, True),
        (b"noise", False),
        (b"", True),
        (None, False),
    ],
)
def test_records_that_containerd_knows(
    find: Callable[..., Broken | None], storage: StoragePlan, kept: Tree | bytes | None, foreign: bool
) -> None:
    found = find(record(), kept=kept, storage=storage)
    assert (found is not None) is foreign
    if found is not None:
        assert found.path == METADATA[storage]
        assert "another data-root" in found.why


def test_one_record_may_be_without_a_lease(find: Callable[..., Broken | None]) -> None:
    """A kill amid its removal."""
    assert find(record(b"one", b"two"), kept=leases(b"two"), storage=CONTAINERD) is None


@pytest.mark.parametrize("metadata", [record(committed=b"false"), record(mutable=b'{"value":"layer2"}'), {}])
def test_what_needs_no_lease(find: Callable[..., Broken | None], metadata: Tree) -> None:
    assert find(metadata, kept=leases(b"other"), storage=CONTAINERD) is None


def test_layers_of_the_engine_are_none_of_containerds_business(find: Callable[..., Broken | None]) -> None:
    assert find(record(), {}, kept=leases(b"one"), storage=CONTAINERD) is None


def test_databases_that_are_not_there(find: Callable[..., Broken | None]) -> None:
    assert find(None, None) is None


@pytest.mark.parametrize("metadata", [b"noise", {b"_main": {b"one": {b"cache.snapshot": b"no JSON"}}}])
def test_what_cannot_be_read_is_a_damage_of_its_own(find: Callable[..., Broken | None], metadata: Tree | bytes) -> None:
    assert find(metadata, {b"layer2": {b"chainid": b"some"}}) is None


LATER: Tree = {b"a": {b"b": {b"c": {}}}, b"a2": {b"b": {b"c": {}}}}
"""Buckets with pages of their own, which are looked at last."""


@pytest.mark.parametrize(
    ("snapshots", "kept", "pages"),
    [({b"layer2": {b"chainid": b"some"}, **LATER}, None, 3), (LAYER, {**leases(b"other"), **LATER}, 5)],
    ids=["layers", "leases"],
)
def test_large_databases_are_not_compared(
    find: Callable[..., Broken | None], snapshots: Tree, kept: Tree | None, pages: int
) -> None:
    """What is missing may be in what is not looked at."""
    assert find(record(), snapshots, kept, limit_bytes=pages * 4096) is None
    assert find(record(), snapshots, kept, limit_bytes=(pages + 4) * 4096) is not None
