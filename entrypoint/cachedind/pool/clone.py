"""Copy-on-write of whole directories.

Which way works is found by trying, never read off a filesystem's name: xfs may be made without reflink, btrfs mounted
for a user who may not delete subvolumes.
"""

from __future__ import annotations

import contextlib
import errno
import os
from enum import StrEnum
from typing import TYPE_CHECKING

from cachedind.host import linux, processes, trees

if TYPE_CHECKING:
    pass

_DATA_MODE = 0o710  # what dockerd gives its data-root
_PROBE = ".cachedind-probe-"
_CP_TIMEOUT_S = 3600.0
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_BAD_DISK = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO})


class CloneMethod(StrEnum):
    """How a directory is copied without copying its data, best first."""

    SUBVOLUME = "subvolume"
    REFLINK = "reflink"
    NONE = "none"


# ---- which way ---------------------------------------------------------------------------------------------------


def probe_method(directory_fd: int) -> CloneMethod:
    """The best way that really works in a directory. Leaves nothing behind.

    Raises OSError when that cannot be told, because the filesystem is full, read-only or failing.
    """
    for method, trial in ((CloneMethod.SUBVOLUME, _try_subvolume), (CloneMethod.REFLINK, _try_reflink)):
        try:
            trial(directory_fd, _PROBE + os.urandom(6).hex())
        except OSError as error:
            if error.errno in _BAD_DISK:
                raise
            continue
        return method
    return CloneMethod.NONE


def _try_subvolume(directory_fd: int, name: str) -> None:
    linux.create_subvolume(directory_fd, name)
    try:
        with trees.opened(name, trees.DIRECTORY, directory_fd) as fd:
            # Below itself, so that there is one name to clean up.
            linux.snapshot_subvolume(fd, fd, "snapshot", read_only=False)
            linux.destroy_subvolume(fd, "snapshot")
        linux.destroy_subvolume(directory_fd, name)
    finally:
        trees.remove(directory_fd, name)


def _try_reflink(directory_fd: int, name: str) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    names = (name, f"{name}-clone")
    try:
        with (
            trees.opened(names[0], flags, directory_fd) as source,
            trees.opened(names[1], flags, directory_fd) as target,
        ):
            os.write(source, bytes(4096))
            linux.clone_range(source, target)
    finally:
        for each in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each, dir_fd=directory_fd)


# ---- making --------------------------------------------------------------------------------------------------------


def make_directory(method: CloneMethod, parent_fd: int, name: str) -> None:
    """A new empty data directory that `clone_directory` can clone later. Raises OSError."""
    if method is CloneMethod.SUBVOLUME:
        linux.create_subvolume(parent_fd, name)
    else:
        os.mkdir(name, dir_fd=parent_fd)
    os.chmod(name, _DATA_MODE, dir_fd=parent_fd)


def clone_directory(method: CloneMethod, source_fd: int, parent_fd: int, name: str, *, read_only: bool = False) -> None:
    """A copy of a directory as `name`, with all metadata, whose data takes no space until one of the two changes it.

    The source is the directory that is open as `source_fd`, whatever it is called meanwhile. With SUBVOLUME it has to
    be the root of one, and `read_only` is kept by the kernel; with REFLINK it is only a promise of the callers. The
    program that copies has `parent_fd` too, and so holds a flock on it even when this process is killed.

    Raises OSError (ENOSPC, EDQUOT, EROFS, EIO: the disk's own troubles; EINVAL: the source is no subvolume),
    ProgramMissingError. An unfinished copy is left for the caller to remove. Needs root.
    """
    if method is CloneMethod.SUBVOLUME:
        linux.snapshot_subvolume(source_fd, parent_fd, name, read_only=read_only)
    elif method is CloneMethod.REFLINK:
        _copy(source_fd, parent_fd, name)
    else:
        raise OSError(errno.EOPNOTSUPP, "this filesystem has no copy-on-write", name)


def _copy(source_fd: int, parent_fd: int, name: str) -> None:
    # --preserve=xattr on top of -a makes an attribute that cannot be copied an error. --reflink=auto and not =always:
    # one file with chattr +C, which a job may leave, would forbid the clone for good. A full disk is an error with both
    # ways.
    options = ["--archive", "--preserve=xattr", "--reflink=auto", "--no-target-directory"]
    argv = ["cp", *options, "--", f"/proc/self/fd/{source_fd}/.", f"/proc/self/fd/{parent_fd}/{name}"]
    done = processes.run(argv, env=_ENVIRONMENT, pass_fds=(source_fd, parent_fd), timeout_s=_CP_TIMEOUT_S)
    if not done.ok:
        line = next(iter(done.stderr.splitlines()), f"cp ended with {done.status}")
        numbers = (number for number in sorted(_BAD_DISK) if os.strerror(number) in done.stderr)
        raise OSError(next(numbers, errno.EIO), line, name)


# ---- walking -------------------------------------------------------------------------------------------------------


# ---- removing ------------------------------------------------------------------------------------------------------


# ---- measuring -----------------------------------------------------------------------------------------------------
