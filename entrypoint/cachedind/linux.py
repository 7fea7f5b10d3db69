"""The door to the kernel: system calls that Python has no function for. No policy here.

Every wrapper raises OSError with the errno and the path it was about.
"""

from __future__ import annotations

import ctypes
import os
import struct

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20

MNT_DETACH = 2

CLONE_NEWNS = 0x00020000

CAP_SYS_ADMIN = 21

DT_UNKNOWN = 0
DT_CHR = 2

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
