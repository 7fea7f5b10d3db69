"""Values without which no engine comes up, in each of its databases; and databases in each other's places."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cachedind import databases, engine_paths
from cachedind.model import ImageStore, Loss, StoragePlan
from helpers.boltfiles import bolt_file, leaf_page, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.boltfiles import Tree

GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
CONTAINERD = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
LIMIT = 1 << 20
META = engine_paths.META
SNAPSHOTTER = engine_paths.snapshots_database("overlayfs")
TIME = bytes([1]) + bytes(14)
FINER_TIME = bytes([2]) + bytes(15)
BRIDGE = b"docker/network/v1.0/bridge/1/"


def networks(**more: bytes) -> Tree:
    """Records of a network by their kinds, each of which may have another name than 1."""
    named = {b"bridge": b"1", b"endpoint_count": b"1", b"network": b"1"}
    named |= {kind.encode(): name for kind, name in more.items()}
    return {b"libnetwork": {b"docker/network/v1.0/" + k + b"/" + n + b"/": bytes(8) + b"{}" for k, n in named.items()}}


WHOLE: list[tuple[StoragePlan, str, Tree]] = [
    (GRAPH, "buildkit/cache.db", {b"_result": {b"key": {b"id": b'{"ID":"1"}'}}, b"_links": {b"key": {b"link": b""}}}),
    (GRAPH, "buildkit/metadata_v2.db", {b"_main": {b"one": {b"a": b'{"value":1}', b"b": b""}}, b"_index": {b"i": b""}}),
    (GRAPH, "buildkit/metadata_v2.db", {b"_external": {b"one": {b"buildkit.contenthash.v0": b"\n\x04"}}}),
    (GRAPH, "buildkit/snapshots.db", {b"any": {b"parent": b""}}),
    (GRAPH, "buildkit/containerdmeta.db", {b"v1": {b"buildkit": {b"createdat": TIME}}}),
    (GRAPH, "buildkit/history.db", {b"_records": {b"one": b"\n\x19"}, b"_version": {b"version": b"2"}}),
    (GRAPH, "volumes/metadata.db", {b"volumes": {b"data": b'{"Name":"data"}'}}),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {b"docker/network": bytes(8) + b'{"Count":0}'}}),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {BRIDGE: bytes(8) + b'{"Bridge":1,"BridgeNames":[]}'}}),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {BRIDGE: bytes(8) + b'{"BridgeNane":1}'}}),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {BRIDGE: bytes(8) + b'{"CridgeNale":1}'}}),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {BRIDGE: bytes(8) + b'{"BridgeName":1,"BridgeNale":1}'}}),
    (CONTAINERD, "buildkit/containerd-overlayfs/metadata_v2.db", {b"_main": {b"one": {b"a": b'{"value":1}'}}}),
    (CONTAINERD, META, {b"v1": {b"moby": {b"a": {b"createdat": TIME, b"updatedat": FINER_TIME}}}}),
    (CONTAINERD, META, {b"v1": {b"moby": {b"labels": {b"createdat": b"by a person"}}}}),
    (CONTAINERD, SNAPSHOTTER, {b"v1": {b"snapshots": {b"a": {b"createdat": TIME, b"id": b"\1"}}}}),
]
WHOLE += [
    (GRAPH, "network/files/local-kv.db", tree)
    for tree in (
        networks(),
        networks(network=b"host"),
        networks(other=b"1", network=b"2"),
        {b"libnetwork": {BRIDGE: bytes(8) + b'{"ID":"1"}', b"docker/network/v2.0/brudge/1/": bytes(8) + b"{}"}},
    )
]
BAD: list[tuple[StoragePlan, str, Tree, str]] = [
    (GRAPH, "buildkit/cache.db", {b"_result": {b"key": {b"id": b'{"ID":"1"'}}}, "what 'id' has is no JSON"),
    (GRAPH, "buildkit/cache.db", {b"_result": {b"key": {b"id": b""}}}, "what 'id' has is no JSON"),
    (
        GRAPH,
        "buildkit/metadata_v2.db",
        {b"_main": {b"one": {b"cache.size": b'{"v":1]'}}},
        "'cache.size' has is no JSON",
    ),
    (CONTAINERD, "buildkit/containerd-overlayfs/metadata_v2.db", {b"_main": {b"1": {b"a": b'e"v":1}'}}}, "no JSON"),
    (GRAPH, "volumes/metadata.db", {b"volumes": {b"data": b'{"Name":"da\x02ta"}'}}, "what 'data' has is no JSON"),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {b"one": bytes(8) + b"{&}"}}, "what 'one' has is no JSON"),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {b"one": bytes(3)}}, "what 'one' has is no JSON"),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {b"x": bytes(8) + b"[" * 3000}}, "nested too deeply"),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {BRIDGE: bytes(8) + b'{"BridgeNale":1}'}}, "'BridgeNale'"),
    (GRAPH, "network/files/local-kv.db", networks(network=b"0"), "records of one network are '0' and '1'"),
    (GRAPH, "network/files/local-kv.db", networks(endpoint_count=b"3"), "records of one network are '1' and '3'"),
    (GRAPH, "network/files/local-kv.db", networks(bridge=b"5"), "records of one network are '1' and '5'"),
    (GRAPH, "network/files/local-kv.db", networks(bridgd=b"7"), "begins with 'bridgd' instead of 'bridge'"),
    (GRAPH, "network/files/local-kv.db", {b"libnetwork": {BRIDGE: bytes(8) + b'{"ID":"0"}'}}, "another one's record"),
    (
        GRAPH,
        "network/files/local-kv.db",
        {b"libnetwork": {b"docker/oetwork/v1.0/bridge/1/": bytes(8) + b"{}"}},
        "begins with 'docker/oetwork/v1.0' instead of",
    ),
    (CONTAINERD, META, {b"v1": {b"moby": {b"createdat": bytes(15)}}}, "createdat is no time"),
    (CONTAINERD, META, {b"v1": {b"moby": {b"updatedat": TIME[:-1]}}}, "updatedat is no time"),
    (CONTAINERD, META, {b"v1": {b"moby": {b"updatedat": b""}}}, "updatedat is no time"),
    (CONTAINERD, SNAPSHOTTER, {b"v1": {b"snapshots": {b"a": {b"createdat": b"\x03"}}}}, "createdat is no time"),
    (GRAPH, "buildkit/containerdmeta.db", {b"v1": {b"createdat": bytes(15)}}, "createdat is no time"),
]


@pytest.fixture
def check(tmp_path: Path) -> Callable[[StoragePlan, str, bytes], None]:
    def check(storage: StoragePlan, path: str, raw: bytes) -> None:
        file = tmp_path / "a.db"
        file.write_bytes(raw)
        fd = os.open(file, os.O_RDONLY)
        try:
            databases.check(fd, databases.known(storage)[path], LIMIT)
        finally:
            os.close(fd)

    return check


@pytest.mark.parametrize(("storage", "path", "tree"), WHOLE)
def test_what_engines_write(check: Callable[..., None], storage: StoragePlan, path: str, tree: Tree) -> None:
    check(storage, path, bolt_file(tree))


@pytest.mark.parametrize(("storage", "path", "tree", "why"), BAD)
def test_what_no_engine_comes_up_with(
    check: Callable[..., None], storage: StoragePlan, path: str, tree: Tree, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        check(storage, path, bolt_file(tree))


@pytest.mark.parametrize("storage", [GRAPH, CONTAINERD])
def test_a_database_that_has_just_been_made(check: Callable[..., None], storage: StoragePlan) -> None:
    for path in databases.known(storage):
        check(storage, path, b"")
        check(storage, path, whole_file([leaf_page(3, [])]))


@pytest.mark.parametrize("storage", [GRAPH, CONTAINERD])
def test_a_database_in_anothers_place(check: Callable[..., None], storage: StoragePlan) -> None:
    known = databases.known(storage)
    for path, database in known.items():
        for other in known.values():
            if database.buckets and other.buckets and database.buckets != other.buckets:
                name = min(other.buckets)
                with pytest.raises(ValueError, match=f"it is another database, with a bucket '{name.decode()}'"):
                    check(storage, path, bolt_file({name: {}}))


def test_a_large_database_is_looked_at_as_far_as_there_is_time(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(bolt_file({b"v1": {b"a": {b"b": {}}}}))
    database = databases.known(CONTAINERD)[META]
    with path.open("rb") as file:
        assert databases.check(file.fileno(), database, 2 * 4096) is False
        assert databases.check(file.fileno(), database, LIMIT) is True


def test_a_newer_engine_may_have_more_in_it(check: Callable[..., None]) -> None:
    check(GRAPH, "buildkit/cache.db", bolt_file({b"_links": {}, b"_newer": {b"one": b"?"}}))


def test_graph_drivers_keep_nothing_in_containerd() -> None:
    assert databases.known(GRAPH)[META].loss is Loss.NOTHING
    assert databases.known(CONTAINERD)[META].loss is Loss.IMAGES
