"""Image stores as engines leave them, and as a crash or a job that was root there may have."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cachedind import image_stores
from cachedind.image_stores import choose_manifest, open_store
from cachedind.model import ImageStore, StoragePlan
from cachedind.seeds import Record, chain_ids
from helpers.boltfiles import PAGE_SIZE, Elements, bucket, inline_bucket, leaf_page, whole_file

REDIS, TOOL = "docker.io/library/redis:7", "registry.example:5000/team/tool:1.2"
Tree = dict[bytes, Any]
"""A bucket: values are bytes, or buckets again."""


def sha(text: str | bytes) -> str:
    return f"sha256:{hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()}"


def after(digest: str) -> str:
    return digest.partition(":")[2]


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def bolt_file(tree: Tree) -> bytes:
    """As bbolt lays it out: a bucket that has buckets in it gets a page, another one is part of its parent's."""
    pages: list[bytes] = []

    def place(node: Tree) -> tuple[int, Elements]:
        elements: Elements = []
        for key, value in sorted(node.items()):
            if isinstance(value, bytes):
                elements.append((0, key, value))
                continue
            nested = any(not isinstance(each, bytes) for each in value.values())
            elements.append((1, key, bucket(place(value)[0]) if nested else inline_bucket(place(value)[1])))
        if any(flags for flags, _, _ in elements) or node is tree:
            number = 3 + sum(map(len, pages)) // PAGE_SIZE
            pages.append(leaf_page(number, elements))
            return number, elements
        return 0, elements

    return whole_file(pages, place(tree)[0])


def uvarint(number: int) -> bytes:
    found = b""
    while number >= 0x80:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


class Image(NamedTuple):
    record: Record
    config: bytes
    chains: list[str]


def make_image(names: tuple[str, ...], *layers: str) -> Image:
    diff_ids = [sha(layer) for layer in layers]
    config = json.dumps({"os": "linux", "of": layers, "rootfs": {"diff_ids": diff_ids}}).encode()
    chains = chain_ids(diff_ids)
    return Image(Record(names, sha(config), chains[-1] if chains else ""), config, chains)


class Estate:
    """A data-root with images. What is broken afterwards is broken on disk, so that every store that is opened then
    sees it."""

    driver = ""
    kind = ImageStore.GRAPHDRIVER

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(exist_ok=True)
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.names: dict[str, str] = {}
        """What each name stands for."""

    def open(self) -> image_stores.Store:
        return open_store(self.fd, StoragePlan(self.kind, self.driver, "it is there"))

    def add(self, names: tuple[str, ...], *layers: str) -> Image:
        raise NotImplementedError

    def rename(self, **targets: str | None) -> None:
        """Let names stand for something else, or for nothing: by their path's last part ("redis", "tool")."""
        for key, target in targets.items():
            name = {"redis": REDIS, "tool": TOOL}[key]
            if target is None:
                del self.names[name]
            else:
                self.names[name] = target
        self.write()

    def write(self) -> None:
        raise NotImplementedError

    def config_path(self, image: Image) -> Path:
        raise NotImplementedError

    def layer_path(self, chain_id: str) -> Path:
        raise NotImplementedError

    def target(self, image: Image) -> str:
        raise NotImplementedError


