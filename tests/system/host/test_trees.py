"""Whole directories of which a job was root, on real filesystems: removed, measured, and never left."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cachedind.host import linux, trees
from cachedind.host.trees import Sizes, measure, remove

MIB = 1 << 20
EVERYWHERE = ["btrfs", "xfs", "ext4", "tmpfs"]
# VFS_CAP_REVISION_2 with cap_net_bind_service, as setcap(8) writes it.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


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


def subvolume(parent: Path, name: str) -> Path:
    subprocess.run(["btrfs", "subvolume", "create", str(parent / name)], check=True, capture_output=True)
    return parent / name


def snapshot(source: Path, target: Path) -> None:
    subprocess.run(["btrfs", "subvolume", "snapshot", "-r", str(source), str(target)], check=True, capture_output=True)


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


def many_files(tree: Path, count: int) -> None:
    for number in range(count):
        directory = tree / f"{number // 100}"
        directory.mkdir(exist_ok=True)
        (directory / f"{number}").write_bytes(b"%d" % number * 1000)


# ---- removing ----


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
    tree = subvolume(place, "tree")
    (tree / "btrfs").mkdir()
    outer = subvolume(tree / "btrfs", "outer")
    inner = subvolume(outer, "inner")
    (inner / "file").write_text("content")
    snapshot(inner, outer / "snapshot")
    for path in (inner, outer, tree):
        subprocess.run(["btrfs", "property", "set", str(path), "ro", "true"], check=True)
    with pytest.raises(OSError, match="Read-only"):
        (tree / "new").touch()
    delete(tree)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_subvolumes_in_an_ordinary_directory_are_removed(place: Path) -> None:
    (place / "tree").mkdir()
    snapshot(subvolume(place / "tree", "source"), place / "tree" / "copy")
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
    tree = place / "tree"
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
    tree = subvolume(place, "tree")
    (tree / "bind").mkdir()
    linux.mount(str(place / "outside"), str(tree / "bind"), flags=linux.MS_BIND)
    delete(tree)
    assert not tree.exists()
    assert (place / "outside" / "file").read_text() == "kept"
    assert "tree" not in Path("/proc/self/mountinfo").read_text(), "the kernel took the mount away with its place"


@pytest.mark.parametrize("fstype", ["btrfs", "xfs", "ext4", "tmpfs"])
def test_space_is_free_once_it_was_waited_for(place: Path, fstype: str) -> None:
    """Of a deleted subvolume nothing is free by a plain sync: that happens in the background, some seconds later."""

    def free_bytes(fd: int) -> int:
        found = os.statvfs(fd)
        return found.f_bfree * found.f_frsize

    if fstype == "btrfs":
        subvolume(place, "data")
    else:
        (place / "data").mkdir()
    with opened(place) as fd:
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
    assert found.files == 4
    assert MIB <= found.bytes <= MIB + 8192
    assert found.linked == {}
    os.link(tree / "file", place / "elsewhere")
    found = size(tree)
    assert found.files == 3
    assert found.bytes <= 8192
    assert list(found.linked.values()) == [pytest.approx(MIB, abs=8192)]


@pytest.mark.parametrize("fstype", ["btrfs"])
def test_nested_subvolumes_count(place: Path) -> None:
    tree = subvolume(place, "tree")
    (subvolume(tree, "nested") / "file").write_bytes(os.urandom(MIB))
    os.sync()
    assert size(tree) == Sizes(MIB, files=1, directories=1)
