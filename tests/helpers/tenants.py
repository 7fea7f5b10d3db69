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
from cachedind.pool import pool, slot_lease, slots
from cachedind.pool.pool import Pool
from cachedind.pool.slot_lease import Order, Tenancy
from cachedind.settings import config

ENGINE = EngineVersion(28, 5, 2)
ARCH = os.uname().machine
_PLAN = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")


def settings(path: Path, **environ: str) -> config.Config:
    names = {f"CACHEDIND_{name}": value for name, value in environ.items()}
    return config.load({"CACHEDIND_POOL": str(path), **names})


def open_pool(path: Path, kill_at: str = "", **environ: str) -> Pool:
    """The pool at `path`; remarks about it are dropped. Close it."""
    return pool.open_pool(str(path), settings(path, **environ), Trace(kill_at))[0]


def order(
    key: str = "k",
    fallback_keys: tuple[str, ...] = (),
    *,
    read_only: bool = False,
    engine: EngineVersion = ENGINE,
    store: ImageStore | None = None,
) -> Order:
    wish = slots.Wish(engine, ARCH, store)
    holder = Holder("c0ffee", f"pid-{os.getpid()}", time.time())
    return Order(key, fallback_keys, read_only, wish, procfs.read_boot_id(), holder)


def take(home: Pool, wanted: Order) -> Tenancy:
    return slot_lease.take(home, wanted, Log(level=Level.ERROR))


def begin(tenancy: Tenancy, engine: EngineVersion = ENGINE) -> None:
    """What boot notes down before the daemon touches anything."""
    directory_fd = tenancy.slot.directory_fd
    before = contents.read_data_root_state(directory_fd, slots.STATE_NAME)
    now = contents.next_state(before, _PLAN, engine=engine, fstype="?", boot_id=procfs.read_boot_id(), now=time.time())
    more: dict[str, object] = {"arch": ARCH, "begun": tenancy.sequence}
    contents.write_data_root_state(directory_fd, slots.STATE_NAME, now, more)


def come_up(tenancy: Tenancy) -> None:
    """What the witness notes down."""
    slot = tenancy.slot
    witness.note_ready(Lease(slot.lock_fd, slot.directory_fd, "", None, 0.0, slots.STATE_NAME), 0.1)


def write(tenancy: Tenancy, name: str, text: str = "data") -> None:
    """Put a file into the slot's data, as a job would."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=tenancy.slot.data_fd)
    with os.fdopen(fd, "w") as file:
        file.write(text)


def names(tenancy: Tenancy) -> list[str]:
    return sorted(pool.names_in(tenancy.slot.data_fd))


def job(home: Pool, wanted: Order, name: str, engine: EngineVersion = ENGINE) -> str:
    """A whole start and job that leaves a file `name`; returns the slot's id."""
    tenancy = take(home, wanted)
    begin(tenancy, engine)
    write(tenancy, name)
    come_up(tenancy)
    tenancy.slot.close()
    return tenancy.slot.id


def golden(home: Pool, key: str = "k") -> dict[str, object]:
    """What golden.json says."""
    text = (Path(home.tree) / "keys" / key / "golden" / slots.GOLDEN_NAME).read_text()
    found: dict[str, object] = json.loads(text)
    return found
