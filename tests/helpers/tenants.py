"""Starts in a pool without a daemon: the lease, the clone and the note that a start writes, and then whatever a test
does to the data."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from cachedind.base.log import Level, Log
from cachedind.base.model import EngineVersion, Holder, ImageStore, StoragePlan
from cachedind.base.trace import Trace
from cachedind.dataroot import contents, witness
from cachedind.dataroot.lease import Lease
from cachedind.host import procfs
from cachedind.pool import directory, slot_lease, slots
from cachedind.pool.directory import Pool
from cachedind.pool.slot_lease import SlotRequest, TakenSlot
from cachedind.settings import config

ENGINE = EngineVersion(28, 5, 2)
ARCH = os.uname().machine
_PLAN = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")


def settings(path: Path, **environ: str) -> config.Config:
    names = {f"CACHEDIND_{name}": value for name, value in environ.items()}
    return config.load({"CACHEDIND_POOL": str(path), **names})


def open_pool(path: Path, kill_at: str = "", **environ: str) -> Pool:
    """The pool at `path`; remarks about it are dropped. Close it."""
    return directory.open_pool(str(path), settings(path, **environ), Trace(kill_at))[0]


def slot_request(
    key: str = "k",
    fallback_keys: tuple[str, ...] = (),
    *,
    read_only: bool = False,
    engine: EngineVersion = ENGINE,
    store: ImageStore | None = None,
) -> SlotRequest:
    requirements = slots.Requirements(engine, ARCH, store)
    holder = Holder("c0ffee", f"pid-{os.getpid()}", time.time())
    return SlotRequest(key, fallback_keys, read_only, requirements, procfs.read_boot_id(), holder)


def take(pool: Pool, wanted: SlotRequest) -> TakenSlot:
    return slot_lease.take(pool, wanted, Log(level=Level.ERROR))


def begin(taken: TakenSlot, engine: EngineVersion = ENGINE) -> None:
    """What boot notes down before the daemon touches anything."""
    directory_fd = taken.slot.directory_fd
    before = contents.read_data_root_state(directory_fd, slots.STATE_NAME)
    now = contents.next_state(before, _PLAN, engine=engine, fstype="?", boot_id=procfs.read_boot_id(), now=time.time())
    more: dict[str, object] = {"arch": ARCH, "begun": taken.sequence}
    contents.write_data_root_state(directory_fd, slots.STATE_NAME, now, more)


def come_up(taken: TakenSlot) -> None:
    """What the witness notes down."""
    slot = taken.slot
    witness.note_ready(Lease(slot.lock_fd, slot.directory_fd, "", None, 0.0, slots.STATE_NAME), 0.1)


def write(taken: TakenSlot, name: str, text: str = "data") -> None:
    """Put a file into the slot's data, as a job would."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=taken.slot.data_fd)
    with os.fdopen(fd, "w") as file:
        file.write(text)


def names(taken: TakenSlot) -> list[str]:
    return sorted(directory.names_in(taken.slot.data_fd))


def job(pool: Pool, wanted: SlotRequest, name: str, engine: EngineVersion = ENGINE) -> str:
    """A whole start and job that leaves a file `name`; returns the slot's id."""
    taken = take(pool, wanted)
    begin(taken, engine)
    write(taken, name)
    come_up(taken)
    taken.slot.close()
    return taken.slot.id


def golden(pool: Pool, key: str = "k") -> dict[str, object]:
    """What golden.json says."""
    text = (Path(pool.tree) / "keys" / key / "golden" / slots.GOLDEN_NAME).read_text()
    found: dict[str, object] = json.loads(text)
    return found
