"""The door to the kernel: system calls that Python has no function for. No policy here.

Every wrapper raises OSError with the errno and the path it was about.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

MS_RDONLY = 1
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20

MNT_DETACH = 2

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000

CAP_SYS_ADMIN = 21

DT_UNKNOWN = 0
DT_CHR = 2


_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_SIOCBRADDBR = 0x89A0
_NS_GET_MNTNS_ID = 0x8008B705
_FICLONE = 0x40049409
_BTRFS_SNAP_DESTROY = 0x5000940F
_BTRFS_SYNC = 0x9408
_BTRFS_TREE_SEARCH = 0xD0009411
_BTRFS_ROOT_TREE = 1
_BTRFS_ORPHANS = (1 << 64) - 5
_BTRFS_ORPHAN_ITEM = 48
_BTRFS_SUBVOL_RDONLY = 2
_BTRFS_SUBVOL_GETFLAGS = 0x80089419
_BTRFS_SUBVOL_SETFLAGS = 0x4008941A
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_IMMUTABLE_OR_APPEND = 0x10 | 0x20
_XFS_IOC_FREE_EOFBLOCKS = 0x8080583A
_XFS_EOFBLOCKS_VERSION = 1

_IN_CLOSE_NOWRITE = 0x10

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
"""The same on every architecture, as all that are younger than Linux 5.1."""

_SYS_PIDFD_GETFD = 438

_SYS_GETDENTS64 = {"x86_64": 217, "aarch64": 61, "riscv64": 61, "ppc64le": 202, "s390x": 220, "armv7l": 217}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Needs CAP_SYS_ADMIN."""
    _check(
        _libc().mount(source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(flags), data.encode()), target
    )


def umount(target: str, flags: int = 0) -> None:
    """umount2(2). Needs CAP_SYS_ADMIN."""
    _check(_libc().umount2(target.encode(), flags), target)


def clone_mount(path: str) -> int:
    """open_tree(2): a copy of the mount at `path` and of those below, which has no place yet. Needs CAP_SYS_ADMIN and
    Linux 5.2."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return _check(_libc().syscall(_SYS_OPEN_TREE, _AT_FDCWD, path.encode(), flags), path)


def move_mount(fd: int, target: str) -> None:
    """move_mount(2): give what `clone_mount` made its place, in the mount namespace of now. Needs CAP_SYS_ADMIN."""
    _check(_libc().syscall(_SYS_MOVE_MOUNT, fd, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH), target)


def take_descriptor(pid: int, number: int) -> int:
    """pidfd_getfd(2): another process's open file, as a descriptor of this one. Needs CAP_SYS_PTRACE and Linux 5.6."""
    process_fd = os.pidfd_open(pid)
    try:
        return _check(_libc().syscall(_SYS_PIDFD_GETFD, process_fd, number, 0), f"/proc/{pid}/fd/{number}")
    finally:
        os.close(process_fd)


def unshare(flags: int) -> None:
    """unshare(2). CLONE_NEWNS needs CAP_SYS_ADMIN."""
    _check(_libc().unshare(flags), "unshare")


def directory_entry_types(path: str) -> dict[str, int]:
    """The d_type of each entry, as getdents64(2) gives it: DT_UNKNOWN where the filesystem does not tell.

    os.scandir hides that case behind an extra lstat.
    """
    number = _SYS_GETDENTS64[os.uname().machine]
    libc = _libc()
    buffer = ctypes.create_string_buffer(32768)
    found: dict[str, int] = {}
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while (size := _check(libc.syscall(number, fd, buffer, len(buffer)), path)) > 0:
            found.update(_parse_dirents(buffer.raw[:size]))
    finally:
        os.close(fd)
    return found


def _parse_dirents(raw: bytes) -> dict[str, int]:
    # struct linux_dirent64 { u64 d_ino; s64 d_off; u16 d_reclen; u8 d_type; char d_name[]; }
    found: dict[str, int] = {}
    offset = 0
    while offset < len(raw):
        length, kind = struct.unpack_from("=HB", raw, offset + 16)
        name = raw[offset + 19 : offset + length].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        if name not in (".", ".."):
            found[name] = kind
        offset += length
    return found


def _ioctl(fd: int, request: int, argument: bytes) -> None:
    # A mutable buffer is passed as it is; an immutable one is copied, and refused above 1024 bytes.
    fcntl.ioctl(fd, request, bytearray(argument))


# ---- locks and names --------------------------------------------------------------------------------------------


def allow_changes(fd: int) -> None:
    """FS_IOC_SETFLAGS: take the attributes immutable and append-only away (chattr -ia). Needs CAP_LINUX_IMMUTABLE."""
    buffer = bytearray(8)
    fcntl.ioctl(fd, _FS_IOC_GETFLAGS, buffer)
    flags = struct.unpack_from("=I", buffer)[0]
    if flags & _FS_IMMUTABLE_OR_APPEND:
        _ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=II", flags & ~_FS_IMMUTABLE_OR_APPEND, 0))


def exchange(directory_fd: int, one: str, other: str) -> None:
    """Two things of a directory take each other's names, in one step for everybody who looks (renameat2(2)). Raises
    OSError (EINVAL, where the filesystem cannot)."""
    result = _libc().renameat2(directory_fd, one.encode(), directory_fd, other.encode(), _RENAME_EXCHANGE)
    _check(result, one)


