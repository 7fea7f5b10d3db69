"""State files: small JSON objects, written whole or not at all, read with doubt.

The format is versioned: `version` says who wrote it, `min_reader` who may read it. Keys that this version does not
know are kept when the file is written again. The data-root's previous job was root there, so what is read is data
to be checked, never a path to follow.
"""

from __future__ import annotations

import contextlib
import json
import os

VERSION = 1
_MAX_BYTES = 1 << 20


def read_state(directory_fd: int, name: str) -> dict[str, object] | None:
    """The object in a state file, or None when there is none.

    Raises ValueError (a line that says what is wrong) when it cannot be understood, OSError when it cannot be read.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        raw = file.read(_MAX_BYTES)
    return parse_state(raw)


def parse_state(raw: bytes) -> dict[str, object]:
    """Raises ValueError for anything but a JSON object that this version may read."""
    try:
        value = json.loads(raw)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    minimum = value.get("min_reader")
    if not isinstance(minimum, int) or isinstance(minimum, bool):
        raise ValueError("min_reader is missing")
    if minimum > VERSION:
        raise ValueError(f"written for readers of version {minimum} or later, this is version {VERSION}")
    return value


def write_state(directory_fd: int, name: str, values: dict[str, object], before: dict[str, object] | None) -> None:
    """Replace a state file: temporary file, fsync, rename, fsync of the directory. Raises OSError."""
    content = {**(before or {}), "version": VERSION, "min_reader": VERSION, **values}
    temporary = f"{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory_fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory_fd), "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    os.fsync(directory_fd)


def set_aside(directory_fd: int, name: str) -> str:
    """Move a state file that cannot be used out of the way and return its new name. Raises OSError."""
    aside = f"{name}.unreadable"
    os.rename(name, aside, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    return aside
