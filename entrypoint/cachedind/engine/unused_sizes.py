"""How much the images are that no job sees (fresh_images.py), for people. Looks without a daemon, at data that may be
in use."""

from __future__ import annotations

import contextlib

from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import paths
from cachedind.engine.containerd_store import ContainerdStore
from cachedind.engine.graph_view import UNUSED, GraphView

if TYPE_CHECKING:
    from cachedind.base.model import StoragePlan


class Unused(NamedTuple):
    """How many there are, and the bytes of those of their layers that no image has that a job sees. The build cache may
    have some of these, too."""

    images: int
    bytes: int


def measure(root_fd: int, storage: StoragePlan) -> Unused:
    """Raises nothing: what cannot be read is not counted."""
    if storage.store is ImageStore.CONTAINERD:
        store = ContainerdStore(root_fd, storage.driver)
        shown: set[str] = set()
        with contextlib.suppress(OSError, ValueError):
            shown = set(store.targets().values())
        hidden = store.held() - shown
        return _sum([store.sizes_of(target) for target in hidden], [store.sizes_of(target) for target in shown])
    view = GraphView(root_fd, storage.driver)
    configurations = paths.configurations(storage.driver)
    shown_ids = view.shown()
    hidden_sizes = [view.sizes_of(UNUSED, image_id) for image_id in view.unused()]
    return _sum(hidden_sizes, [view.sizes_of(configurations, image_id) for image_id in shown_ids])


def _sum(hidden: list[dict[str, int]], shown: list[dict[str, int]]) -> Unused:
    """Pure. An image of which no layer is there is none."""
    seen = {chain_id for sizes in shown for chain_id in sizes}
    layers = {chain_id: size for sizes in hidden for chain_id, size in sizes.items() if chain_id not in seen}
    return Unused(sum(1 for sizes in hidden if sizes), sum(layers.values()))
