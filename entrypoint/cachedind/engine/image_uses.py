"""When a job had each image last: what nobody has used for long is removed first, or at all.

In a data-root, <data-root>/.cachedind/image-uses.json, so that clones have it too; and for all of a key beside its
slots, as a state with nothing new in it replaces no other, and still has used what is in it.
"""

from __future__ import annotations

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NAME = "image-uses.json"
MAX_USES = 500


def read(root_fd: int) -> dict[str, float]:
    """When each image of a data-root was used last, in seconds since the epoch, by image ID. A job may have written the
    file: it decides about that job's own images only."""
    try:
        with beneath.directory(root_fd, ".cachedind") as directory_fd:
            return read_in(directory_fd)
    except OSError:
        return {}


def note(root_fd: int, images: Iterable[str], now: float) -> None:
    """Note down that these images were used at `now`, in seconds since the epoch. Raises OSError."""
    with beneath.made_directory(root_fd, ".cachedind") as directory_fd:
        note_in(directory_fd, images, now)


def read_in(directory_fd: int) -> dict[str, float]:
    """The same for the file in this very directory."""
    try:
        uses = (state.read_state(directory_fd, NAME) or {}).get("uses")
    except (ValueError, OSError):
        return {}
    if not isinstance(uses, dict):
        return {}
    return {name: float(at) for name, at in uses.items() if isinstance(at, int | float) and not isinstance(at, bool)}


def note_in(directory_fd: int, images: Iterable[str], now: float) -> None:
    """The same for the file in this very directory. A later use that is noted already stays. Raises OSError."""
    uses = read_in(directory_fd)
    merged = {**uses, **{name: max(round(now, 3), uses.get(name, 0.0)) for name in images}}
    newest = sorted(merged.items(), key=lambda item: item[1], reverse=True)[:MAX_USES]
    state.write_state(directory_fd, NAME, {"uses": dict(newest)}, None, durable=False)


def latest(*found: Mapping[str, float]) -> dict[str, float]:
    """The last use of each image that any of them knows of. Pure."""
    merged: dict[str, float] = {}
    for uses in found:
        for name, at in uses.items():
            merged[name] = max(at, merged.get(name, 0.0))
    return merged
