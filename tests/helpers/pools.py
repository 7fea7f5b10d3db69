"""Pools under test: on which host filesystem, with which engine, and what can be seen of them from an instance."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from helpers.builds import Project
from helpers.flavours import Flavour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

T = TypeVar("T")


class Disk(NamedTuple):
    """A host filesystem for a pool, and the engine that is tried on it."""

    fstype: str
    flavour: Flavour

    def volume(self, engine: Engine, size_mib: int = 4096) -> Volume:
        return engine.volume(self.fstype, size_mib=size_mib)

    def start(self, engine: Engine, pool: Volume, *, ready: bool = True, **options: Any) -> Dind:
        """An instance on the pool. `options` are those of `Dind.create`."""
        env = {**self.flavour.env, **options.pop("env", {})}
        dind = engine.dind(self.flavour.suite, pool=pool, env=env, **options)
        if ready:
            dind.wait_ready()
        return dind

    def __str__(self) -> str:
        return f"{self.fstype}-{self.flavour}"


DISKS = (
    Disk("ext4", Flavour("trixie", "graphdriver")),
    Disk("btrfs", Flavour("forky", "containerd")),
    Disk("xfs", Flavour("forky", "graphdriver")),
)
"""Filesystems with and without reflinks, and between them every engine and store."""


def big_project(nonce: str, megabytes: int = 256) -> Project:
    """One layer of incompressible data: a cache that is worth sharing."""
    dockerfile = f"FROM base:latest\nCOPY nonce /nonce\nRUN head -c {megabytes}M /dev/urandom >/data\n"
    return Project("big:latest", {"Dockerfile": dockerfile, "nonce": nonce}, (), 2)


def slot_of(dind: Dind) -> str:
    """The slot that an instance says it leased."""
    match = re.search(r"slot ([0-9a-f]{12})\b", dind.summary or "")
    assert match, f"no slot in the summary of {dind.describe()}"
    return match[1]


def used_bytes(dind: Dind) -> int:
    """What the filesystem of the slots has in use, everything written."""
    dind.sh("sync -f /var/lib/docker")
    blocks, free, size = map(int, dind.sh("stat -f -c '%b %f %S' /var/lib/docker").split())
    return (blocks - free) * size


def together(work: Callable[[Dind], T], dinds: Iterable[Dind]) -> list[T]:
    """The same for several instances side by side; results in their order."""
    dinds = list(dinds)
    with ThreadPoolExecutor(max_workers=len(dinds)) as threads:
        return list(threads.map(work, dinds))
