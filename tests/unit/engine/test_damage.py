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

from cachedind.base.model import EngineVersion, ImageStore, Loss, StoragePlan
from cachedind.engine import damage, databases, paths
from helpers.boltfiles import bucket, leaf_page, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
CONTAINERD = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
CHAIN = "ab" * 32
TESTED = (EngineVersion(26, 1, 5), EngineVersion(28, 5, 2))
UNTESTED = [(), (None,), (EngineVersion(31, 0, 0),), (TESTED[0], None), (TESTED[0], EngineVersion(29, 0, 0))]


WHOLE = whole_file([leaf_page(3, [(1, b"name", bucket(4))]), leaf_page(4, [(0, b"key", b"value")])])
"""A database with something in it."""


def build(root: Path, storage: StoragePlan) -> None:
    """A data-root with everything in it that is looked at."""
    for path in databases.known(storage):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(WHOLE)
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
    assert re.search("neither a file nor a directory|is not a (regular )?file|symbolic link", one.why)


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
    assert (one.path, one.why) == ("containers", "it is not a directory")


@pytest.mark.parametrize("thorough", [False, True])
def test_what_is_whole_is_no_damage(root: int, tmp_path: Path, storage: StoragePlan, thorough: bool) -> None:
    assert damage.find(root, storage, thorough=thorough, engines=TESTED) == []
    build(tmp_path, storage)
    assert damage.find(root, storage, thorough=thorough, engines=TESTED) == []


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
    for path, loss in databases.known(storage).items():
        before = (tmp_path / path).read_bytes()
        how(tmp_path / path)
        [found] = damage.find(root, storage, thorough=False)
        assert (found.path, found.loss) == (path, loss)
        if how is directory:
            (tmp_path / path).rmdir()
        else:
            (tmp_path / path).unlink()
        (tmp_path / path).write_bytes(before)


def test_an_empty_database_is_one_that_an_engine_was_about_to_make(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / "buildkit" / "cache.db").write_bytes(b"")
    assert damage.find(root, GRAPH, thorough=True, engines=TESTED) == []


@pytest.mark.parametrize("content", [b"", b"\0" * 36, b"a b", b"x" * 500, b"one\ntwo"])
def test_the_engines_name_has_to_be_one(root: int, tmp_path: Path, storage: StoragePlan, content: bytes) -> None:
    build(tmp_path, storage)
    (tmp_path / damage.identity_file(storage)).write_bytes(content)
    [found] = damage.find(root, storage, thorough=False)
    assert (found.path, found.loss) == (damage.identity_file(storage), Loss.CACHE)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_names_have_to_parse(root: int, tmp_path: Path, content: str) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / "image" / "overlay2" / "repositories.json").write_text(content)
    [found] = damage.find(root, GRAPH, thorough=False)
    assert (found.path, found.loss) == ("image/overlay2/repositories.json", Loss.NAMES)


def test_what_is_inside_is_the_engines_affair(root: int, tmp_path: Path, storage: StoragePlan) -> None:
    """Another release may write it in another way; a page that nobody could read is for a private daemon to find."""
    build(tmp_path, storage)
    for path in databases.known(storage):
        with (tmp_path / path).open("r+b") as file:
            file.seek(2 * 4096)
            file.write(b"\xff" * (len(WHOLE) - 2 * 4096))
    (tmp_path / damage.identity_file(storage)).write_text("urn:another?form=2")
    if storage is GRAPH:
        (tmp_path / IMAGE / "repositories.json").write_text('{"Version": 2, "Repositories": []}')
    assert damage.find(root, storage, thorough=True, engines=TESTED) == []


@pytest.mark.parametrize("content", ["", "4a1bf1d1-7c3f-4f0a-9a53-0c2b1a7c8d11", "V8KX:another"])
@pytest.mark.parametrize("path", [f"{INTROSPECTION}/uuid", "engine-id"])
def test_words_that_an_engine_makes_anew(root: int, tmp_path: Path, path: str, content: str) -> None:
    build(tmp_path, CONTAINERD)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(content)
    assert damage.find(root, CONTAINERD, thorough=False) == []
    (tmp_path / path).write_bytes(b"\xff" * 100)
    [found] = damage.find(root, CONTAINERD, thorough=False)
    assert (found.path, found.loss) == (path, Loss.NOTHING)


