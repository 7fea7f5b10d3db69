"""What a data-root's image store really holds, read from its files, without a daemon, for both of Docker's stores.

graphdriver, below image/<driver>/ (moby, reference/store.go, image/fs.go, layer/filestore.go):

    repositories.json           {"Repositories": {"redis": {"redis:7": config digest, "redis@sha256:…": the same}}}
    imagedb/content/sha256/…    configurations; an engine takes none whose bytes have another digest
    layerdb/sha256/<chain ID>/  a layer, renamed into place when it is whole: `cache-id` names its directory with the
                                driver, `parent` is the chain ID below it

containerd, below containerd/daemon/ (containerd, core/metadata/buckets.go, core/snapshots/storage/bolt.go,
plugins/content/local/store.go, plugins/snapshots/; moby, daemon/containerd/soft_delete.go):

    io.containerd.metadata.v1.bolt/meta.db              v1/moby/images/<name>/target/digest: a manifest's, or an index's
                                                        v1/moby/snapshots/<snapshotter>/<chain ID>
    io.containerd.content.v1.content/blobs/sha256/…     indexes, manifests, configurations, packed layers
    io.containerd.snapshotter.v1.<snapshotter>/         metadata.db, with v1/snapshots/moby/<number>/<chain ID>/id and
                                                        v1/parents, and snapshots/<id>/

The last job was root in there. No link is followed, nothing is waited for, no file read beyond a limit, and what cannot
be read or understood counts as not there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import stat
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cachedind import beneath, bolt
from cachedind.beneath import directory
from cachedind.image_names import canonical, is_name
from cachedind.model import ImageStore
from cachedind.state import parse_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cachedind.model import StoragePlan
    from cachedind.seeds import Record

_MAX_BYTES = 4 << 20
"""Of a file with JSON, or with a single word."""
_MAX_DATABASE_BYTES = 128 << 20
"""How much of a database is read in all, however often it is looked into."""
_MAX_LAYERS = 128
"""Engines refuse more than 125 (moby, daemon/internal/layer/layer_store.go, maxLayerDepth)."""
_MAX_NESTED = 2
"""An index may name another one; nobody makes more of it."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CACHE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""64 hexadecimal digits of the layer store, or a shorter word that BuildKit made up."""
_BACKEND_KEY = re.compile(rb"moby/([0-9]{1,19})/(sha256:[0-9a-f]{64})")
"""A committed layer's name at its snapshotter (containerd, core/metadata/snapshot.go, createKey)."""
_DRIVER_HOMES = {"btrfs": "btrfs/subvolumes", "vfs": "vfs/dir", "zfs": "."}
"""Where a driver keeps layers if not in a directory of its name. ZFS has them as datasets, which are not looked for."""
_OVERLAY_DRIVERS = frozenset({"overlay2", "fuse-overlayfs"})
_SNAPSHOT_DATA = {"overlayfs": "fs", "native": ".", "btrfs": ".", "erofs": "."}
"""What below snapshots/<id> has the layer. Other snapshotters keep it in devices or files: not looked for."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
_VARIANTS: dict[str, tuple[object, ...]] = {
    "x86_64": ("", "v1"),
    "aarch64": ("", "v8"),
    "armv7l": ("v7", "", "v6", "v5"),
    "armv6l": ("v6", "v5"),
}
"""Best first; none stands for v7 with arm (containerd/platforms, database.go, normalizeArch)."""


class StoredImage(NamedTuple):
    """An image with its configuration. Its layers may be missing.

    `names` are canonical ("docker.io/library/redis:7"), perhaps none. `target` is its ID in this store: the digest of
    its configuration (graphdriver), or of its manifest or index (containerd). `repo_digests` are names with a digest
    ("docker.io/library/redis@sha256:…").
    """

    names: tuple[str, ...]
    target: str
    config_digest: str
    config: bytes
    repo_digests: tuple[str, ...]


class Store(Protocol):
    """An image store as it is on disk. Names are read once, so whoever changes them opens another. Raises nothing."""

    def has_chain(self, chain_id: str) -> bool:
        """Whether there is a finished layer with this chain ID, and its data. Looks at the disk each time, but for
        containerd's records, which are read once."""
        ...

    def has_blob(self, digest: str) -> bool:
        """Whether containerd's content has these bytes, packed or not. Looks at the disk each time."""
        ...

    def has_image(self, record: Record) -> bool:
        """Whether every name of it stands for exactly this image, and configuration and layers are there."""
        ...

    def keeps(self, record: Record) -> bool:
        """Whether nothing of it is missing. A job may have given a name of it to another image."""
        ...

    def config_of(self, image_id: str) -> str | None:
        """The digest of the configuration that the engine means by an image's ID on this machine."""
        ...

    def images(self) -> Iterator[StoredImage]:
        """Those whose configuration is there, for this machine where an index has several."""
        ...


