"""What counts as damage: files that no engine could use, wherever a job has left them; and what is whole does not."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachedind import damage, databases
from cachedind.mending import plan_mending
from cachedind.model import ImageStore, Loss, StoragePlan
from helpers.boltfiles import bolt_file, bucket, leaf_page, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers.boltfiles import Tree

GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
CONTAINERD = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
CHAIN = "ab" * 32


def whole(path: str, storage: StoragePlan) -> bytes:
    """A database that could be the one there, with something in it."""
    name = min(databases.known(storage)[path].buckets or [b"bucket"])
    value = bytes(8) + b"{}" if "network" in path else b"{}"
    return whole_file([leaf_page(3, [(1, name, bucket(4))]), leaf_page(4, [(0, b"key", value)])])


def build(root: Path, storage: StoragePlan) -> None:
    """A data-root with everything in it that is looked at."""
    for path in databases.known(storage):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(whole(path, storage))
    identity = root / damage.identity_file(storage)
    identity.parent.mkdir(parents=True, exist_ok=True)
    identity.write_text("00000000-0000-4000-8000-000000000000\n")
    if storage is GRAPH:
        image = root / "image" / "overlay2"
        record = image / "layerdb" / "sha256" / CHAIN
        record.mkdir(parents=True)
        (record / "cache-id").write_text("layer1")
        (record / "diff").write_text(f"sha256:{CHAIN}")
        (record / "size").write_text("12")
        (image / "repositories.json").write_text('{"Repositories": {}}')
        config = b"{}"
        (image / "imagedb" / "content" / "sha256").mkdir(parents=True)
        (image / "imagedb" / "content" / "sha256" / hashlib.sha256(config).hexdigest()).write_bytes(config)
        layer = root / "overlay2" / "layer1"
        (layer / "diff").mkdir(parents=True)
        (layer / "link").write_text("SHORT")
        (root / "overlay2" / "l").mkdir()
        (root / "overlay2" / "l" / "SHORT").symlink_to("../layer1/diff")


@pytest.fixture(params=[GRAPH, CONTAINERD], ids=["graphdriver", "containerd"])
def storage(request: pytest.FixtureRequest) -> StoragePlan:
    found: StoragePlan = request.param
    return found


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


CONTAINER = f"containers/{CHAIN}"
IMAGE = "image/overlay2"
INTROSPECTION = "containerd/daemon/io.containerd.grpc.v1.introspection"
INGEST = "containerd/daemon/io.containerd.content.v1.content/ingest/one"


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "link"])
@pytest.mark.parametrize(
    ("storage", "path", "found", "loss"),
    [
        (GRAPH, f"{CONTAINER}/config.v2.json", CONTAINER, Loss.RECORDS),
        (CONTAINERD, f"{CONTAINER}/hostconfig.json", CONTAINER, Loss.RECORDS),
        (GRAPH, "volumes/data/opts.json", "volumes/data/opts.json", Loss.RECORDS),
        (GRAPH, "plugins/one/config.json", "plugins/one", Loss.RECORDS),
        (GRAPH, "swarm/docker-state.json", "swarm/docker-state.json", Loss.RECORDS),
        (GRAPH, f"{IMAGE}/layerdb/sha256/{CHAIN}/size", f"{IMAGE}/layerdb/sha256/{CHAIN}", Loss.IMAGES),
        (GRAPH, f"{IMAGE}/layerdb/mounts/one/parent", f"{IMAGE}/layerdb/mounts/one", Loss.RECORDS),
        (GRAPH, f"{IMAGE}/imagedb/content/sha256/one", f"{IMAGE}/imagedb/content/sha256/one", Loss.NAMES),
        (GRAPH, f"{IMAGE}/imagedb/metadata/sha256/one/parent", f"{IMAGE}/imagedb/metadata/sha256/one", Loss.NOTHING),
        (CONTAINERD, f"{INGEST}/ref", INGEST, Loss.NOTHING),
        (CONTAINERD, f"{INTROSPECTION}/uuid", f"{INTROSPECTION}/uuid", Loss.NOTHING),
        (GRAPH, f"{INTROSPECTION}/uuid", f"{INTROSPECTION}/uuid", Loss.NOTHING),
        (CONTAINERD, "engine-id", "engine-id", Loss.NOTHING),
    ],
)
def test_what_an_engine_would_wait_for(
    root: int,
    tmp_path: Path,
    storage: StoragePlan,
    path: str,
    found: str,
    loss: Loss,
    plant: Callable[[Path], None],
) -> None:
    build(tmp_path, storage)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).unlink(missing_ok=True)
    plant(tmp_path / path)
    [one] = damage.find(root, storage, thorough=False)
    assert (one.path, one.loss) == (found, loss)
    assert re.search("neither a file nor a directory|is no file|symbolic link", one.why)


def test_what_people_put_on_another_disk_is_no_damage(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "one").mkdir(parents=True)
    (tmp_path / "containers").symlink_to(elsewhere)
    (tmp_path / "volumes" / "linked").symlink_to(elsewhere)
    (tmp_path / "volumes" / "data").mkdir()
    (tmp_path / "volumes" / "data" / "_data").symlink_to(elsewhere)
    assert damage.find(root, GRAPH, thorough=False) == []


def test_a_pipe_in_a_directorys_place(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    os.mkfifo(tmp_path / "containers")
    [one] = damage.find(root, GRAPH, thorough=False)
    assert (one.path, one.why) == ("containers", "it is no directory")


@pytest.mark.parametrize("thorough", [False, True])
def test_what_is_whole_is_no_damage(root: int, tmp_path: Path, storage: StoragePlan, thorough: bool) -> None:
    assert damage.find(root, storage, thorough=thorough) == []
    build(tmp_path, storage)
    assert damage.find(root, storage, thorough=thorough) == []


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4096 + 100])


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("how", [zeros, cut, link, directory, pipe], ids=lambda how: how.__name__)
def test_every_database_is_looked_at(
    root: int, tmp_path: Path, storage: StoragePlan, how: Callable[[Path], None]
) -> None:
    build(tmp_path, storage)
    for path, database in databases.known(storage).items():
        before = (tmp_path / path).read_bytes()
        how(tmp_path / path)
        [found] = damage.find(root, storage, thorough=False)
        assert (found.path, found.loss) == (path, database.loss)
        if how is directory:
            (tmp_path / path).rmdir()
        else:
            (tmp_path / path).unlink()
        (tmp_path / path).write_bytes(before)


def test_an_empty_database_is_one_that_an_engine_was_about_to_make(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / "buildkit" / "cache.db").write_bytes(b"")
    assert damage.find(root, GRAPH, thorough=True) == []


@pytest.mark.parametrize("large", [False, True])
def test_a_page_deep_in_a_database_is_seen(
    root: int, tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large one only when there is doubt: it would take its time."""
    build(tmp_path, GRAPH)
    path = tmp_path / "buildkit" / "snapshots.db"
    raw = bytearray(path.read_bytes())
    # The last page but those that an engine reads when it opens the file: the list of free ones and the root.
    raw[4 * 4096 :] = b"\xff" * (len(raw) - 4 * 4096)
    path.write_bytes(raw)
    if large:
        monkeypatch.setattr(damage, "_QUICK_DATABASE_BYTES", 2 * 4096)
        assert damage.find(root, GRAPH, thorough=False) == []
    [found] = damage.find(root, GRAPH, thorough=large)
    assert (found.path, found.loss) == ("buildkit/snapshots.db", Loss.CACHE)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"Repositories": []}', "[" * 100_000])
