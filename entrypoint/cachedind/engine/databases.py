"""The bolt files that an engine opens when it starts, and what is lost without each. Their content is not judged: any
release may change it."""

from __future__ import annotations

from cachedind.base.model import ImageStore, Loss
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import paths

if TYPE_CHECKING:
    from cachedind.base.model import StoragePlan


def known(storage: StoragePlan) -> dict[str, Loss]:
    """Every database that an engine with this store opens, by its path in the data-root."""
    found = {
        "buildkit/cache.db": Loss.CACHE,
        **dict.fromkeys((f"buildkit/{name}" for name in paths.HISTORY), Loss.RECORDS),
        "volumes/metadata.db": Loss.RECORDS,
        "network/files/local-kv.db": Loss.RECORDS,
        "content/metadata.db": Loss.NOTHING,
    }
    if storage.store is ImageStore.CONTAINERD:
        return found | {
            f"buildkit/containerd-{storage.driver}/metadata_v2.db": Loss.CACHE,
            paths.META: Loss.IMAGES,
            paths.snapshots_database(storage.driver): Loss.IMAGES,
        }
    # Graph drivers keep neither images nor build cache in containerd.
    return found | {
        "buildkit/metadata_v2.db": Loss.CACHE,
        "buildkit/snapshots.db": Loss.CACHE,
        "buildkit/containerdmeta.db": Loss.CACHE,
        paths.META: Loss.NOTHING,
    }
