"""The layer store: directories with the content of a layer, there once for a whole pool (<pool>/layers).

    layers/<id>/                 id: 128 random bits in hexadecimal, the same layer on every machine
      layer.json                 {made_at, bytes, inodes}; sizes once somebody has measured it
      content/                   the layer: never written again

In the data of a slot or a golden (an *owner*), what an engine takes for a layer's directory is a relative link to
<data-root>/.cachedind/layers/<id>/content, where the store is bound read-only while a daemon runs. Each owner has a
list of the layers that it may link to (`layers.list`, beside its data, out of a job's reach). A link to anything else
was planted, and is never followed.

How layers get there: sharing.py; lists: layer_list.py; links: layer_links.py. A layer that no owner lists goes by
`sweep`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.host import trees
from cachedind.pool import directory
from cachedind.pool.limits import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


RECORD = "layer.json"
CONTENT = "content"

ID = re.compile(r"[0-9a-f]{32}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def new_id() -> str:
    return os.urandom(16).hex()


class Owner(NamedTuple):
    """A slot or a golden: its directory, where its list is, and its data. Both are open; the lease is held."""

    directory_fd: int
    data_fd: int


@contextlib.contextmanager
def opened(store_fd: int, layer_id: str) -> Iterator[int]:
    fd = os.open(layer_id, _DIRECTORY, dir_fd=store_fd)
    try:
        yield fd
    finally:
        os.close(fd)


# ---- what is there ---------------------------------------------------------------------------------------------------


def is_there(store_fd: int, layer_id: str) -> bool:
    """Whether the store has a layer, with its content."""
    try:
        # Each by itself: the last part alone is not followed.
        return all(
            stat.S_ISDIR(os.stat(path, dir_fd=store_fd, follow_symlinks=False).st_mode)
            for path in (layer_id, f"{layer_id}/{CONTENT}")
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


def names(store_fd: int) -> list[str]:
    """The ids of all layers. Raises OSError."""
    return [name for name in directory.names_in(store_fd) if ID.fullmatch(name)]


def measure(store_fd: int, layer_id: str) -> Size:
    """How large a layer is; measured and noted down by the first who asks. Raises OSError, ValueError."""
    with opened(store_fd, layer_id) as fd:
        raw = _read_record(fd)
        counted, inodes = raw.get("bytes"), raw.get("inodes")
        if isinstance(counted, int) and isinstance(inodes, int):
            return Size(counted, inodes)
        content_fd = os.open(CONTENT, _DIRECTORY, dir_fd=fd)
        try:
            found = trees.measure(content_fd)
        finally:
            os.close(content_fd)
        size = Size(found.bytes, found.files + found.directories + 1)
        with contextlib.suppress(OSError):  # a read-only mount, or no room
            state.write_state(fd, RECORD, size._asdict(), raw, durable=False)
        return size


def _read_record(layer_fd: int) -> dict[str, object]:
    """Nothing where a crash of the host has cut it short: it is written anew then."""
    with contextlib.suppress(ValueError):
        return state.read_state(layer_fd, RECORD) or {}
    return {}


def plan_sweep(born: Mapping[str, float], listed: frozenset[str], started: float, grace_s: float) -> list[str]:
    """Which layers go: those that no owner lists and that were there well before the lists were read. Pure.

    `born` are the times at which layers were made, by the same clock as `started`. What was made after that may belong
    to an owner that was read before it was shared.
    """
    return sorted(layer_id for layer_id, at in born.items() if layer_id not in listed and at < started - grace_s)


def sweep(
    store_fd: int, listed: Callable[[], frozenset[str]], throw_away: Callable[[str], None], grace_s: float
) -> int:
    """Throw away what no owner lists; returns how many. `listed` reads all lists, in the order in which owners move
    (stage, keys, aside, trash), while nothing is deleted from trash. Raises OSError, BadListError."""
    started = time.time()
    born = {}
    for layer_id in names(store_fd):
        with contextlib.suppress(FileNotFoundError):
            # Nothing changes that of the content once it is there.
            name = f"{layer_id}/{CONTENT}" if is_there(store_fd, layer_id) else layer_id
            born[layer_id] = os.stat(name, dir_fd=store_fd, follow_symlinks=False).st_ctime
    going = plan_sweep(born, listed(), started, grace_s)
    for layer_id in going:
        throw_away(layer_id)
    return len(going)
