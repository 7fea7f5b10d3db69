"""The image store of graph drivers, as it is on disk below image/<driver>/ (moby, reference/store.go, image/fs.go,
layer/filestore.go):

    repositories.json           {"Repositories": {"redis": {"redis:7": config digest, "redis@sha256:…": the same}}}
    imagedb/content/sha256/…    configurations; an engine takes none whose bytes have another digest
    layerdb/sha256/<chain ID>/  a layer, renamed into place when it is whole: `cache-id` names its directory with the
                                driver, `parent` is the chain ID below it
"""

from __future__ import annotations

import contextlib
import functools

from cachedind.base.state import parse_object
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import paths
from cachedind.engine.image_names import canonical
from cachedind.engine.store_files import (
    DIGEST,
    StoreFiles,
    check_depth,
    check_directory,
    check_file,
    digits,
    is_shared_layer,
    mapping,
    read,
    read_verified,
)
from cachedind.host import beneath
from cachedind.host.beneath import directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.engine.store_files import StoredImage


class GraphStore(StoreFiles):
    def __init__(self, root_fd: int, driver: str) -> None:
        super().__init__(root_fd, driver)
        self._configurations = paths.configurations(driver)
        self._whole: set[str] = set()

    @functools.cached_property
    def _references(self) -> dict[str, str]:
        """Configurations by canonical name, with tag or with digest."""
        found: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            raw = read(self._root_fd, paths.references(self._driver))
            for repository in mapping(parse_object(raw).get("Repositories")).values():
                for name, config in mapping(repository).items():
                    if isinstance(config, str) and DIGEST.fullmatch(config):
                        found[canonical(name)] = config
        return found

    def has_blob(self, digest: str) -> bool:
        return False

    def config_of(self, image_id: str) -> str | None:
        return image_id if DIGEST.fullmatch(image_id) else None

    def images(self) -> Iterator[StoredImage]:
        references: dict[str, list[str]] = {}
        for name, config in self._references.items():
            references.setdefault(config, []).append(name)
        for config in self._configs():
            references.setdefault(config, [])
        for config, found in references.items():
            image = self._image(config, found, found)
            if image is not None:
                yield image

    def _configs(self) -> list[str]:
        with contextlib.suppress(OSError):
            found = beneath.names(self._root_fd, self._configurations)
            return [digest for name in found if DIGEST.fullmatch(digest := f"sha256:{name}")]
        return []

    def _config_at(self, name: str) -> str:
        if name not in self._references:
            raise ValueError(f"no image is named {name!r}")
        return self._references[name]

    def _read_config(self, digest: str) -> bytes:
        return read_verified(self._root_fd, self._configurations, digest)

    def _check_chain(self, chain_id: str) -> None:
        with self._opened() as (records_fd, layers_fd):
            self._parent_of(chain_id, records_fd, layers_fd)

    def _check_layers(self, top_chain: str) -> None:
        passed: list[str] = []
        with self._opened() as (records_fd, layers_fd):
            parent = self._parent_of(top_chain, records_fd, layers_fd)
            while parent and parent not in self._whole:
                check_depth(len(passed))
                passed.append(parent)
                parent = self._parent_of(parent, records_fd, layers_fd)
        self._whole.update(passed)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, int]]:
        """Where the layers' records are, and where the driver has them. ZFS's datasets are not looked for."""
        records = paths.layer_records(self._driver)
        layers = "." if self._driver == "zfs" else paths.layers(self._driver)
        with directory(self._root_fd, records) as records_fd, directory(self._root_fd, layers) as layers_fd:
            yield records_fd, layers_fd

    def _parent_of(self, chain_id: str, records_fd: int, layers_fd: int) -> str:
        """The chain ID below a layer that is there with its data; empty below the lowest."""
        parent = ""
        with directory(records_fd, digits(chain_id)) as record_fd:
            cache_id = read(record_fd, "cache-id").decode().strip()
            with contextlib.suppress(FileNotFoundError):
                parent = read(record_fd, "parent").decode().strip()
        if not paths.CACHE_ID.fullmatch(cache_id):
            raise ValueError("its cache-id is not a name")
        if self._driver in paths.OVERLAYS:
            with directory(layers_fd, cache_id) as layer_fd:
                if not is_shared_layer(layer_fd, "diff"):
                    check_directory(layer_fd, "diff")
                if parent:
                    # moby, daemon/graphdriver/overlay2/overlay.go, Get: without it a layer is mounted on nothing.
                    check_file(layer_fd, "lower")
        elif self._driver != "zfs":
            check_directory(layers_fd, cache_id)
        return parent
