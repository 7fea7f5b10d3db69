"""What a data-root holds, told from the marks that engines leave (reference/storage.md c4)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.model import DataRootState, Ended, EngineVersion, ImageStore, StoragePlan
from cachedind.base.state import parse_state
from cachedind.dataroot.contents import (
    count_layers,
    has_graph_directory,
    next_state,
    note_doubt,
    parse_data_root_state,
    read_data_root_state,
    read_existing,
    write_data_root_state,
)

GRAPH, CTRD = ImageStore.GRAPHDRIVER, ImageStore.CONTAINERD
SNAPSHOTTER = "containerd/daemon/io.containerd.snapshotter.v1."
BLOBS = "containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
DIGEST = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
LAYERS = {"vfs": "vfs/dir", "btrfs": "btrfs/subvolumes", "overlay2": "overlay2", "fuse-overlayfs": "fuse-overlayfs"}


def make(root: Path, *names: str) -> None:
    """Directories, or files where a name ends in no slash."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()


def start_graph_engine(root: Path, driver: str) -> None:
    """What an engine makes that merely starts, seen with 26.1 and 28.5."""
    make(
        root,
        f"image/{driver}/imagedb/content/sha256/",
        f"image/{driver}/imagedb/metadata/sha256/",
        f"image/{driver}/layerdb/",
        f"image/{driver}/distribution/",
        f"image/{driver}/repositories.json",
        f"{LAYERS[driver]}/",
        "buildkit/cache.db",
        "buildkit/snapshots.db",
        "volumes/metadata.db",
        "network/files/local-kv.db",
        "containers/",
        "engine-id",
        # containerd makes the directories of all its snapshotters for an engine that uses none of them.
        f"{SNAPSHOTTER}overlayfs/",
        f"{SNAPSHOTTER}native/snapshots/",
        "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",
    )
    if driver in ("overlay2", "fuse-overlayfs"):
        make(root, f"{driver}/l/")
    if driver == "overlay2":
        make(root, "overlay2/backingFsBlockDev")


def start_containerd_engine(root: Path, name: str) -> None:
    """What an engine with the containerd store makes that merely starts, seen with 28.5."""
    make(
        root,
        f"buildkit/containerd-{name}/workerid",
        "buildkit/history_c8d.db",
        "buildkit/cache.db",
        f"rootfs/{name}/",
        f"{SNAPSHOTTER}{name}/snapshots/",
        f"{SNAPSHOTTER}{name}/metadata.db",
        f"{SNAPSHOTTER}native/snapshots/",
        f"{SNAPSHOTTER}btrfs/",
        f"{BLOBS}/",
        "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",
        "engine-id",
    )


def held(root: Path) -> tuple[tuple[ImageStore, str], ...]:
    return read_existing(str(root), None).pairs


@pytest.mark.parametrize("driver", LAYERS)
def test_an_engine_that_merely_started_leaves_no_data(tmp_path: Path, driver: str) -> None:
    start_graph_engine(tmp_path, driver)
    assert held(tmp_path) == ()


@pytest.mark.parametrize("driver", LAYERS)
@pytest.mark.parametrize(
    "mark",
    ["image/{driver}/imagedb/content/sha256/" + DIGEST, "image/{driver}/layerdb/sha256/" + DIGEST + "/", "{layers}/x/"],
    ids=["an image", "a layer of an image", "build cache without any image"],
)
def test_graph_driver_data(tmp_path: Path, driver: str, mark: str) -> None:
    start_graph_engine(tmp_path, driver)
    make(tmp_path, mark.format(driver=driver, layers=LAYERS[driver]))
    assert held(tmp_path) == ((GRAPH, driver),)


@pytest.mark.parametrize(
    "mark", [f"{SNAPSHOTTER}overlayfs/snapshots/1/fs/", f"{BLOBS}/{DIGEST}"], ids=["layer", "blob"]
)
def test_containerd_data(tmp_path: Path, mark: str) -> None:
    start_containerd_engine(tmp_path, "overlayfs")
    assert held(tmp_path) == ()
    make(tmp_path, mark)
    assert held(tmp_path) == ((CTRD, "overlayfs"),)


def test_the_snapshotter_in_use_is_the_one_that_buildkit_has_a_directory_for(tmp_path: Path) -> None:
    start_containerd_engine(tmp_path, "native")
    make(tmp_path, f"{SNAPSHOTTER}native/snapshots/1/", f"{SNAPSHOTTER}overlayfs/snapshots/")
    assert held(tmp_path) == ((CTRD, "native"),)


