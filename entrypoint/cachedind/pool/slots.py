"""A key's slots and goldens: what is there, which of it a start wants, and how a slot is leased or born.

"Newest" is decided by a number that each start of a key draws under the key's lock, never by a clock. A state is
trusted when the last daemon on it came up (`ready_at`) and the host has not gone down since; a golden, when it was on
disk before it got its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.base.errors import PoolUnusableError
from cachedind.base.model import DataRootState, EngineVersion, ImageStore
from cachedind.dataroot import contents, lease
from cachedind.engine import doubt
from cachedind.host import flock
from cachedind.pool import clone, directory
from cachedind.pool.keys import directory_name
from cachedind.pool.layers import Owner
from cachedind.pool.mutable import NOTHING, LeftOut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.base.model import Holder
    from cachedind.dataroot.storage_facts import StorageRequest
    from cachedind.pool.directory import Pool

STATE_NAME = "slot.json"
LOCK_NAME = "slot.lock"
GOLDEN_NAME = "golden.json"
KEY_LOCK_TIMEOUT_S = 60.0

_PARENTS = ("golden.other", "slots")
_NOT_OURS = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})
"""What a system call says of a link, a directory or a device in the place of what cachedind made."""


class Kind(StrEnum):
    SLOT = "slot"
    GOLDEN = "golden"


class SlotState(NamedTuple):
    """What slot.json or golden.json says. `data` is None where no daemon has run on it yet.

    `sequence` is the number of the start that made this state, the last one whose daemon came up: a start that was
    cancelled adds nothing. `durable` tells that a golden was on disk when it got its name; `pure` that no job's daemon
    has ever come up on it.
    """

    data: DataRootState | None
    arch: str
    sequence: int
    parent: str = ""
    read_only: bool = False
    durable: bool = False
    pure: bool = False
    id: str = ""
    """A golden's, which its clones have as `parent`."""
    asked: str = ""
    """Which request alone has led to its store and driver: "driver", "store", or "" for none (storage.name_asked)."""

    @property
    def never_ready(self) -> bool:
        return self.data is not None and self.data.ready_at is None

    def is_trusted(self, boot_id: str) -> bool:
        if self.data is None or self.never_ready:
            return False
        return self.durable or doubt.find(self.data, boot_id) is None

    def is_likely(self, boot_id: str) -> bool:
        """Whether it is as good as one that is trusted for all that anybody knows: its last start may have been
        cancelled before the daemon answered, which says nothing about what is in it."""
        if self.data is None or self.is_trusted(boot_id):
            return self.data is not None
        return not self.pure and not doubt.is_grave(doubt.find(self.data, boot_id))


class Candidate(NamedTuple):
    """Something to start from: a slot to lease, or a golden to clone. `name` is its path below the key."""

    kind: Kind
    name: str
    state: SlotState


class Requirements(NamedTuple):
    """What a start can use: data of its own or an older engine, of its architecture, with its remapped users, and of
    the store and driver that were asked for."""

    engine: EngineVersion
    arch: str
    store: ImageStore | None = None
    driver: str | None = None
    docker_driver: str = ""
    """DOCKER_DRIVER's, a wish that is given up where it cannot be followed."""
    remap: str = ""


def build_requirements(request: StorageRequest, engine: EngineVersion) -> Requirements:
    """What a start with this engine can use of a pool."""
    store = ImageStore(request.store.value) if request.store else None
    return Requirements(
        engine=engine,
        arch=os.uname().machine,
        store=ImageStore.GRAPHDRIVER if request.userns_remap else store,
        driver=request.driver.value if request.driver else None,
        docker_driver=request.docker_driver,
        remap=request.userns_remap.directory if request.userns_remap else "",
    )


# ---- the choice: pure ------------------------------------------------------------------------------------------


def class_name(found: SlotState) -> str:
    """What goldens are kept apart by: states of different classes do not replace each other."""
    data = found.data
    if data is None:
        return "empty"
    major, minor = data.engine.release
    remap = f"-{data.remap}" if data.remap else ""
    asked = f"-by-{found.asked}" if found.asked else ""
    return f"{major}.{minor}-{data.store}-{data.driver}-{found.arch}{remap}{asked}"


def is_compatible(found: SlotState, requirements: Requirements) -> bool:
    data = found.data
    if found.read_only or found.arch != requirements.arch:
        return False
    if data is None:
        return True
    return (
        data.remap == requirements.remap
        and data.engine.release <= requirements.engine.release
        and requirements.store in (None, data.store)
        and requirements.driver in (None, data.driver)
        and _is_asked_for(found, data, requirements)
    )