def open_store(root_fd: int, storage: StoragePlan) -> Store:
    """The store of the data-root that `root_fd` is open on, for as long as it is. Reads nothing yet."""
    if storage.store is ImageStore.CONTAINERD:
        return _ContainerdStore(root_fd, storage.driver)
    return _GraphdriverStore(root_fd, storage.driver)


# ---- what both have in common ----------------------------------------------------------------------------------------


class _Files(ABC):
    """The methods with an underscore raise ValueError or OSError for what is not there."""

    def __init__(self, root_fd: int, driver: str) -> None:
        self._root_fd = root_fd
        self._driver = driver

    def has_image(self, record: Record) -> bool:
        with contextlib.suppress(OSError, ValueError):
            if all(self._config_at(name) == record.config_digest for name in record.names):
                self._check_complete(record)
                return True
        return False

    def keeps(self, record: Record) -> bool:
        with contextlib.suppress(OSError, ValueError):
            configs = [self._config_at(name) for name in record.names]
            if not configs or record.config_digest in configs:
                self._check_complete(record)
            return True
        return False

    def has_chain(self, chain_id: str) -> bool:
        with contextlib.suppress(OSError, ValueError):
            self._check_chain(chain_id)
            return True
        return False

    def _check_complete(self, record: Record) -> None:
        self._read_config(record.config_digest)
        if record.top_chain:
            self._check_layers(record.top_chain)

    def _image(self, target: str, names: tuple[str, ...], repo_digests: tuple[str, ...]) -> StoredImage | None:
        config_digest = self.config_of(target)
        with contextlib.suppress(OSError, ValueError):
            if config_digest is not None:
                return StoredImage(names, target, config_digest, self._read_config(config_digest), repo_digests)
        return None

    @abstractmethod
    def config_of(self, image_id: str) -> str | None: ...

    @abstractmethod
    def _config_at(self, name: str) -> str | None:
        """The digest of the configuration that a name stands for; None when it has none for this machine."""

    @abstractmethod
    def _read_config(self, digest: str) -> bytes: ...

    @abstractmethod
    def _check_chain(self, chain_id: str) -> None: ...

    @abstractmethod
    def _check_layers(self, top_chain: str) -> None:
        """The layer and all below it. Of these, what was found once is not looked for again."""


# ---- graph drivers ---------------------------------------------------------------------------------------------------


