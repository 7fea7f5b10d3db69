"""Clones on real filesystems: the same in everything, independent ever after; and removing what a hostile root left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cachedind.host import linux, trees
from cachedind.host.trees import Sizes, measure, remove
from cachedind.pool.clone import CloneMethod, clone_directory, make_directory, probe_method
from helpers.children import child, children_of, in_child
from helpers.filesystems import Filesystems
from helpers.waiting import wait_until

MIB = 1 << 20
# VFS_CAP_REVISION_2 with cap_net_bind_service, as setcap(8) writes it.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
CLONING = [
    pytest.param("btrfs", CloneMethod.SUBVOLUME, id="btrfs-subvolume"),
    pytest.param("btrfs", CloneMethod.REFLINK, id="btrfs-reflink"),
    pytest.param("xfs", CloneMethod.REFLINK, id="xfs-reflink"),
]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def fstype() -> str:
    """Each test is parametrized with it."""
    raise NotImplementedError


@pytest.fixture
def place(filesystem: Callable[[str], Path], fstype: str) -> Iterator[Path]:
    """An empty directory on a filesystem of that type."""
    path = filesystem(fstype) / "place"
    path.mkdir()
    yield path
    with opened(path.parent) as fd:
        remove(fd, "place")


def make(method: CloneMethod, parent: Path, name: str = "source") -> Path:
    with opened(parent) as fd:
        make_directory(method, fd, name)
    return parent / name


def copy(method: CloneMethod, source: Path, name: str = "copy", *, read_only: bool = False) -> Path:
    with opened(source) as source_fd, opened(source.parent) as parent_fd:
        clone_directory(method, source_fd, parent_fd, name, read_only=read_only)
    return source.parent / name


def delete(path: Path, *, budget: float | None = None) -> None:
    with opened(path.parent) as fd:
        remove(fd, path.name, budget=budget)


def size(path: Path) -> Sizes:
    with opened(path) as fd:
        return measure(fd)


def fill(tree: Path) -> None:
    """Everything that image layers are made of."""
    (tree / "file").write_bytes(b"content" * 5000)
    (tree / "inline").write_bytes(b"x")
    (tree / "empty").touch()
    with (tree / "sparse").open("wb") as file:
        file.seek(64 * MIB)
        file.write(b"end")
    os.link(tree / "file", tree / "linked")
    (tree / "symlink").symlink_to("/etc/passwd")
    os.mkfifo(tree / "pipe")
    os.mknod(tree / "whiteout", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(tree / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as server, opened(tree) as fd:
        server.bind(f"/proc/self/fd/{fd}/socket")
    (tree / "opaque").mkdir()
    os.setxattr(tree / "opaque", "trusted.overlay.opaque", b"y")
    (tree / "closed" / "below").mkdir(parents=True)
    (tree / "closed" / "below" / "secret").write_text("secret")
    (tree / os.fsdecode(b"\xff\xfe\n")).write_text("no text")
    (tree / "program").write_bytes(b"\x7fELF" * 2000)
    os.chown(tree / "program", 1234, 5678)
    os.chmod(tree / "program", 0o4755)
    os.setxattr(tree / "program", "security.capability", CAPABILITY)
    os.setxattr(tree / "program", "user.note", b"value")
    os.lchown(tree / "symlink", 1, 2)
    os.chmod(tree / "closed", 0)
    os.chown(tree / "closed", 7, 7)
    for number, path in enumerate(sorted(tree.iterdir())):
        os.utime(path, ns=(10**18, 10**18 + number * 1_000_001 + 7), follow_symlinks=False)
    os.chmod(tree, 0o711)
    os.utime(tree, ns=(10**18, 10**18 + 42))


class Entry(NamedTuple):
    """All about a file that a copy has to keep."""

    mode: int
    owner: tuple[int, int]
    size: int
    modified_ns: int
    device: int
    names: frozenset[str]
    attributes: frozenset[tuple[str, bytes]]
    content: bytes


def describe(tree: Path) -> dict[str, Entry]:
    paths = [tree, *sorted(tree.rglob("*"))]
    by_inode: dict[tuple[int, int], set[str]] = {}
    for path in paths:
        status = path.lstat()
        by_inode.setdefault((status.st_dev, status.st_ino), set()).add(str(path.relative_to(tree)))
    found = {}
    for path in paths:
        status = path.lstat()
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        attributes = {
            (name, os.getxattr(path, name, follow_symlinks=False)) for name in os.listxattr(path, follow_symlinks=False)
        }
        found[str(path.relative_to(tree))] = Entry(
            status.st_mode,
            (status.st_uid, status.st_gid),
            0 if stat.S_ISDIR(status.st_mode) else status.st_size,
            status.st_mtime_ns,
            status.st_rdev,
            frozenset(by_inode[status.st_dev, status.st_ino]),
            frozenset(attributes),
            content,
        )
    return found


# ---- which way ----


@pytest.mark.parametrize(
    ("fstype", "expected"),
    [
        ("btrfs", CloneMethod.SUBVOLUME),
        ("xfs", CloneMethod.REFLINK),
        ("ext4", CloneMethod.NONE),
        ("tmpfs", CloneMethod.NONE),
        ("overlay", CloneMethod.NONE),
    ],
)
def test_the_method_is_found_by_trying_and_nothing_is_left(place: Path, expected: CloneMethod) -> None:
    with opened(place) as fd:
        assert probe_method(fd) is expected
    assert list(place.iterdir()) == []


def test_xfs_without_reflink_has_none(filesystems: Filesystems) -> None:
    with opened(filesystems.make("xfs", mkfs=["-m", "reflink=0"])) as fd:
        assert probe_method(fd) is CloneMethod.NONE


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_who_may_not_delete_subvolumes_gets_reflinks(place: Path) -> None:
    os.chown(place, 65534, 65534)

    def probe() -> CloneMethod:
        os.setgid(65534)
        os.setuid(65534)
        return probe_method(fd)

    with opened(place) as fd:
        assert in_child(probe) is CloneMethod.REFLINK
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("fstype", ["btrfs", "xfs", "ext4"])
def test_a_read_only_disk_is_no_verdict(filesystems: Filesystems, fstype: str) -> None:
    path = filesystems.make(fstype)
    filesystems.make_read_only(path)
    with opened(path) as fd, pytest.raises(OSError, match="Read-only") as caught:
        probe_method(fd)
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize("fstype", ["ext4", "tmpfs"])
def test_a_full_disk_is_no_verdict(filesystems: Filesystems, fstype: str) -> None:
    path = filesystems.make(fstype, size_mib=16)
    filesystems.fill(path)
    with opened(path) as fd, pytest.raises(OSError, match="No space") as caught:
        probe_method(fd)
    assert caught.value.errno == errno.ENOSPC
    assert [entry for entry in os.listdir(path) if entry.startswith(".cachedind")] == []


# ---- cloning ----


@pytest.mark.parametrize(("fstype", "method"), CLONING)
def test_a_new_directory_is_dockerds_and_can_be_cloned(place: Path, method: CloneMethod) -> None:
    before = os.umask(0o077)
    try:
        source = make(method, place)
    finally:
        os.umask(before)
    assert stat.S_IMODE(source.stat().st_mode) == 0o710
    assert linux.is_subvolume(source.stat()) is (method is CloneMethod.SUBVOLUME)
    assert stat.S_IMODE(copy(method, source).stat().st_mode) == 0o710


@pytest.mark.parametrize(("fstype", "method"), CLONING)
def test_a_clone_is_the_same_in_everything(place: Path, method: CloneMethod) -> None:
    source = make(method, place)
    fill(source)
    before = describe(source)
    made = copy(method, source)
    assert before["file"].names == {"file", "linked"}
    assert before["program"].attributes == {("security.capability", CAPABILITY), ("user.note", b"value")}
    assert describe(made) == before
    assert (made / "sparse").stat().st_blocks * 512 < MIB
    assert describe(source) == before, "the source changed"


@pytest.mark.parametrize(("fstype", "method"), CLONING)
def test_writes_to_one_are_not_seen_in_the_other(place: Path, method: CloneMethod) -> None:
    source = make(method, place)
    for name in ("one", "two"):
        (source / name).write_bytes(b"before" * 10_000)
    made = copy(method, source)
    with (source / "one").open("r+b") as file:
        file.write(b"source")
    with (made / "two").open("r+b") as file:
        file.write(b"copied")
    (made / "three").touch()
    (source / "four").touch()
    assert (made / "one").read_bytes() == b"before" * 10_000
    assert (source / "two").read_bytes() == b"before" * 10_000
    assert sorted(os.listdir(source)) == ["four", "one", "two"]
    assert sorted(os.listdir(made)) == ["one", "three", "two"]


@pytest.mark.parametrize(("fstype", "method"), CLONING)
def test_a_clone_takes_no_space_for_data(place: Path, method: CloneMethod) -> None:
    source = make(method, place)
    (source / "big").write_bytes(os.urandom(32 * MIB))
    os.sync()
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_bsize
    copy(method, source)
    os.sync()
    assert free - os.statvfs(place).f_bavail * os.statvfs(place).f_bsize < 2 * MIB


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_a_read_only_snapshot_is_kept_so_by_the_kernel_and_can_be_cloned(place: Path) -> None:
    source = make(CloneMethod.SUBVOLUME, place)
    (source / "file").write_text("golden")
    golden = copy(CloneMethod.SUBVOLUME, source, "golden", read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        (golden / "file").write_text("changed")
    with pytest.raises(OSError, match="Read-only"):
        (golden / "new").touch()
    slot = copy(CloneMethod.SUBVOLUME, golden, "slot")
    (slot / "file").write_text("changed")
    assert (golden / "file").read_text() == "golden"


@pytest.mark.parametrize(("fstype", "method"), CLONING)
def test_the_source_may_be_renamed_and_its_name_be_taken(place: Path, method: CloneMethod) -> None:
    source = make(method, place)
    (source / "file").write_text("the one that was opened")
    with opened(source) as source_fd, opened(place) as parent_fd:
        source.rename(place / "elsewhere")
        (make(method, place) / "file").write_text("another")
        clone_directory(method, source_fd, parent_fd, "copy")
    assert (place / "copy" / "file").read_text() == "the one that was opened"


def many_files(tree: Path, count: int) -> None:
    for number in range(count):
        directory = tree / f"{number // 100}"
        directory.mkdir(exist_ok=True)
        (directory / f"{number}").write_bytes(b"%d" % number * 1000)


@pytest.mark.parametrize("fstype", ["xfs"])
def test_the_source_may_be_renamed_while_it_is_copied(place: Path) -> None:
    source = make(CloneMethod.REFLINK, place)
    many_files(source, 3000)
    with child(lambda: copy(CloneMethod.REFLINK, source)) as copying:
        wait_until((place / "copy").exists, what="cp has begun", every_s=0.001)
        source.rename(place / "elsewhere")
        so_far = sum(1 for _ in (place / "copy").rglob("*"))
        copying.result()
    assert so_far < 3000, "it was too fast for this test"
    assert describe(place / "copy") == describe(place / "elsewhere")


@pytest.mark.parametrize("fstype", ["xfs"])
def test_a_copy_that_outlives_its_starter_keeps_the_lock_on_the_place(place: Path) -> None:
    source = make(CloneMethod.REFLINK, place)
    many_files(source, 3000)
    stage = place / "stage"
    stage.mkdir()

    def start() -> None:
        with opened(source) as source_fd, opened(stage) as stage_fd:
            fcntl.flock(stage_fd, fcntl.LOCK_EX)
            clone_directory(CloneMethod.REFLINK, source_fd, stage_fd, "data")

    with child(start) as starting, opened(stage) as fd:
        wait_until((stage / "data").exists, what="cp has begun", every_s=0.001)
        (copying,) = children_of(starting.pid)
        os.kill(copying, signal.SIGSTOP)
        starting.kill()
        starting.wait()
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(copying, signal.SIGKILL)
        os.waitpid(copying, 0)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert sum(1 for _ in (stage / "data").rglob("*")) < 3000


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_a_file_that_cannot_be_shared_is_copied(place: Path) -> None:
    source = make(CloneMethod.REFLINK, place)
    (source / "nocow").touch()
    subprocess.run(["chattr", "+C", str(source / "nocow")], check=True)
    (source / "nocow").write_bytes(b"data" * 10_000)
    assert (copy(CloneMethod.REFLINK, source) / "nocow").read_bytes() == b"data" * 10_000


def test_a_full_disk_ends_a_copy_with_enospc(filesystems: Filesystems) -> None:
    source = make(CloneMethod.REFLINK, filesystems.make("xfs", size_mib=320))
    many_files(source, 3000)
    filesystems.fill(source.parent)
    with pytest.raises(OSError, match="No space left") as caught:
        copy(CloneMethod.REFLINK, source)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_what_cannot_be_cloned_is_an_error(place: Path) -> None:
    source = make(CloneMethod.NONE, place)
    for method, number in ((CloneMethod.SUBVOLUME, errno.EINVAL), (CloneMethod.NONE, errno.EOPNOTSUPP)):
        with pytest.raises(OSError, match=r".") as caught:
            copy(method, source)
        assert caught.value.errno == number
    assert os.listdir(place) == ["source"]


# ---- removing ----

EVERYWHERE = ["btrfs", "xfs", "ext4", "tmpfs"]


@pytest.mark.parametrize("fstype", EVERYWHERE)
def test_a_full_tree_is_removed_and_nothing_beside_it(place: Path) -> None:
    tree = place / "tree"
    tree.mkdir()
    fill(tree)
    (place / "beside").write_text("kept")
    os.link(place / "beside", tree / "linked-out")
    (tree / "up").symlink_to("..")
    delete(tree)
    assert {path.name: path.read_text() for path in place.iterdir()} == {"beside": "kept"}


@pytest.mark.parametrize("fstype", ["ext4"])
def test_nothing_a_file_or_a_link_in_its_place_is_fine(place: Path) -> None:
    (place / "target").mkdir()
    (place / "target" / "file").touch()
    (place / "link").symlink_to("target")
    (place / "file").touch()
    for name in ("link", "file", "nothing"):
        delete(place / name)
    assert [path.name for path in place.rglob("*")] == ["target", "file"]


@pytest.mark.parametrize("fstype", EVERYWHERE)
def test_deeper_than_recursion_and_path_max(place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    for number in range(3000):
        os.mkdir("deep", dir_fd=fd)
        os.close(os.open(f"file{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert size(place).files == 3000
    open_before = len(os.listdir("/proc/self/fd"))
    delete(place / "deep")
    assert os.listdir(place) == ["file0"]
    assert len(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_nested_and_read_only_subvolumes_are_removed(place: Path) -> None:
    """What docker's btrfs driver leaves, and worse."""
    tree = make(CloneMethod.SUBVOLUME, place, "tree")
    (tree / "btrfs").mkdir()
    outer = make(CloneMethod.SUBVOLUME, tree / "btrfs", "outer")
    inner = make(CloneMethod.SUBVOLUME, outer, "inner")
    (inner / "file").write_text("content")
    copy(CloneMethod.SUBVOLUME, inner, "snapshot", read_only=True)
    for path in (inner, outer, tree):
        subprocess.run(["btrfs", "property", "set", str(path), "ro", "true"], check=True)
    with pytest.raises(OSError, match="Read-only"):
        (tree / "new").touch()
    delete(tree)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_subvolumes_in_an_ordinary_directory_are_removed(place: Path) -> None:
    (place / "tree").mkdir()
    copy(CloneMethod.SUBVOLUME, make(CloneMethod.SUBVOLUME, place / "tree"), read_only=True)
    delete(place / "tree")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("fstype", ["btrfs", "xfs", "ext4"])