def _is_asked_for(found: SlotState, data: DataRootState, requirements: Requirements) -> bool:
    """What one start asked for does not become its key's: it is for those that ask for it, too."""
    if found.asked == "driver":
        return data.driver in (requirements.driver, requirements.docker_driver)
    return found.asked != "store" or requirements.store is not None or requirements.driver is not None


def plan_choice(candidates: list[Candidate], requirements: Requirements, boot_id: str) -> list[Candidate]:
    """What to start from, best first: without a grave doubt, this engine's own before an older one's, the newest.

    Of equally new ones a slot, which needs no clone. A slot that never had a daemon and has no parent comes last.
    """

    def rank(candidate: Candidate) -> tuple[bool, bool, bool, int, bool]:
        found = candidate.state
        same = found.data is not None and found.data.engine.release == requirements.engine.release
        return (
            found.data is not None,
            found.is_likely(boot_id),
            same,
            found.sequence,
            candidate.kind is Kind.SLOT,
        )

    fitting = [candidate for candidate in candidates if is_compatible(candidate.state, requirements)]
    return sorted(fitting, key=rank, reverse=True)


def newest_clones(golden: SlotState, candidates: list[Candidate]) -> list[Candidate]:
    """A golden's clones on which a start was, the last one first. Pure."""
    clones = [c for c in candidates if c.kind is Kind.SLOT and golden.id and c.state.parent == golden.id]
    started = [c for c in clones if c.state.data is not None]
    return sorted(started, key=lambda c: c.state.data.started_at if c.state.data else 0.0, reverse=True)


def needs_promotion(slot: SlotState, goldens: list[Candidate], boot_id: str) -> bool:
    """Whether a free slot's state should become the golden: it is good, and newer than the golden of its class."""
    if slot.read_only or not slot.is_trusted(boot_id) or not clone.is_possible(slot.data):
        return False
    return is_newest(slot, goldens)


def is_newest(slot: SlotState, goldens: list[Candidate]) -> bool:
    """Whether a state is newer than each golden of its class."""
    same = [golden.state.sequence for golden in goldens if class_name(golden.state) == class_name(slot)]
    return slot.sequence > max(same, default=-1)


def superseded(slot: SlotState, goldens: list[Candidate]) -> bool:
    """Whether no start would prefer this slot, free as it is: it is a throw-away, or a golden of its class is newer."""
    if slot.read_only:
        return True
    newest = max((g.state.sequence for g in goldens if class_name(g.state) == class_name(slot)), default=-1)
    if slot.data is None:
        return bool(goldens)
    return slot.sequence < newest or (slot.never_ready and slot.pure and newest >= 0)


# ---- state files -------------------------------------------------------------------------------------------------


def parse_slot_state(raw: dict[str, object]) -> SlotState:
    """Raises ValueError for anything that this version could not have written."""
    sequence, arch, parent = raw.get("sequence"), raw.get("arch"), raw.get("parent", "")
    if not isinstance(sequence, int) or isinstance(sequence, bool) or not 0 <= sequence < 1 << 62:
        raise ValueError("sequence is not a number")
    if not isinstance(arch, str) or not arch.replace("_", "").isalnum() or not isinstance(parent, str):
        raise ValueError("arch or parent is not a name")
    return SlotState(
        data=None if raw.keys().isdisjoint(("engine", "started_at")) else contents.parse_data_root_state(raw),
        arch=arch,
        sequence=sequence,
        parent=parent[:200],
        read_only=raw.get("read_only") is True,
        durable=raw.get("durable") is True,
        pure=raw.get("pure") is True,
        id=str(raw.get("id", ""))[:200],
        asked=asked if (asked := str(raw.get("asked", ""))) in ("driver", "store") else "",
    )


def read_candidates(key_fd: int) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """All slots and goldens of a key, held or not, and (name, why) of what cannot be understood."""
    found: list[Candidate] = []
    bad: list[tuple[str, str]] = []
    for name in ("golden", "golden.previous"):
        _read_candidate(key_fd, "", name, found, bad)
    for parent in _PARENTS:
        fd = directory.open_directory(key_fd, parent)
        if fd is not None:
            for name in directory.names_in(fd):
                _read_candidate(fd, f"{parent}/", name, found, bad)
            os.close(fd)
        elif _exists(key_fd, parent):
            bad.append((parent, "it is no directory"))
    return found, bad


