"""A copy that shares layers, on real filesystems: what is linked, copied, left out and refused."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cachedind.base.model import EngineVersion, ImageStore, StoragePlan
from cachedind.base.trace import Trace
from cachedind.host import linux
from cachedind.pool import layer_links, layer_list, mutable, records, sharing
from cachedind.pool.layer_links import BadLinkError
from cachedind.pool.layers import Owner
from helpers.boltfiles import Tree, bolt_file

FSTYPES = ["ext4", "xfs", "btrfs", "tmpfs"]
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
CONTAINERD = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
SNAPSHOTS = "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots"
BLOBS = "containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
ROOTS = ["", "100000.100000"]
NONE: frozenset[str] = frozenset()


class Place(NamedTuple):
    """A slot with the data of an engine, some layers of which are shared, and an empty directory for the copy."""

    path: Path
    root: str
    store_fd: int
    owner: Owner
    copy_fd: int

    @property
    def source(self) -> Path:
        return self.path / "slot/data" / self.root

    @property
    def target(self) -> Path:
        return self.path / "copy" / self.root

    def copy(self, storage: StoragePlan = GRAPH, *results: str, emptied: frozenset[str] = NONE) -> frozenset[str]:
        allowed = layer_list.read_list(self.owner.directory_fd)
        plan = records.plan_copy(storage, frozenset(results), emptied)
        return records.copy(self.owner.data_fd, self.copy_fd, self.root, plan, allowed)


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fill(root: Path) -> None:
    for name in ("shared", "mutable"):
        for file in ("diff/file", "diff/below/more", "work/index/left", "link", "lower", "committed"):
            write(root / "overlay2" / name / file, f"{name} {file}")
        (root / "overlay2" / name / "merged").mkdir()
        (root / "overlay2/l").mkdir(exist_ok=True)
        (root / f"overlay2/l/{name}").symlink_to(f"../{name}/diff")
        for file in ("fs/file", "work/index/left"):
            write(root / SNAPSHOTS / name / file, f"{name} {file}")
    for file in (
        "image/overlay2/layerdb/sha256/0/cache-id",
        "image/overlay2/repositories.json",
        "image/overlay2/layerdb/tmp/half",
        f"{BLOBS}/0",
        "containerd/daemon/io.containerd.content.v1.content/ingest/half/data",
        "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",
        "buildkit/metadata_v2.db",
        "volumes/metadata.db",
        "volumes/a/_data/file",
        "tmp/left",
        "engine-id",
        "what-nobody-knows/a/b",
    ):
        write(root / file, file)


@pytest.fixture(params=ROOTS, ids=["plain", "remapped"])
def place(directory: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    root: str = request.param
    for name in ("layers", "copy", "slot/data"):
        (directory / name).mkdir(parents=True)
    data = directory / "slot/data" / root
    fill(data)
    write(directory / "slot/data/.cachedind/kept/a")
    write(directory / "slot/data/.cachedind/aside/1/why.json")
    (directory / "slot/data/.cachedind/layers").mkdir()
    slot = directory / "slot"
    owner = Owner(os.open(slot, DIRECTORY), os.open(slot / "data", DIRECTORY))
    layer_list.write_list(owner.directory_fd, ())
    store_fd, copy_fd = os.open(directory / "layers", DIRECTORY), os.open(directory / "copy", DIRECTORY)
    below = f"{root}/" if root else ""
    shared = [f"{below}overlay2/shared/diff", f"{below}{SNAPSHOTS}/shared"]
    sharing.share(store_fd, owner, shared, "", Trace())
    yield Place(directory, root, store_fd, owner, copy_fd)
    for fd in (store_fd, copy_fd, *owner):
        os.close(fd)


def same_file(place: Place, path: str) -> bool:
    return (place.source / path).samefile(place.target / path)


@pytest.mark.parametrize("directory", FSTYPES, indirect=True)
def test_graph_driver(place: Place) -> None:
    [layer_id] = place.copy()
    target = place.target
    assert (
        layer_links.id_in(f"{place.root}/overlay2/x/diff".lstrip("/"), os.readlink(target / "overlay2/shared/diff"))
        == layer_id
    )
    assert sorted(os.listdir(target / "overlay2/shared")) == ["committed", "diff", "link", "lower", "work"]
    assert os.listdir(target / "overlay2/shared/work") == []
    assert os.readlink(target / "overlay2/l/shared") == "../shared/diff"
    assert (target / "overlay2/mutable/diff/below/more").read_text() == "mutable diff/below/more"
    assert not same_file(place, "overlay2/mutable/diff/file")
    assert same_file(place, "image/overlay2/layerdb/sha256/0/cache-id")
    assert same_file(place, "overlay2/shared/lower")
    for changing in ("buildkit/metadata_v2.db", "engine-id", "volumes/metadata.db", "what-nobody-knows/a/b"):
        assert (target / changing).read_text() == changing
        assert not same_file(place, changing)
    assert os.listdir(target / "tmp") == os.listdir(target / "image/overlay2/layerdb/tmp") == []
    assert (place.path / "copy/.cachedind/kept/a").exists()
    assert os.listdir(place.path / "copy/.cachedind/layers") == os.listdir(place.path / "copy/.cachedind/aside") == []


@pytest.mark.parametrize("directory", FSTYPES, indirect=True)
def test_containerd_store(place: Place) -> None:
    (place.source / "overlay2").rename(place.path / "gone")
    [layer_id] = place.copy(CONTAINERD)
    target = place.target / SNAPSHOTS
    assert layer_id in os.readlink(target / "shared")
    assert sorted(os.listdir(place.path / "layers" / layer_id / "content")) == ["fs", "work"]
    assert (target / "mutable/fs/file").read_text() == "mutable fs/file"
    assert same_file(place, f"{BLOBS}/0")
    assert not same_file(place, "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db")
    assert os.listdir(place.target / "containerd/daemon/io.containerd.content.v1.content/ingest") == []


@pytest.mark.parametrize("directory", FSTYPES, indirect=True)
def test_results_of_builds_are_directories_of_linked_files(place: Place) -> None:
    place.copy(GRAPH, "mutable")
    for name in ("diff/file", "diff/below/more", "link"):
        assert same_file(place, f"overlay2/mutable/{name}")
    assert not (place.target / "overlay2/mutable/diff").is_symlink()


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_owners_modes_times_and_attributes_are_the_same(place: Place) -> None:
    for number, path in enumerate(("overlay2", "overlay2/shared", "overlay2/mutable/diff/file", "volumes", "buildkit")):
        os.chmod(place.source / path, 0o711)
        os.chown(place.source / path, 1000 + number, 2000)
    os.setxattr(place.source / "overlay2/mutable/diff", "trusted.overlay.opaque", b"y")
    os.utime(place.source / "overlay2/mutable/diff/file", (1, 2))
    place.copy()
    for number, path in enumerate(("overlay2", "overlay2/shared", "overlay2/mutable/diff/file", "volumes", "buildkit")):
        status = (place.target / path).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o711, 1000 + number, 2000), path
    assert os.getxattr(place.target / "overlay2/mutable/diff", "trusted.overlay.opaque") == b"y"
    assert (place.target / "overlay2/mutable/diff/file").stat().st_mtime == 2


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_a_copy_of_a_copy_is_the_same_again(place: Place) -> None:
    first = place.copy()
    again = place.path / "again"
    again.mkdir()
    copy_fd = os.open(again, DIRECTORY)
    try:
        assert records.copy(place.copy_fd, copy_fd, place.root, records.plan_copy(GRAPH), first) == first
    finally:
        os.close(copy_fd)
    done = subprocess.run(["diff", "--recursive", "--no-dereference", place.path / "copy", again], check=False)
    assert done.returncode == 0


PLANTED = {
    "another id": "../../.cachedind/layers/" + "0" * 32 + "/content",
    "absolute": "/etc",
    "upwards": "../../../../../etc",
    "a loop": "diff",
    "inside": "../mutable/diff",
}


@pytest.mark.parametrize("target", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_a_planted_link_is_refused(place: Place, target: str) -> None:
    if place.root:
        target = target.replace("../../.cachedind", "../../../.cachedind")
    link = place.source / "overlay2/shared/diff"
    link.unlink()
    link.symlink_to(target)
    with pytest.raises(BadLinkError, match="shared/diff"):
        place.copy()


@pytest.mark.parametrize("what", ["overlay2", "image/overlay2", "image", "overlay2/mutable", "containerd/daemon"])
@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_a_link_in_a_directorys_place_leads_nowhere(place: Place, what: str) -> None:
    elsewhere = place.path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere / "secret")
    (place.source / what).rename(place.path / "gone")
    (place.source / what).symlink_to(elsewhere)
    place.copy()
    assert os.readlink(place.target / what) == str(elsewhere), "copied as the link that it is"


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_a_full_disk_is_called_that(place: Place) -> None:
    small = place.path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    (place.source / "overlay2/mutable/diff/large").write_bytes(b"x" * 1_000_000)
    small_fd = os.open(small, DIRECTORY)
    try:
        with pytest.raises(OSError, match="No space left"):
            records.copy(
                place.owner.data_fd,
                small_fd,
                place.root,
                records.plan_copy(None),
                layer_list.read_list(place.owner.directory_fd),
            )
    finally:
        os.close(small_fd)
        subprocess.run(["umount", str(small)], check=True)


# ---- cache mounts ----------------------------------------------------------------------------------------------------

MOUNTS = {"17": 30, "18": 4}
"""Cache mounts, by the names of their directories, and how many files are in each."""


def record(key: str, kind: str) -> Tree:
    return {
        name.encode(): json.dumps({"value": value}).encode()
        for name, value in {
            "cache.snapshot": key,
            "cache.recordType": kind,
            "cache.description": f"cached mount /{key} from exec make",
        }.items()
    }


def content_of(root: Path, storage: StoragePlan, name: str) -> Path:
    return root / (f"{SNAPSHOTS}/{name}/fs" if storage is CONTAINERD else f"overlay2/{name}/diff")


def add_mounts(place: Place, storage: StoragePlan, context_files: int = 10) -> None:
    """Two cache mounts and a build context, with their records."""
    kinds = {**dict.fromkeys(MOUNTS, "exec.cachemount"), "19": "source.local"}
    for name, count in {**MOUNTS, "19": context_files}.items():
        content = content_of(place.source, storage, name)
        for number in range(count):
            write(content / f"{number % 3}/{number}", f"{name} {number}")
        content.chmod(0o701)
        os.chown(content, 7, 8)
        (content.parent / "work").mkdir()
        write(content.parent / "link")
    below = "containerd-overlayfs/" if storage is CONTAINERD else ""
    metadata: Tree = {b"_main": {name.encode(): record(name, kind) for name, kind in kinds.items()}}
    snapshots: Tree = {f"moby/9/{name}".encode(): {b"id": bytes([int(name)]), b"kind": b"\2"} for name in kinds}
    databases: dict[str, Tree] = {
        f"buildkit/{below}metadata_v2.db": metadata,
        "buildkit/snapshots.db": {name.encode(): {b"parent": b""} for name in kinds},
        f"{os.path.dirname(SNAPSHOTS)}/metadata.db": {b"v1": {b"snapshots": snapshots}},
    }
    for path, tree in databases.items():
        (place.source / path).parent.mkdir(parents=True, exist_ok=True)
        (place.source / path).write_bytes(bolt_file(tree))


def choose(place: Place, storage: StoragePlan) -> mutable.LeftOut:
    root_fd = os.open(place.source, DIRECTORY)
    try:
        engine = EngineVersion(28, 5, 2)
        return mutable.choose(root_fd, storage, engine, NONE, lambda: linux.has_reflinks(place.copy_fd))
    finally:
        os.close(root_fd)


def listing(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("storage", [GRAPH, CONTAINERD], ids=["graph", "containerd"])
@pytest.mark.parametrize("directory", ["ext4", "xfs"], indirect=True)
def test_cache_mounts_within_the_limit_are_copied_whole(place: Place, storage: StoragePlan) -> None:
    add_mounts(place, storage)
    chosen = choose(place, storage)
    assert chosen == mutable.NOTHING
    place.copy(storage, emptied=chosen.names)
    for name in MOUNTS:
        own, other = (content_of(root, storage, name) for root in (place.source, place.target))
        assert len(listing(other)) == MOUNTS[name]
        assert listing(other) == listing(own)
        assert not (own / "0/0").samefile(other / "0/0")
        assert (stat.S_IMODE(other.stat().st_mode), other.stat().st_uid, other.stat().st_gid) == (0o701, 7, 8)


@pytest.mark.parametrize("storage", [GRAPH, CONTAINERD], ids=["graph", "containerd"])
@pytest.mark.parametrize("directory", ["ext4", "xfs"], indirect=True)
def test_the_largest_cache_mount_stays_empty_where_there_are_too_many_files(
    place: Place, storage: StoragePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_mounts(place, storage)
    monkeypatch.setattr(mutable, "MAX_FILES", 25)
    chosen = choose(place, storage)
    assert [str(mount) for mount in chosen.mounts] == ["/17 (more than 25 files)"]
    before = listing(place.source)
    place.copy(storage, emptied=chosen.names)
    emptied = content_of(place.target, storage, "17")
    assert os.listdir(emptied) == []
    assert (stat.S_IMODE(emptied.stat().st_mode), emptied.stat().st_uid, emptied.stat().st_gid) == (0o701, 7, 8)
    assert sorted(os.listdir(emptied.parent)) == sorted([emptied.name, "link", "work"])
    for name in ("18", "19", "mutable"):
        own, other = (content_of(root, storage, name) for root in (place.source, place.target))
        assert listing(other) == listing(own) != {}
    assert listing(place.source) == before


@pytest.mark.parametrize("storage", [GRAPH, CONTAINERD], ids=["graph", "containerd"])
@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_a_context_is_linked_file_by_file_and_what_replaces_a_file_is_nobody_elses(
    place: Place, storage: StoragePlan
) -> None:
    add_mounts(place, storage)
    place.copy(storage, "19")
    own, other = (content_of(root, storage, "19") for root in (place.source, place.target))
    assert listing(other) == listing(own)
    assert (own / "0/0").samefile(other / "0/0")
    assert not (own / "0").samefile(other / "0")
    # As an engine does it: another file, renamed; and one that goes.
    write(other / "0/.tmp.1", "new")
    (other / "0/.tmp.1").rename(other / "0/0")
    (other / "1/1").unlink()
    assert (own / "0/0").read_text() == "19 0"
    assert (own / "1/1").read_text() == "19 1"


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_a_large_context_costs_no_small_cache_mount(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    add_mounts(place, GRAPH, context_files=200)
    monkeypatch.setattr(mutable, "MAX_FILES", 100)
    assert choose(place, GRAPH) == mutable.NOTHING
    monkeypatch.setattr(mutable, "MAX_FILES", 60)
    assert choose(place, GRAPH).names == {"17"}


@pytest.mark.parametrize("directory", FSTYPES, indirect=True)
def test_bytes_count_where_they_are_copied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    has_reflinks = subprocess.run(
        ["cp", "--reflink=always", str(place.source / "engine-id"), str(place.path / "clone")], check=False
    )
    add_mounts(place, GRAPH)
    monkeypatch.setattr(mutable, "MAX_BYTES", 4096 * 25)
    assert linux.has_reflinks(place.copy_fd) == (has_reflinks.returncode == 0)
    # Files of some bytes lie in the metadata of btrfs, and have no blocks.
    expected = NONE if linux.has_reflinks(place.copy_fd) else frozenset({"17"})
    assert choose(place, GRAPH).names == expected


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_links_in_a_cache_mount_are_not_followed_and_one_in_its_place_is_copied(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_mounts(place, GRAPH)
    monkeypatch.setattr(mutable, "MAX_FILES", 100)
    (place.source / "overlay2/18/diff/all").symlink_to(place.source)
    assert choose(place, GRAPH) == mutable.NOTHING
    monkeypatch.setattr(mutable, "MAX_FILES", 25)
    chosen = choose(place, GRAPH)
    (place.source / "overlay2/17").rename(place.path / "gone")
    (place.source / "overlay2/17").symlink_to("/etc")
    place.copy(emptied=chosen.names)
    assert os.readlink(place.target / "overlay2/17") == "/etc"
