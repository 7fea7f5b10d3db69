"""The image store of containerd, as it is on disk below containerd/daemon/ (containerd, core/metadata/buckets.go,
core/snapshots/storage/bolt.go, plugins/content/local/store.go, plugins/snapshots/; moby,
daemon/containerd/soft_delete.go):

    io.containerd.metadata.v1.bolt/meta.db              v1/moby/images/<name>/target/digest: a manifest's, or an index's
                                                        v1/moby/snapshots/<snapshotter>/<chain ID>
    io.containerd.content.v1.content/blobs/sha256/…     indexes, manifests, configurations, packed layers
    io.containerd.snapshotter.v1.<snapshotter>/         metadata.db, with v1/snapshots/moby/<number>/<chain ID>/id and
                                                        v1/parents, and snapshots/<id>/
"""

from __future__ import annotations

import contextlib
import functools
import os
import re

from cachedind.base.state import parse_object
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import containerd_holder, paths
from cachedind.engine.bolt_file import File, uvarint
from cachedind.engine.images import chain_ids
from cachedind.engine.platforms import choose_manifest
from cachedind.engine.store_files import (
    DIGEST,
    StoreFiles,
    check_depth,
    check_directory,
    check_file,
    digits,
    is_shared_layer,
    mapping,
    read_verified,
)
from cachedind.host.beneath import directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cachedind.engine.store_files import StoredImage

_MAX_NESTED = 2
"""An index may name another index, and nobody nests them deeper."""
_BACKEND_KEY = re.compile(rb"moby/([0-9]{1,19})/(sha256:[0-9a-f]{64})")
"""A committed layer's name at its snapshotter (containerd, core/metadata/snapshot.go, createKey)."""
_SNAPSHOT_DATA = {"overlayfs": "fs", "native": ".", "btrfs": ".", "erofs": "."}
"""What below snapshots/<id> has the layer. Other snapshotters keep it in devices or files: not looked for."""


