"""What an image store holds, read from its files without a daemon, for both of Docker's stores."""

from __future__ import annotations

from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.base.model import StoragePlan
    from cachedind.engine.images import Record
    from cachedind.engine.store_files import StoredImage


class Store(Protocol):
    """An image store as it is on disk. Names are read once, so whoever changes them opens another. Raises nothing."""

    def has_chain(self, chain_id: str) -> bool:
        """Whether there is a finished layer with this chain ID, and its data. Looks at the disk each time, except for
        containerd's records, which are read once."""
        ...

    def has_blob(self, digest: str) -> bool:
        """Whether containerd's content has these bytes, packed or not. Looks at the disk each time."""
        ...

    def has_image(self, record: Record) -> bool:
        """Whether every name of it stands for exactly this image, and configuration and layers are there."""
        ...

    def keeps(self, record: Record) -> bool:
        """Whether nothing of it has to be loaded again: its names are there, and it is complete, unless a job has given
        all of them to other images."""
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
        from cachedind.engine.containerd_store import ContainerdStore

        return ContainerdStore(root_fd, storage.driver)
    from cachedind.engine.graph_store import GraphStore

    return GraphStore(root_fd, storage.driver)