def test_data_of_both_stores(tmp_path: Path) -> None:
    start_graph_engine(tmp_path, "overlay2")
    start_containerd_engine(tmp_path, "overlayfs")
    make(tmp_path, f"overlay2/{DIGEST}/diff/", f"{SNAPSHOTTER}overlayfs/snapshots/1/fs/")
    assert held(tmp_path) == ((GRAPH, "overlay2"), (CTRD, "overlayfs"))


def test_data_of_several_drivers(tmp_path: Path) -> None:
    for driver in ("overlay2", "vfs"):
        start_graph_engine(tmp_path, driver)
        make(tmp_path, f"image/{driver}/layerdb/sha256/{DIGEST}/")
    assert held(tmp_path) == ((GRAPH, "overlay2"), (GRAPH, "vfs"))


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("lost+found/",),
        ("overlay2/lost+found/",),
        ("overlay2/somebody/else/",),
        ("overlay2", "image"),
        ("image/overlay2/imagedb/content",),
        (f"{SNAPSHOTTER}overlayfs/snapshots/1/fs/",),
        (".cachedind/lock",),
    ],
    ids=[
        "nothing",
        "a fresh filesystem",
        "a fresh filesystem for the driver alone",
        "layers without image/overlay2",
        "files where directories belong",
        "a file deeper down",
        "a system containerd's snapshots",
        "our own directory",
    ],
)
def test_what_is_no_data(tmp_path: Path, names: tuple[str, ...]) -> None:
    make(tmp_path, *names)
    assert held(tmp_path) == ()


def test_layers_are_counted_without_what_is_none(tmp_path: Path) -> None:
    start_graph_engine(tmp_path, "overlay2")
    make(tmp_path, "overlay2/a/", "overlay2/b/", "vfs/dir/c/", f"{SNAPSHOTTER}overlayfs/snapshots/1/")
    assert count_layers(str(tmp_path), GRAPH, "overlay2") == 2
    assert count_layers(str(tmp_path), GRAPH, "vfs") == 1
    assert count_layers(str(tmp_path), GRAPH, "btrfs") == 0
    assert count_layers(str(tmp_path), CTRD, "overlayfs") == 1


# ---- our own note ----

STATE_NAME = "state.json"
STATE = DataRootState(EngineVersion(28, 5, 2), GRAPH, "overlay2", "ext4", "b00t", 1000.5)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    (tmp_path / ".cachedind").mkdir()
    fd = os.open(tmp_path / ".cachedind", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_the_note_is_read_back_and_belongs_to_what_exists(directory: int, tmp_path: Path) -> None:
    assert read_data_root_state(directory, STATE_NAME) is None
    write_data_root_state(directory, STATE_NAME, STATE, {})
    found = read_data_root_state(directory, STATE_NAME)
    assert found == STATE
    existing = read_existing(str(tmp_path), found)
    assert (existing.engine, existing.recorded) == (STATE.engine, (GRAPH, "overlay2"))


def test_the_note_keeps_the_keys_of_a_later_version(directory: int, tmp_path: Path) -> None:
    write_data_root_state(directory, STATE_NAME, STATE, {})
    path = tmp_path / ".cachedind" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    write_data_root_state(directory, STATE_NAME, STATE._replace(driver="vfs"), {})
    assert json.loads(path.read_text())["later"] == 1
    assert json.loads(path.read_text())["driver"] == "vfs"


def test_an_unreadable_note_is_a_value_error_and_does_not_hinder_the_next_one(directory: int, tmp_path: Path) -> None:
    (tmp_path / ".cachedind" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        read_data_root_state(directory, STATE_NAME)
    write_data_root_state(directory, STATE_NAME, STATE, {})
    assert read_data_root_state(directory, STATE_NAME) == STATE


def same(before: DataRootState | None, now: float = 2000) -> DataRootState:
    plan = StoragePlan(GRAPH, "overlay2", "")
    return next_state(before, plan, engine=STATE.engine, fstype="ext4", boot_id="b00t", now=now)


def test_a_start_is_noted_as_one_that_has_not_come_up_yet() -> None:
    assert same(None) == STATE._replace(started_at=2000)
    assert same(STATE._replace(ready_at=1001, ready_s=1.0)) == STATE._replace(started_at=2000)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, None),
        ({"status": 0, "clean": True, "at": 1.0}, Ended(0, True, 1.0)),
        ({"status": 137, "clean": False}, Ended(137, False)),
        ({"status": 1, "clean": True}, Ended(1, False)),
        ({"clean": True}, Ended(-1, False)),
        ("clean", None),
        ([], None),
    ],
)
def test_only_what_is_surely_a_clean_end_is_one(directory: int, raw: object, expected: Ended | None) -> None:
    write_data_root_state(directory, STATE_NAME, STATE, {"ended": raw})
    found = read_data_root_state(directory, STATE_NAME)
    assert found is not None
    assert found.ended == expected