def test_names_have_to_parse(root: int, tmp_path: Path, content: str) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / "image" / "overlay2" / "repositories.json").write_text(content)
    [found] = damage.find(root, GRAPH, thorough=False)
    assert (found.path, found.loss) == ("image/overlay2/repositories.json", Loss.NAMES)


@pytest.mark.parametrize("content", [b"", b"\0" * 36, b"a b", b"x" * 500])
def test_the_engines_name_has_to_be_one(root: int, tmp_path: Path, storage: StoragePlan, content: bytes) -> None:
    build(tmp_path, storage)
    (tmp_path / damage.identity_file(storage)).write_bytes(content)
    [found] = damage.find(root, storage, thorough=False)
    assert (found.path, found.loss) == (damage.identity_file(storage), Loss.CACHE)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (f"image/overlay2/layerdb/sha256/{CHAIN}/cache-id", "../../etc"),
        (f"image/overlay2/layerdb/sha256/{CHAIN}/cache-id", ""),
        (f"image/overlay2/layerdb/sha256/{CHAIN}/cache-id", "elsewhere"),
        (f"image/overlay2/layerdb/sha256/{CHAIN}/diff", "sha256:short"),
        (f"image/overlay2/layerdb/sha256/{CHAIN}/diff", f"sha256:{'cd' * 32}"),
        (f"image/overlay2/layerdb/sha256/{CHAIN}/size", ""),
        (f"image/overlay2/layerdb/sha256/{CHAIN}/size", "much"),
        ("overlay2/layer1/link", ""),
        ("overlay2/layer1/link", "OTHER"),
    ],
)
def test_layers_are_looked_at(root: int, tmp_path: Path, path: str, content: str) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / path).write_text(content)
    [found] = damage.find(root, GRAPH, thorough=False)
    assert (found.path, found.loss) == (f"image/overlay2/layerdb/sha256/{CHAIN}", Loss.IMAGES)


