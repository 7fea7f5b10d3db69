"""What a data-root already holds: the marks that engines leave, and cachedind's own state file.

dockerd must never be left to choose: no engine takes vfs for a prior driver, 29 prefers any stray graph driver
directory to containerd data, 24 to 28 never look (moby, daemon/image_store_choice.go, daemon/graphdriver/driver.go).
Only marks of content count: an engine that merely started leaves empty directories, and nothing is lost by ignoring
them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re

from cachedind.base.model import (
    GRAPH_DRIVERS,
    DataRootState,
    Ended,
    EngineVersion,
    ExistingData,
    ImageStore,
    parse_engine_version,
)
from cachedind.base.state import read_state, write_state
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import paths
from cachedind.engine.paths import SNAPSHOTTER_PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachedind.base.model import Holder, StoragePlan

_MAX_REASON = 500
_NOT_LAYERS = frozenset({"l", "backingFsBlockDev", "lost+found"})


def read_existing(data_root: str, state: DataRootState | None) -> ExistingData:
    """Look at the marks. Reads a handful of directories, whatever the size of the data-root."""
    pairs = [(ImageStore.GRAPHDRIVER, driver) for driver in GRAPH_DRIVERS if _has_graph_data(data_root, driver)]
    pairs += [(ImageStore.CONTAINERD, name) for name in _snapshotters_with_data(data_root)]
    recorded = None if state is None else (state.store, state.driver)
    database = None
    if pairs and state is None:
        from cachedind.engine import containerd_schema

        database = containerd_schema.read(data_root)
    return ExistingData(tuple(pairs), state.engine if state is not None else None, recorded, database)


def has_graph_directory(data_root: str) -> bool:
    """Whether a graph driver's directory is there and not empty, whatever is in it. vfs does not count (moby,
    daemon/graphdriver/driver.go, scanPriorDrivers)."""
    return any(_names(f"{data_root}/{driver}") for driver in GRAPH_DRIVERS if driver != "vfs")


def _has_graph_data(data_root: str, driver: str) -> bool:
    records = (paths.configurations(driver), paths.layer_records(driver))
    if any(_has_entries(f"{data_root}/{path}") for path in records):
        return True
    if not os.path.isdir(f"{data_root}/{paths.images(driver)}"):
        # Without image/<driver> dockerd never ran with this driver: what is in <driver> is not its data.
        return False
    # Build cache without any image: layers that only BuildKit's snapshots.db refers to.
    return _has_entries(f"{data_root}/{paths.layers(driver)}")


def _snapshotters_with_data(data_root: str) -> list[str]:
    # containerd makes the directories of all its snapshotters, used or not; dockerd makes buildkit/containerd-NAME
    # for the one that it uses. Only both together show that a snapshotter was used.
    names = _names(f"{data_root}/{paths.CONTAINERD}")
    snapshotters = [name.removeprefix(SNAPSHOTTER_PREFIX) for name in names if name.startswith(SNAPSHOTTER_PREFIX)]
    return sorted(
        name
        for name in snapshotters
        if os.path.isdir(f"{data_root}/buildkit/containerd-{name}")
        and (_has_entries(f"{data_root}/{paths.snapshots(name)}") or _has_entries(f"{data_root}/{paths.BLOBS}"))
    )


def _has_entries(path: str) -> bool:
    return any(name not in _NOT_LAYERS for name in _names(path))


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return []


def read_data_root_state(directory_fd: int, name: str) -> DataRootState | None:
    """What the last start noted down, or None on a data-root that no daemon of ours has run on.

    Raises ValueError when the file is there and cannot be understood.
    """
    raw = read_state(directory_fd, name)
    never_ran = raw is not None and raw.keys().isdisjoint(("engine", "started_at"))
    return None if raw is None or never_ran else parse_data_root_state(raw)


def had_a_start(directory_fd: int, name: str, previous: Holder | None) -> bool:
    """Whether cachedind started here before, though there is no state file. `previous` is the holder that the lock file
    named."""
    names = set(os.listdir(directory_fd))
    return name not in names and (previous is not None or not names.isdisjoint(("kept", f"{name}.unreadable")))


def parse_data_root_state(raw: dict[str, object]) -> DataRootState:
    """Raises ValueError for anything that this version could not have written."""
    started_at = _time(raw, "started_at")
    if started_at is None:
        raise ValueError("started_at is missing")
    store, driver = _text(raw, "image_store"), _text(raw, "driver")
    if not driver.replace("-", "").isalnum():
        raise ValueError(f"driver {driver!r} is not a name")
    return DataRootState(
        engine=parse_engine_version(_text(raw, "engine")),
        store=ImageStore(store),
        driver=driver,
        fstype=_text(raw, "fstype"),
        boot_id=_text(raw, "boot_id"),
        started_at=started_at,
        ready_at=_time(raw, "ready_at"),
        ready_s=_time(raw, "ready_s"),
        seeding=_count(raw, "seeding"),
        remap=_remap(raw),
        ended=_parse_ended(raw.get("ended")),
        doubt=str(raw.get("doubt") or "")[:_MAX_REASON],
        # Whatever else stands there is not the ground of now.
        ground=ground if isinstance(ground := raw.get("ground"), dict) else None,
    )


def _parse_ended(value: object) -> Ended | None:
    """How the daemon ended. Only what the supervisor writes is evidence of a clean end."""
    if not isinstance(value, dict):
        return None
    status, at = value.get("status"), value.get("at")
    clean = value.get("clean") is True and status == 0
    is_time = isinstance(at, int | float) and not isinstance(at, bool)
    return Ended(status if isinstance(status, int) else -1, clean, float(at) if is_time else 0.0)  # type: ignore[arg-type]


def _count(raw: dict[str, object], key: str) -> int:
    value = raw.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise ValueError(f"{key} is not a number")
    return value


def _remap(raw: dict[str, object]) -> str:
    value = raw.get("remap", "")
    if not isinstance(value, str) or not re.fullmatch(r"(\d{1,10}\.\d{1,10})?", value, re.ASCII):
        raise ValueError("remap is not a pair of IDs")
    return value


def _time(raw: dict[str, object], key: str) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e12:
        raise ValueError(f"{key} is not a time")
    return float(value)


def _text(raw: dict[str, object], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is missing")
    return value


def next_state(
    before: DataRootState | None,
    plan: StoragePlan,
    *,
    engine: EngineVersion,
    fstype: str,
    boot_id: str,
    now: float,
    doubt: str = "",
    ground: dict[str, object] | None = None,
) -> DataRootState:
    """What to note down for this start, before its daemon touches anything; the witness adds `ready_at`.

    `doubt` is noted until the data is proven, as the new boot_id replaces the evidence for it. `ground` is where
    overlay was found to work, if it was.
    """
    seeding = 0 if before is None or before.ready_at is not None else before.seeding
    remap = plan.remap.directory if plan.remap else ""
    state = DataRootState(engine, plan.store, plan.driver, fstype, boot_id, now)
    return state._replace(seeding=seeding, remap=remap, doubt=doubt, ground=ground)


def write_data_root_state(directory_fd: int, name: str, state: DataRootState, more: Mapping[str, object]) -> None:
    """Note a start down. Raises OSError, for example when the disk is full.

    Synced (two to five milliseconds on a disk) only when more than times has changed: otherwise a crash of the host
    leaves an older note, or one that cannot be read, and neither passes for a clean end.
    """
    before = None
    with contextlib.suppress(ValueError):  # it was reported and set aside when it was read
        before = read_state(directory_fd, name)
    lasting: dict[str, object] = {
        "engine": str(state.engine),
        "image_store": str(state.store),
        "driver": state.driver,
        "fstype": state.fstype,
        "boot_id": state.boot_id,
        "remap": state.remap,
        "doubt": state.doubt,
    }
    values = {
        **lasting,
        "started_at": round(state.started_at, 3),
        "ready_at": state.ready_at,
        "ready_s": state.ready_s,
        "seeding": state.seeding,
        "ended": None,
        "ground": state.ground,
        **more,
    }
    # The note of the last clean end has to be gone from the disk before the daemon writes.
    is_new = before is None or any(before.get(key, "") != value for key, value in lasting.items())
    durable = is_new or (before is not None and before.get("ended") is not None)
    write_state(directory_fd, name, values, before, durable=durable)


def note_doubt(directory_fd: int, name: str, doubt: str) -> None:
    """Note down why the data-root is still doubted, or, with "", that it was proven. Raises OSError, ValueError."""
    before = read_state(directory_fd, name)
    if before is not None and before.get("doubt", "") != doubt:
        write_state(directory_fd, name, {"doubt": doubt}, before)


def count_layers(data_root: str, store: ImageStore, driver: str) -> int:
    """How many layers a data-root holds, of images, containers and build cache together."""
    path = paths.snapshots(driver) if store is ImageStore.CONTAINERD else paths.layers(driver)
    return sum(name not in _NOT_LAYERS for name in _names(f"{data_root}/{path}"))
