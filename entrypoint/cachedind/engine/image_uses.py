"""When cleaning last saw a container of each image: pruning removes the least recently used first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachedind.base import state
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME = "image-uses.json"
"""In <data-root>/.cachedind, so that clones have it too."""
MAX_USES = 500
_MAX_BYTES = 1 << 20


def read(root_fd: int) -> dict[str, float]:
    """When a container of each image was seen last, by image id, as far as a data-root has that. A job may have written
    the file: it decides about that job's own images only."""
    try:
        uses = state.parse_state(beneath.read(root_fd, f".cachedind/{NAME}", _MAX_BYTES)).get("uses")
    except (ValueError, OSError):
        return {}
    if not isinstance(uses, dict):
        return {}
    return {name: float(at) for name, at in uses.items() if isinstance(at, int | float) and not isinstance(at, bool)}


def note(root_fd: int, images: Iterable[str], now: float) -> None:
    """Note down that containers of these images were seen at `now`, in seconds since the epoch. Raises OSError."""
    uses = {**read(root_fd), **dict.fromkeys(images, round(now, 3))}
    newest = sorted(uses.items(), key=lambda item: item[1], reverse=True)[:MAX_USES]
    with beneath.made_directory(root_fd, ".cachedind") as directory_fd:
        state.write_state(directory_fd, NAME, {"uses": dict(newest)}, None, durable=False)
