"""What of an engine's data may be shared: each kind of record of both stores, and whatever else lies there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cachedind.base.model import EngineVersion, ImageStore, StoragePlan
from cachedind.engine import immutable
from helpers.boltfiles import Tree, bolt_file

TESTED = EngineVersion(28, 5, 2)
LATER = EngineVersion(99, 0, 0)
GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
CONTAINERD = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
SNAPSHOTTER = "containerd/daemon/io.containerd.snapshotter.v1.overlayfs"


def find(root: Path, storage: StoragePlan = GRAPH) -> set[str]:
    """Names of the layers that a link may replace."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {path.removesuffix("/diff").rpartition("/")[2] for path in immutable.find(fd, storage)}
    finally:
        os.close(fd)


def results(root: Path, engine: EngineVersion | None = TESTED, storage: StoragePlan = GRAPH) -> set[str]:
    """Names of the layers whose files may be linked."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return set(immutable.find_results(fd, storage, engine))
    finally:
        os.close(fd)


def value(of: object) -> bytes:
    return json.dumps({"value": of}).encode()


def build_cache(root: Path, records: dict[bytes, Tree], snapshots: dict[bytes, Tree]) -> None:
    (root / "buildkit").mkdir(exist_ok=True)
    (root / "buildkit/metadata_v2.db").write_bytes(bolt_file({b"_main": records}))
    (root / "buildkit/snapshots.db").write_bytes(bolt_file(snapshots))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    for name in ("image", "result", "leaf", "unsized", "mount", "context", "checkout", "container", "l"):
        (tmp_path / "overlay2" / name / "diff").mkdir(parents=True)
    record = tmp_path / "image/overlay2/layerdb/sha256" / ("0" * 64)
    record.mkdir(parents=True)
    (record / "cache-id").write_text("image")
    committed, size = value(True), value(3)
    build_cache(
        tmp_path,
        {
            b"k1": {b"cache.snapshot": value("k1"), b"snapshot.committed": committed, b"snapshot.size": size},
            # What nothing was built upon is a record of its own for what is still called mutable.
            b"k2": {
                b"cache.snapshot": value("k2"),
                b"cache.equalMutable": value("leaf"),
                b"snapshot.committed": committed,
                b"snapshot.size": size,
            },
            b"leaf": {b"cache.snapshot": value("leaf")},
            b"unsized": {b"cache.snapshot": value("unsized"), b"snapshot.committed": committed},
            b"k3": {
                b"cache.snapshot": value("k3"),
                b"cache.equalMutable": value("mount"),
                b"snapshot.committed": committed,
                b"snapshot.size": size,
            },
            b"mount": {b"cache.snapshot": value("mount"), b"cache.recordType": value("exec.cachemount")},
            b"context": {
                b"cache.snapshot": value("context"),
                b"cache.recordType": value("source.local"),
                b"snapshot.committed": committed,
                b"snapshot.size": size,
            },
            b"checkout": {
                b"cache.snapshot": value("checkout"),
                b"cache.recordType": value("source.git.checkout"),
                b"snapshot.committed": committed,
                b"snapshot.size": size,
            },
        },
        {
            b"k1": {b"committed": b"result"},
            b"result": {b"iscommitted": b"", b"parent": b""},
            b"leaf": {b"parent": b"k1"},
            b"unsized": {b"parent": b"k1"},
            b"mount": {b"parent": b"", b"size": b"3"},
            b"context": {b"parent": b"", b"size": b"3"},
            b"checkout": {b"parent": b"", b"size": b"3"},
            b"_external": {},
        },
    )
    return tmp_path


def test_layers_of_images_may_be_links_and_results_of_builds_may_not(graph: Path) -> None:
    assert find(graph) == {"image"}


def test_results_of_builds_are_whole_and_what_is_written_again_is_not(graph: Path) -> None:
    assert results(graph) == {"result", "leaf", "unsized"}


@pytest.mark.parametrize("engine", [LATER, None])
def test_of_other_engines_only_the_layers_of_images_are_known(graph: Path, engine: EngineVersion | None) -> None:
    assert find(graph) == {"image"}
    assert results(graph, engine) == set()


def test_a_record_of_a_type_that_nobody_knows_is_not_whole(graph: Path) -> None:
    record = {b"cache.snapshot": value("k1"), b"snapshot.committed": value(True), b"snapshot.size": value(3)}
    build_cache(graph, {b"k1": {**record, b"cache.recordType": value("new")}}, {b"k1": {b"committed": b"result"}})
    assert results(graph) == set()


def test_what_is_shared_already_is_not_found_again(graph: Path) -> None:
    (graph / "overlay2/image/diff").rmdir()
    (graph / "overlay2/image/diff").symlink_to("/nowhere")
    assert find(graph) == set()


@pytest.mark.parametrize("file", ["buildkit/metadata_v2.db", "buildkit/snapshots.db"])
@pytest.mark.parametrize("content", [b"", b"noise" * 5000, None])
def test_records_that_cannot_be_read_cost_what_they_tell_of(graph: Path, file: str, content: bytes | None) -> None:
    if content is None:
        (graph / file).unlink()
    else:
        (graph / file).write_bytes(content)
    assert find(graph) == {"image"}
    assert results(graph) == set()


def test_drivers_whose_layers_are_no_directories_of_theirs_share_nothing(graph: Path) -> None:
    for driver in ("vfs", "btrfs", "zfs"):
        assert find(graph, StoragePlan(ImageStore.GRAPHDRIVER, driver, "")) == set()
    assert find(graph, StoragePlan(ImageStore.CONTAINERD, "native", "")) == set()


def snapshot(number: int, kind: int) -> Tree:
    low = bytes([number & 0x7F | 0x80, number >> 7]) if number > 0x7F else bytes([number])
    return {b"id": low, b"kind": bytes([kind])}


def test_snapshots_that_are_committed_are_shared(tmp_path: Path) -> None:
    for number in (1, 2, 3, 300):
        (tmp_path / SNAPSHOTTER / "snapshots" / str(number) / "fs").mkdir(parents=True)
    records: Tree = {
        b"moby/1/view": snapshot(1, 1),
        b"moby/2/active": snapshot(2, 2),
        b"moby/3/base": snapshot(3, 3),
        b"moby/300/top": snapshot(300, 3),
    }
    (tmp_path / SNAPSHOTTER / "metadata.db").write_bytes(bolt_file({b"v1": {b"snapshots": records, b"parents": {}}}))
    assert find(tmp_path, CONTAINERD) == {"3", "300"}
    assert results(tmp_path, TESTED, CONTAINERD) == set()


def test_an_empty_data_root_has_none(tmp_path: Path) -> None:
    assert find(tmp_path) == find(tmp_path, CONTAINERD) == set()
