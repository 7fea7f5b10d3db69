"""The image backing: one file, one loop device, many mounts; killed, cut off, full, without device nodes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachedind.base.errors import ImageImpossibleError, PoolUnusableError
from cachedind.base.trace import POINTS, Trace
from cachedind.host import linux, loops, trees
from cachedind.pool import clone, loop_image
from cachedind.pool.clone import CloneMethod
from cachedind.pool.loop_image import BAD, MIB, NAME, NEW, ImageMount
from helpers.children import Child, child, children_of, forever, in_namespaces
from helpers.filesystems import Filesystems
from helpers.waiting import wait_until

HOSTS = ["ext4", "xfs", "tmpfs"]
INSIDE = ["btrfs", "xfs"]
STEPS = [point for point in POINTS if point.startswith("image.")]


@contextlib.contextmanager
def locked(pool: Path) -> Iterator[int]:
    """The pool's directory, as the callers hold it."""
    fd = os.open(pool, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def open_image(pool: Path, target: Path, *, inside: str | None = None, kill_at: str = "", **more: Any) -> ImageMount:
    target.mkdir(exist_ok=True)
    wishes: dict[str, Any] = {"wanted_bytes": 512 * MIB, "min_free_bytes": None, **more}
    fstypes = (inside,) if inside else loop_image.FSTYPES
    with locked(pool) as fd:
        return loop_image.open_image(str(pool), fd, str(target), trace=Trace(kill_at), fstypes=fstypes, **wishes)


@contextlib.contextmanager
def opened(pool: Path, target: Path, **more: Any) -> Iterator[ImageMount]:
    """The image, mounted until the block ends."""
    mounted = open_image(pool, target, **more)
    try:
        yield mounted
    finally:
        linux.umount(str(target))


def device_of(file: Path) -> str | None:
    """The loop device of a file, by whatever path."""
    fd = os.open(file, os.O_RDONLY)
    try:
        device = loops.find(fd)
    finally:
        os.close(fd)
    if device is None:
        return None
    os.close(device.fd)
    return device.path


def size_of(target: Path) -> int:
    found = os.statvfs(target)
    return found.f_blocks * found.f_frsize


def taken(file: Path) -> int:
    return file.stat().st_blocks * 512


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def pool(filesystems: Filesystems) -> Path:
    """An empty pool on ext4."""
    path = filesystems.make("ext4", size_mib=3072) / "pool"
    path.mkdir()
    return path


# ---- made, found, shared ----


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("host", HOSTS)
def test_made_once_and_found_again(filesystems: Filesystems, target: Path, host: str, inside: str) -> None:
    pool = filesystems.make(host, size_mib=3072)
    started = time.monotonic()
    with opened(pool, target, inside=inside) as first:
        made_s = time.monotonic() - started
        assert (first.created, first.fstype, first.size_bytes, first.notes) == (True, inside, 512 * MIB, ())
        assert taken(pool / NAME) < 100 * MIB, "it is sparse"
        (target / "file").write_text("kept")
        with locked(target) as fd:
            expected = {"btrfs": CloneMethod.SUBVOLUME, "xfs": CloneMethod.REFLINK}[inside]
            assert clone.probe_method(fd) is expected
    inode = (pool / NAME).stat().st_ino
    started = time.monotonic()
    with opened(pool, target, inside=inside) as second:
        print(f"made in {made_s * 1000:.0f} ms, found in {(time.monotonic() - started) * 1000:.0f} ms")
        assert (second.created, second.fstype, second.size_bytes, second.notes) == (False, inside, 512 * MIB, ())
        assert (target / "file").read_text() == "kept"
    assert (pool / NAME).stat().st_ino == inode
    assert sorted(set(os.listdir(pool)) - {"lost+found"}) == [NAME]
    assert device_of(pool / NAME) is None, "still attached"


def test_what_docker_needs_inside_is_allowed(pool: Path, target: Path) -> None:
    with opened(pool, target):
        os.mknod(target / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (target / "null").write_text("a device that works")
        flags = os.statvfs(target).f_flag
        assert not flags & (os.ST_NODEV | os.ST_NOSUID | os.ST_NOEXEC)
        assert flags & os.ST_NOATIME


def instance(pool: Path, place: Path, number: int, count: int) -> tuple[bool, str, set[str]]:
    """What one of several containers does: mount it, leave a mark, wait for those of the others."""
    mounted = open_image(pool, place / f"{number}")
    (place / f"{number}" / f"mark-{number}").touch()

    def all_there() -> bool:
        return sum(name.startswith("mark-") for name in os.listdir(place / f"{number}")) == count

    wait_until(all_there, what="the marks of all instances")
    return mounted.created, mounted.device, {name for name in os.listdir(place / f"{number}") if name.startswith("m")}


@pytest.mark.parametrize("host", HOSTS)
def test_instances_at_once_share_one_filesystem(filesystems: Filesystems, tmp_path: Path, host: str) -> None:
    pool = filesystems.make(host, size_mib=3072)
    count = 6

    def work(number: int) -> Callable[[], Any]:
        return lambda: in_namespaces(lambda: instance(pool, tmp_path, number, count))

    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(child(work(number))) for number in range(count)]
        results = [process.result() for process in started]
    assert sorted(created for created, _, _ in results) == [False] * (count - 1) + [True]
    assert len({device for _, device, _ in results}) == 1
    assert all(marks == {f"mark-{number}" for number in range(count)} for _, _, marks in results)
    assert device_of(pool / NAME) is None


def test_it_stays_attached_until_the_last_one_is_gone(pool: Path, target: Path, tmp_path: Path) -> None:
    def hold() -> None:
        open_image(pool, tmp_path / "other")
        forever()

    with child(lambda: in_namespaces(hold, timeout_s=60)) as other:
        wait_until(lambda: (pool / NAME).exists() and device_of(pool / NAME), what="the other has it")
        with opened(pool, target) as mounted:
            assert mounted.device == device_of(pool / NAME)
            kill_tree(other)
            (target / "file").write_text("still there")
            assert device_of(pool / NAME) == mounted.device
    wait_until(lambda: device_of(pool / NAME) is None, what="detached")


def kill_tree(process: Child) -> None:
    below = children_of(process.pid)
    process.kill()
    for pid in below:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    process.wait()


# ---- its size ----


@pytest.mark.parametrize("inside", INSIDE)
def test_it_grows_while_others_use_it(pool: Path, target: Path, tmp_path: Path, inside: str) -> None:
    with opened(pool, target, inside=inside):
        (target / "file").write_text("kept")
        before = size_of(target)
        with opened(pool, tmp_path / "other", inside=inside, wanted_bytes=1024 * MIB) as mounted:
            assert mounted.size_bytes == 1024 * MIB
            assert mounted.notes == ()
        assert size_of(target) - before > 450 * MIB
        (target / "big").write_bytes(bytes(600 * MIB))
    with opened(pool, target, inside=inside, wanted_bytes=1024 * MIB) as again:
        assert again.size_bytes == 1024 * MIB
        assert (target / "file").read_text() == "kept"


@pytest.mark.parametrize("inside", INSIDE)
def test_a_start_that_was_killed_while_it_grew_is_taken_up(pool: Path, target: Path, inside: str) -> None:
    with opened(pool, target, inside=inside):
        pass
    os.truncate(pool / NAME, 1024 * MIB)
    with opened(pool, target, inside=inside, wanted_bytes=1024 * MIB) as mounted:
        assert mounted.size_bytes == 1024 * MIB
        assert size_of(target) > 900 * MIB


def test_it_shrinks_when_the_host_has_become_fuller(pool: Path, target: Path) -> None:
    with opened(pool, target, wanted_bytes=None) as mounted:
        before = mounted.size_bytes
        (target / "file").write_bytes(os.urandom(100 * MIB))
        os.sync()
    subprocess.run(["fallocate", "-l", "1200M", str(pool / "ballast")], check=True)
    with opened(pool, target, wanted_bytes=None) as mounted:
        after = mounted.size_bytes
        assert size_of(target) == after
        assert (target / "file").stat().st_size == 100 * MIB
        assert subprocess.run(["btrfs", "scrub", "start", "-B", str(target)], check=True, capture_output=True)
    host = os.statvfs(pool)
    assert after < before - 500 * MIB
    assert after <= taken(pool / NAME) + host.f_bavail * host.f_frsize
    (pool / "ballast").unlink()
    with opened(pool, target, wanted_bytes=None) as mounted:
        assert mounted.size_bytes == size_of(target) == before


def test_it_shrinks_only_to_where_no_data_lies(pool: Path, target: Path) -> None:
    with opened(pool, target, wanted_bytes=1536 * MIB):
        (target / "file").write_bytes(os.urandom(700 * MIB))
        os.sync()
    with opened(pool, target, wanted_bytes=256 * MIB) as mounted:
        assert 700 * MIB < mounted.size_bytes < 1536 * MIB
        assert size_of(target) == mounted.size_bytes
    assert device_of(pool / NAME) is None


def use_and_free(file: Path, target: Path) -> int:
    """Write 300 MiB, delete them again, and return what the image took before."""
    before = taken(file)
    (target / "big").write_bytes(os.urandom(300 * MIB))
    os.sync()
    assert taken(file) - before >= 300 * MIB
    (target / "big").unlink()
    with locked(target) as fd:
        assert trees.wait_until_freed(fd, 20)
    return before


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("host", HOSTS)
def test_freed_space_is_given_back_at_once_when_told_to(
    filesystems: Filesystems, target: Path, host: str, inside: str
) -> None:
    pool = filesystems.make(host, size_mib=3072)
    with opened(pool, target, inside=inside, wanted_bytes=1024 * MIB):
        empty = use_and_free(pool / NAME, target)
        started = time.monotonic()
        assert loop_image.give_back(str(target)) > 900 * MIB
        # xfs does not wait for the device.
        wait_until(lambda: taken(pool / NAME) - empty < 30 * MIB, what="the host has its space again", timeout_s=5)
        print(f"given back in {(time.monotonic() - started) * 1000:.0f} ms")
        assert loop_image.give_back(str(target)) >= 0


def test_freed_space_goes_back_by_itself(pool: Path, target: Path) -> None:
    with opened(pool, target, wanted_bytes=1024 * MIB):
        empty = use_and_free(pool / NAME, target)
        wait_until(lambda: taken(pool / NAME) - empty < 30 * MIB, what="the host has its space again", timeout_s=60)


def test_what_was_freed_before_the_last_one_went_can_be_given_back_later(pool: Path, target: Path) -> None:
    with opened(pool, target, wanted_bytes=1024 * MIB):
        empty = use_and_free(pool / NAME, target)
    with opened(pool, target, wanted_bytes=1024 * MIB):
        assert taken(pool / NAME) - empty > 200 * MIB, "give_back is not needed any more"
        loop_image.give_back(str(target))
        assert taken(pool / NAME) - empty < 30 * MIB


# ---- killed ----


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_and_started_again(pool: Path, target: Path, step: str, inside: str) -> None:
    def start() -> None:
        open_image(pool, target, inside=inside, kill_at=step)

    assert len(STEPS) == 5
    with pytest.raises(EOFError):
        in_namespaces_killed(start)
    with opened(pool, target, inside=inside) as mounted:
        assert mounted.created is (step in ("image.sized", "image.formatted"))
        assert mounted.notes == ()
        (target / "file").write_text("kept")
        os.sync()
    if step in ("image.attached", "image.mounted"):
        with pytest.raises(EOFError):
            in_namespaces_killed(start)
    with opened(pool, target, inside=inside):
        assert (target / "file").read_text() == "kept"
    assert sorted(set(os.listdir(pool))) == [NAME]
    assert device_of(pool / NAME) is None


def in_namespaces_killed(work: Callable[[], None]) -> None:
    def enter() -> None:
        linux.unshare(linux.CLONE_NEWNS)
        work()

    with child(enter) as started:
        started.result()


# ---- bad images ----


def cut(file: Path) -> None:
    os.truncate(file, 100 * MIB)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def scribble(file: Path) -> None:
    with file.open("r+b") as opened_file:
        opened_file.write(os.urandom(MIB))


def break_tree(file: Path) -> None:
    """The superblock is fine, and nothing else is."""
    with file.open("r+b") as opened_file:
        opened_file.seek(MIB)
        opened_file.write(os.urandom(63 * MIB))


def link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def directory(file: Path) -> None:
    file.unlink()
    (file / "below").mkdir(parents=True)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("damage", [cut, empty, scribble, break_tree, link, directory, pipe])
def test_what_is_no_image_is_set_aside_and_replaced(pool: Path, target: Path, damage: Callable[[Path], None]) -> None:
    with opened(pool, target):
        (target / "file").write_bytes(os.urandom(150 * MIB))
    (pool / BAD).write_text("an older one")
    damage(pool / NAME)
    bad = (pool / NAME).lstat()
    with opened(pool, target) as mounted:
        assert mounted.created
        assert os.listdir(target) == []
    (note,) = mounted.notes
    assert f"{pool}/{NAME} " in note.why
    assert f"{pool}/{BAD}" in note.mend
    assert (pool / BAD).lstat().st_ino == bad.st_ino
    assert not (pool / NEW).exists()
    with opened(pool, target) as again:
        assert (again.created, again.notes) == (False, ())


def test_the_kernels_word_is_in_the_note(pool: Path, target: Path) -> None:
    with opened(pool, target):
        pass
    cut(pool / NAME)
    with opened(pool, target) as mounted:
        assert "cannot be mounted as btrfs (" in mounted.notes[0].why


def test_a_bad_image_gives_way_when_there_is_no_room_for_two(filesystems: Filesystems, target: Path) -> None:
    pool = filesystems.make("ext4", size_mib=1024)
    with opened(pool, target, min_free_bytes=0, wanted_bytes=None):
        (target / "file").write_bytes(os.urandom(700 * MIB))
    scribble(pool / NAME)
    with opened(pool, target) as mounted:
        assert mounted.created
        assert "deleted, for want of space" in mounted.notes[0].mend
    assert not (pool / BAD).exists()


def test_what_others_use_is_not_set_aside(pool: Path, target: Path, tmp_path: Path) -> None:
    with opened(pool, target):
        (target / "file").write_text("in use")
        os.sync()
        with (pool / NAME).open("r+b") as file:
            file.seek(0x10040)
            before = file.read(8)
            file.seek(0x10040)
            file.write(b"\0" * 8)
        try:
            with pytest.raises(PoolUnusableError, match="damaged, and still attached to /dev/loop"):
                open_image(pool, tmp_path / "other")
        finally:
            with (pool / NAME).open("r+b") as file:
                file.seek(0x10040)
                file.write(before)
        assert (target / "file").read_text() == "in use"
    assert os.listdir(pool) == [NAME]


def run_out_of_disk(pool: Path, target: Path) -> None:
    """What the guard is against: the host's disk fills up under a sparse file."""
    host = os.statvfs(pool)
    subprocess.run(["fallocate", "-l", str(host.f_bavail * host.f_frsize), str(pool / "ballast")], check=True)
    with contextlib.suppress(OSError):
        for number in range(5000):
            (target / f"{number}").write_bytes(os.urandom(100_000))
            if number % 100 == 0:
                os.sync()
    (pool / "ballast").unlink()


def shut_down(pool: Path, target: Path) -> None:
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(target)], check=True)


