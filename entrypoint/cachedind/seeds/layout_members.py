"""The files of a directory that is an OCI layout, opened without following a symbolic link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.seeds.contents import File, read_slice
from cachedind.seeds.members import clean_path
from cachedind.seeds.model import SeedError
from cachedind.seeds.quoting import shown
from cachedind.seeds.seed_file import pread, unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.seeds.members import Blob


class _LayoutFile(NamedTuple):
    """A file below a directory, open only while it is read."""

    directory: File
    path: str
    size_bytes: int

    def chunks(self) -> Iterator[bytes]:
        with contextlib.closing(self._open()) as file:
            yield from read_slice(file, 0, self.size_bytes)

    def head(self, count: int) -> bytes:
        with contextlib.closing(self._open()) as file:
            return pread(file.fd, count, 0)

    def _open(self) -> File:
        fd = _open_below(self.directory.fd, self.path)
        if fd is None:
            raise unreadable(FileNotFoundError(errno.ENOENT, ""))
        return File(fd)


class LayoutMembers:
    """The files below a directory, without following a symbolic link."""

    def __init__(self, path: str) -> None:
        try:
            self._directory = File(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except NotADirectoryError:
            raise SeedError("it is not a directory") from None
        except OSError as error:
            raise unreadable(error) from None

    def find(self, name: str) -> Blob | None:
        path = clean_path(name)
        fd = _open_below(self._directory.fd, path)
        if fd is None:
            return None
        try:
            return _LayoutFile(self._directory, path, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def top_names(self) -> frozenset[str]:
        try:
            return frozenset(os.listdir(self._directory.fd))
        except OSError as error:
            raise unreadable(error) from None

    def close(self) -> None:
        self._directory.close()


def _open_below(directory_fd: int, path: str) -> int | None:
    """Open a regular file, or return None if there is none. Raises SeedError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    *parents, last = path.split("/")
    with contextlib.ExitStack() as stack:
        at = directory_fd
        try:
            for parent in parents:
                at = os.open(parent, flags | os.O_DIRECTORY, dir_fd=at)
                stack.callback(os.close, at)
            fd = os.open(last, flags, dir_fd=at)
        except (FileNotFoundError, ValueError):  # ValueError: no file has such a name
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise SeedError(
                    f"{shown(path)} lies behind a symbolic link, which is not followed, or a file"
                ) from None
            raise unreadable(error) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SeedError(f"{shown(path)} is not a regular file")
    return fd