SNAPSHOTTER = "containerd/daemon/io.containerd.snapshotter.v1.overlayfs"
LAST_NUMBER = 7
"""What helpers.boltfiles.bucket says."""


@pytest.mark.parametrize("how", ["empty", "gone"])
def test_snapshots_without_records(root: int, tmp_path: Path, how: str) -> None:
    """An engine would begin to count again, and find the numbers taken."""
    build(tmp_path, CONTAINERD)
    database = tmp_path / SNAPSHOTTER / "metadata.db"
    database.write_bytes(b"")
    if how == "gone":
        database.unlink()
    assert damage.find(root, CONTAINERD, thorough=False) == []
    (tmp_path / SNAPSHOTTER / "snapshots" / "1").mkdir(parents=True)
    [found] = damage.find(root, CONTAINERD, thorough=False)
    assert (found.path, found.loss) == (f"{SNAPSHOTTER}/metadata.db", Loss.IMAGES)


BLOBS = "containerd/daemon/io.containerd.content.v1.content/blobs/sha256"


@pytest.mark.parametrize(
    ("content", "damaged"),
    [(b"{}", False), (None, True), (b"", True), (bytes(2), True), (b"{", True), (b"{}" + bytes(1 << 16), False)],
    ids=["whole", "gone", "empty", "zeros", "cut", "large"],
)
def test_a_blob_that_is_recorded(root: int, tmp_path: Path, content: bytes | None, damaged: bool) -> None:
    """Large ones are layers: they have been unpacked, and reading them would take its time."""
    build(tmp_path, CONTAINERD)
    digest = hashlib.sha256(b"{}").hexdigest()
    name = f"sha256:{digest}".encode()
    history = {b"content": {b"blob": {b"sha256:" + b"77" * 32: {b"size": b"\2"}}}}
    images = {b"content": {b"blob": {name: {b"size": b"\2"}, b"other": {b"size": b"\2"}}}}
    records: Tree = {b"v1": {b"moby": images, b"moby_history": history}}
    (tmp_path / "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db").write_bytes(bolt_file(records))
    (tmp_path / BLOBS).mkdir(parents=True)
    (tmp_path / BLOBS / ("ee" * 32)).write_text("nobody has recorded this one")
    if content is not None:
        (tmp_path / BLOBS / digest).write_bytes(content)
    found = damage.find(root, CONTAINERD, thorough=False)
    assert [(one.path, one.loss) for one in found] == [(f"{BLOBS}/{digest}", Loss.IMAGES)] * damaged