def test_immutable_and_append_only_things_are_removed(place: Path) -> None:
    tree = place / "tree"
    (tree / "held" / "empty").mkdir(parents=True)
    (tree / "held" / "file").touch()
    (tree / "log").touch()
    (tree / "open").mkdir()
    (tree / "open" / "immutable").touch()
    subprocess.run(["chattr", "+a", str(tree / "log")], check=True)
    for path in (tree / "held" / "empty", tree / "held" / "file", tree / "held", tree / "open" / "immutable", tree):
        subprocess.run(["chattr", "+i", str(path)], check=True)
    delete(tree)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("fstype", ["btrfs", "ext4"])
def test_what_is_mounted_is_left_alone_and_told(place: Path) -> None:
    (place / "outside").mkdir()
    (place / "outside" / "file").write_text("kept")
    tree = make(CloneMethod.NONE, place, "tree")
    for name in ("tmpfs", "bind", "file"):
        (tree / "below" / name).mkdir(parents=True)
    (tree / "below" / "file" / "over").touch()
    (tree / "below" / "other").write_text("goes")
    linux.mount("none", str(tree / "below" / "tmpfs"), "tmpfs")
    (tree / "below" / "tmpfs" / "file").write_text("kept")
    # A bind mount of the same filesystem: only the mount's number tells.
    linux.mount(str(place / "outside"), str(tree / "below" / "bind"), flags=linux.MS_BIND)
    linux.mount(str(place / "outside" / "file"), str(tree / "below" / "file" / "over"), flags=linux.MS_BIND)
    try:
        assert size(tree).files == 2, "what is mounted does not count, but for the file"
        with pytest.raises(OSError, match=r"tree/below/(tmpfs|bind|file/over)") as caught:
            delete(tree)
        assert caught.value.errno in (errno.EXDEV, errno.EBUSY)
        left = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
        assert left == [
            *["below", "below/bind", "below/bind/file", "below/file", "below/file/over"],
            *["below/tmpfs", "below/tmpfs/file"],
        ]
    finally:
        for name in ("tmpfs", "bind", "file/over"):
            linux.umount(str(tree / "below" / name))
    delete(tree)
    assert (place / "outside" / "file").read_text() == "kept"
    assert not tree.exists()


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_a_subvolume_goes_at_once_and_what_was_mounted_in_it_keeps_its_content(place: Path) -> None:
    (place / "outside").mkdir()
    (place / "outside" / "file").write_text("kept")
    tree = make(CloneMethod.SUBVOLUME, place, "tree")
    (tree / "bind").mkdir()
    linux.mount(str(place / "outside"), str(tree / "bind"), flags=linux.MS_BIND)
    delete(tree)
    assert not tree.exists()
    assert (place / "outside" / "file").read_text() == "kept"
    assert "tree" not in Path("/proc/self/mountinfo").read_text(), "the kernel took the mount away with its place"


