"""The fresh view of images: their names and records go between two jobs, their layers stay.

A job is to see what an empty daemon would show, and its seeds. What an earlier one has pulled or built is out of its
sight and out of reach of its prunes, and a pull or a build that comes to the same layers finds them. How, depends on
the store: graph_view.py, containerd_view.py. Needs the lease, and no daemon on the data.

    <data-root>/.cachedind/unused.json    by ID (graph drivers: of the configuration; containerd: of the manifest or
                                          index) the names that an image had when it went, and when a job had it last
"""

from __future__ import annotations

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine.store_files import DIGEST
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cachedind.engine.images import Record

NAME = "unused.json"
MAX_IMAGES = 500
"""Records of more take a start too long to look at, and to copy."""
KEPT_IMAGES = 400
"""How many stay when there were more: it takes an engine to remove them, and not each start shall run one."""
_DIRECTORY = ".cachedind"
_MAX_BYTES = 1 << 20
_MAX_NAMES = 3
"""Of each image, for messages."""


class Unused(NamedTuple):
    """What is known of an image that no job sees: when one had it last, in seconds since the epoch, and some of the
    names that it had."""

    used_at: float
    names: tuple[str, ...]


class View(NamedTuple):
    """What a job is to see: by canonical name the configurations of seeds' images, and IDs of the images of containers
    that are kept."""

    names: Mapping[str, str]
    ids: frozenset[str] = frozenset()


def view_of(records: Iterable[Record], ids: Iterable[str] = ()) -> View:
    """Of the images that seeds have brought, and of kept containers. Pure."""
    return View({name: record.config_digest for record in records for name in record.names}, frozenset(ids))


def read_unused(root_fd: int) -> dict[str, Unused]:
    """What is known of images that no job sees, by ID. A job may have written the file: then it is about that job's own
    images. Raises nothing."""
    try:
        images = state.parse_state(beneath.read(root_fd, f"{_DIRECTORY}/{NAME}", _MAX_BYTES)).get("images")
    except (ValueError, OSError):
        return {}
    found = {}
    for image_id, value in images.items() if isinstance(images, dict) else ():
        match value:
            case {"used_at": int() | float() as used_at, "names": list(names)} if DIGEST.fullmatch(image_id):
                found[image_id] = Unused(float(used_at), tuple(str(name) for name in names[:_MAX_NAMES]))
    return found


def add_unused(root_fd: int, images: Mapping[str, Unused], *, keep: frozenset[str]) -> None:
    """Note down images that go out of sight; of those before them `keep` stay. Raises OSError."""
    before = {image_id: known for image_id, known in read_unused(root_fd).items() if image_id in keep}
    values: dict[str, object] = {
        image_id: {"used_at": round(known.used_at, 3), "names": list(known.names[:_MAX_NAMES])}
        for image_id, known in {**before, **images}.items()
    }
    with beneath.made_directory(root_fd, _DIRECTORY) as directory_fd:
        state.write_state(directory_fd, NAME, {"images": values}, None, durable=False)


def find_expired(uses: Mapping[str, float], age_s: float | None, now: float) -> frozenset[str]:
    """Which images are to go: those that nobody had for `age_s` seconds (None: none), once one of them is older by a
    tenth than that, and of more than MAX_IMAGES all but the KEPT_IMAGES that were used last. Pure.

    `uses` are the last uses of all that no job sees, in seconds since the epoch; 0: not known.
    """
    found: set[str] = set()
    if age_s is not None and any(0 < at < now - 1.1 * age_s for at in uses.values()):
        found.update(image_id for image_id, at in uses.items() if 0 < at < now - age_s)
    if len(uses) > MAX_IMAGES:
        found.update(sorted(uses, key=lambda image_id: (uses[image_id], image_id))[:-KEPT_IMAGES])
    return frozenset(found)
