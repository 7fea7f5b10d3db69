"""The links that stand in the places of layers: what they say, and which are refused. Pure."""

from __future__ import annotations

from cachedind.engine.immutable import LINK, SHARED_AT
from cachedind.pool import layers


class BadLinkError(ValueError):
    """A link in an owner's data that does not lead to a layer which the owner may have, or to one that is gone. Says
    where, and what it is."""


def target_of(path: str, layer_id: str) -> str:
    """What the link at `path` (below the data-root) has to say to lead to a layer."""
    return f"{'../' * path.count('/')}{SHARED_AT}/{layer_id}/{layers.CONTENT}"


def id_in(path: str, target: str) -> str | None:
    """The layer that the link at `path` leads to; None for a link that is none of ours."""
    match = LINK.fullmatch(target)
    return match[2] if match and len(match[1]) == 3 * path.count("/") else None


def check_link(path: str, target: str, allowed: frozenset[str]) -> str:
    """The layer that a link leads to. Raises BadLinkError."""
    layer_id = id_in(path, target)
    if layer_id is None:
        raise BadLinkError(f"{path} is a link to {target[:200]!r}, which is not a layer of the pool")
    if layer_id not in allowed:
        raise BadLinkError(f"{path} is a link to the layer {layer_id}, which this slot has not been given")
    return layer_id
