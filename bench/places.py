"""Where pools are measured: host filesystems, and the small project whose cache the instances share."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from helpers.builds import Project
from helpers.dind import DATA_ROOT

if TYPE_CHECKING:
    from helpers.engine import Engine, Volume


class Place(NamedTuple):
    """A pool's filesystem: what `Engine.volume` makes."""

    name: str
    fstype: str


PLACES = (Place("ext4", "ext4"), Place("xfs", "xfs"), Place("btrfs", "btrfs"))
VOLUME_MIB = 8192
FILES = 5000


def small_project() -> Project:
    """5,000 files and 64 MB: what a start finds, not what is measured."""
    files = f"i=0; while [ $i -lt {FILES} ]; do echo $i >$((i % 50))/$i; i=$((i + 1)); done"
    dockerfile = (
        "FROM base:latest\nCOPY nonce /nonce\nWORKDIR /files\n"
        f"RUN mkdir $(seq 0 49); {files}\nRUN head -c 64M /dev/urandom >/data\n"
    )
    return Project("small:latest", {"Dockerfile": dockerfile, "nonce": secrets.token_hex(8)}, (), 4)


def directories(engine: Engine, count: int) -> list[dict[str, dict[str, str]]]:
    """Data-roots without a pool, as `Dind.create` mounts them: on one new filesystem, of the kind that a pool has."""
    volume = engine.volume(PLACES[0].fstype, size_mib=VOLUME_MIB)
    keep_mounted(engine, [volume])
    path = (engine.client.volumes.get(volume.name).attrs or {})["Mountpoint"]
    return [{f"{path}/{number}": {"bind": DATA_ROOT, "mode": "rw"}} for number in range(count)]


def keep_mounted(engine: Engine, volumes: list[Volume]) -> None:
    """A host has its disks mounted all the time; the engine mounts a volume with its first container only."""
    container = engine.client.containers.create(
        engine.workbench_image,
        entrypoint=["sleep", "infinity"],
        name=engine.new_name("keeper"),
        labels=engine.labels,
        volumes={volume.name: {"bind": f"/volumes/{number}", "mode": "rw"} for number, volume in enumerate(volumes)},
    )
    engine.undo_later("the keeper of mounts", lambda: container.remove(force=True, v=True))
    container.start()