class Graph(Estate):
    driver = "overlay2"

    def __init__(self, root: Path, driver: str = "overlay2") -> None:
        super().__init__(root)
        self.driver = driver
        self.image = root / "image" / driver
        self.home = root / {"btrfs": "btrfs/subvolumes", "vfs": "vfs/dir"}.get(driver, driver)

    @property
    def repositories(self) -> Path:
        return self.image / "repositories.json"

    def add(self, names: tuple[str, ...], *layers: str) -> Image:
        image = make_image(names, *layers)
        for number, chain_id in enumerate(image.chains):
            record = self.record_path(chain_id)
            write(record / "cache-id", after(sha(f"cache {chain_id}")))
            if number:
                write(record / "parent", image.chains[number - 1])
            if self.driver == "zfs":
                continue
            directory = self.layer_path(chain_id)
            directory.mkdir(parents=True, exist_ok=True)
            if self.driver in ("overlay2", "fuse-overlayfs"):
                (directory / "diff").mkdir(exist_ok=True)
                if number:
                    write(directory / "lower", "l/AAAA")
        write(self.config_path(image), image.config)
        self.names.update(dict.fromkeys(names, image.record.config_digest))
        self.write()
        return image

    def write(self) -> None:
        repositories: dict[str, dict[str, str]] = {}
        for name, config in self.names.items():
            familiar = name.removeprefix("docker.io/library/")
            repository = familiar.partition("@")[0] if "@" in familiar else familiar.rpartition(":")[0]
            repositories.setdefault(repository, {})[familiar] = config
        write(self.repositories, json.dumps({"Repositories": repositories}))

    def config_path(self, image: Image) -> Path:
        return self.image / "imagedb/content/sha256" / after(image.record.config_digest)

    def record_path(self, chain_id: str) -> Path:
        return self.image / "layerdb/sha256" / after(chain_id)

    def layer_path(self, chain_id: str) -> Path:
        return self.home / after(sha(f"cache {chain_id}"))

    def target(self, image: Image) -> str:
        return image.record.config_digest


class Containerd(Estate):
    kind = ImageStore.CONTAINERD

    def __init__(self, root: Path, driver: str = "overlayfs") -> None:
        super().__init__(root)
        self.driver = driver
        self.home = root / "containerd/daemon"
        self.snapshotter = self.home / f"io.containerd.snapshotter.v1.{driver}"
        self.committed: dict[str, int] = {}
        """The snapshotter's number of each layer."""
        self.parents: dict[str, str] = {}
        self.stale: dict[str, int] = {}
        """Layers that the snapshotter had before under another number, and has not swept."""
        self.manifests: dict[str, str] = {}

    @property
    def meta(self) -> Path:
        return self.home / "io.containerd.metadata.v1.bolt/meta.db"

    def add(self, names: tuple[str, ...], *layers: str) -> Image:
        image = make_image(names, *layers)
        for number, chain_id in enumerate(image.chains):
            # Beyond 128, so that a number takes two bytes.
            self.committed.setdefault(chain_id, 140 + len(self.committed))
            if number:
                self.parents[chain_id] = image.chains[number - 1]
            (self.layer_path(chain_id) / "fs").mkdir(parents=True, exist_ok=True)
        write(self.config_path(image), image.config)
        manifest = json.dumps({"config": {"digest": image.record.config_digest}, "layers": []})
        self.manifests[image.record.config_digest] = self.add_blob(manifest)
        self.names.update(dict.fromkeys(names, self.target(image)))
        self.write()
        return image

    def add_blob(self, content: str | bytes) -> str:
        write(self.blob_path(sha(content)), content)
        return sha(content)

    def add_index(self, *descriptors: dict[str, object]) -> str:
        return self.add_blob(json.dumps({"schemaVersion": 2, "manifests": descriptors}))

    def write(self) -> None:
        times = {b"createdat": b"\1", b"updatedat": b"\1"}
        images = {
            name.encode(): {**times, b"target": {b"digest": digest.encode(), b"mediatype": b"m", b"size": b"\2"}}
            for name, digest in self.names.items()
        }
        keys = {chain_id: f"moby/{number + 20}/{chain_id}".encode() for chain_id, number in self.committed.items()}
        records: Tree = {chain_id.encode(): {b"name": key} for chain_id, key in keys.items()}
        active = {b"moby/9/a-container": {b"id": uvarint(3), b"kind": b"\2", b"parent": b"moby/1/gone"}}
        inner = {
            keys[chain_id]: {b"id": uvarint(number), b"kind": b"\3"} for chain_id, number in self.committed.items()
        }
        stale = {
            f"moby/7/{chain_id}".encode(): {b"id": uvarint(n), b"kind": b"\3"} for chain_id, n in self.stale.items()
        }
        links = {
            uvarint(self.committed[parent]) + b"\0" + uvarint(self.committed[chain_id]): keys[chain_id]
            for chain_id, parent in self.parents.items()
            if {chain_id, parent} <= self.committed.keys()
        }
        links |= {
            uvarint(2) + b"\0" + uvarint(number): f"moby/7/{chain_id}".encode()
            for chain_id, number in self.stale.items()
            if chain_id in self.parents
        }
        moby = {b"images": images, b"snapshots": {self.driver.encode(): {**records, b"a-container": {b"name": b"x"}}}}
        write(self.meta, bolt_file({b"v1": {b"moby": moby, b"version": b"\6"}}))
        inner_tree: Tree = {b"v1": {b"snapshots": {**inner, **active, **stale}, b"parents": links}}
        write(self.snapshotter / "metadata.db", bolt_file(inner_tree))

    def blob_path(self, digest: str) -> Path:
        return self.home / "io.containerd.content.v1.content/blobs/sha256" / after(digest)

    def config_path(self, image: Image) -> Path:
        return self.blob_path(image.record.config_digest)

    def layer_path(self, chain_id: str) -> Path:
        return self.snapshotter / "snapshots" / str(self.committed[chain_id])

    def target(self, image: Image) -> str:
        return self.manifests[image.record.config_digest]


