"""A scope's directory in a key: where the goldens of one job of a project are.

    scopes/<scope>/golden, golden.previous          {golden.json, layers.list, data/}
    scopes/<scope>/golden.other/<class>             those of other engines, stores and drivers
    scopes/<scope>/golden.lock, emptied             see golden.py, changes.py

A job without a scope has the scope "", whose directory is `%`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from cachedind.base.typed import TYPE_CHECKING
from cachedind.pool import directory
from cachedind.pool.keys import directory_name, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SCOPES = "scopes"
GOLDEN = "golden"
PREVIOUS = "golden.previous"
OTHER = "golden.other"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def golden_name(scope: str, name: str = GOLDEN) -> str:
    """A golden's path below its key. Pure."""
    return f"{SCOPES}/{directory_name(scope)}/{name}"


def is_named(path: str, name: str) -> bool:
    """Whether a path below a key is that of a golden with this name. Pure."""
    return path.startswith(f"{SCOPES}/") and path.rpartition("/")[2] == name and path.count("/") == 2


def describe(path: str) -> str:
    """What a path below a key is called for people: "golden", "golden of scope build", or the path. Pure."""
    if not path.startswith(f"{SCOPES}/") or path.count("/") < 2:
        return path
    _, scope_name, name = path.split("/", 2)
    scope = key_of(scope_name)
    return name if scope == "" else f"{name} of scope {scope_name if scope is None else scope}"


@contextlib.contextmanager
def opened(key_fd: int, scope: str) -> Iterator[int]:
    """The directory of a scope, which is made where it is missing. Needs the key's lock. Raises OSError."""
    fd = os.dup(key_fd)
    try:
        for part in (SCOPES, directory_name(scope)):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=fd)
            above_fd, fd = fd, os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(above_fd)
        yield fd
    finally:
        os.close(fd)


def each(key_fd: int) -> Iterator[tuple[str, int | None]]:
    """All scopes of a key: the path of each below the key, and its descriptor for as long as it is looked at; None for
    what is no directory. Raises OSError."""
    parent_fd = directory.open_directory(key_fd, SCOPES)
    if parent_fd is None:
        if exists(key_fd, SCOPES):
            yield SCOPES, None
        return
    try:
        for name in sorted(directory.names_in(parent_fd)):
            fd = directory.open_directory(parent_fd, name)
            try:
                if fd is not None or exists(parent_fd, name):
                    yield f"{SCOPES}/{name}", fd
            finally:
                if fd is not None:
                    os.close(fd)
    finally:
        os.close(parent_fd)


def owners_in(scope_fd: int) -> Iterator[tuple[str, int, str]]:
    """What is in a scope that may be a golden: its path below the scope, and where it is. Raises OSError."""
    for name in (GOLDEN, PREVIOUS):
        if exists(scope_fd, name):
            yield name, scope_fd, name
    other_fd = directory.open_directory(scope_fd, OTHER)
    if other_fd is None:
        if exists(scope_fd, OTHER):
            yield OTHER, scope_fd, OTHER
        return
    try:
        for name in directory.names_in(other_fd):
            yield f"{OTHER}/{name}", other_fd, name
    finally:
        os.close(other_fd)


def exists(directory_fd: int, name: str) -> bool:
    """Whether there is anything of this name. Raises OSError."""
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_in_the_way(parent_fd: int, name: str) -> bool:
    """Whether there is something that is no directory. Raises OSError."""
    try:
        return not stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


NOT_OURS = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})
"""What a system call says of a link, a directory or a device in the place of what cachedind made."""
