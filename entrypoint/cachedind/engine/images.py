"""Images as a store has them, and the digests by which their layers are found. Pure."""

from __future__ import annotations

import functools

from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Record(NamedTuple):
    """An image that was loaded: enough to see whether a store still has it.

    `top_chain` is the chain ID of its last layer; with it all layers are there. Empty for an image without layers.
    """

    names: tuple[str, ...]
    config_digest: str
    top_chain: str


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain ID of each layer on all below it (OCI image specification, config.md, "Layer ChainID")."""
    return list(_chain_ids(tuple(diff_ids)))


@functools.lru_cache(maxsize=4096)
def _chain_ids(diff_ids: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for diff_id in diff_ids:
        found.append(chain_id(diff_id, found[-1] if found else ""))
    return found


def chain_id(diff_id: str, below: str) -> str:
    """The chain ID of a layer on top of the one with the chain ID `below` (empty: the lowest). All begin with
    sha256:."""
    import hashlib  # 5 ms, with an OpenSSL of its own

    return f"sha256:{hashlib.sha256(f'{below} {diff_id}'.encode()).hexdigest()}" if below else diff_id