class _GraphdriverStore(_Files):
    def __init__(self, root_fd: int, driver: str) -> None:
        super().__init__(root_fd, driver)
        self._home = f"image/{driver}"
        self._whole: set[str] = set()

    @functools.cached_property
    def _references(self) -> dict[str, str]:
        """Configurations by canonical name, with tag or with digest."""
        found: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            raw = _read(self._root_fd, f"{self._home}/repositories.json")
            for repository in _mapping(parse_object(raw).get("Repositories")).values():
                for name, config in _mapping(repository).items():
                    if isinstance(config, str) and _DIGEST.fullmatch(config):
                        found[canonical(name)] = config
        return found

    def has_blob(self, digest: str) -> bool:
        return False

    def config_of(self, image_id: str) -> str | None:
        return image_id if _DIGEST.fullmatch(image_id) else None

    def images(self) -> Iterator[StoredImage]:
        references: dict[str, list[str]] = {}
        for name, config in self._references.items():
            references.setdefault(config, []).append(name)
        for config in self._configs():
            references.setdefault(config, [])
        for config, found in references.items():
            image = self._image(config, tuple(filter(is_name, found)), tuple(filter(_is_repo_digest, found)))
            if image is not None:
                yield image

    def _configs(self) -> list[str]:
        with contextlib.suppress(OSError):
            found = beneath.names(self._root_fd, f"{self._home}/imagedb/content/sha256")
            return [digest for name in found if _DIGEST.fullmatch(digest := f"sha256:{name}")]
        return []

    def _config_at(self, name: str) -> str:
        if name not in self._references:
            raise ValueError(f"no image is named {name!r}")
        return self._references[name]

    def _read_config(self, digest: str) -> bytes:
        return _read_verified(self._root_fd, f"{self._home}/imagedb/content/sha256", digest)

    def _check_chain(self, chain_id: str) -> None:
        with self._opened() as (records_fd, layers_fd):
            self._parent_of(chain_id, records_fd, layers_fd)

    def _check_layers(self, top_chain: str) -> None:
        passed: list[str] = []
        with self._opened() as (records_fd, layers_fd):
            parent = self._parent_of(top_chain, records_fd, layers_fd)
            while parent and parent not in self._whole:
                _check_depth(len(passed))
                passed.append(parent)
                parent = self._parent_of(parent, records_fd, layers_fd)
        self._whole.update(passed)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, int]]:
        """Where the layers' records are, and where the driver has them."""
        home = _DRIVER_HOMES.get(self._driver, self._driver)
        records = f"{self._home}/layerdb/sha256"
        with directory(self._root_fd, records) as records_fd, directory(self._root_fd, home) as layers_fd:
            yield records_fd, layers_fd

    def _parent_of(self, chain_id: str, records_fd: int, layers_fd: int) -> str:
        """The chain ID below a layer that is there with its data; empty below the lowest."""
        parent = ""
        with directory(records_fd, _hex(chain_id)) as record_fd:
            cache_id = _read(record_fd, "cache-id").decode().strip()
            with contextlib.suppress(FileNotFoundError):
                parent = _read(record_fd, "parent").decode().strip()
        if not _CACHE_ID.fullmatch(cache_id):
            raise ValueError("a cache-id that is none")
        if self._driver in _OVERLAY_DRIVERS:
            with directory(layers_fd, cache_id) as layer_fd:
                _check_directory(layer_fd, "diff")
                if parent:
                    # moby, daemon/graphdriver/overlay2/overlay.go, Get: without it a layer is mounted on nothing.
                    _check_file(layer_fd, "lower")
        elif self._driver != "zfs":
            _check_directory(layers_fd, cache_id)
        return parent


# ---- containerd ------------------------------------------------------------------------------------------------------


