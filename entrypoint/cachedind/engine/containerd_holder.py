"""The blob whose labels hold the images of the containerd store that no job sees (containerd_view.py):

    containerd.io/gc.root                      the collector begins there
    containerd.io/gc.ref.content.<digits>      = the digest of a manifest or an index, whose own labels hold
                                               configuration, layers and snapshots

containerd's collector follows labels whatever a blob's content is (containerd, docs/garbage-collection.md;
core/metadata/gc.go), and no prune of an engine's removes content.
"""

from __future__ import annotations

import hashlib

from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine.store_files import DIGEST, digits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONTENT = b"What the labels of this name are images that no job sees at present. See docs/fresh-view.md of cachedind.\n"
DIGEST_OF_IT = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
_ROOT = "containerd.io/gc.root"
_HELD = "containerd.io/gc.ref.content."


def held_by(labels: Mapping[str, str]) -> frozenset[str]:
    """The manifests and indexes that such labels hold. Pure."""
    return frozenset(value for name, value in labels.items() if name.startswith(_HELD) and DIGEST.fullmatch(value))


def label_words(more: Iterable[str], fewer: Iterable[str]) -> list[str]:
    """Words for `ctr content label` that hold some, and let go of others. Pure."""
    holding = [f"{_HELD}{digits(target)}={target}" for target in sorted(more)]
    letting_go = [f"{_HELD}{digits(target)}=" for target in sorted(fewer)]
    return [f"{_ROOT}=cachedind", *holding, *letting_go] if holding or letting_go else []