@pytest.mark.parametrize(("inside", "fail"), [("btrfs", run_out_of_disk), ("xfs", shut_down)])
def test_a_filesystem_that_has_failed_is_told_and_kept(
    filesystems: Filesystems, target: Path, tmp_path: Path, inside: str, fail: Callable[[Path, Path], None]
) -> None:
    pool = filesystems.make("ext4", size_mib=1536) / "pool"
    pool.mkdir()
    with opened(pool, target, inside=inside):
        (target / "file").write_text("kept")
        os.sync()
        fail(pool, target)
        with pytest.raises(PoolUnusableError, match="after an error"):
            open_image(pool, tmp_path / "other", inside=inside)
        assert str(tmp_path / "other") not in Path("/proc/self/mounts").read_text()
    with opened(pool, target, inside=inside) as mounted:
        assert not mounted.created
        assert (target / "file").read_text() == "kept"
    assert os.listdir(pool) == [NAME]


# ---- full disks ----


def test_nothing_is_written_when_the_host_is_nearly_full(filesystems: Filesystems, target: Path) -> None:
    pool = filesystems.make("ext4", size_mib=1536) / "pool"
    pool.mkdir()
    with opened(pool, target, wanted_bytes=1024 * MIB):
        pass
    Filesystems.fill(None, pool)  # type: ignore[arg-type]
    before = (pool / NAME).stat()
    with pytest.raises(PoolUnusableError, match=r"nearly full: 0 MiB of \d+ MiB are free"):
        open_image(pool, target, wanted_bytes=1024 * MIB)
    after = (pool / NAME).stat()
    assert (after.st_mtime_ns, after.st_blocks, after.st_size) == (before.st_mtime_ns, before.st_blocks, before.st_size)
    assert device_of(pool / NAME) is None
    (pool / "ballast").unlink()
    with opened(pool, target) as mounted:
        assert not mounted.created