@pytest.mark.parametrize("fstype", ["btrfs", "xfs", "ext4", "tmpfs"])
def test_space_is_free_once_it_was_waited_for(place: Path) -> None:
    """Of a deleted subvolume nothing is free by a plain sync: that happens in the background, some seconds later."""

    def free_bytes(fd: int) -> int:
        found = os.statvfs(fd)
        return found.f_bfree * found.f_frsize

    with opened(place) as fd:
        make_directory(probe_method(fd), fd, "data")
        linux.syncfs(fd)
        before = free_bytes(fd)
        for number in range(500):
            (place / "data" / str(number)).write_bytes(os.urandom(20 << 10))
        linux.syncfs(fd)
        assert free_bytes(fd) < before - 9 * MIB
        remove(fd, "data")
        assert trees.wait_until_freed(fd, 20)
        assert free_bytes(fd) > before - MIB


@pytest.mark.parametrize("fstype", ["ext4"])
def test_removing_in_small_pieces_comes_to_an_end(place: Path) -> None:
    tree = place / "tree"
    tree.mkdir()
    many_files(tree, 3000)
    pieces = 0
    started = time.monotonic()
    while tree.exists():
        with contextlib.suppress(TimeoutError):
            delete(tree, budget=0.005)
        pieces += 1
        assert time.monotonic() - started < 20
    assert pieces > 1