# ---- containerd ------------------------------------------------------------------------------------------------------


META, SNAPSHOTS = paths.META, paths.snapshots("overlayfs")


@pytest.mark.parametrize("how", ["empty", "gone"])
@pytest.mark.parametrize(
    ("storage", "path", "content", "loss"),
    [
        (CONTAINERD, META, f"{paths.BLOBS}/{CHAIN}", Loss.IMAGES),
        (CONTAINERD, META, f"{SNAPSHOTS}/1", Loss.IMAGES),
        (CONTAINERD, paths.snapshots_database("overlayfs"), f"{SNAPSHOTS}/1", Loss.IMAGES),
        (GRAPH, "buildkit/snapshots.db", "buildkit/cache.db", Loss.CACHE),
    ],
)
def test_what_is_there_without_its_records(
    root: int, tmp_path: Path, storage: StoragePlan, path: str, content: str, loss: Loss, how: str
) -> None:
    """An engine would begin to count again, and find the names and numbers taken."""
    build(tmp_path, storage)
    (tmp_path / path).write_bytes(b"")
    if how == "gone":
        (tmp_path / path).unlink()
    if storage is GRAPH:
        (tmp_path / content).rename(tmp_path / "cache.db")
    assert damage.find(root, storage, thorough=False, engines=TESTED) == []
    if storage is GRAPH:
        (tmp_path / "cache.db").rename(tmp_path / content)
    else:
        (tmp_path / content).mkdir(parents=True)
    [found] = damage.find(root, storage, thorough=False, engines=TESTED)
    assert (found.path, found.loss) == (path, loss)
    for engines in UNTESTED:
        assert damage.find(root, storage, thorough=True, engines=engines) == []


def test_a_snapshot_that_is_not_in_the_records_yet_is_in_the_way_of_the_next(root: int, tmp_path: Path) -> None:
    build(tmp_path, CONTAINERD)
    pages = [leaf_page(3, [(1, b"v1", bucket(4))]), leaf_page(4, [(1, b"snapshots", bucket(5))]), leaf_page(5, [])]
    (tmp_path / paths.snapshots_database("overlayfs")).write_bytes(whole_file(pages))
    for name in ("7", "8", "70", "new-123", "x9"):  # helpers.boltfiles.bucket says that 7 was the last one
        (tmp_path / SNAPSHOTS / name).mkdir(parents=True)
    found = damage.find(root, CONTAINERD, thorough=True, engines=TESTED)
    assert [os.path.basename(one.path) for one in found] == ["70", "8"]
    assert {(one.loss, one.silent) for one in found} == {(Loss.NOTHING, True)}
    assert damage.find(root, CONTAINERD, thorough=False, engines=TESTED) == []
    for engines in UNTESTED:
        assert damage.find(root, CONTAINERD, thorough=True, engines=engines) == []


def test_whose_records_cannot_be_read_may_have_anything(root: int, tmp_path: Path) -> None:
    build(tmp_path, CONTAINERD)
    for name in ("1", "99", "new-123"):
        (tmp_path / SNAPSHOTS / name / "fs").mkdir(parents=True)
    (tmp_path / paths.BLOBS).mkdir(parents=True)
    (tmp_path / paths.BLOBS / CHAIN).write_text("nobody looks at its bytes")
    assert damage.find(root, CONTAINERD, thorough=True, engines=TESTED) == []


# ---- graph drivers ---------------------------------------------------------------------------------------------------

RECORD = f"{IMAGE}/layerdb/sha256/{CHAIN}"


@pytest.mark.parametrize("content", ["../../etc", "", "elsewhere", "l/SHORT"])
def test_a_layer_has_a_directory(root: int, tmp_path: Path, content: str) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / RECORD / "cache-id").write_text(content)
    [found] = damage.find(root, GRAPH, thorough=False)
    assert (found.path, found.loss) == (RECORD, Loss.IMAGES)