class ContainerdStore(StoreFiles):
    def __init__(self, root_fd: int, driver: str) -> None:
        super().__init__(root_fd, driver)
        self._meta = File(root_fd, paths.META)
        self._metadata = File(root_fd, paths.snapshots_database(driver))
        self._whole: set[int] = set()

    @functools.cached_property
    def _committed(self) -> frozenset[str]:
        """The names that containerd has snapshots by; those of layers are chain IDs."""
        names = self._meta.buckets(b"v1", b"moby", b"snapshots", self._driver.encode())
        return frozenset(name.decode("utf-8", "replace") for name in names)

    @functools.cached_property
    def _upper(self) -> tuple[dict[str, int], dict[int, int]]:
        """By chain ID the snapshotter's numbers of all layers but the lowest, and by number the number of the one
        below.

        Both come from `parents`: to look up each layer would take a walk through the database each time.
        """
        parents: dict[int, int] = {}
        newest: dict[bytes, tuple[int, int]] = {}
        for link, key in self._metadata.items(b"v1", b"parents"):
            parent, at = uvarint(link, 0)
            number, _ = uvarint(link, at + 1)
            parents[number] = parent
            match = _BACKEND_KEY.fullmatch(key)
            if match is not None:
                # A layer that was removed and came again has two until containerd has collected its garbage.
                newest[match[2]] = max(newest.get(match[2], (0, 0)), (int(match[1]), number))
        return {chain_id.decode(): number for chain_id, (_, number) in newest.items()}, parents

    @functools.cached_property
    def _keys(self) -> dict[str, bytes]:
        """The snapshotter's names of layers by chain ID."""
        newest: dict[bytes, tuple[int, bytes]] = {}
        for key in self._metadata.buckets(b"v1", b"snapshots"):
            match = _BACKEND_KEY.fullmatch(key)
            if match is not None:
                newest[match[2]] = max(newest.get(match[2], (0, b"")), (int(match[1]), key))
        return {chain_id.decode(): key for chain_id, (_, key) in newest.items()}

    def has_blob(self, digest: str) -> bool:
        with contextlib.suppress(OSError, ValueError), directory(self._root_fd, paths.BLOBS) as blobs_fd:
            check_file(blobs_fd, digits(digest))
            return True
        return False

    def config_of(self, image_id: str) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            return self._config_of(image_id)
        return None

    def images(self) -> Iterator[StoredImage]:
        references: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):
            for name, target in self._targets.items():
                references.setdefault(target, []).append(name)
        for target, found in references.items():
            # An image without a name has one without a registry: moby-dangling@sha256:…
            digests = dict.fromkeys(f"{_repository(name)}@{target}" for name in found)
            image = self._image(target, found, digests)
            if image is not None:
                yield image

    def targets(self) -> dict[str, str]:
        """What each record of an image stands for, by name as containerd has it. Raises ValueError, OSError where there
        are records that cannot be read; without a database, or records in it, there are none."""
        there: list[bytes] = []
        with contextlib.suppress(OSError, ValueError):
            there = self._meta.buckets(b"v1", b"moby")
        if b"images" not in there:
            return {}
        return self._targets

    def held(self) -> frozenset[str]:
        """The manifests and indexes of images that no job sees (containerd_holder.py). Raises nothing."""
        path = (b"v1", b"moby", b"content", b"blob", containerd_holder.DIGEST_OF_IT.encode(), b"labels")
        with contextlib.suppress(OSError, ValueError):
            return containerd_holder.held_by({name.decode(): value.decode() for name, value in self._meta.items(*path)})
        return frozenset()

    def document(self, digest: str) -> bytes:
        """A manifest or an index; nothing where it is not there. Raises nothing."""
        with contextlib.suppress(OSError, ValueError):
            return read_verified(self._root_fd, paths.BLOBS, digest)
        return b""

    @functools.cached_property
    def _targets(self) -> dict[str, str]:
        found = self._meta.nested((b"v1", b"moby", b"images"), (b"target",))
        return {name.decode(): target.get(b"digest", b"").decode() for name, target in found.items()}

    def _config_at(self, name: str) -> str | None:
        return self._config_of(self._targets.get(name, ""))

    def _config_of(self, digest: str) -> str | None:
        manifest = self._manifest_of(digest)
        if manifest is None:
            return None
        config = mapping(manifest.get("config")).get("digest")
        if not isinstance(config, str):
            raise ValueError("neither manifest nor index")
        digits(config)
        return config

    def _manifest_of(self, digest: str, depth: int = 0) -> Mapping[str, object] | None:
        """The manifest for this machine, None when an index has none."""
        document = parse_object(read_verified(self._root_fd, paths.BLOBS, digest))
        if "manifests" not in document:
            return document
        if depth == _MAX_NESTED:
            raise ValueError("indexes in indexes")
        manifest = choose_manifest(document["manifests"], os.uname().machine)
        return None if manifest is None else self._manifest_of(manifest, depth + 1)

    def unpacked(self) -> dict[int, list[str]]:
        """By the snapshotter's number of each layer of an image: the blobs that it may have been unpacked from.
        Raises nothing."""
        found: dict[int, list[str]] = {}
        hidden = (self._image(target, (), ()) for target in sorted(self.held()))
        for image in (*self.images(), *filter(None, hidden)):
            with contextlib.suppress(OSError, ValueError):
                for chain_id, blob in self._layers_of(image):
                    blobs = found.setdefault(self._number(chain_id), [])
                    if blob not in blobs:
                        blobs.append(blob)
        return found

    def has_lost_layers(self, target: str) -> bool:
        """Whether there are records of layers of an image whose directories are not there."""
        image = self._image(target, (), ())
        with contextlib.suppress(OSError, ValueError):
            chains = [chain_id for chain_id, _ in self._layers_of(image)] if image else []
            with self._opened() as layers_fd:
                for chain_id in self._committed.intersection(chains):
                    try:
                        self._check_data(self._number(chain_id), layers_fd)
                    except (FileNotFoundError, NotADirectoryError):
                        return True
        return False

    def sizes_of(self, target: str) -> dict[str, int]:
        """Bytes of an image's layers as the snapshotter counts them, by chain ID; none where it cannot be read."""
        sizes: dict[str, int] = {}
        image = self._image(target, (), ())
        with contextlib.suppress(OSError, ValueError):
            for chain_id, _ in self._layers_of(image) if image else ():
                size = dict(self._metadata.items(b"v1", b"snapshots", self._keys[chain_id])).get(b"size", b"")
                # Signed numbers are written in zigzag (Go's binary.PutVarint).
                sizes[chain_id] = uvarint(size, 0)[0] >> 1
        return sizes

    def _layers_of(self, image: StoredImage) -> list[tuple[str, str]]:
        """Chain IDs and blobs of an image's layers, lowest first."""
        layers = mapping(self._manifest_of(image.target)).get("layers")
        diff_ids = mapping(parse_object(image.config).get("rootfs")).get("diff_ids")
        if not isinstance(layers, list) or not isinstance(diff_ids, list) or len(layers) != len(diff_ids):
            raise ValueError("manifest and configuration have different numbers of layers")
        blobs = [str(mapping(layer).get("digest")) for layer in layers]
        return list(zip(chain_ids([str(diff_id) for diff_id in diff_ids]), blobs, strict=True))

    def _read_config(self, digest: str) -> bytes:
        return read_verified(self._root_fd, paths.BLOBS, digest)

    def _check_chain(self, chain_id: str) -> None:
        number = self._number(chain_id)
        with self._opened() as layers_fd:
            self._check_data(number, layers_fd)

    def _check_layers(self, top_chain: str) -> None:
        passed: list[int] = []
        number: int | None = self._number(top_chain)
        _, parents = self._upper
        with self._opened() as layers_fd:
            while number is not None and (not passed or number not in self._whole):
                check_depth(len(passed))
                self._check_data(number, layers_fd)
                passed.append(number)
                number = parents.get(number)
        self._whole.update(passed)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The directory of the snapshotter's layers, where it keeps them in directories."""
        looked_for = self._driver in _SNAPSHOT_DATA
        with directory(self._root_fd, paths.snapshots(self._driver) if looked_for else ".") as layers_fd:
            yield layers_fd

    def _number(self, chain_id: str) -> int:
        """The snapshotter's number of a layer that containerd knows too."""
        if not DIGEST.fullmatch(chain_id) or chain_id not in self._committed:
            raise ValueError("no such layer")
        numbers, _ = self._upper
        if chain_id not in numbers:
            if chain_id not in self._keys:
                raise ValueError("no such snapshot")
            items = dict(self._metadata.items(b"v1", b"snapshots", self._keys[chain_id]))
            numbers[chain_id], _ = uvarint(items.get(b"id", b""), 0)
        return numbers[chain_id]

    def _check_data(self, number: int, layers_fd: int) -> None:
        if self._driver in _SNAPSHOT_DATA and not is_shared_layer(layers_fd, str(number)):
            with directory(layers_fd, str(number)) as layer_fd:
                check_directory(layer_fd, _SNAPSHOT_DATA[self._driver])


def _repository(name: str) -> str:
    """A name without tag and digest."""
    name = name.partition("@")[0]
    path, slash, last = name.rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}"