@pytest.mark.parametrize("fstype", ["ext4"])
def test_a_tree_whose_directory_is_moved_meanwhile_is_not_followed(place: Path) -> None:
    (place / "tree" / "below").mkdir(parents=True)
    (place / "elsewhere").mkdir()
    with opened(place) as fd:
        walk = trees._Place(fd)
        walk.enter("tree", walk.open("tree"))
        walk.enter("below", walk.open("below"))
        (place / "tree" / "below").rename(place / "elsewhere" / "below")
        with pytest.raises(OSError, match="was moved") as caught:
            walk.leave()
        assert caught.value.errno == errno.ESTALE
        walk.close()


# ---- measuring ----


@pytest.mark.parametrize(("fstype", "method"), CLONING)
def test_sharing_is_seen(place: Path, method: CloneMethod) -> None:
    source = make(method, place)
    (source / "one").write_bytes(os.urandom(2 * MIB))
    (source / "two").write_bytes(os.urandom(MIB))
    os.sync()
    assert size(source) == Sizes(3 * MIB, 0, 2)
    made = copy(method, source)
    os.sync()
    assert size(source) == size(made) == Sizes(0, 3 * MIB, 2)
    (made / "two").write_bytes(os.urandom(MIB))
    os.sync()
    assert size(made) == Sizes(MIB, 2 * MIB, 2)
    delete(source)
    # btrfs deletes snapshots in the background.
    subprocess.run(["btrfs", "filesystem", "sync", str(place)], check=False, capture_output=True)
    wait_until(lambda: size(made) == Sizes(3 * MIB, 0, 2), what="nothing is shared any more", timeout_s=60.0)


