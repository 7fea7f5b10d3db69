"""How much of an owner's data a copy has to copy file by file, and which cache mounts it leaves empty for that.

What is in a directory that is no shared layer (a cache mount, a build context, a checkout) is copied with each
promotion and each clone, on a start's path: some 70 µs a file, and its bytes where the filesystem has no reflinks.
Above a limit the largest cache mounts are left empty in the copy. Only these: a build that finds one empty fills it
again, and anything else that was missing would be a build's mistake. Who owns them keeps them.

A copy of such a copy is within the limit as well, so that the first one says all there is to say.
"""

from __future__ import annotations

import contextlib
import os
import sys

from cachedind.base.model import Degradation
from cachedind.base.sizes import format_bytes
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import build_records, immutable
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cachedind.base.log import Log
    from cachedind.base.model import EngineVersion, StoragePlan

MAX_FILES = 50_000
"""Files and directories that a copy may copy one by one: some seconds on a disk that is not busy."""
MAX_BYTES = 2 << 30
"""Bytes that it may copy where there are no reflinks."""

_MAX_DEPTH = 200
"""Levels of directories that are counted. Each takes a descriptor; no tool's cache is that deep."""
_MAX_SHOWN = 3
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Amount(NamedTuple):
    """Files (directories, too) and bytes on the disk. With more than MAX_FILES files it was not counted to its end."""

    files: int
    bytes: int

    def is_above(self, limit: Amount) -> bool:
        return self.files > limit.files or self.bytes > limit.bytes


class CacheMount(NamedTuple):
    """One that a copy leaves empty, or might: its directory's name, where builds have it, and how large it is."""

    name: str
    place: str
    amount: Amount

    def __str__(self) -> str:
        files, size = self.amount
        counted = f"{files} files, {format_bytes(size)}" if files <= MAX_FILES else f"more than {MAX_FILES} files"
        return f"{self.place} ({counted})"


class LeftOut(NamedTuple):
    """The cache mounts that a copy has left empty."""

    mounts: tuple[CacheMount, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(mount.name for mount in self.mounts)

    def degradation(self) -> Degradation:
        count = len(self.mounts)
        shown = ", ".join(map(str, self.mounts[:_MAX_SHOWN])) + ", …" * (count > _MAX_SHOWN)
        one = count == 1
        return Degradation(
            f"the cache mount{'' if one else 's'} {shown} {'is' if one else 'are'} not copied for other instances",
            f"copying takes too long above {MAX_FILES} files, or {format_bytes(MAX_BYTES)} without reflinks, in all",
            f"instances that begin with a clone find {'that cache mount' if one else 'these cache mounts'} empty, and "
            "so do all once the newest state is one of theirs",
            "docker buildx prune --filter type=exec.cachemount removes them here; smaller ones are copied",
        )

    def tell(self, log: Log) -> None:
        """One line, where there is anything to tell. Raises StrictError with CACHEDIND_STRICT."""
        if self.mounts:
            log.degraded(self.degradation())

    def remark(self) -> str:
        """What to add to a sentence about the copy."""
        return f"; {self.degradation()}" if self.mounts else ""


NOTHING = LeftOut()


def plan(mounts: Iterable[CacheMount], others: Amount, limit: Amount) -> LeftOut:
    """Which cache mounts stay empty: the largest, of what there is too much of, until the rest is within the limit.

    Pure. `others` is what is copied in any case. However much that is, half of the limit is the mounts': it would take
    as long without them.
    """
    room = Amount(max(limit.files - others.files, limit.files // 2), max(limit.bytes - others.bytes, limit.bytes // 2))
    kept = sorted(mounts)
    going = []
    while (total := _total(mount.amount for mount in kept)).is_above(room):
        weights = [_weight(mount.amount, total, room) for mount in kept]
        largest = kept.pop(weights.index(max(weights)))
        going.append(largest)
    return LeftOut(tuple(going))


def _weight(amount: Amount, total: Amount, room: Amount) -> float:
    """How much something takes of what there is too little of."""
    by_files = amount.files / room.files if total.files > room.files else 0.0
    by_bytes = amount.bytes / room.bytes if total.bytes > room.bytes else 0.0
    return by_files + by_bytes


def _total(amounts: Iterable[Amount]) -> Amount:
    found = list(amounts)
    return Amount(sum(amount.files for amount in found), sum(amount.bytes for amount in found))


def choose(
    root_fd: int,
    storage: StoragePlan,
    engine: EngineVersion | None,
    results: frozenset[str],
    has_reflinks: Callable[[], bool],
) -> LeftOut:
    """What a copy of an engine's data leaves empty. `results` are the layers whose files are linked; `has_reflinks` is
    asked where there are many bytes.

    Costs a look into BuildKit's records where there is no cache mount, and else some microseconds a file. Needs that
    nobody changes the data. Raises OSError.
    """
    found = build_records.find_cache_mounts(root_fd, storage, engine)
    parent, leaf = immutable.shared_directories(storage)
    if not found or not parent:
        return NOTHING
    try:
        parent_fd = beneath.open_path(root_fd, parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # nothing there, or a link that a job has planted
        return NOTHING
    try:
        mounts = [CacheMount(name, place, _count(parent_fd, name)) for name, place in found.items()]
        total = _total(mount.amount for mount in mounts)
        limit = Amount(MAX_FILES, MAX_BYTES)
        if total.bytes > limit.bytes // 2 and has_reflinks():
            limit = Amount(MAX_FILES, sys.maxsize)
        if not total.is_above(Amount(limit.files // 2, limit.bytes // 2)):
            return NOTHING
        others = (
            name
            for name in sorted(os.listdir(parent_fd))
            if name not in found and name not in results and not _is_shared(parent_fd, immutable.place(".", name, leaf))
        )
        return plan(mounts, _total(_count(parent_fd, name) for name in others), limit)
    finally:
        os.close(parent_fd)


def _is_shared(parent_fd: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        os.readlink(path, dir_fd=parent_fd)
        return True
    return False


def _count(parent_fd: int, name: str) -> Amount:
    """What is in a directory. No link is followed; what cannot be opened as a directory is nothing."""
    files = size = 0
    for blocks in _blocks(parent_fd, name, _MAX_DEPTH):
        files += 1
        size += blocks * 512
        if files > MAX_FILES:
            break
    return Amount(files, size)


def _blocks(parent_fd: int, name: str, depth: int) -> Iterator[int]:
    """The blocks of each file and directory in a directory, in units of 512 bytes."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    except OSError:
        return
    try:
        below = []
        with os.scandir(fd) as entries:
            for entry in entries:
                yield entry.stat(follow_symlinks=False).st_blocks
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
        if depth:
            for each in below:
                yield from _blocks(fd, each, depth - 1)
    finally:
        os.close(fd)
