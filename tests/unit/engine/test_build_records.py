"""Which directories hold cache mounts, in both stores, and what is never taken for one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cachedind.base.model import EngineVersion, ImageStore, StoragePlan
from cachedind.engine import build_records
from helpers.boltfiles import Tree, bolt_file

TESTED = EngineVersion(28, 5, 2)
LATER = EngineVersion(99, 0, 0)
GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
CONTAINERD = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
ACTIVE, COMMITTED = b"\2", b"\3"


def value(of: object) -> bytes:
    return json.dumps({"value": of}).encode()


def record(key: str, kind: str = "", **more: object) -> Tree:
    fields = {b"cache.snapshot": value(key), **{name.encode(): value(of) for name, of in more.items()}}
    return {**fields, **({b"cache.recordType": value(kind)} if kind else {})}


def mount(key: str, place: str) -> Tree:
    description = {"cache.description": f"cached mount {place} from exec /bin/sh -c make"}
    return record(key, "exec.cachemount", **description)


RECORDS: dict[bytes, Tree] = {
    b"go": mount("go", "/root/.cache"),
    b"npm": mount("npm", "/npm"),
    b"result": record("result"),
    b"context": record("context", "source.local"),
    b"checkout": record("checkout", "source.git.checkout"),
    b"new": record("new", "exec.cachemount.new"),
}


def write(path: Path, tree: Tree) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bolt_file(tree))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    write(tmp_path / "buildkit/metadata_v2.db", {b"_main": RECORDS})
    write(tmp_path / "buildkit/snapshots.db", {key: {b"parent": b""} for key in RECORDS})
    return tmp_path


@pytest.fixture
def containerd(tmp_path: Path) -> Path:
    write(tmp_path / "buildkit/containerd-overlayfs/metadata_v2.db", {b"_main": RECORDS})
    snapshots: dict[bytes, Tree] = {
        b"moby/%d/%s" % (count, key): {b"id": bytes([count]), b"kind": COMMITTED if key == b"result" else ACTIVE}
        for count, key in enumerate(RECORDS, 1)
    }
    metadata = "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/metadata.db"
    write(tmp_path / metadata, {b"v1": {b"snapshots": snapshots}})
    return tmp_path


def find(root: Path, storage: StoragePlan = GRAPH, engine: EngineVersion | None = TESTED) -> dict[str, str]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return build_records.find_cache_mounts(fd, storage, engine)
    finally:
        os.close(fd)


def test_a_graph_driver_names_them_by_their_keys(graph: Path) -> None:
    assert find(graph) == {"go": "/root/.cache", "npm": "/npm"}


def test_containerd_numbers_them(containerd: Path) -> None:
    assert find(containerd, CONTAINERD) == {"1": "/root/.cache", "2": "/npm"}


@pytest.mark.parametrize("engine", [LATER, None])
def test_of_releases_that_the_tests_do_not_run_none_is_known(graph: Path, engine: EngineVersion | None) -> None:
    assert find(graph, engine=engine) == {}


@pytest.mark.parametrize("other", [record("go"), record("x", **{"cache.equalMutable": "go"})])
def test_what_another_record_has_too_is_not_only_a_cache_mount(graph: Path, other: Tree) -> None:
    write(graph / "buildkit/metadata_v2.db", {b"_main": {**RECORDS, b"other": other}})
    assert find(graph) == {"npm": "/npm"}


def test_what_is_whole_is_no_cache_mount_of_now(graph: Path, containerd: Path) -> None:
    write(graph / "buildkit/snapshots.db", {b"go": {b"committed": b"go-0"}, b"npm": {}})
    assert find(graph) == {"npm": "/npm"}
    metadata = "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/metadata.db"
    write(containerd / metadata, {b"v1": {b"snapshots": {b"moby/1/go": {b"id": b"\1", b"kind": COMMITTED}}}})
    assert find(containerd, CONTAINERD) == {}


def test_a_key_that_leads_elsewhere_is_none(graph: Path) -> None:
    write(graph / "buildkit/metadata_v2.db", {b"_main": {b"a": mount("../../volumes", "/x"), b"b": mount("l/x", "/y")}})
    assert find(graph) == {}


@pytest.mark.parametrize("content", [b"", b"noise" * 5000, None])
def test_records_that_cannot_be_read_know_of_none(graph: Path, content: bytes | None) -> None:
    path = graph / "buildkit/metadata_v2.db"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert find(graph) == {}


# ---- contexts --------------------------------------------------------------------------------------------------------


def contexts(root: Path, storage: StoragePlan = GRAPH, engine: EngineVersion | None = TESTED) -> frozenset[str]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return build_records.find_contexts(fd, storage, engine)
    finally:
        os.close(fd)


def test_contexts_are_found_in_both_stores(graph: Path, containerd: Path) -> None:
    assert contexts(graph) == {"context"}
    assert contexts(containerd, CONTAINERD) == {"4"}
    assert contexts(graph, engine=LATER) == contexts(graph, engine=None) == frozenset()


def test_the_view_that_a_build_used_is_the_context_itself(graph: Path) -> None:
    view = record("view", **{"cache.equalMutable": "context"})
    write(graph / "buildkit/metadata_v2.db", {b"_main": {**RECORDS, b"view": view}})
    assert contexts(graph) == {"context"}


def test_what_a_record_of_another_kind_has_too_is_none(graph: Path) -> None:
    other = record("context", "exec.cachemount")
    write(graph / "buildkit/metadata_v2.db", {b"_main": {**RECORDS, b"other": other}})
    assert contexts(graph) == frozenset()
