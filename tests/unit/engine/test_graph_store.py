"""The image store of graph drivers: its directories, its records of layers, and its list of names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.engine.images import Record
from helpers.stores import REDIS, Graph, answers, remove, sha, write


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    estate = Graph(tmp_path / "root")
    yield estate
    os.close(estate.fd)


@pytest.mark.parametrize("driver", ["overlay2", "fuse-overlayfs", "btrfs", "vfs", "zfs"])
def test_each_driver_has_its_own_directories(tmp_path: Path, driver: str) -> None:
    estate = Graph(tmp_path / "root", driver)
    image = estate.add((REDIS,), "base", "top")
    assert answers(estate, image.record) == (True, True)
    if driver != "zfs":
        remove(estate.layer_path(image.chains[1]))
        assert answers(estate, image.record) == (False, False)
    estate.add((REDIS,), "base", "top")
    remove(estate.record_path(image.chains[0]))
    assert answers(estate, image.record) == (False, False)
    os.close(estate.fd)


@pytest.mark.parametrize("part", ["diff", "lower"])
def test_an_overlay_layer_needs_its_parts(graph: Graph, part: str) -> None:
    image = graph.add((REDIS,), "base", "top")
    assert not (graph.layer_path(image.chains[0]) / "lower").exists()
    remove(graph.layer_path(image.chains[1]) / part)
    assert not graph.open().has_chain(image.chains[1])


@pytest.mark.parametrize(
    "cache_id", ["", "\n", "..", ".", "../diff", "a/b", "/", "-x", "x" * 200, "a\0b", "\xff"], ids=repr
)
def test_a_cache_id_cannot_lead_elsewhere(graph: Graph, cache_id: str) -> None:
    image = graph.add((REDIS,), "base")
    (graph.path / "diff").mkdir()
    (graph.root / "diff").mkdir()
    (graph.path / "a/b/diff").mkdir(parents=True)
    write(graph.record_path(image.chains[0]) / "cache-id", cache_id.encode("latin-1"))
    assert not graph.open().has_chain(image.chains[0])


def test_a_cache_id_may_be_one_of_buildkits(graph: Graph) -> None:
    image = graph.add((REDIS,), "base")
    graph.layer_path(image.chains[0]).rename(graph.path / "p7lbkgdo2xrvq3u5m9nt0wzy1")
    write(graph.record_path(image.chains[0]) / "cache-id", "p7lbkgdo2xrvq3u5m9nt0wzy1")
    assert graph.open().has_chain(image.chains[0])


@pytest.mark.parametrize("parent", ["itself", "..", sha("no layer"), "sha256:" + "../" * 20, ""], ids=range(5))
def test_a_parent_that_is_none_is_a_missing_layer(graph: Graph, parent: str) -> None:
    image = graph.add((REDIS,), "base", "top")
    base = image.chains[0]
    write(graph.layer_path(base) / "lower", "l/AAAA")
    write(graph.record_path(base) / "parent", base if parent == "itself" else parent)
    assert answers(graph, image.record) == (False, False)


def spoil_references(graph: Graph, how: str) -> None:
    path = graph.repositories
    whole = path.read_bytes()
    contents = {
        "truncated": whole[:-9],
        "nested": b"[" * 100_000 + b"]" * 100_000,
        "nested object": b'{"Repositories":' * 100_000,
        "list": b"[]",
        "wrong": b'{"Repositories": [1, {"redis": 2}]}',
        "not text": b"\xff\xfe\x00",
        "large number": b'{"Repositories": ' + b"9" * 10_000 + b"}",
    }
    if how in contents:
        path.write_bytes(contents[how])
        return
    path.unlink()
    if how == "link":
        write(graph.root / "copy.json", whole)
        path.symlink_to(graph.root / "copy.json")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    elif how == "huge":
        write(path, whole)
        os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    "how",
    [
        "gone", "truncated", "link", "pipe", "directory", "huge", "nested", "nested object", "list", "wrong",
        "not text", "large number",
    ],
)  # fmt: skip
def test_references_that_cannot_be_read_are_none(graph: Graph, how: str) -> None:
    image = graph.add((REDIS,), "base")
    spoil_references(graph, how)
    assert answers(graph, image.record) == (False, False)
    assert answers(graph, image.record._replace(names=())) == (True, True)
    assert [stored.names for stored in graph.open().images()] == [()]


def test_references_that_make_no_sense_are_left_out(graph: Graph) -> None:
    image = graph.add((REDIS,), "base")
    digest = image.record.config_digest
    repositories = {
        "redis": {"redis:7": digest, "redis:8": "sha256:../..", "redis:9": 7, f"redis@{sha('m')}": digest},
        "bad": {"bad name\n:1": digest, f"bad@{'x' * 64}": digest, "\ud800:1": digest, "team/Tool:1": digest},
        "none": None,
    }
    write(graph.repositories, json.dumps({"Repositories": repositories}))
    (stored,) = graph.open().images()
    assert stored.names == (REDIS,)
    assert stored.repo_digests == (f"docker.io/library/redis@{sha('m')}",)
    assert not graph.open().keeps(Record(("docker.io/library/redis:8",), digest, image.record.top_chain))
    assert not graph.open().has_blob(digest)
    assert graph.open().config_of(digest) == digest