class _ContainerdStore(_Files):
    def __init__(self, root_fd: int, driver: str) -> None:
        super().__init__(root_fd, driver)
        home = "containerd/daemon"
        self._blobs = f"{home}/io.containerd.content.v1.content/blobs/sha256"
        self._snapshotter = f"{home}/io.containerd.snapshotter.v1.{driver}"
        self._meta = _Database(root_fd, f"{home}/io.containerd.metadata.v1.bolt/meta.db")
        self._metadata = _Database(root_fd, f"{self._snapshotter}/metadata.db")
        self._targets: dict[str, str] = {}
        self._whole: set[int] = set()

    @functools.cached_property
    def _committed(self) -> frozenset[str]:
        """What containerd has as snapshots, chain IDs among them."""
        names = self._meta.buckets(b"v1", b"moby", b"snapshots", self._driver.encode())
        return frozenset(name.decode("utf-8", "replace") for name in names)

    @functools.cached_property
    def _upper(self) -> tuple[dict[str, int], dict[int, int]]:
        """The snapshotter's numbers of all layers but the lowest by chain ID, and for each the number below it.

        From `parents`, which has both at once: looking up each layer would take a walk through the database each.
        """
        parents: dict[int, int] = {}
        newest: dict[bytes, tuple[int, int]] = {}
        for link, key in self._metadata.items(b"v1", b"parents"):
            parent, at = _uvarint(link, 0)
            number, _ = _uvarint(link, at + 1)
            parents[number] = parent
            match = _BACKEND_KEY.fullmatch(key)
            if match is not None:
                # What was removed and came again has two until containerd has swept.
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
        with contextlib.suppress(OSError, ValueError), directory(self._root_fd, self._blobs) as blobs_fd:
            _check_file(blobs_fd, _hex(digest))
            return True
        return False

    def config_of(self, image_id: str) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            return self._config_of(image_id)
        return None

    def images(self) -> Iterator[StoredImage]:
        references: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):
            for raw in self._meta.buckets(b"v1", b"moby", b"images"):
                with contextlib.suppress(OSError, ValueError):
                    name = raw.decode()
                    references.setdefault(self._target(name), []).append(name)
        for target, found in references.items():
            # An image without a name has one without a registry: moby-dangling@sha256:…
            digests = dict.fromkeys(f"{_repository(name)}@{target}" for name in found)
            image = self._image(target, tuple(filter(is_name, found)), tuple(filter(_is_repo_digest, digests)))
            if image is not None:
                yield image

    def _target(self, name: str) -> str:
        if name not in self._targets:
            items = dict(self._meta.items(b"v1", b"moby", b"images", name.encode(), b"target"))
            self._targets[name] = items.get(b"digest", b"").decode()
        return self._targets[name]

    def _config_at(self, name: str) -> str | None:
        return self._config_of(self._target(name))

    def _config_of(self, digest: str, depth: int = 0) -> str | None:
        document = parse_object(_read_verified(self._root_fd, self._blobs, digest))
        if "manifests" in document:
            if depth == _MAX_NESTED:
                raise ValueError("indexes in indexes")
            manifest = choose_manifest(document["manifests"], os.uname().machine)
            return None if manifest is None else self._config_of(manifest, depth + 1)
        config = _mapping(document.get("config")).get("digest")
        if not isinstance(config, str):
            raise ValueError("neither manifest nor index")
        _hex(config)
        return config

    def _read_config(self, digest: str) -> bytes:
        return _read_verified(self._root_fd, self._blobs, digest)

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
                _check_depth(len(passed))
                self._check_data(number, layers_fd)
                passed.append(number)
                number = parents.get(number)
        self._whole.update(passed)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Where the snapshotter has its layers, if that are directories."""
        looked_for = self._driver in _SNAPSHOT_DATA
        with directory(self._root_fd, f"{self._snapshotter}/snapshots" if looked_for else ".") as layers_fd:
            yield layers_fd

    def _number(self, chain_id: str) -> int:
        """The snapshotter's number of a layer that containerd knows too."""
        if not _DIGEST.fullmatch(chain_id) or chain_id not in self._committed:
            raise ValueError("no such layer")
        numbers, _ = self._upper
        if chain_id not in numbers:
            if chain_id not in self._keys:
                raise ValueError("no such snapshot")
            items = dict(self._metadata.items(b"v1", b"snapshots", self._keys[chain_id]))
            numbers[chain_id], _ = _uvarint(items.get(b"id", b""), 0)
        return numbers[chain_id]

    def _check_data(self, number: int, layers_fd: int) -> None:
        if self._driver in _SNAPSHOT_DATA:
            with directory(layers_fd, str(number)) as layer_fd:
                _check_directory(layer_fd, _SNAPSHOT_DATA[self._driver])


