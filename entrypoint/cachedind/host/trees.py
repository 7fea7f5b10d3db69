"""Whole directories of which a job was root: walked, removed and measured.

No link is followed, no mount entered, and one descriptor is kept however deep a tree is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from types import MappingProxyType

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.host import linux, procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Sizes(NamedTuple):
    """What a tree takes. Files that have names elsewhere too are in `linked`, by device and inode, with their bytes,
    and in nothing else. What a copy shares by reflink counts as its own."""

    bytes: int
    files: int
    directories: int = 0
    linked: Mapping[tuple[int, int], int] = MappingProxyType({})


@contextlib.contextmanager
def opened(name: str, flags: int, directory_fd: int) -> Iterator[int]:
    fd = os.open(name, flags, 0o600, dir_fd=directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)


class _Place:
    """Where a walk is: one open directory, and the way back up.

    Descending opens no mount point; subvolumes are part of the tree. Ascending makes sure that ".." is where the walk
    came from: somebody may move directories meanwhile.
    """

    def __init__(self, directory_fd: int) -> None:
        self.fd = os.dup(directory_fd)
        self.names: list[str] = []
        self._above: list[os.stat_result] = []
        self._mount = procfs.read_mount_id(self.fd)

    def open(self, name: str) -> int:
        """Raises OSError: EXDEV for a mount point, ENOTDIR or ELOOP for what is no directory."""
        fd = os.open(name, DIRECTORY, dir_fd=self.fd)
        if procfs.read_mount_id(fd) != self._mount:
            os.close(fd)
            raise OSError(errno.EXDEV, "something is mounted there", name)
        return fd

    def enter(self, name: str, fd: int) -> None:
        """Go into the directory `name`, open as `fd`, which is this object's from now on."""
        self._above.append(os.fstat(self.fd))
        self.names.append(name)
        os.close(self.fd)
        self.fd = fd

    def leave(self) -> str:
        """Go up, and return the name of the directory that was left."""
        above = os.open("..", DIRECTORY, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = above
        if not os.path.samestat(os.fstat(above), self._above.pop()):
            raise OSError(errno.ESTALE, "was moved while it was walked through", "/".join(self.names))
        return self.names.pop()

    def close(self) -> None:
        os.close(self.fd)


def remove(parent_fd: int, name: str, *, budget: float | None = None) -> None:
    """Remove whatever has that name, with everything below it. Nothing of that name is fine.

    Subvolumes below it go as well, also read-only ones, and what was made immutable. What is mounted somewhere below
    is left alone; so is, then, what leads there. (A subvolume goes at once, and the kernel detaches what is mounted in
    it.) Nothing mounted loses any content.

    `budget` is the time it may take in seconds; TimeoutError when that is over, and what is left keeps its name for
    another call. Raises OSError, the first one, when everything that can be removed is. Needs root.
    """
    deadline = None if budget is None else time.monotonic() + budget
    removal = _Removal(parent_fd, deadline)
    try:
        removal.run(name)
    finally:
        removal.place.close()
    if removal.error is not None:
        raise removal.error


class _Removal:
    def __init__(self, parent_fd: int, deadline: float | None) -> None:
        self.place = _Place(parent_fd)
        self.error: OSError | None = None
        self._deadline = deadline

    def run(self, name: str) -> None:
        """Depth first, with a list instead of recursion: a job may nest deeper than Python does."""
        levels = [[name]]
        while levels:
            if levels[-1]:
                below = self._start(levels[-1].pop())
                if below is not None:
                    levels.append(below)
            else:
                levels.pop()
                if levels:
                    self._try(os.rmdir, self.place.leave())

    def _start(self, name: str) -> list[str] | None:
        """Remove what can be removed at once. In the end in a directory, with the names of those below it."""
        self._check_time()
        try:
            fd = self.place.open(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                self._try(os.unlink, name)
            else:
                self._note(error, name)
            return None
        if linux.is_subvolume(os.fstat(fd)) and self._is_destroyed(name, fd):
            os.close(fd)
            return None
        self.place.enter(name, fd)
        return self._empty()

    def _is_destroyed(self, name: str, fd: int) -> bool:
        with contextlib.suppress(OSError):
            linux.destroy_subvolume(self.place.fd, name)
            return True
        # Others are nested in it; or it is none, on a filesystem that has the number for an ordinary directory.
        with contextlib.suppress(OSError):
            linux.make_subvolume_writable(fd)
        return False

    def _empty(self) -> list[str]:
        directories = []
        with os.scandir(self.place.fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                else:
                    self._try(os.unlink, entry.name)
                    self._check_time()
        return directories

    def _try(self, function: Callable[..., None], name: str) -> None:
        try:
            try:
                function(name, dir_fd=self.place.fd)
            except PermissionError:
                self._allow_changes(name)
                function(name, dir_fd=self.place.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._note(error, name)

    def _allow_changes(self, name: str) -> None:
        """chattr -ia for the directory and what is in it under that name, as far as possible."""
        with contextlib.suppress(OSError):
            linux.allow_changes(self.place.fd)
        with contextlib.suppress(OSError):
            mode = os.stat(name, dir_fd=self.place.fd, follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                with opened(name, _FILE, self.place.fd) as fd:
                    linux.allow_changes(fd)

    def _note(self, error: OSError, name: str) -> None:
        if self.error is None:
            self.error = OSError(error.errno, error.strerror, "/".join([*self.place.names, name]))

    def _check_time(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise TimeoutError(
                errno.ETIMEDOUT, "there is more to remove than fits the time", "/".join(self.place.names)
            )


def wait_until_freed(directory_fd: int, timeout_s: float) -> bool:
    """Wait until the space of what was removed is free, which btrfs and xfs see to in the background.

    False when it takes longer than `timeout_s` seconds, or cannot be told. Raises OSError.
    """
    try:
        linux.sync_btrfs(directory_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
            raise
        with contextlib.suppress(OSError):
            linux.finish_xfs_removals(directory_fd)
        linux.syncfs(directory_fd)
        return True
    deadline = time.monotonic() + timeout_s
    try:
        while linux.has_deleted_subvolumes(directory_fd):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
    except PermissionError:
        return False
    # Only a commit makes the blocks of the last one usable.
    linux.syncfs(directory_fd)
    return True


def measure(directory_fd: int) -> Sizes:
    """How much a tree takes, without what is mounted in it. Its directories themselves do not count. What is removed
    meanwhile is left out.

    Raises OSError. Needs root.
    """
    measuring = _Measuring(directory_fd)
    try:
        return measuring.run()
    finally:
        measuring.place.close()


class _Measuring:
    def __init__(self, directory_fd: int) -> None:
        self.place = _Place(directory_fd)
        self._sizes = Sizes(0, 0)
        self._links: dict[tuple[int, int], tuple[int, int]] = {}
        """Of files with several names: how many are not met yet, and their bytes."""

    def run(self) -> Sizes:
        levels = [self._measure_files()]
        while levels:
            if not levels[-1]:
                levels.pop()
                if levels:
                    self.place.leave()
                continue
            name = levels[-1].pop()
            try:
                fd = self.place.open(name)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                continue
            self.place.enter(name, fd)
            self._sizes = self._sizes._replace(directories=self._sizes.directories + 1)
            levels.append(self._measure_files())
        own = [size for missing, size in self._links.values() if not missing]
        linked = {key: size for key, (missing, size) in self._links.items() if missing}
        return self._sizes._replace(
            bytes=self._sizes.bytes + sum(own), files=self._sizes.files + len(own), linked=linked
        )

    def _measure_files(self) -> list[str]:
        """Add up the files of this directory; returns the names of the directories in it."""
        directories = []
        with os.scandir(self.place.fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    self._measure_file(entry.stat(follow_symlinks=False))
        return directories

    def _measure_file(self, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            key = (status.st_dev, status.st_ino)
            missing, _ = self._links.get(key, (status.st_nlink, 0))
            self._links[key] = (missing - 1, status.st_blocks * 512)
            return
        before = self._sizes
        self._sizes = before._replace(bytes=before.bytes + status.st_blocks * 512, files=before.files + 1)
