"""Files below a directory that is open, on paths of which no part may be a link.

The last job was root in a data-root: what it planted there must lead nowhere. No link is followed, nothing waited for
(a pipe, say), and no file is read beyond a limit. The kernel's own RESOLVE_BENEATH (openat2(2)) would let links lead
around inside.
"""

from __future__ import annotations

import contextlib
import os
import stat

from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_path(root_fd: int, path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of what lies there. Raises OSError: ELOOP or ENOTDIR for a link on the way or at its end."""
    *directories, name = path.split("/")
    fd = root_fd
    try:
        for directory in directories:
            below = os.open(directory, os.O_PATH | _DIRECTORY, dir_fd=fd)
            if fd != root_fd:
                os.close(fd)
            fd = below
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    finally:
        if fd != root_fd:
            os.close(fd)


@contextlib.contextmanager
def directory(root_fd: int, path: str) -> Iterator[int]:
    """A directory that only leads further (O_PATH), for the length of a block. Raises OSError."""
    fd = open_path(root_fd, path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def made_directory(root_fd: int, path: str) -> Iterator[int]:
    """The same, made where it is missing, with what is above it. It is open for reading. Raises OSError."""
    with contextlib.ExitStack() as stack:
        fd = root_fd
        for name in path.split("/") if path else ():
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=fd)
            fd = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=fd)
            stack.callback(os.close, fd)
        yield fd


def open_file(root_fd: int, path: str) -> tuple[int, int]:
    """A descriptor of a regular file, and its size in bytes. Raises OSError, or ValueError for anything else."""
    fd = open_path(root_fd, path)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ValueError(f"{os.path.basename(path)} is not a regular file")
    return fd, status.st_size


def read(root_fd: int, path: str, limit_bytes: int) -> bytes:
    """The bytes of a regular file. Raises OSError, or ValueError for no such file or a larger one."""
    fd, size = open_file(root_fd, path)
    try:
        if size > limit_bytes:
            raise ValueError(f"{os.path.basename(path)} is too large: {size} bytes")
        return os.read(fd, size)
    finally:
        os.close(fd)


def look(root_fd: int, path: str) -> os.stat_result:
    """What lies there, be it a link. Raises OSError."""
    fd = open_path(root_fd, path, os.O_PATH)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def exists(root_fd: int, path: str) -> bool:
    """Raises OSError for what is in the way: a link or a file where a directory should be."""
    try:
        look(root_fd, path)
    except FileNotFoundError:
        return False
    return True


def leads_away(root_fd: int, path: str) -> bool:
    """Whether a directory on the way is a link: what lies behind it is another disk's, say, and not to be judged."""
    *above, _ = path.split("/")
    for number in range(1, len(above) + 1):
        with contextlib.suppress(OSError):
            if stat.S_ISLNK(look(root_fd, "/".join(above[:number])).st_mode):
                return True
    return False


def names(root_fd: int, path: str) -> list[str]:
    """The names in a directory, sorted; none where there is no such directory."""
    with contextlib.suppress(OSError):
        fd = open_path(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)
    return []


def special_files(root_fd: int, path: str, depth: int) -> Iterator[str]:
    """What is neither a file nor a directory, so many levels below a directory; nothing where there is no directory."""
    with contextlib.suppress(OSError):
        fd = open_path(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield from _special_files(fd, path, depth)
        finally:
            os.close(fd)


def _special_files(fd: int, path: str, depth: int) -> Iterator[str]:
    directories: list[str] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            elif not entry.is_file(follow_symlinks=False):
                yield f"{path}/{entry.name}"
    for name in directories if depth > 1 else ():
        with contextlib.suppress(OSError):
            below = os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=fd)
            try:
                yield from _special_files(below, f"{path}/{name}", depth - 1)
            finally:
                os.close(below)