def test_doubt_is_carried_until_it_is_ended(directory: int) -> None:
    doubted = next_state(
        STATE, StoragePlan(GRAPH, "overlay2", ""), engine=STATE.engine, fstype="x", boot_id="b", now=1, doubt="a crash"
    )
    write_data_root_state(directory, STATE_NAME, doubted, {})
    assert read_data_root_state(directory, STATE_NAME) == doubted
    note_doubt(directory, STATE_NAME, "")
    assert read_data_root_state(directory, STATE_NAME) == doubted._replace(doubt="")


def test_a_clean_end_is_taken_back_on_the_disk(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data_root_state(directory, STATE_NAME, STATE, {"ended": {"status": 0, "clean": True}})
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_data_root_state(directory, STATE_NAME, STATE, {})
    assert len(synced) == 2


def test_only_what_is_new_is_synced(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for state, expected in (
        (STATE, 2),
        (STATE._replace(started_at=2000.0), 0),
        (STATE._replace(started_at=3000.0, boot_id="another"), 2),
        (STATE._replace(started_at=4000.0, boot_id="another", driver="vfs"), 2),
    ):
        synced.clear()
        write_data_root_state(directory, STATE_NAME, state, {})
        assert len(synced) == expected, state


def test_a_slot_that_never_had_a_daemon_has_no_note(directory: int, tmp_path: Path) -> None:
    (tmp_path / ".cachedind" / STATE_NAME).write_text('{"version": 1, "min_reader": 1, "sequence": 0}')
    assert read_data_root_state(directory, STATE_NAME) is None


GOOD: dict[str, object] = {
    "engine": "28.5.2",
    "image_store": "graphdriver",
    "driver": "overlay2",
    "fstype": "ext4",
    "boot_id": "b00t",
    "started_at": 1000.5,
}


def test_a_good_note() -> None:
    assert parse_data_root_state(GOOD) == STATE


@pytest.mark.parametrize("key", GOOD)
@pytest.mark.parametrize(
    "value",
    [None, "", [], {}, True, "../../etc", 10**400, float("nan"), -1],
    ids=["none", "empty", "list", "object", "true", "path", "huge", "NaN", "negative"],
)
def test_a_bad_note_is_a_value_error(key: str, value: object) -> None:
    if key in ("fstype", "boot_id") and value == "../../etc":
        return  # any text will do: neither is ever used as a path
    with pytest.raises(ValueError, match=r".+"):
        parse_data_root_state({**GOOD, key: value})


@pytest.mark.parametrize("key", GOOD)
def test_an_incomplete_note_is_a_value_error(key: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_data_root_state({name: good for name, good in GOOD.items() if name != key})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional={key: st.just(good) | json_values for key, good in GOOD.items()}))
def test_any_object_is_a_note_or_a_value_error(raw: dict[str, object]) -> None:
    with contextlib.suppress(ValueError):
        state = parse_data_root_state(raw)
        # What was accepted can be written and read again.
        written = json.dumps({**raw, "min_reader": 1})
        assert parse_data_root_state(parse_state(written.encode())) == state


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), False),
        (("overlay2/", "vfs/dir/abc/"), False),
        ((f"{SNAPSHOTTER}overlayfs/snapshots/1/", f"{SNAPSHOTTER}btrfs/x"), False),
        (("overlay2/l/",), True),
        (("overlay2/lost+found/",), True),
        (("zfs/x",), True),
    ],
)
def test_a_graph_drivers_directory_counts_whatever_is_in_it(
    tmp_path: Path, names: tuple[str, ...], found: bool
) -> None:
    """As engines from 29 on look for it."""
    make(tmp_path, *names)
    assert has_graph_directory(str(tmp_path)) is found