def test_a_disk_too_full_for_a_new_one(pool: Path, target: Path) -> None:
    Filesystems.fill(None, pool)  # type: ignore[arg-type]
    with pytest.raises(PoolUnusableError, match=r"too full for a pool: 0 MiB of"):
        open_image(pool, target)
    assert os.listdir(pool) == ["ballast"]


def test_a_leftover_is_removed_before_the_space_is_counted(pool: Path, target: Path) -> None:
    host = os.statvfs(pool)
    size = host.f_bavail * host.f_frsize - 20 * MIB
    subprocess.run(["fallocate", "-l", str(size), str(pool / NEW)], check=True)
    with opened(pool, target) as mounted:
        assert mounted.created
    assert os.listdir(pool) == [NAME]


def test_a_filesystem_that_does_not_count_is_no_place(filesystems: Filesystems, target: Path) -> None:
    pool = filesystems.make("ramfs")
    with pytest.raises(ImageImpossibleError, match="does not tell how much is free"):
        open_image(pool, target)
    assert os.listdir(pool) == []


# ---- containers ----


def in_container(work: Callable[[], Any], *, options: str = "") -> Any:
    """With the /dev of a container that was started before there were any loop devices, and a /run of its own."""

    def enter() -> Any:
        linux.mount("none", "/dev", "tmpfs", data="mode=755")
        os.mknod("/dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod("/dev/urandom", 0o666 | stat.S_IFCHR, os.makedev(1, 9))
        linux.mount("none", "/run", "tmpfs", linux.MS_NODEV if "run" in options else 0)
        if "dev" in options:
            os.mkdir("/dev/.cachedind")
            linux.mount("none", "/dev/.cachedind", "tmpfs", linux.MS_NODEV)
        return work()

    return in_namespaces(enter)


def test_missing_device_nodes_are_made(pool: Path, target: Path) -> None:
    def start() -> tuple[str, list[str]]:
        mounted = open_image(pool, target)
        (target / "file").write_text("written")
        return mounted.device, sorted(os.listdir("/dev"))

    device, nodes = in_container(start)
    assert device.startswith("/run/cachedind/dev/loop")
    assert nodes == ["null", "urandom"]
    with opened(pool, target):
        assert (target / "file").read_text() == "written"


def test_missing_device_nodes_of_a_device_that_others_made(pool: Path, target: Path, tmp_path: Path) -> None:
    with opened(pool, target) as mounted:
        device = in_container(lambda: open_image(pool, tmp_path / "other").device)
        assert device == f"/run/cachedind/dev/{Path(mounted.device).name}"


def test_a_node_of_that_name_for_another_device_is_not_used(pool: Path, target: Path) -> None:
    def start() -> str:
        for number in range(64):
            os.mknod(f"/dev/loop{number}", 0o600 | stat.S_IFBLK, os.makedev(1, 15))
        os.makedirs("/run/cachedind/dev")
        os.mknod("/run/cachedind/dev/loop-control", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        return open_image(pool, target).device

    assert in_container(start).startswith("/run/cachedind/dev/loop")


def test_nodes_are_made_elsewhere_when_run_is_mounted_with_nodev(pool: Path, target: Path) -> None:
    assert in_container(lambda: open_image(pool, target).device, options="run").startswith("/dev/.cachedind/loop")


def test_no_device_nodes_at_all_lets_the_caller_do_without(pool: Path, target: Path) -> None:
    def start() -> None:
        open_image(pool, target)

    with pytest.raises(ImageImpossibleError, match="may not use loop devices") as caught:
        in_container(start, options="run dev")
    assert "--privileged" in caught.value.hint
    assert os.listdir(pool) == []


def test_a_kernel_without_either_filesystem(pool: Path, target: Path) -> None:
    with pytest.raises(ImageImpossibleError, match="has none of nosuchfs"):
        open_image(pool, target, inside="nosuchfs")
    assert os.listdir(pool) == []


def test_loop_devices_are_found_by_inode_not_by_path(pool: Path) -> None:
    (pool / "file").write_bytes(bytes(MIB))
    fd = os.open(pool / "file", os.O_RDWR)
    try:
        first = loops.attach(fd, "file")
        (pool / "file").rename(pool / "renamed")
        (pool / "file").write_bytes(bytes(MIB))
        second = loops.attach(fd, "file")
        assert (first.path, first.shared, second.shared) == (second.path, False, True)
        assert device_of(pool / "file") is None
        assert device_of(pool / "renamed") == first.path
        status = linux.loop_status(first.fd)
        assert status is not None
        assert status.flags & linux.LO_FLAGS_AUTOCLEAR
        assert status.flags & linux.LO_FLAGS_DIRECT_IO
        os.close(first.fd)
        os.close(second.fd)
        assert loops.find(fd) is None
    finally:
        os.close(fd)
