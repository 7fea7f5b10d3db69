"""What both image stores have in common: questions about an image that need several of its files, and reading these.

The last job was root here. No link is followed, nothing is waited for, no file is read beyond a limit, and what cannot
be read or understood counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from abc import ABC, abstractmethod

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import immutable
from cachedind.engine.image_names import is_name
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cachedind.engine.images import Record

DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_BYTES = 4 << 20
"""Of a file with JSON, or with a single word."""
_MAX_LAYERS = 128
"""Engines refuse more than 125 (moby, daemon/internal/layer/layer_store.go, maxLayerDepth)."""


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


class StoreFiles(ABC):
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

    def _image(self, target: str, names: Iterable[str], digests: Iterable[str]) -> StoredImage | None:
        """None without its configuration. Of `names` with tags and `digests`, what is not a valid name is left out."""
        config_digest = self.config_of(target)
        with contextlib.suppress(OSError, ValueError):
            if config_digest is not None:
                config = self._read_config(config_digest)
                repo_digests = tuple(filter(_is_repo_digest, digests))
                return StoredImage(tuple(filter(is_name, names)), target, config_digest, config, repo_digests)
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
        """The layer and all below it. What was found once below it is not looked for again."""


def _is_repo_digest(name: str) -> bool:
    repository, _, digest = name.partition("@")
    return DIGEST.fullmatch(digest) is not None and is_name(f"{repository}:tag")


# ---- checks: they raise OSError or ValueError ------------------------------------------------------------------------


def check_file(directory_fd: int, name: str) -> None:
    status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise ValueError(f"{name} is empty, or not a file")


def is_shared_layer(directory_fd: int, name: str) -> bool:
    """Whether that is a link to a layer of a pool, which was there when the slot was leased."""
    with contextlib.suppress(OSError):
        return immutable.LINK.fullmatch(os.readlink(name, dir_fd=directory_fd)) is not None
    return False


def check_directory(directory_fd: int, name: str) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
        raise ValueError(f"{name} is not a directory")


def check_depth(layers: int) -> None:
    if layers > _MAX_LAYERS:
        raise ValueError("more layers than any image has")


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(root_fd: int, path: str) -> bytes:
    """Raises OSError, or ValueError unless it is a regular file that is neither empty nor too large."""
    raw = beneath.read(root_fd, path, _MAX_BYTES)
    if not raw:
        raise ValueError(f"{path} is empty")
    return raw


def read_verified(root_fd: int, directory: str, digest: str) -> bytes:
    """The bytes with this digest. A crash, or a job, may have left other bytes in that file: then ValueError."""
    raw = read(root_fd, f"{directory}/{digits(digest)}")
    if f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
        raise ValueError(f"other bytes than {digest}")
    return raw


def digits(digest: str) -> str:
    """The hexadecimal digits of a digest, which are safe in a path. Raises ValueError for all that is not a digest."""
    match = DIGEST.fullmatch(digest)
    if match is None:
        raise ValueError(f"not a digest: {digest[:80]!r}")
    return match[1]


def mapping(value: object) -> Mapping[str, object]:
    """A JSON object, or an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}
