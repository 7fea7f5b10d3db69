"""Loop devices: the block device of a file, one for all who ask for the same file (loop(4)).

Instances on one kernel share /sys/block but not /dev: a container gets the device nodes that were there when it
started. So a device is looked for in /sys/block, and a node that is missing is made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from cachedind.base.errors import ImageImpossibleError
from cachedind.host import linux

# The second for containers whose /run is read-only, or mounted with nodev (docker run --tmpfs /run).
NODE_DIRECTORIES = ("/run/cachedind/dev", "/dev/.cachedind")
BLOCK_SIZE = 4096
"""Of the devices: direct I/O then works above disks with sectors of 4096 bytes, too."""

_ATTEMPTS = 50
_MISSING = frozenset({errno.ENOENT, errno.ENXIO, errno.ENODEV})
_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})
_HINT = "run the container with --privileged; modprobe loop on the host"


class LoopDevice(NamedTuple):
    """An open loop device. It is detached with its last user, so `fd` has to stay open until it is mounted.

    `shared` tells that somebody else had attached the file before.
    """

    fd: int
    path: str
    shared: bool


def attach(file_fd: int, name: str) -> LoopDevice:
    """The loop device of an open file: the one that there is, or a new one.

    The callers must exclude each other, or the file may get two. `name` is what losetup(8) shows. Raises
    ImageImpossibleError where there can be none. Needs CAP_SYS_ADMIN, and CAP_MKNOD for missing nodes.
    """
    control_fd = None
    try:
        for _ in range(_ATTEMPTS):
            device = find(file_fd)
            if device is not None:
                return device
            if control_fd is None:
                control_fd, _ = _open_node("loop-control", stat.S_IFCHR, os.makedev(*linux.LOOP_CONTROL))
            device = _attach_new(f"loop{linux.free_loop_number(control_fd)}", file_fd, name)
            if device is not None:
                return device
    except OSError as error:
        raise _impossible(error) from error
    finally:
        if control_fd is not None:
            os.close(control_fd)
    raise ImageImpossibleError("other processes took each free loop device first", "start it again")


def find(file_fd: int) -> LoopDevice | None:
    """The device that an open file is attached to, or None. It is found by the inode: paths differ by namespace."""
    file = os.fstat(file_fd)
    for name in os.listdir("/sys/block"):
        # The directory is there only while a file is attached.
        if not name.startswith("loop") or not os.path.isdir(f"/sys/block/{name}/loop"):
            continue
        try:
            fd, path = _open_device(name)
        except OSError as error:
            # It was detached meanwhile; or it is one that this container may not see, but others may.
            if error.errno in _MISSING:
                continue
            raise
        # Asked only now: while it is open, it is not detached.
        found = linux.loop_status(fd)
        if found is not None and (found.device, found.inode) == (file.st_dev, file.st_ino):
            return LoopDevice(fd, path, shared=True)
        os.close(fd)
    return None


def _attach_new(name: str, file_fd: int, label: str) -> LoopDevice | None:
    fd, path = _open_device(name)
    flags = linux.LO_FLAGS_AUTOCLEAR | linux.LO_FLAGS_DIRECT_IO
    try:
        try:
            linux.attach_loop(fd, file_fd, label, flags=flags, block_size=BLOCK_SIZE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A filesystem without direct I/O.
            linux.attach_loop(fd, file_fd, label, flags=linux.LO_FLAGS_AUTOCLEAR, block_size=BLOCK_SIZE)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY:
            return None
        raise
    return LoopDevice(fd, path, shared=False)


def _open_device(name: str) -> tuple[int, str]:
    # Not always 7:N: with loop.max_part each device has several minor numbers.
    with open(f"/sys/block/{name}/dev", encoding="ascii") as file:
        major, minor = map(int, file.read().split(":"))
    return _open_node(name, stat.S_IFBLK, os.makedev(major, minor))


def _open_node(name: str, kind: int, device: int) -> tuple[int, str]:
    """Open a device, with a node of our own where /dev has none (or another one). Returns its path, too."""
    path = f"/dev/{name}"
    if not _is_node(path, kind, device):
        path = _make_node(name, kind, device)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC), path


def _is_node(path: str, kind: int, device: int) -> bool:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_IFMT(status.st_mode) == kind and status.st_rdev == device


def _make_node(name: str, kind: int, device: int) -> str:
    failure = OSError(errno.EACCES, "mounted with nodev", NODE_DIRECTORIES[-1])
    for directory in NODE_DIRECTORIES:
        path = f"{directory}/{name}"
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            if not _is_node(path, kind, device):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                os.mknod(path, 0o600 | kind, device)
        except OSError as error:
            failure = error
            continue
        if not os.statvfs(directory).f_flag & os.ST_NODEV:
            return path
    raise failure


def _impossible(error: OSError) -> ImageImpossibleError:
    if error.errno in _FORBIDDEN:
        return ImageImpossibleError(f"this container may not use loop devices ({error.strerror})", _HINT)
    if error.errno in _MISSING:
        return ImageImpossibleError(f"the kernel has no loop devices ({error.strerror})", "modprobe loop on the host")
    if error.errno in (errno.EINVAL, errno.ENOTTY):
        return ImageImpossibleError(
            f"this kernel or filesystem cannot attach a file to a loop device ({error.strerror})",
            "use Linux 5.8 or later, and a pool on ext4, xfs or btrfs",
        )
    return ImageImpossibleError(f"no loop device is available ({error.strerror})", _HINT)
