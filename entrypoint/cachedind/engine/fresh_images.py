"""The fresh view of images: their names and records go between two jobs, their layers stay.

A job is to see what an empty daemon would show, and its seeds. What an earlier one has pulled or built is out of its
sight and out of reach of its prunes, and a pull or a build that comes to the same layers finds them. How, depends on
the store: graph_view.py, containerd_view.py. Needs the lease, and no daemon on the data.

    <data-root>/.cachedind/unused.json    by ID (graph drivers: of the configuration; containerd: of the manifest or
                                          index) the names that an image had when it went
    <data-root>/.cachedind/image-uses.json  and when a job had it last (image_uses.py)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.engine.store_files import DIGEST
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cachedind.engine.images import Record

NAME = "unused.json"
_DIRECTORY = ".cachedind"
_MAX_BYTES = 1 << 20
_MAX_IMAGES = 2000
_MAX_NAMES = 3
"""Of each image, for messages."""


class View(NamedTuple):
    """What a job is to see: by canonical name the configurations of seeds' images, and IDs of the images of containers
    that are kept."""

    names: Mapping[str, str]
    ids: frozenset[str] = frozenset()


def view_of(records: Iterable[Record], ids: Iterable[str] = ()) -> View:
    """Of the images that seeds have brought, and of kept containers. Pure."""
    return View({name: record.config_digest for record in records for name in record.names}, frozenset(ids))


def read_unused(root_fd: int) -> dict[str, tuple[str, ...]]:
    """The names of the images that no job sees, by ID. A job may have written the file: then it is about that job's own
    images. Raises nothing."""
    try:
        images = state.parse_state(beneath.read(root_fd, f"{_DIRECTORY}/{NAME}", _MAX_BYTES)).get("images")
    except (ValueError, OSError):
        return {}
    if not isinstance(images, dict):
        return {}
    return {
        image_id: tuple(str(name) for name in names[:_MAX_NAMES])
        for image_id, names in images.items()
        if DIGEST.fullmatch(image_id) and isinstance(names, list)
    }


def add_unused(root_fd: int, images: Mapping[str, Iterable[str]], *, keep: frozenset[str]) -> None:
    """Note down images that went out of sight; of those before them `keep` stay. Raises OSError."""
    before = {image_id: names for image_id, names in read_unused(root_fd).items() if image_id in keep}
    newest = list({**before, **images}.items())[-_MAX_IMAGES:]
    values: dict[str, object] = {image_id: list(names)[:_MAX_NAMES] for image_id, names in newest}
    with beneath.made_directory(root_fd, _DIRECTORY) as directory_fd:
        state.write_state(directory_fd, NAME, {"images": values}, None, durable=False)


def find_expired(unused: Iterable[str], uses: Mapping[str, float], before: float) -> frozenset[str]:
    """Which unused images nobody had since `before`, in seconds since the epoch. Pure. Of which no use is known at all
    is not old."""
    return frozenset(image_id for image_id in unused if 0 < uses.get(image_id, 0.0) < before)