class World(NamedTuple):
    """A data-root with an image that is asked for, and another one that shares its lowest layer."""

    estate: Estate
    image: Image
    other: Image


@pytest.fixture(params=[Graph, Containerd], ids=["graphdriver", "containerd"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    estate: Estate = request.param(tmp_path / "root")
    yield World(estate, estate.add((REDIS, TOOL), "base", "middle", "top"), estate.add((), "base", "else"))
    os.close(estate.fd)


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[Graph]:
    estate = Graph(tmp_path / "root")
    yield estate
    os.close(estate.fd)


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[Containerd]:
    estate = Containerd(tmp_path / "root")
    yield estate
    os.close(estate.fd)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def answers(estate: Estate, record: Record) -> tuple[bool, bool]:
    store = estate.open()
    return store.has_image(record), store.keeps(record)


# ---- what is there ---------------------------------------------------------------------------------------------------


def test_a_whole_image_is_there(world: World) -> None:
    estate, image, other = world
    for record in (
        image.record,
        image.record._replace(names=(REDIS,)),
        image.record._replace(names=()),
        other.record,
        other.record._replace(names=()),
    ):
        assert answers(estate, record) == (True, True)
    assert all(estate.open().has_chain(chain_id) for chain_id in (*image.chains, *other.chains))
    assert not estate.open().has_chain(sha("no layer"))


def test_an_image_of_a_single_layer_and_one_of_none_are_there(world: World) -> None:
    assert answers(world.estate, world.estate.add((REDIS,), "alone").record) == (True, True)
    assert answers(world.estate, world.estate.add((REDIS,)).record) == (True, True)


def test_images_are_listed_with_their_names_and_configurations(world: World) -> None:
    estate, image, other = world
    found = {stored.config_digest: stored for stored in estate.open().images()}
    mine = found[image.record.config_digest]
    assert sorted(mine.names) == [REDIS, TOOL]
    assert (mine.target, mine.config) == (estate.target(image), image.config)
    if isinstance(estate, Graph):
        assert found[other.record.config_digest].names == ()


def test_an_empty_data_root_has_nothing(tmp_path: Path) -> None:
    for estate in (Graph(tmp_path / "a"), Containerd(tmp_path / "b")):
        image = make_image((REDIS,), "base")
        store = estate.open()
        assert answers(estate, image.record) == (False, False)
        assert answers(estate, image.record._replace(names=())) == (False, False)
        assert not store.has_chain(image.chains[0])
        assert not store.has_blob(image.chains[0])
        assert list(store.images()) == []
        os.close(estate.fd)


# ---- what a job does with names --------------------------------------------------------------------------------------


def test_a_name_that_a_job_removed_is_missing(world: World) -> None:
    world.estate.rename(tool=None)
    assert answers(world.estate, world.image.record) == (False, False)


def test_a_name_that_a_job_gave_to_another_image_is_kept_there(world: World) -> None:
    estate, image, other = world
    estate.rename(tool=estate.target(other))
    assert answers(estate, image.record) == (False, True)


def test_an_image_without_any_of_its_names_may_be_in_pieces(world: World) -> None:
    estate, image, other = world
    estate.rename(tool=estate.target(other), redis=estate.target(other))
    remove(estate.layer_path(image.record.top_chain))
    assert answers(estate, image.record) == (False, True)


def test_a_name_that_is_left_demands_the_whole_image(world: World) -> None:
    estate, image, other = world
    estate.rename(tool=estate.target(other))
    remove(estate.layer_path(image.record.top_chain))
    assert answers(estate, image.record) == (False, False)


def test_names_are_read_once(world: World) -> None:
    estate, image, _ = world
    store = estate.open()
    assert store.keeps(image.record)
    estate.rename(tool=None)
    assert store.keeps(image.record)


# ---- damage ----------------------------------------------------------------------------------------------------------


def config_gone(world: World) -> None:
    remove(world.estate.config_path(world.image))


def config_empty(world: World) -> None:
    write(world.estate.config_path(world.image), b"")


def config_other(world: World) -> None:
    write(world.estate.config_path(world.image), world.other.config)


def config_link(world: World) -> None:
    path = world.estate.config_path(world.image)
    write(path.with_name("copy"), world.image.config)
    remove(path)
    path.symlink_to("copy")


def config_pipe(world: World) -> None:
    remove(world.estate.config_path(world.image))
    os.mkfifo(world.estate.config_path(world.image))


def config_huge(world: World) -> None:
    os.truncate(world.estate.config_path(world.image), 1 << 40)


def top_gone(world: World) -> None:
    remove(world.estate.layer_path(world.image.chains[2]))


def base_gone(world: World) -> None:
    remove(world.estate.layer_path(world.image.chains[0]))


def middle_gone(world: World) -> None:
    remove(world.estate.layer_path(world.image.chains[1]))


def top_link(world: World) -> None:
    path = world.estate.layer_path(world.image.chains[2])
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def data_path(world: World) -> Path:
    return world.estate.layer_path(world.image.chains[2]) / ("diff" if isinstance(world.estate, Graph) else "fs")


def data_gone(world: World) -> None:
    remove(data_path(world))


def data_link(world: World) -> None:
    path = data_path(world)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def first_link(world: World) -> None:
    path = world.estate.root / ("image" if isinstance(world.estate, Graph) else "containerd")
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def ancestor_link(world: World) -> None:
    path = world.estate.layer_path(world.image.chains[2]).parent
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE = [
    config_gone, config_empty, config_other, config_link, config_pipe, config_huge,
    top_gone, middle_gone, base_gone, top_link, data_gone, data_link,
    first_link, ancestor_link,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_an_image_with_damage_is_missing(world: World, damage: Callable[[World], None]) -> None:
    damage(world)
    for names in (world.image.record.names, (REDIS,), ()):
        assert answers(world.estate, world.image.record._replace(names=names)) == (False, False)


@pytest.mark.parametrize("damage", DAMAGE[:6], ids=lambda damage: damage.__name__)
def test_an_image_without_its_configuration_is_not_listed(world: World, damage: Callable[[World], None]) -> None:
    damage(world)
    assert world.image.record.config_digest not in {image.config_digest for image in world.estate.open().images()}


def test_a_layer_is_looked_for_each_time(world: World) -> None:
    estate, image, _ = world
    store = estate.open()
    assert store.has_chain(image.chains[2])
    assert store.has_image(image.record)
    top_gone(world)
    assert not store.has_chain(image.chains[2])
    assert not store.has_image(image.record)
    assert store.has_chain(image.chains[1])


HOSTILE = [
    "", "sha256:", "sha256:..", "sha256:../../../../../etc/passwd", "../../x", "sha512:" + "a" * 128, "a" * 64,
    "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "a" * 64 + "\n", "sha256:" + "/" * 64,
    "sha256:" + "\0" * 64, "sha256:" + "é" * 64, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("digest", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_digest_is_not_there(world: World, digest: str) -> None:
    store = world.estate.open()
    assert not store.has_chain(digest)
    assert not store.has_blob(digest)
    assert store.config_of(digest) is None
    assert not store.keeps(Record((), digest, ""))
    assert not store.has_image(Record((digest,), digest, digest))
    if digest:
        assert not store.keeps(world.image.record._replace(top_chain=digest))


# ---- graph drivers ---------------------------------------------------------------------------------------------------


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
    (graph.home / "diff").mkdir()
    (graph.root / "diff").mkdir()
    (graph.home / "a/b/diff").mkdir(parents=True)
    write(graph.record_path(image.chains[0]) / "cache-id", cache_id.encode("latin-1"))
    assert not graph.open().has_chain(image.chains[0])


def test_a_cache_id_may_be_one_of_buildkits(graph: Graph) -> None:
    image = graph.add((REDIS,), "base")
    graph.layer_path(image.chains[0]).rename(graph.home / "p7lbkgdo2xrvq3u5m9nt0wzy1")
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


# ---- containerd ------------------------------------------------------------------------------------------------------

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def descriptor(digest: str, architecture: str | None = None, **more: object) -> dict[str, object]:
    if architecture is None:
        return {"digest": digest, **more}
    return {"digest": digest, "platform": {"os": "linux", "architecture": architecture}, **more}


def here() -> str:
    return MACHINES.get(os.uname().machine, os.uname().machine)


def test_an_index_stands_for_this_machines_image(containerd: Containerd) -> None:
    image = containerd.add((), "base", "top")
    other = containerd.add((), "base", "else")
    index = containerd.add_index(
        descriptor(containerd.target(other), "vax"),
        descriptor(sha("an attestation"), "unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        descriptor(containerd.target(image), here()),
    )
    containerd.names[REDIS] = index
    containerd.write()
    record = image.record._replace(names=(REDIS,))
    assert answers(containerd, record) == (True, True)
    store = containerd.open()
    assert store.config_of(index) == store.config_of(containerd.target(image)) == image.record.config_digest
    (stored,) = store.images()
    assert (stored.names, stored.target) == ((REDIS,), index)
    assert stored.repo_digests == (f"docker.io/library/redis@{index}",)


def test_an_index_for_other_machines_is_another_image(containerd: Containerd) -> None:
    image = containerd.add((REDIS,), "base")
    index = containerd.add_index(descriptor(containerd.target(image), "vax"))
    containerd.rename(redis=index)
    assert answers(containerd, image.record) == (False, True)
    assert containerd.open().config_of(index) is None
    assert list(containerd.open().images()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"config": {}}', b'{"config": {"digest": 1}}', b'{"config": {"digest": "sha256:.."}}',
        b'{"manifests": 1, "config"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff",
    ],
    ids=range(10),
)  # fmt: skip
def test_a_target_that_makes_no_sense_may_be_this_image_in_pieces(containerd: Containerd, content: bytes) -> None:
    image = containerd.add((REDIS,), "base")
    containerd.rename(redis=containerd.add_blob(content))
    assert answers(containerd, image.record) == (False, False)
    assert containerd.open().config_of(sha(content)) is None
    assert list(containerd.open().images()) == []


def test_indexes_in_indexes_come_to_an_end(containerd: Containerd) -> None:
    image = containerd.add((REDIS,), "base")
    once = containerd.add_index(descriptor(containerd.target(image)))
    twice = containerd.add_index(descriptor(once))
    thrice = containerd.add_index(descriptor(twice))
    found = [containerd.open().config_of(digest) for digest in (once, twice, thrice)]
    assert found == [image.record.config_digest] * 2 + [None]


@pytest.mark.parametrize("how", ["gone", "other", "link", "pipe", "huge"])
def test_an_image_needs_its_manifest(containerd: Containerd, how: str) -> None:
    image = containerd.add((REDIS,), "base")
    path = containerd.blob_path(containerd.target(image))
    whole = path.read_bytes()
    if how == "other":
        path.write_bytes(whole + b" ")
    elif how == "huge":
        os.truncate(path, 1 << 40)
    else:
        path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    if how == "link":
        write(path.with_name("copy"), whole)
        path.symlink_to("copy")
    assert answers(containerd, image.record) == (False, False)


def test_content_is_looked_for_each_time(containerd: Containerd) -> None:
    digest = containerd.add_blob("a packed layer")
    store = containerd.open()
    assert store.has_blob(digest)
    containerd.blob_path(digest).unlink()
    assert not store.has_blob(digest)
    os.mkfifo(containerd.blob_path(digest))
    assert not store.has_blob(digest)
    containerd.blob_path(digest).unlink()
    write(containerd.home / "copy", "a packed layer")
    containerd.blob_path(digest).symlink_to(containerd.home / "copy")
    assert not store.has_blob(digest)


@pytest.mark.parametrize("driver", ["overlayfs", "native", "btrfs", "erofs", "zfs", "devmapper", "blockfile"])
def test_each_snapshotter_has_its_own_directories(tmp_path: Path, driver: str) -> None:
    estate = Containerd(tmp_path / "root", driver)
    image = estate.add((REDIS,), "base", "top")
    assert answers(estate, image.record) == (True, True)
    remove(estate.snapshotter / "snapshots")
    missing = driver in ("overlayfs", "native", "btrfs", "erofs")
    assert answers(estate, image.record) == (not missing, not missing)
    os.close(estate.fd)


@pytest.mark.parametrize("layers", [("base",), ("base", "top")], ids=["lowest", "upper"])
def test_a_layer_has_to_be_known_to_both_databases(containerd: Containerd, layers: tuple[str, ...]) -> None:
    image = containerd.add((REDIS,), *layers)
    written = {path: path.read_bytes() for path in (containerd.meta, containerd.snapshotter / "metadata.db")}
    del containerd.committed[image.record.top_chain]
    containerd.write()
    without = {path: path.read_bytes() for path in written}
    for path in written:
        for each, content in written.items():
            each.write_bytes(without[each] if each == path else content)
        assert not containerd.open().has_chain(image.record.top_chain)
        assert answers(containerd, image.record) == (False, False)


@pytest.mark.parametrize("layers", [("base",), ("base", "top")], ids=["lowest", "upper"])
def test_the_newest_of_two_snapshots_counts(containerd: Containerd, layers: tuple[str, ...]) -> None:
    image = containerd.add((REDIS,), *layers)
    containerd.stale[image.record.top_chain] = 77
    containerd.write()
    assert answers(containerd, image.record) == (True, True)
    (containerd.snapshotter / "snapshots/77/fs").mkdir(parents=True)
    remove(containerd.layer_path(image.record.top_chain))
    assert answers(containerd, image.record) == (False, False)


@pytest.mark.parametrize("how", ["gone", "empty", "zeros", "cut", "link", "pipe", "directory"])
@pytest.mark.parametrize("which", ["meta", "metadata"])
def test_a_database_that_cannot_be_read_is_empty(containerd: Containerd, which: str, how: str) -> None:
    image = containerd.add((REDIS,), "base", "top")
    path = containerd.meta if which == "meta" else containerd.snapshotter / "metadata.db"
    whole = path.read_bytes()
    if how in ("zeros", "cut", "empty"):
        path.write_bytes({"zeros": bytes(len(whole)), "cut": whole[:-PAGE_SIZE], "empty": b""}[how])
    else:
        path.unlink()
    if how == "link":
        write(path.with_name("copy"), whole)
        path.symlink_to("copy")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    assert answers(containerd, image.record) == (False, False)
    assert not containerd.open().has_chain(image.chains[1])
    assert len(list(containerd.open().images())) == (0 if which == "meta" else 1)


def test_links_between_snapshots_that_make_no_sense_end_somewhere(containerd: Containerd) -> None:
    image = containerd.add((REDIS,), "base", "top")
    base, top = (containerd.committed[chain_id] for chain_id in image.chains)
    key = f"moby/{top + 20}/{image.chains[1]}".encode()
    for links in (
        {uvarint(base) + b"\0" + uvarint(top): key, uvarint(top) + b"\0" + uvarint(base): b"x"},
        {b"\xff" * 30: key},
        {b"": key},
        {uvarint(base): key},
    ):
        write(containerd.snapshotter / "metadata.db", bolt_file({b"v1": {b"parents": links, b"snapshots": {}}}))
        assert answers(containerd, image.record) == (False, False)


def test_a_database_is_read_up_to_a_limit(containerd: Containerd, monkeypatch: pytest.MonkeyPatch) -> None:
    image = containerd.add((REDIS,), "base")
    monkeypatch.setattr(image_stores, "_MAX_DATABASE_BYTES", 24 * PAGE_SIZE)
    store = containerd.open()
    names = [store.keeps(Record((f"docker.io/library/none:{number}",), "", "")) for number in range(20)]
    assert not any(names)
    assert not store.keeps(image.record)
    assert containerd.open().keeps(image.record)


def test_names_that_are_none_are_left_out(containerd: Containerd) -> None:
    image = containerd.add((), "base")
    target = containerd.target(image)
    digest = f"docker.io/library/redis@{target}"
    for name in (REDIS, digest, f"moby-dangling@{target}", "Bad Name\n:1", "docker.io/library/nginx"):
        containerd.names[name] = target
    containerd.names["docker.io/library/lost:1"] = "sha256:../../x"
    containerd.write()
    (stored,) = containerd.open().images()
    assert stored.names == (REDIS,)
    assert sorted(stored.repo_digests) == sorted({digest, f"docker.io/library/nginx@{target}"})


def test_a_dangling_image_has_no_names(containerd: Containerd) -> None:
    image = containerd.add((), "base")
    containerd.names[f"moby-dangling@{containerd.target(image)}"] = containerd.target(image)
    containerd.write()
    (stored,) = containerd.open().images()
    assert (stored.names, stored.repo_digests, stored.config) == ((), (), image.config)


# ---- platforms -------------------------------------------------------------------------------------------------------


def platform(architecture: str, variant: str | None = None, system: str = "linux") -> dict[str, object]:
    found: dict[str, object] = {"os": system, "architecture": architecture}
    return found if variant is None else {**found, "variant": variant}


@pytest.mark.parametrize(
    ("machine", "platforms", "expected"),
    [
        ("x86_64", [platform("arm64"), platform("amd64")], 1),
        ("x86_64", [platform("amd64", system="windows"), platform("amd64")], 1),
        ("x86_64", [platform("amd64", "v3"), platform("amd64")], 1),
        ("x86_64", [platform("amd64", "v3")], None),
        ("x86_64", [platform("unknown", system="unknown")], None),
        ("x86_64", [None, platform("amd64")], 1),
        ("x86_64", [None, platform("arm64")], 0),
        ("x86_64", [platform("amd64"), platform("amd64")], 0),
        ("aarch64", [platform("amd64"), platform("arm64", "v8")], 1),
        ("armv7l", [platform("arm", "v5"), platform("arm", "v6"), platform("arm", "v7")], 2),
        ("armv7l", [platform("arm", "v5"), platform("arm", "v6")], 1),
        ("armv6l", [platform("arm", "v7"), platform("arm", "v6")], 1),
        ("armv6l", [platform("arm", "v7")], None),
        ("s390x", [platform("amd64"), platform("s390x")], 1),
        ("x86_64", [], None),
    ],
)
def test_the_manifest_for_a_machine_is_chosen(
    machine: str, platforms: list[dict[str, object] | None], expected: int | None
) -> None:
    manifests = [{"digest": str(number), "platform": each} for number, each in enumerate(platforms)]
    assert choose_manifest(manifests, machine) == (None if expected is None else str(expected))


@pytest.mark.parametrize(
    "manifests", [None, 7, {}, [None, 7, {}, {"digest": 7}, {"digest": "x", "platform": {"os": []}}]]
)
def test_an_index_that_makes_no_sense_has_none(manifests: object) -> None:
    assert choose_manifest(manifests, "x86_64") is None


def test_an_attestation_is_not_chosen_whatever_its_platform() -> None:
    attestation = descriptor("a", "amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"})
    assert choose_manifest([attestation, descriptor("b", "amd64")], "x86_64") == "b"


# ---- nothing stays open ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [None, *DAMAGE], ids=lambda damage: damage.__name__ if damage else "none")
def test_nothing_stays_open(world: World, damage: Callable[[World], None] | None) -> None:
    if damage is not None:
        damage(world)
    before = len(os.listdir("/proc/self/fd"))
    answers(world.estate, world.image.record)
    store = world.estate.open()
    list(store.images())
    store.has_blob(world.image.record.config_digest)
    store.has_chain(world.image.chains[2])
    assert len(os.listdir("/proc/self/fd")) == before
