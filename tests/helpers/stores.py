"""Data-roots with images, as engines leave them, for both image stores: made by hand, without a daemon."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.model import ImageStore, StoragePlan
from cachedind.engine.image_stores import open_store
from cachedind.engine.images import Record, chain_ids
from helpers.boltfiles import bolt_file

if TYPE_CHECKING:
    from pathlib import Path

    from cachedind.engine.image_stores import Store
    from helpers.boltfiles import Tree

REDIS, TOOL = "docker.io/library/redis:7", "registry.example:5000/team/tool:1.2"


def sha(text: str | bytes) -> str:
    return f"sha256:{hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()}"


def after(digest: str) -> str:
    return digest.partition(":")[2]


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def answers(estate: Estate, record: Record) -> tuple[bool, bool]:
    store = estate.open()
    return store.has_image(record), store.keeps(record)


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

    def open(self) -> Store:
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
        self.path = root / {"btrfs": "btrfs/subvolumes", "vfs": "vfs/dir"}.get(driver, driver)

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
        return self.path / after(sha(f"cache {chain_id}"))

    def target(self, image: Image) -> str:
        return image.record.config_digest


class Containerd(Estate):
    kind = ImageStore.CONTAINERD

    def __init__(self, root: Path, driver: str = "overlayfs") -> None:
        super().__init__(root)
        self.driver = driver
        self.path = root / "containerd/daemon"
        self.snapshotter = self.path / f"io.containerd.snapshotter.v1.{driver}"
        self.committed: dict[str, int] = {}
        """The snapshotter's number of each layer."""
        self.parents: dict[str, str] = {}
        self.stale: dict[str, int] = {}
        """Layers that the snapshotter had before under another number, and has not swept."""
        self.manifests: dict[str, str] = {}

    @property
    def meta(self) -> Path:
        return self.path / "io.containerd.metadata.v1.bolt/meta.db"

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
        images: Tree = {
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
        mine: Tree = {**records, b"a-container": {b"name": b"x"}}
        moby: Tree = {b"images": images, b"snapshots": {self.driver.encode(): mine}}
        meta: Tree = {b"v1": {b"moby": moby, b"version": b"\6"}}
        write(self.meta, bolt_file(meta))
        inner_tree: Tree = {b"v1": {b"snapshots": {**inner, **active, **stale}, b"parents": links}}
        write(self.snapshotter / "metadata.db", bolt_file(inner_tree))

    def blob_path(self, digest: str) -> Path:
        return self.path / "io.containerd.content.v1.content/blobs/sha256" / after(digest)

    def config_path(self, image: Image) -> Path:
        return self.blob_path(image.record.config_digest)

    def layer_path(self, chain_id: str) -> Path:
        return self.snapshotter / "snapshots" / str(self.committed[chain_id])

    def target(self, image: Image) -> str:
        return self.manifests[image.record.config_digest]


def uvarint(number: int) -> bytes:
    found = b""
    while number >= 0x80:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])