def choose_manifest(manifests: object, machine: str) -> str | None:
    """The digest of that one in an index which is for a machine (as uname(2) names it), None when it has none. Pure.

    Attestations are left out: they say so, or are for unknown/unknown (BuildKit, docs/attestations). What says nothing
    about its platform is taken last.
    """
    variants = _VARIANTS.get(machine, ("",))
    ranked: list[tuple[int, str]] = []
    for item in manifests if isinstance(manifests, list) else ():
        descriptor = _mapping(item)
        digest, platform = descriptor.get("digest"), _mapping(descriptor.get("platform"))
        if not isinstance(digest, str) or "vnd.docker.reference.type" in _mapping(descriptor.get("annotations")):
            continue
        variant = platform.get("variant") or ""
        if not platform:
            ranked.append((len(variants), digest))
        elif (platform.get("os"), platform.get("architecture")) == ("linux", _ARCHITECTURES.get(machine, machine)):
            ranked += [(variants.index(variant), digest)] if variant in variants else []
    return min(ranked, key=lambda found: found[0])[1] if ranked else None


class _Database:
    """A bolt file in a data-root, opened for each look. A daemon may have it open too: what has changed amid a look is
    a ValueError, and not looked for again."""

    def __init__(self, root_fd: int, path: str) -> None:
        self._root_fd = root_fd
        self._path = path
        self._left_bytes = _MAX_DATABASE_BYTES

    def buckets(self, *path: bytes) -> list[bytes]:
        """Raises ValueError or OSError, also for no such bucket."""
        with self._opened() as database:
            return database.buckets(path)

    def items(self, *path: bytes) -> list[tuple[bytes, bytes]]:
        """Raises ValueError or OSError, also for no such bucket."""
        with self._opened() as database:
            return list(database.items(path))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[bolt.Database]:
        fd, size_bytes = _open_file(self._root_fd, self._path)

        def read(size: int, offset: int) -> bytes:
            self._left_bytes -= size
            if self._left_bytes < 0:
                raise ValueError("larger than what is read of such a database")
            return os.pread(fd, size, offset)

        try:
            yield bolt.Database(read, size_bytes)
        finally:
            os.close(fd)


# ---- files -----------------------------------------------------------------------------------------------------------


def _open_file(root_fd: int, path: str) -> tuple[int, int]:
    """A descriptor and the file's size in bytes. Raises OSError, or ValueError for no regular file or an empty one."""
    fd, size = beneath.open_file(root_fd, path)
    if not size:
        os.close(fd)
        raise ValueError(f"{path} is empty")
    return fd, size


def _check_file(directory_fd: int, name: str) -> None:
    status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise ValueError(f"{name} is no file, or an empty one")


def _check_directory(directory_fd: int, name: str) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
        raise ValueError(f"{name} is no directory")


def _check_depth(layers: int) -> None:
    if layers > _MAX_LAYERS:
        raise ValueError("more layers than any image has")


def _read(root_fd: int, path: str) -> bytes:
    """Raises OSError, or ValueError for no regular file, an empty or a large one."""
    raw = beneath.read(root_fd, path, _MAX_BYTES)
    if not raw:
        raise ValueError(f"{path} is empty")
    return raw


def _read_verified(root_fd: int, home: str, digest: str) -> bytes:
    """The bytes that have this digest. A crash, or a job, may have left others under their name."""
    raw = _read(root_fd, f"{home}/{_hex(digest)}")
    if f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
        raise ValueError(f"other bytes than {digest}")
    return raw


def _hex(digest: str) -> str:
    """What may be part of a path. Raises ValueError for all that is no digest."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ValueError(f"no digest: {digest[:80]!r}")
    return match[1]


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _uvarint(raw: bytes, at: int) -> tuple[int, int]:
    """A number as Go's binary.PutUvarint writes it, and where it ends. Raises ValueError."""
    value = 0
    for index, byte in enumerate(raw[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number without an end")


def _repository(name: str) -> str:
    """A name without tag and digest."""
    name = name.partition("@")[0]
    path, slash, last = name.rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}"


def _is_repo_digest(name: str) -> bool:
    repository, _, digest = name.partition("@")
    return _DIGEST.fullmatch(digest) is not None and is_name(f"{repository}:tag")