def has_reflinks(directory_fd: int) -> bool:
    """Whether a file there can be cloned by its extents (FICLONE, linux/fs.h): tried with two files that have no name.
    False where that cannot be tried."""
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    fds: list[int] = []
    try:
        fds += [os.open(".", flags, 0o600, dir_fd=directory_fd) for _ in range(2)]
        fcntl.ioctl(fds[1], _FICLONE, fds[0])
    except OSError:
        return False
    else:
        return True
    finally:
        for fd in fds:
            os.close(fd)


def watch_reads(directory: str) -> int:
    """A descriptor of inotify(7), which does not block, for files of a directory that were open to be read and are
    closed."""
    fd = _check(_libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
    try:
        _check(_libc().inotify_add_watch(fd, directory.encode(), _IN_CLOSE_NOWRITE), directory)
    except OSError:
        os.close(fd)
        raise
    return fd


def syncfs(fd: int) -> None:
    """syncfs(2): everything that was written to the filesystem of `fd` is on its disk."""
    _check(_libc().syncfs(fd), "syncfs")


# ---- namespaces and processes -------------------------------------------------------------------------------------


def setns(fd: int, kind: int) -> None:
    """setns(2). A mount namespace needs CAP_SYS_ADMIN."""
    _check(_libc().setns(fd, kind), "setns")


def mount_namespace_id(fd: int) -> int:
    """NS_GET_MNTNS_ID (linux/nsfs.h, Linux 6.10) of an open /proc/PID/ns/mnt; 0 where the kernel has no such number."""
    buffer = bytearray(8)
    try:
        fcntl.ioctl(fd, _NS_GET_MNTNS_ID, buffer)
    except OSError:
        return 0
    return int.from_bytes(buffer, sys.byteorder)


def add_bridge(name: str) -> None:
    """SIOCBRADDBR: a bridge in this process's network namespace. Raises OSError (EEXIST, EINVAL: no name for one)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as control:
        _ioctl(control.fileno(), _SIOCBRADDBR, name.encode("ascii").ljust(16, b"\0"))


def die_with_parent() -> None:
    """prctl(2) PR_SET_PDEATHSIG: SIGKILL as soon as the parent is gone. It survives no fork."""
    _check(_libc().prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL), 0, 0, 0), "prctl")


def set_idle_io() -> None:
    """ioprio_set(2): this process's disk requests wait for everybody else's (IOPRIO_CLASS_IDLE)."""
    number = {"x86_64": 251}.get(os.uname().machine, 30)
    _check(_libc().syscall(number, 1, 0, 3 << 13), "ioprio_set")


# ---- deleting (linux/btrfs.h, linux/fs.h) ----------------------------------------------------------------------------


def destroy_subvolume(parent_fd: int, name: str) -> None:
    """BTRFS_IOC_SNAP_DESTROY: the name goes at once, the space in the background. A subvolume with nested ones:
    ENOTEMPTY. Needs CAP_SYS_ADMIN.
    """
    _ioctl(parent_fd, _BTRFS_SNAP_DESTROY, struct.pack("=q4088s", 0, os.fsencode(name)))


def is_subvolume(status: os.stat_result) -> bool:
    """Whether a directory on btrfs is the root of a subvolume, which always has this inode number."""
    return status.st_ino == 256


def make_subvolume_writable(fd: int) -> None:
    """BTRFS_IOC_SUBVOL_SETFLAGS: a read-only snapshot becomes an ordinary one. ENOTTY where it is no btrfs."""
    buffer = bytearray(8)
    fcntl.ioctl(fd, _BTRFS_SUBVOL_GETFLAGS, buffer)
    flags = struct.unpack("=Q", buffer)[0]
    if flags & _BTRFS_SUBVOL_RDONLY:
        _ioctl(fd, _BTRFS_SUBVOL_SETFLAGS, struct.pack("=Q", flags & ~_BTRFS_SUBVOL_RDONLY))


def sync_btrfs(fd: int) -> None:
    """BTRFS_IOC_SYNC: syncfs(2), and what was deleted is freed from now on. ENOTTY where it is no btrfs."""
    fcntl.ioctl(fd, _BTRFS_SYNC)


def has_deleted_subvolumes(fd: int) -> bool:
    """BTRFS_IOC_TREE_SEARCH: whether deleted subvolumes of a btrfs still take space. Needs CAP_SYS_ADMIN."""
    most = (1 << 64) - 1
    kind = _BTRFS_ORPHAN_ITEM
    key = (_BTRFS_ROOT_TREE, _BTRFS_ORPHANS, _BTRFS_ORPHANS, 0, most, 0, most, kind, kind, 1, 0, 0, 0, 0, 0)
    buffer = bytearray(struct.pack("=7Q4I4Q", *key).ljust(4096, b"\0"))
    fcntl.ioctl(fd, _BTRFS_TREE_SEARCH, buffer)
    return bool(struct.unpack_from("=I", buffer, 64)[0])


def finish_xfs_removals(fd: int) -> None:
    """XFS_IOC_FREE_EOFBLOCKS: what was removed is freed now, not some time later in the background (xfs_inodegc). Needs
    CAP_SYS_ADMIN. Raises OSError: ENOTTY where the filesystem is no xfs.
    """
    fcntl.ioctl(fd, _XFS_IOC_FREE_EOFBLOCKS, struct.pack("=I", _XFS_EOFBLOCKS_VERSION).ljust(128, b"\0"))
