"""The values that the deciding functions take and return: facts, verdicts, plans. Nothing here acts."""

from __future__ import annotations

import functools
from enum import IntEnum, StrEnum

from cachedind.base.typed import NamedTuple


class ImageStore(StrEnum):
    """Where dockerd keeps images: its own graph drivers, or containerd with a snapshotter."""

    GRAPHDRIVER = "graphdriver"
    CONTAINERD = "containerd"


GRAPH_DRIVERS = ("overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs")
"""Storage drivers of the graphdriver store, as of engine 25 (moby, daemon/graphdriver/driver_linux.go)."""

SNAPSHOTTERS = ("overlayfs", "native", "btrfs", "zfs", "erofs", "blockfile", "devmapper")
"""Snapshotters that containerd brings along."""

COPYING_DRIVERS = frozenset({"vfs", "native"})
"""Drivers that copy every layer in full. Never chosen without CACHEDIND_ALLOW_VFS."""

DEFAULT_DATA_ROOT = "/var/lib/docker"


class EngineVersion(NamedTuple):
    """A Docker Engine's version, for example 28.5.2."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def release(self) -> tuple[int, int]:
        """What decides whether another engine may read the data: patch releases of one minor are interchangeable."""
        return (self.major, self.minor)


@functools.lru_cache(maxsize=64)
def parse_engine_version(text: str) -> EngineVersion:
    """Read "28.5.2", "26.1.5+dfsg1" or "29.0.0-rc.1".

    Raises ValueError when there are no numbers to read.
    """
    numbers = text.split("+")[0].split("-")[0].split(".")
    parts = [int(number) for number in numbers[:3]]
    while len(parts) < 3:
        parts.append(0)
    return EngineVersion(*parts)


class Mount(NamedTuple):
    """The mount that holds a path, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    mount_point: str
    root: str
    fstype: str
    source: str
    options: frozenset[str]
    super_options: frozenset[str]

    @property
    def read_only(self) -> bool:
        return "ro" in self.options or "ro" in self.super_options


class Verdict(NamedTuple):
    """What trying a storage driver showed. `privilege` tells that it failed for want of rights, not of a fit
    filesystem.
    """

    driver: str
    works: bool
    why: str
    privilege: bool = False


class Remap(NamedTuple):
    """What --userns-remap means here: its value as it was given, and the IDs that stand for root in containers."""

    setting: str
    uid: int
    gid: int

    @property
    def directory(self) -> str:
        """The engine's own directory in the data-root."""
        return f"{self.uid}.{self.gid}"


class Ended(NamedTuple):
    """What was seen of a daemon's end, `at` seconds since the epoch. `clean` tells that it had answered, ended with
    status 0, and that its filesystem was synced after that."""

    status: int
    clean: bool
    at: float = 0.0


class DataRootState(NamedTuple):
    """What .cachedind/state.json or slot.json remembers of the last start on a data-root.

    `ready_at` is when its daemon answered first, `ready_s` how long that took from the container's start; both are None
    until it does, and stay so when it never did. `seeding` counts the starts in a row that did not come to the end of
    putting seeds in, which says nothing about the data. `ended` is None where nobody has seen the daemon's end; `doubt`
    is why the data have to be proven, empty where they need not. `remap` names
    the directory of an engine with userns-remap. `ground` is that of the trial that found overlay to work (ground.py).
    """

    engine: EngineVersion
    store: ImageStore
    driver: str
    fstype: str
    boot_id: str
    started_at: float
    ready_at: float | None = None
    ready_s: float | None = None
    seeding: int = 0
    remap: str = ""
    ended: Ended | None = None
    doubt: str = ""
    ground: dict[str, object] | None = None


class ExistingData(NamedTuple):
    """What a data-root already holds.

    `database` is the schema and version of containerd's database, looked at only where nothing else tells who wrote the
    data; `pairs` are the (store, driver) combinations that left marks, `engine` who wrote it last where that is known,
    `recorded` what cachedind itself noted down. An empty data-root has no pairs.
    """

    pairs: tuple[tuple[ImageStore, str], ...]
    engine: EngineVersion | None
    recorded: tuple[ImageStore, str] | None
    database: tuple[int, int] | None = None


class Holder(NamedTuple):
    """Who holds a lease, for messages only: a lock is held by the kernel's word, never by what is written here."""

    container: str
    hostname: str
    since: float


class StoragePlan(NamedTuple):
    """The decision: which image store and driver, why, and what had to be passed over (one line each); and with which
    remapped users the engine runs, which has its own directory then. `beside_graph` tells that a graph driver's
    directory may be there, which engines that prefer the containerd store take for a reason not to.
    """

    store: ImageStore
    driver: str
    reason: str
    notes: tuple[str, ...] = ()
    degradations: tuple[Degradation, ...] = ()
    remap: Remap | None = None
    beside_graph: bool = True


class Degradation(NamedTuple):
    """Something that works less well than it could: what, why, what it costs, how to mend it."""

    what: str
    why: str
    cost: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}; {self.cost}; {self.mend}"


class Loss(IntEnum):
    """What goes with something in a data-root that is damaged, from little to all."""

    NOTHING = 0
    """The engine makes it anew out of what else there is."""
    RECORDS = 1
    """Build history, labels of volumes, networks, a container: what no build and no image needs."""
    NAMES = 2
    """Images lose their names."""
    LAYERS = 3
    """Some images, and nothing else."""
    CACHE = 4
    """The build cache."""
    IMAGES = 5
    """Images and build cache."""