@pytest.mark.parametrize("fstype", EVERYWHERE)
def test_hard_links_count_once_and_holes_not_at_all(place: Path) -> None:
    tree = place / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "file").write_bytes(os.urandom(MIB))
    os.link(tree / "file", tree / "below" / "linked")
    with (tree / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
    (tree / "link").symlink_to("/")
    os.mkfifo(tree / "pipe")
    os.sync()
    found = size(tree)
    assert (found.shared_bytes, found.files) == (0, 4)
    assert MIB <= found.unique_bytes <= MIB + 8192


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_nested_subvolumes_count(place: Path) -> None:
    tree = make(CloneMethod.SUBVOLUME, place, "tree")
    (make(CloneMethod.SUBVOLUME, tree, "nested") / "file").write_bytes(os.urandom(MIB))
    os.sync()
    assert size(tree) == Sizes(MIB, 0, 1, directories=1)


def test_the_cost_of_a_snapshot_does_not_grow_with_the_files(filesystems: Filesystems) -> None:
    root = filesystems.make("btrfs", size_mib=1024)
    took = {}
    for count in (100, 10_000):
        source = make(CloneMethod.SUBVOLUME, root, f"{count}")
        many_files(source, count)
        os.sync()
        started = time.monotonic()
        copy(CloneMethod.SUBVOLUME, source, f"{count}-copy")
        took[count] = time.monotonic() - started
    print({count: f"{seconds * 1000:.1f} ms" for count, seconds in took.items()})
    assert took[10_000] < 0.5
    assert shutil.disk_usage(root).used < 512 * MIB
