"""Starts in a pool without a daemon: the lease, the clone and the note that a start writes, and then whatever a test
does to the data."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from cachedind.base.log import Level, Log
from cachedind.base.model import EngineVersion, Holder, ImageStore, StoragePlan
from cachedind.base.trace import Trace
from cachedind.dataroot import contents, witness
from cachedind.dataroot.lease import Lease
from cachedind.host import procfs
from cachedind.pool import choice, directory, layer_links, layer_list, slot_lease, slot_state
from cachedind.pool.directory import Pool
from cachedind.pool.slot_request import SlotRequest, TakenSlot
from cachedind.settings import config

ENGINE = EngineVersion(28, 5, 2)
ARCH = os.uname().machine
KINDS = ("btrfs", "xfs", "ext4")
"""Filesystems with reflinks and without."""
Opener = Callable[..., Pool]
"""What tests/system/pool has as its fixture `open_on`."""


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
    requirements = choice.Requirements(engine, ARCH, store)
    holder = Holder("c0ffee", f"pid-{os.getpid()}", time.time())
    return SlotRequest(key, fallback_keys, read_only, requirements, procfs.read_boot_id(), holder)


def take(pool: Pool, wanted: SlotRequest) -> TakenSlot:
    log = Log(level=Level.ERROR)
    return slot_lease.promote_due(slot_lease.take(pool, wanted, log), {}, log)


def begin(taken: TakenSlot, engine: EngineVersion = ENGINE, driver: str = "overlay2") -> None:
    """What boot notes down before the daemon touches anything."""
    directory_fd = taken.slot.directory_fd
    before = contents.read_data_root_state(directory_fd, slot_state.STATE_NAME)
    plan = StoragePlan(ImageStore.GRAPHDRIVER, driver, "")
    now = contents.next_state(before, plan, engine=engine, fstype="?", boot_id=procfs.read_boot_id(), now=time.time())
    more: dict[str, object] = {"arch": ARCH, "begun": taken.sequence, "before": taken.before}
    contents.write_data_root_state(directory_fd, slot_state.STATE_NAME, now, more)


def come_up(taken: TakenSlot) -> None:
    """What the witness notes down."""
    slot = taken.slot
    witness.note_ready(Lease(slot.lock_fd, slot.directory_fd, "", None, 0.0, slot_state.STATE_NAME), 0.1)


def write(taken: TakenSlot, name: str, text: str = "data") -> None:
    """Put a file into the slot's data, as a job would."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=taken.slot.data_fd)
    with os.fdopen(fd, "w") as file:
        file.write(text)


def build(taken: TakenSlot, *names: str, size: int = 0) -> None:
    """Make layers in the slot's data, as an engine does: a directory each, with a file that has the layer's name (and
    one of `size` bytes), and a record."""
    data = Path(f"/proc/self/fd/{taken.slot.data_fd}")
    for name in names:
        record = data / "image/overlay2/layerdb/sha256" / hashlib.sha256(name.encode()).hexdigest()
        record.mkdir(parents=True)
        (data / "overlay2" / name / "diff").mkdir(parents=True)
        (data / "overlay2" / name / "diff" / name).write_text(name)
        if size:
            (data / "overlay2" / name / "diff" / "large").write_bytes(os.urandom(size))
        (data / "overlay2" / name / "link").write_text(name)
        (record / "new").write_text(name)
        (record / "new").rename(record / "cache-id")


def layers_of(taken: TakenSlot) -> list[str]:
    """The names of all layers of a slot, each found where its daemon would find it."""
    data = Path(f"/proc/self/fd/{taken.slot.data_fd}")
    # One without its record was killed before it was whole.
    names = sorted(path.read_text() for path in data.glob("image/overlay2/layerdb/sha256/*/cache-id"))
    listed = layer_list.read_list(taken.slot.directory_fd)
    for name in names:
        path = f"overlay2/{name}/diff"
        real = data / path
        if real.is_symlink():
            layer_id = layer_links.check_link(path, os.readlink(real), listed)
            real = Path(taken.pool.path) / "layers" / layer_id / "content"
        assert (real / name).read_text() == name
    return names


def names(taken: TakenSlot) -> list[str]:
    return sorted(set(directory.names_in(taken.slot.data_fd)) - {".cachedind"})


def job(pool: Pool, wanted: SlotRequest, name: str, engine: EngineVersion = ENGINE, *, driver: str = "overlay2") -> str:
    """A whole start and job that leaves a file `name`; returns the slot's id."""
    taken = take(pool, wanted)
    begin(taken, engine, driver)
    write(taken, name)
    come_up(taken)
    taken.close()
    return taken.slot.id


def golden(pool: Pool, key: str = "k") -> dict[str, object]:
    """What golden.json says."""
    text = (Path(pool.path) / "keys" / key / "scopes/%/golden" / slot_state.GOLDEN_NAME).read_text()
    found: dict[str, object] = json.loads(text)
    return found
