"""The file of a unix socket: made under a name of its own, and shown under its real one when it may be.

Containers share the directories of sockets, and a start that is refused must not have cut off the daemon that answers
there. So a socket is bound in a directory of its own beside the real name, and its file is renamed: at once where
nobody answers at the real name, else when this start holds the lease. What is done with one name is done under a lock
on its directory.

The kernel remembers the path that bind(2) was given, and dockerd logs it ("API listen on /var/run/docker.sock"), for
which people's scripts wait. That is why a socket is bound with the other directory for a root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from cachedind.base.typed import TYPE_CHECKING
from cachedind.host.flock import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKLOG = 4096


class SocketFile:
    """A unix socket that listens. All raise OSError."""

    def __init__(self, path: str, gid: int, mode: int) -> None:
        """Bind it, for root and a group, and publish it unless somebody answers at `path`, or a directory is there."""
        self.path = path
        self.is_published = False
        self._directory, self._name = os.path.split(path)
        self._stage = f"{self._directory}/.{self._name}.{os.urandom(4).hex()}"
        os.makedirs(self._directory, exist_ok=True)
        with locked(self._directory) as is_alone:
            if is_alone:
                _tidy(self._directory, self._name)
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._file = _bind(self.listener, self._stage, path)
                os.chown(self._file, 0, gid)
                os.chmod(self._file, mode)
                self.listener.listen(BACKLOG)
                self._status = os.lstat(self._file)
                if not is_answered(path):
                    self._publish()
            except BaseException:
                self.listener.close()
                self._clear_stage()
                raise

    def publish(self) -> bool:
        """Show it under its real name, whatever is there. Whether that has taken the name from somebody who answers."""
        if self.is_published:
            return False
        with locked(self._directory):
            taken = is_answered(self.path)
            self._publish()
        return taken

    def withdraw(self) -> None:
        """Take the file away, unless it is another one's by now."""
        self.listener.close()
        with locked(self._directory), contextlib.suppress(OSError):
            if self.is_published and os.path.samestat(os.lstat(self.path), self._status):
                os.unlink(self.path)
        self._clear_stage()

    def _publish(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(self.path).st_mode):
                raise IsADirectoryError(errno.EISDIR, "a directory is in its place", self.path)
        os.rename(self._file, self.path)
        self.is_published = True
        self._clear_stage()

    def _clear_stage(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(_inside(self._stage, self.path))
        directory = os.path.dirname(_inside(self._stage, self.path))
        while directory.startswith(self._stage):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
            directory = os.path.dirname(directory)


def is_answered(path: str) -> bool:
    """Whether somebody listens on the socket there. A process that is gone, a file and nothing at all refuse."""
    directory, name = os.path.split(path)
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(f"/proc/self/fd/{fd}/{name}")  # a path of more than 108 bytes would be none
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


def _inside(stage: str, path: str) -> str:
    return f"{stage}{path}"


def _bind(listener: socket.socket, stage: str, path: str) -> str:
    """Bind a socket to `path` below `stage`, which nobody but root can enter; returns where its file is."""
    file = _inside(stage, path)
    os.mkdir(stage, 0o700)
    os.makedirs(os.path.dirname(file), mode=0o700)
    with _rooted(stage) as is_rooted:
        listener.bind(path if is_rooted else file)
    return file


@contextlib.contextmanager
def _rooted(directory: str) -> Iterator[bool]:
    """With `directory` for a root, for this process's single thread. False without CAP_SYS_CHROOT."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    root_fd, here_fd = os.open("/", flags), os.open(".", flags)
    try:
        try:
            os.chroot(directory)
        except PermissionError:  # then there is no start either, which another step says better
            yield False
            return
        try:
            yield True
        finally:
            os.fchdir(root_fd)
            os.chroot(".")
            os.fchdir(here_fd)
    finally:
        os.close(root_fd)
        os.close(here_fd)


def _tidy(directory: str, name: str) -> None:
    """Remove what killed starts have left. Needs the directory's lock, under which a living start makes its socket."""
    for entry in os.listdir(directory):
        stage = f"{directory}/{entry}"
        if entry.startswith(f".{name}.") and os.path.isdir(stage) and not os.path.islink(stage):
            # Another container may know this directory by another path, so the socket may lie anywhere below.
            found = [f"{parent}/{file}" for parent, _, files in os.walk(stage) for file in files]
            if not any(is_answered(file) for file in found):
                import shutil  # only here: most directories have nothing of that

                shutil.rmtree(stage, ignore_errors=True)
