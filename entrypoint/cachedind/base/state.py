"""State files: small JSON objects, written whole or not at all, read with doubt.

The format is versioned: `version` says who wrote it, `min_reader` who may read it. Keys that this version does not
know are kept when the file is written again. The data-root's previous job was root there, so what is read is data
to be checked, never a path to follow.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat

VERSION = 1
_MAX_BYTES = 1 << 20


class TooNewError(ValueError):
    """A state file that a later version wrote, for later versions only."""


def read_state(directory_fd: int, name: str, *, version: int = VERSION) -> dict[str, object] | None:
    """The object in a state file, or None when there is none. `version` is the highest that the caller understands.

    Raises ValueError (a line that says what is wrong) when it cannot be understood, OSError when it cannot be read
    (ELOOP, EISDIR: a link or a directory is in its place).
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        # One call and no buffer object: a start reads the states of all slots of its key.
        raw = os.read(fd, min(status.st_size, _MAX_BYTES))
    finally:
        os.close(fd)
    return parse_state(raw, version)


def parse_state(raw: bytes, version: int = VERSION) -> dict[str, object]:
    """Raises ValueError for anything but a JSON object that this version may read."""
    value = parse_object(raw)
    minimum = value.get("min_reader")
    if not isinstance(minimum, int) or isinstance(minimum, bool):
        raise ValueError("min_reader is missing")
    if minimum > version:
        raise TooNewError(f"written for readers of version {minimum} or later, this is version {version}")
    return value


def parse_object(raw: bytes) -> dict[str, object]:
    """Raises ValueError for anything but a JSON object."""
    try:
        value = json.loads(raw)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def write_state(
    directory_fd: int, name: str, values: dict[str, object], before: dict[str, object] | None, *, durable: bool = True
) -> None:
    """Replace a state file: temporary file, fsync, rename, fsync of the directory. Raises OSError.

    Not `durable` leaves both fsyncs out: it is whole for everybody until the host crashes, and a boot_id tells of that.
    """
    content = {**(before or {}), "version": VERSION, "min_reader": VERSION, **values}
    temporary = f"{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory_fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory_fd), "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    if durable:
        os.fsync(directory_fd)


def set_aside(directory_fd: int, name: str) -> str:
    """Move a state file that cannot be used out of the way and return its new name. Raises OSError.

    What was set aside before gives way, unless one of the two is a directory.
    """
    aside = f"{name}.unreadable"
    try:
        os.rename(name, aside, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY):
            raise
        aside = f"{aside}-{os.urandom(4).hex()}"
        os.rename(name, aside, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    return aside