def _read_candidate(parent_fd: int, prefix: str, name: str, found: list[Candidate], bad: list[tuple[str, str]]) -> None:
    kind = Kind.SLOT if prefix == "slots/" else Kind.GOLDEN
    try:
        raw = _read_json(parent_fd, name, STATE_NAME if kind is Kind.SLOT else GOLDEN_NAME)
        found.append(Candidate(kind, prefix + name, parse_slot_state(raw)))
    except FileNotFoundError:
        pass  # gone meanwhile
    except ValueError as error:
        bad.append((prefix + name, str(error)))
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        bad.append((prefix + name, f"it is not as cachedind made it: {error.strerror}"))


def is_empty(key_fd: int) -> bool:
    """Whether a key has neither slots nor goldens, not even some that cannot be understood."""
    if any(_exists(key_fd, name) for name in ("golden", "golden.previous")):
        return False
    for parent in _PARENTS:
        fd = directory.open_directory(key_fd, parent)
        if fd is None:
            if _exists(key_fd, parent):
                return False
            continue
        try:
            if directory.names_in(fd):
                return False
        finally:
            os.close(fd)
    return True


def _exists(directory_fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _read_json(parent_fd: int, name: str, file_name: str) -> dict[str, object]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        raw = state.read_state(fd, file_name)
    finally:
        os.close(fd)
    if raw is None:
        raise ValueError(f"{file_name} is missing")
    return raw


def open_below(key_fd: int, name: str) -> int:
    """Open "golden" or "slots/<id>" without following a link anywhere. Raises OSError."""
    parent, _, last = name.rpartition("/")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    if not parent:
        return os.open(last, flags, dir_fd=key_fd)
    parent_fd = os.open(parent, flags, dir_fd=key_fd)
    try:
        return os.open(last, flags, dir_fd=parent_fd)
    finally:
        os.close(parent_fd)


# ---- keys --------------------------------------------------------------------------------------------------------


def open_key(pool: Pool, key: str, *, create: bool) -> int | None:
    """The key's directory; None when there is none and it is not to be made. Raises PoolUnusableError, OSError."""
    name = directory_name(key)
    fd = directory.open_directory(pool.keys_fd, name)
    while fd is None and create:
        # What has been made may be removed before it is opened: then it is made again.
        _make_key(pool, name, key)
        fd = directory.open_directory(pool.keys_fd, name)
        if fd is None and _is_in_the_way(pool.keys_fd, name):
            raise PoolUnusableError(
                f"keys/{name} in the pool {pool.path} is not a directory", "look at it, and move it away"
            )
    return fd


def _is_in_the_way(parent_fd: int, name: str) -> bool:
    """Whether there is something that is no directory. Raises OSError."""
    try:
        return not stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _make_key(pool: Pool, name: str, key: str) -> None:
    with directory.staged(pool) as stage:
        text = key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        state.write_state(stage.fd, "key.json", {"key": text, "made_at": round(time.time(), 3)}, None, durable=False)
        os.mkdir("slots", 0o700, dir_fd=stage.fd)
        os.mkdir("golden.other", 0o700, dir_fd=stage.fd)
        pool.trace.reach("key.staged")
        try:
            directory.publish(pool, stage, pool.keys_fd, name)
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
        if error.errno not in _NOT_OURS:
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
        raise OSError(errno.ENXIO, "it is no regular file", "sequence")
    return fd


# ---- slots -------------------------------------------------------------------------------------------------------


class Slot(NamedTuple):
    """A leased slot: its lock, its directory and its data, all open."""

    id: str
    lock_fd: int
    directory_fd: int
    data_fd: int
    previous: Holder | None
    left_out: LeftOut = NOTHING
    """What it was born without."""

    @property
    def owner(self) -> Owner:
        return Owner(self.directory_fd, self.data_fd)

    def close(self) -> None:
        """Give the lease back."""
        for fd in (self.lock_fd, self.directory_fd, self.data_fd):
            os.close(fd)


class BadSlotError(Exception):
    """A slot whose parts are not what they must be."""


def try_lease(key_fd: int, name: str) -> Slot | None:
    """Lease the slot `name` ("slots/<id>") if nobody holds it. Raises BadSlotError."""
    with contextlib.ExitStack() as undo:
        try:
            directory_fd = open_below(key_fd, name)
            undo.callback(os.close, directory_fd)
            lock_fd = _open_lock(directory_fd, create=False)
            undo.callback(os.close, lock_fd)
            if not directory.try_lock(lock_fd) or not _is_current(key_fd, name, directory_fd, lock_fd):
                return None
            data_fd = os.open("data", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO):
                if not _exists_below(key_fd, name):
                    return None
                raise BadSlotError(f"it is not as cachedind made it: {error.filename}: {error.strerror}") from error
            raise
        undo.pop_all()
        return Slot(name.rpartition("/")[2], lock_fd, directory_fd, data_fd, lease.read_holder(lock_fd))


def _exists_below(key_fd: int, name: str) -> bool:
    parent, _, last = name.rpartition("/")
    fd = directory.open_directory(key_fd, parent)
    if fd is None:
        return False
    try:
        return _exists(fd, last)
    finally:
        os.close(fd)


def _is_current(key_fd: int, name: str, directory_fd: int, lock_fd: int) -> bool:
    try:
        now_fd = open_below(key_fd, name)
    except OSError:
        return False
    try:
        same = os.path.samestat(os.fstat(now_fd), os.fstat(directory_fd))
    finally:
        os.close(now_fd)
    return same and directory.is_current(lock_fd, directory_fd, LOCK_NAME)


def _open_lock(directory_fd: int, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT | os.O_EXCL if create else 0)
    fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=directory_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENXIO, "it is no regular file", LOCK_NAME)
    return lease.lift(fd)