@pytest.mark.parametrize("how", ["a file", "a link", "a record that is a link", "no cache-id"])
def test_a_layers_directory_is_one(root: int, tmp_path: Path, how: str) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / "overlay2" / "layer1").rename(tmp_path / "overlay2" / "layer2")
    if how == "a file":
        (tmp_path / "overlay2" / "layer1").write_text("")
    elif how == "a link":
        (tmp_path / "overlay2" / "layer1").symlink_to("layer2")
    else:
        (tmp_path / "overlay2" / "layer2").rename(tmp_path / "overlay2" / "layer1")
        if how == "no cache-id":
            (tmp_path / RECORD / "cache-id").unlink()
        else:
            (tmp_path / RECORD).rename(tmp_path / "record")
            (tmp_path / RECORD).symlink_to(tmp_path / "record")
    assert {one.path for one in damage.find(root, GRAPH, thorough=False)} == {RECORD}


def add_layers(root: Path, *diffs: str) -> list[str]:
    """Layers, each on the one before; returns the paths of their records."""
    below, made = CHAIN, []
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
        made.append(path)
    (root / "overlay2" / "layer1" / "lower").write_text("l/SHORT")
    return made


def test_what_lies_on_a_damaged_layer_goes_with_it(root: int, tmp_path: Path) -> None:
    """An engine that makes it anew finds it in the way."""
    build(tmp_path, GRAPH)
    lowest, middle, top = add_layers(tmp_path, "11", "22", "33")
    assert damage.find(root, GRAPH, thorough=True, engines=TESTED) == []
    (tmp_path / lowest / "cache-id").write_text("elsewhere")
    found = damage.find(root, GRAPH, thorough=False)
    assert {one.path for one in found} == {lowest, middle, top}
    assert {one.loss for one in found} == {Loss.IMAGES}


def test_no_layer_has_its_directory(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    add_layers(tmp_path, "11")
    shutil.rmtree(tmp_path / "overlay2")
    assert len(damage.find(root, GRAPH, thorough=False)) == 2


@pytest.mark.parametrize("name", ["link", "lower"])
def test_what_no_engine_syncs_is_looked_at_in_doubt(root: int, tmp_path: Path, name: str) -> None:
    build(tmp_path, GRAPH)
    [upper] = add_layers(tmp_path, "11")
    (tmp_path / "overlay2" / "layer1").rename(tmp_path / "overlay2" / "layer2")
    (tmp_path / upper / "cache-id").write_text("layer2")
    (tmp_path / "overlay2" / "layer1").mkdir()
    (tmp_path / "overlay2" / "layer1" / "link").write_text("SHORT")
    assert damage.find(root, GRAPH, thorough=True, engines=TESTED) == []
    (tmp_path / "overlay2" / "layer2" / name).write_bytes(bytes(3))
    assert damage.find(root, GRAPH, thorough=False, engines=TESTED) == []
    [found] = damage.find(root, GRAPH, thorough=True, engines=TESTED)
    assert (found.path, found.why, found.loss) == (upper, f"the file {name} of its layer is empty", Loss.IMAGES)
    for engines in UNTESTED:
        assert damage.find(root, GRAPH, thorough=True, engines=engines) == []


def test_layers_that_people_put_on_another_disk(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / "overlay2").rename(tmp_path / "elsewhere")
    (tmp_path / "overlay2").symlink_to(tmp_path / "elsewhere")
    assert damage.find(root, GRAPH, thorough=True, engines=TESTED) == []


def test_what_a_killed_engine_was_about_to_remove_is_no_layer(root: int, tmp_path: Path) -> None:
    build(tmp_path, GRAPH)
    (tmp_path / IMAGE / "layerdb" / "sha256" / f"{'44' * 32}-1234-removing").mkdir()
    assert damage.find(root, GRAPH, thorough=True, engines=TESTED) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(st.data())
def test_any_bytes_anywhere_are_damage_or_none(root: int, tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "engine-id").exists():
        build(tmp_path, GRAPH)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink())
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    path.write_bytes(data.draw(st.binary(max_size=9000)))
    try:
        for found in damage.find(root, GRAPH, thorough=True, engines=TESTED):
            assert found.why
            assert "\n" not in found.why
    finally:
        path.write_bytes(before)