def test_of_records_that_cannot_be_read_no_blob_is_looked_for(root: int, tmp_path: Path) -> None:
    build(tmp_path, CONTAINERD)
    digest = b"sha256:" + b"77" * 32
    moby: Tree = {b"content": {b"blob": {digest: {b"size": b"\2"}}}}
    raw = bytearray(bolt_file({b"v1": {b"looked at last": {b"one": {b"page": {}}, b"two": b""}, b"moby": moby}}))
    raw[raw.index(b"two")] ^= 0x20  # before "one"
    (tmp_path / "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db").write_bytes(raw)
    (tmp_path / BLOBS).mkdir(parents=True)
    [found] = damage.find(root, CONTAINERD, thorough=False)
    assert found.why == "keys that do not ascend"


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("storage", "loss", "records"),
    [
        (GRAPH, Loss.CACHE, {"buildkit/snapshots.db": {b"layer2": {b"chainid": b"some"}}}),
        (CONTAINERD, Loss.CACHE, {"containerd/daemon/io.containerd.metadata.v1.bolt/meta.db": {b"v1": {}}}),
        (
            CONTAINERD,
            Loss.IMAGES,
            {
                "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/metadata.db": {
                    b"v1": {b"snapshots": {b"moby/1/one": {b"id": b"\1", b"parent": b"moby/2/other"}}}
                }
            },
        ),
    ],
    ids=["a build cache without its layer", "without its leases", "a snapshot without its directory"],
)
def test_records_that_do_not_agree(
    root: int,
    tmp_path: Path,
    storage: StoragePlan,
    loss: Loss,
    records: dict[str, Tree],
    large: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of large databases only as much is looked at as each start has time for."""
    build(tmp_path, storage)
    finished = {b"cache.snapshot": b'{"value":"layer1"}', b"snapshot.committed": b'{"value":true}'}
    cache: Tree = {b"_main": {b"one": finished}} if loss is Loss.CACHE else {}
    for path, tree in {databases.builders_metadata(storage): cache, **records}.items():
        (tmp_path / path).write_bytes(bolt_file(tree))
    if large:
        monkeypatch.setattr(damage, "_QUICK_DATABASE_BYTES", 4096)
    found = damage.find(root, storage, thorough=False)
    assert [one.loss for one in found] == [loss] * (not large)
    assert [one.loss for one in damage.find(root, storage, thorough=True)] == [loss]


@pytest.mark.parametrize("how", ["empty", "gone"])
def test_a_build_cache_without_its_layers(root: int, tmp_path: Path, how: str) -> None:
    build(tmp_path, GRAPH)
    database = tmp_path / "buildkit" / "snapshots.db"
    database.write_bytes(b"")
    if how == "gone":
        database.unlink()
    [found] = damage.find(root, GRAPH, thorough=False)
    assert (found.path, found.loss) == ("buildkit/snapshots.db", Loss.CACHE)
    (tmp_path / "buildkit" / "cache.db").unlink()
    assert damage.find(root, GRAPH, thorough=False) == []


@pytest.mark.parametrize("content", ["", "4a1bf1d1-7c3f-4f0a-9a53-0c2b1a7c8d11"])
@pytest.mark.parametrize("path", [f"{INTROSPECTION}/uuid", "engine-id"])
def test_words_that_an_engine_makes_anew(root: int, tmp_path: Path, path: str, content: str) -> None:
    build(tmp_path, CONTAINERD)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(content)
    assert damage.find(root, CONTAINERD, thorough=False) == []
    (tmp_path / path).write_bytes(b"\xff" * 100)
    [found] = damage.find(root, CONTAINERD, thorough=False)
    assert (found.path, found.loss) == (path, Loss.NOTHING)


def test_a_snapshot_that_is_not_in_the_records_yet_is_in_the_way_of_the_next(root: int, tmp_path: Path) -> None:
    build(tmp_path, CONTAINERD)
    pages = [
        leaf_page(3, [(1, b"v1", bucket(4))]),
        leaf_page(4, [(1, b"snapshots", bucket(5))]),
        leaf_page(5, []),
    ]
    (tmp_path / SNAPSHOTTER / "metadata.db").write_bytes(whole_file(pages))
    for name in (LAST_NUMBER, LAST_NUMBER + 1, 70, "new-123", "x9"):
        (tmp_path / SNAPSHOTTER / "snapshots" / str(name)).mkdir(parents=True)
    found = damage.find(root, CONTAINERD, thorough=False)
    assert [os.path.basename(one.path) for one in found] == ["70", str(LAST_NUMBER + 1)]
    assert {one.loss for one in found} == {Loss.NOTHING}
    plan = plan_mending(found, CONTAINERD, frozenset(), doubted=False, has_better=True)
    assert plan.move == tuple(one.path for one in found)


def add_layers(root: Path, *diffs: str) -> list[str]:
    """Layers, each on the one before; returns the paths of their records."""
    below, paths = CHAIN, []
    for diff in diffs:
        chain = hashlib.sha256(f"sha256:{below} sha256:{diff * 32}".encode()).hexdigest()
        path = f"{IMAGE}/layerdb/sha256/{chain}"
        record = root / path
        record.mkdir()
        (record / "cache-id").write_text("layer1")
        (record / "diff").write_text(f"sha256:{diff * 32}")
        (record / "size").write_text("0")
        (record / "parent").write_text(f"sha256:{below}")
        below = chain
        paths.append(path)
    (root / "overlay2" / "layer1" / "lower").write_text("l/SHORT")
    return paths


def test_what_lies_on_a_damaged_layer_goes_with_it(root: int, tmp_path: Path) -> None:
    """An engine that makes it anew finds it in the way."""
    build(tmp_path, GRAPH)
    lowest, middle, top = add_layers(tmp_path, "11", "22", "33")
    assert damage.find(root, GRAPH, thorough=True) == []
    (tmp_path / lowest / "size").unlink()
    found = damage.find(root, GRAPH, thorough=False)
    assert {one.path for one in found} == {lowest, middle, top}
    assert {one.loss for one in found} == {Loss.IMAGES}


def test_a_layer_without_the_one_below(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    lowest, middle, top = add_layers(tmp_path, "11", "22", "33")
    shutil.rmtree(tmp_path / lowest)
    assert {one.path for one in damage.find(root, GRAPH, thorough=False)} == {middle, top}


@pytest.mark.parametrize("gone", ["overlay2", "overlay2/l"])
def test_no_layer_has_its_directory(root: int, tmp_path: Path, gone: str) -> None:
    build(tmp_path, GRAPH)
    add_layers(tmp_path, "11")
    shutil.rmtree(tmp_path / gone)
    assert len(damage.find(root, GRAPH, thorough=False)) == 2


def test_layers_that_people_put_on_another_disk(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / "overlay2").rename(tmp_path / "elsewhere")
    (tmp_path / "overlay2").symlink_to(tmp_path / "elsewhere")
    assert damage.find(root, GRAPH, thorough=True) == []


def test_what_a_killed_engine_was_about_to_remove_is_no_layer(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / IMAGE / "layerdb" / "sha256" / f"{'44' * 32}-1234-removing").mkdir()
    assert damage.find(root, GRAPH, thorough=True) == []


def test_a_layer_that_has_lost_its_parent_or_has_anothers_is_no_layer(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    _, middle, top = add_layers(tmp_path, "11", "22", "33")
    (tmp_path / middle / "parent").unlink()
    assert {one.path for one in damage.find(root, GRAPH, thorough=False)} == {middle, top}
    (tmp_path / middle / "parent").write_text(f"sha256:{top.rpartition('/')[2]}")
    assert {one.path for one in damage.find(root, GRAPH, thorough=False)} == {middle, top}


def test_a_layer_on_another_knows_which(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    [lowest] = add_layers(tmp_path, "11")
    (tmp_path / "overlay2" / "layer1" / "lower").write_bytes(bytes(3))
    [found] = damage.find(root, GRAPH, thorough=False)
    assert (found.path, found.why) == (lowest, "its lower is empty")


def test_a_layer_that_is_no_directory(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / "overlay2" / "layer1" / "diff").rmdir()
    (tmp_path / "overlay2" / "layer1" / "diff").write_text("")
    [found] = damage.find(root, GRAPH, thorough=True)
    assert (found.why, found.loss) == ("its diff is no directory", Loss.IMAGES)


def test_a_configuration_with_other_bytes(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    [config] = (tmp_path / "image" / "overlay2" / "imagedb" / "content" / "sha256").iterdir()
    config.write_text("{ }")
    [found] = damage.find(root, GRAPH, thorough=True)
    assert found.loss is Loss.NAMES


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_any_bytes_anywhere_are_damage_or_none(root: int, tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "engine-id").exists():
        build(tmp_path, GRAPH)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink())
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    path.write_bytes(data.draw(st.binary(max_size=9000)))
    try:
        for found in damage.find(root, GRAPH, thorough=True):
            assert found.why
            assert "\n" not in found.why
    finally:
        path.write_bytes(before)