def clone_state(raw: dict[str, object], *, sequence: int, read_only: bool) -> dict[str, object]:
    """The slot.json of a clone, from its golden's golden.json."""
    dropped = ("id", "from", "durable", "promoted_at", "took_s", "ended", "version", "min_reader")
    kept = {name: value for name, value in raw.items() if name not in dropped}
    return {**kept, "sequence": sequence, "parent": str(raw.get("id", "")), "read_only": read_only}


def look(key_fd: int, name: str, timeout_s: float = 0.2) -> tuple[bool, Holder | None]:
    """Whether somebody holds a slot, and who holds it or held it last. In the way of no start: the lock is taken for a
    moment, while the key is locked too, so that nobody leases.

    /proc/locks, which takes no lock, leaves out those of other containers (Linux, fs/locks.c, locks_show: owners
    that the reader's PID namespace does not know). Where the key stays locked for `timeout_s` (somebody copies; or the
    caller has locked it: 0), the question is asked all the same. Works on a read-only mount.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with contextlib.ExitStack() as undo:
        try:
            directory_fd = open_below(key_fd, name)
            undo.callback(os.close, directory_fd)
            own_key_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=key_fd)
            undo.callback(os.close, own_key_fd)
            with contextlib.suppress(PoolUnusableError):
                directory.wait_for_lock(own_key_fd, timeout_s, "the key")
            # Opened last, so that it is closed, and with it unlocked, before the key is.
            lock_fd = os.open(LOCK_NAME, flags, dir_fd=directory_fd)
            undo.callback(os.close, lock_fd)
        except OSError:
            return False, None
        # Shared, so that two who look do not take each other for holders.
        return not flock.lock_shared(lock_fd), lease.read_holder(lock_fd)


def create(pool: Pool, key: str, source: Owner | None, values: dict[str, object]) -> Slot:
    """A new slot, leased from its birth: a clone of `source`, or empty. `values` are its state. Raises what clone.copy
    raises, PoolUnusableError."""
    with directory.staged(pool) as stage, contextlib.ExitStack() as undo:
        lock_fd = _open_lock(stage.fd, create=True)
        undo.callback(os.close, lock_fd)
        if not directory.try_lock(lock_fd):
            raise AssertionError("somebody else locked a file that has just been made")
        pool.trace.reach("clone.staged")
        left_out = NOTHING
        if source is None:
            os.close(clone.make_data(stage.fd))
        else:
            left_out = clone.copy(pool, source, parse_slot_state(values).data, stage.fd)
        pool.trace.reach("clone.copied")
        state.write_state(stage.fd, STATE_NAME, values, None, durable=False)
        pool.trace.reach("clone.recorded")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        data_fd = os.open("data", flags, dir_fd=stage.fd)
        undo.callback(os.close, data_fd)
        directory_fd = os.open(".", flags, dir_fd=stage.fd)
        undo.callback(os.close, directory_fd)
        _publish_slot(pool, key, stage)
        pool.trace.reach("clone.named")
        undo.pop_all()
        return Slot(stage.name, lock_fd, directory_fd, data_fd, None, left_out)


def _publish_slot(pool: Pool, key: str, stage: directory.Stage) -> None:
    # Under the key's lock: a key that is being removed must not take a new slot along.
    with locked_key(pool, key, create=True) as key_fd:
        assert key_fd is not None
        with contextlib.suppress(FileExistsError):
            os.mkdir("slots", 0o700, dir_fd=key_fd)
        slots_fd = os.open("slots", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=key_fd)
        try:
            directory.publish(pool, stage, slots_fd, stage.name)
        finally:
            os.close(slots_fd)
