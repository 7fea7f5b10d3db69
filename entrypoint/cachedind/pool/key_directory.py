"""A key's directory in a pool: its lock, the numbers of its starts, and what is in it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time

from cachedind.base import state
from cachedind.base.errors import PoolUnusableError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.pool import directory, scopes, staging
from cachedind.pool.keys import directory_name
from cachedind.pool.slot_state import GOLDEN_NAME, STATE_NAME, Candidate, Kind, parse_slot_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.pool.directory import Pool

KEY_LOCK_TIMEOUT_S = 60.0
SLOTS = "slots"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_key(pool: Pool, key: str, *, create: bool) -> int | None:
    """The key's directory; None when there is none and it is not to be made. Raises PoolUnusableError, OSError."""
    name = directory_name(key)
    fd = directory.open_directory(pool.keys_fd, name)
    while fd is None and create:
        # What has been made may be removed before it is opened: then it is made again.
        _make_key(pool, name, key)
        fd = directory.open_directory(pool.keys_fd, name)
        if fd is None and scopes.is_in_the_way(pool.keys_fd, name):
            raise PoolUnusableError(
                f"keys/{name} in the pool {pool.path} is not a directory", "look at it, and move it away"
            )
    return fd


def _make_key(pool: Pool, name: str, key: str) -> None:
    with staging.staged(pool) as stage:
        text = key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        state.write_state(stage.fd, "key.json", {"key": text, "made_at": round(time.time(), 3)}, None, durable=False)
        os.mkdir(SLOTS, 0o700, dir_fd=stage.fd)
        pool.trace.reach("key.staged")
        try:
            staging.publish(pool, stage, pool.keys_fd, name)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
    pool.trace.reach("key.named")


@contextlib.contextmanager
def locked_key(pool: Pool, key: str, *, create: bool) -> Iterator[int | None]:
    """The key's directory, locked: nobody else leases, promotes or evicts there meanwhile.

    None when there is none and it is not to be made. Raises PoolUnusableError when it stays locked.
    """
    deadline = time.monotonic() + KEY_LOCK_TIMEOUT_S
    while True:
        fd = open_key(pool, key, create=create)
        if fd is None:
            yield None
            return
        try:
            directory.wait_for_lock(
                fd, max(0.0, deadline - time.monotonic()), f"the key {key!r} of the pool {pool.path}"
            )
            if directory.is_current(fd, pool.keys_fd, directory_name(key)):
                yield fd
                return
        finally:
            os.close(fd)


def draw_sequence(key_fd: int, candidates: list[Candidate]) -> tuple[int, str | None]:
    """The number of a new start, higher than those of all states that there are, and usually than all before.

    Also returns the new name of the file where it was none, and was set aside. Needs the key's lock. Raises OSError.
    """
    aside = None
    try:
        fd = _open_sequence(key_fd)
    except OSError as error:
        if error.errno not in scopes.NOT_OURS:
            raise
        aside = state.set_aside(key_fd, "sequence")
        fd = _open_sequence(key_fd)
    try:
        text = os.pread(fd, 32, 0).strip()
        noted = int(text) if text.isdigit() and len(text) < 19 else 0
        number = max(noted, *(candidate.state.sequence for candidate in candidates), 0) + 1
        os.pwrite(fd, b"%-20d\n" % number, 0)
        return number, aside
    finally:
        os.close(fd)


def _open_sequence(key_fd: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open("sequence", flags, 0o600, dir_fd=key_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENXIO, "it is not a regular file", "sequence")
    return fd


def read_candidates(key_fd: int) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """All slots and goldens of a key, held or not, and (name, why) of what cannot be understood."""
    found: list[Candidate] = []
    bad: list[tuple[str, str]] = []
    for scope_path, scope_fd in scopes.each(key_fd):
        if scope_fd is None:
            bad.append((scope_path, "it is not a directory"))
            continue
        for path, parent_fd, name in scopes.owners_in(scope_fd):
            _read_candidate(Kind.GOLDEN, f"{scope_path}/{path}", parent_fd, name, found, bad)
    slots_fd = directory.open_directory(key_fd, SLOTS)
    if slots_fd is not None:
        for name in directory.names_in(slots_fd):
            _read_candidate(Kind.SLOT, f"{SLOTS}/{name}", slots_fd, name, found, bad)
        os.close(slots_fd)
    elif scopes.exists(key_fd, SLOTS):
        bad.append((SLOTS, "it is not a directory"))
    return found, bad


def _read_candidate(
    kind: Kind, path: str, parent_fd: int, name: str, found: list[Candidate], bad: list[tuple[str, str]]
) -> None:
    try:
        raw = _read_json(parent_fd, name, STATE_NAME if kind is Kind.SLOT else GOLDEN_NAME)
        found.append(Candidate(kind, path, parse_slot_state(raw)))
    except FileNotFoundError:
        pass  # gone meanwhile
    except ValueError as error:
        bad.append((path, str(error)))
    except OSError as error:
        if error.errno not in scopes.NOT_OURS:
            raise
        bad.append((path, f"it is not as cachedind made it: {error.strerror}"))


def _read_json(parent_fd: int, name: str, file_name: str) -> dict[str, object]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        raw = state.read_state(fd, file_name)
    finally:
        os.close(fd)
    if raw is None:
        raise ValueError(f"{file_name} is missing")
    return raw


def is_empty(key_fd: int) -> bool:
    """Whether a key has neither slots nor goldens, not even some that cannot be understood."""
    for _, scope_fd in scopes.each(key_fd):
        if scope_fd is None or any(scopes.owners_in(scope_fd)):
            return False
    fd = directory.open_directory(key_fd, SLOTS)
    if fd is None:
        return not scopes.exists(key_fd, SLOTS)
    try:
        return not directory.names_in(fd)
    finally:
        os.close(fd)


def open_below(key_fd: int, name: str) -> int:
    """Open "slots/<id>" or a golden's path without following a link anywhere. Raises OSError."""
    fd = os.dup(key_fd)
    for part in name.split("/"):
        above_fd = fd
        try:
            fd = os.open(part, _DIRECTORY, dir_fd=above_fd)
        finally:
            os.close(above_fd)
    return fd


def open_parent(key_fd: int, name: str) -> int:
    """The directory that `name`, a path below a key, lies in. Raises OSError."""
    parent = name.rpartition("/")[0]
    return open_below(key_fd, parent) if parent else os.dup(key_fd)
