"""The list of the layers that an owner may link to: beside its data, where no job reaches it."""

from __future__ import annotations

import errno
import os
import re

from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import beneath
from cachedind.pool import layers

if TYPE_CHECKING:
    from collections.abc import Iterable

LIST = "layers.list"


_LIST_END = re.compile(rb"end ([0-9]{1,9})\n")


_MAX_LIST_BYTES = 64 << 20


NO_FILE = frozenset({errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO})


class BadListError(ValueError):
    """A list of layers that is not whole: the host went down before it was on disk, or somebody wrote to it."""


def write_list(owner_fd: int, ids: Iterable[str], *, durable: bool = False) -> None:
    """Note down what an owner may link to. Whole or not at all for everybody who looks, also where several write at
    once (clones of a golden hold it together); unless it is `durable`, a crash of the host may cut it short, which its
    last line tells. Raises OSError."""
    wanted = sorted(set(ids))
    text = "".join(f"{layer_id}\n" for layer_id in wanted) + f"end {len(wanted)}\n"
    temporary = f"{LIST}.new-{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=owner_fd)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, LIST, src_dir_fd=owner_fd, dst_dir_fd=owner_fd)
    except BaseException:
        os.unlink(temporary, dir_fd=owner_fd)
        raise


def read_list(owner_fd: int) -> frozenset[str]:
    """What an owner may link to. Raises BadListError, also where there is none, OSError."""
    try:
        raw = beneath.read(owner_fd, LIST, _MAX_LIST_BYTES)
    except ValueError as error:
        raise BadListError(str(error)) from error
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise BadListError(f"{LIST}: {error.strerror}") from error
    return parse_list(raw)


def parse_list(raw: bytes) -> frozenset[str]:
    """Pure. Raises BadListError."""
    lines = raw.splitlines(keepends=True)
    end = _LIST_END.fullmatch(lines[-1]) if lines else None
    if end is None or int(end[1]) != len(lines) - 1:
        raise BadListError(f"{LIST} is cut short")
    ids = frozenset(line.decode("ascii", "replace").rstrip("\n") for line in lines[:-1])
    if not all(layers.ID.fullmatch(layer_id) for layer_id in ids):
        raise BadListError(f"{LIST} names something that is not a layer")
    return ids
