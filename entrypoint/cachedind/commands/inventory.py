"""What a pool holds, for people. Looking leases, repairs and removes nothing, and stands in the way of no start.

Everything may change or go while it is looked at, and some of it was written by jobs. So each thing is read by itself,
and what cannot be read is told like everything else.
"""

from __future__ import annotations

import os
from enum import StrEnum

from cachedind.base import state
from cachedind.base.errors import NotInPoolError, PoolMissingError
from cachedind.base.trace import Trace
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.dataroot import facts, witness
from cachedind.host import procfs
from cachedind.pool import choice, directory, founding, key_directory, keys, scopes, slots
from cachedind.pool.slot_state import Candidate, Kind

if TYPE_CHECKING:
    from cachedind.base.model import Holder
    from cachedind.pool.directory import Pool
    from cachedind.settings.config import Config

Report = dict[str, object]


class Condition(StrEnum):
    """What something in a pool is, and whether it is of use to a start."""

    HELD = "held"
    FREE = "free"
    SPARE = "spare"
    EMPTY = "empty"
    SUPERSEDED = "superseded"
    SUSPICIOUS = "suspicious"
    THROW_AWAY = "throw-away"
    GOLDEN = "golden"
    PREVIOUS = "golden (previous)"
    OTHER = "golden (other engine)"
    UNREADABLE = "unreadable"


class Row(NamedTuple):
    """A slot or a golden.

    `key` is the key as given, or its directory's name where nothing tells the key; `name` the path below that
    directory, empty where the whole directory cannot be read; `scope` which job of the key it is of; `why` says what is
    wrong with something unreadable. `holder` is who holds a slot (`held`) or held it last. Times in seconds since the
    epoch; sizes in bytes and inodes, None where they were not measured. What is unique goes with it; what is unused is
    of images that no job sees.
    """

    key: str
    directory: str
    name: str
    condition: Condition
    scope: str = ""
    why: str = ""
    trusted: bool = False
    read_only: bool = False
    held: bool = False
    holder: Holder | None = None
    here: bool = False
    last_used: float | None = None
    engine: str | None = None
    store: str | None = None
    driver: str | None = None
    ready_s: float | None = None
    unique_bytes: int | None = None
    unique_inodes: int | None = None
    shared_bytes: int | None = None
    remap: str = ""
    unused_images: int | None = None
    unused_bytes: int | None = None

    @property
    def id(self) -> str:
        """What `cachedind rm --slot` takes: the last part of the name."""
        return self.name.rpartition("/")[2]


def printable(text: str) -> str:
    """A key, a host name or a reason may hold anything, also what steers a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in text)


# ---- where ---------------------------------------------------------------------------------------------------------


def label(key: str, scope: str = "") -> str:
    """A key, or a scope of it, for people. The seeds' has no name of its own."""
    name = printable(key) if key != keys.BASE_KEY else "(seeds)"
    return f"{name}, scope {printable(scope)}" if scope else name


def find_pool(path: str | None, settings: Config) -> Pool:
    """The pool that is mounted here, or that the start of this container has hidden from its jobs.

    May leave this process in another mount namespace. Raises PoolMissingError and what directory.open_existing does.
    """
    if path is None and settings.pool == "":
        raise PoolMissingError("CACHEDIND_POOL is empty, so there is no pool", "say where it is with --pool")
    where = os.path.abspath(path or settings.pool or directory.DEFAULT_POOL)
    if not os.path.lexists(f"{where}/{founding.RECORD}"):
        witness.enter_hidden_namespace()
    return directory.open_existing(where, Trace(settings.kill_at))


# ---- slots and goldens -----------------------------------------------------------------------------------------------


def read_key(pool: Pool, key_name: str) -> str:
    """The key of a directory. What key.json says counts only where that really leads there."""
    key = keys.key_of(key_name)
    if key is not None:
        return key
    fd = directory.open_directory(pool.keys_fd, key_name)
    if fd is None:
        return key_name
    try:
        noted = (state.read_state(fd, "key.json") or {}).get("key")
    except (ValueError, OSError):
        return key_name
    finally:
        os.close(fd)
    return noted if isinstance(noted, str) and keys.directory_name(noted) == key_name else key_name


def find_directories(pool: Pool, key: str) -> list[str]:
    """The directories that `ls` shows under this key: one, or none."""
    return [name for name in sorted(directory.names_in(pool.keys_fd)) if read_key(pool, name) == key]


def unknown_key(pool: Pool, key: str) -> NotInPoolError:
    return NotInPoolError(f"the pool {pool.path} has nothing for key {key!r}", "cachedind ls shows what is there")


def read_rows(pool: Pool, directories: list[str], now: float) -> list[Row]:
    """All slots and goldens of some keys, without their sizes. Raises OSError for the pool itself only."""
    boot_id, me = procfs.read_boot_id(), facts.read_holder_of_now(now)
    return [row for name in directories for row in _read_key_rows(pool, name, boot_id, me)]


def _read_key_rows(pool: Pool, key_name: str, boot_id: str, me: Holder) -> list[Row]:
    key = read_key(pool, key_name)
    try:
        key_fd = directory.open_directory(pool.keys_fd, key_name)
        if key_fd is None:
            return [Row(key, key_name, "", Condition.UNREADABLE, why="it is not a directory")]
        try:
            candidates, bad = key_directory.read_candidates(key_fd)
            goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
            rows = [_read_row(key_fd, key, key_name, candidate, goldens, boot_id, me) for candidate in candidates]
            rows += [_read_bad(key_fd, key, key_name, name, why, me) for name, why in bad]
        finally:
            os.close(key_fd)
    except OSError as error:
        return [Row(key, key_name, "", Condition.UNREADABLE, why=error.strerror or str(error))]
    return sorted(
        rows, key=lambda row: (row.scope, row.name.startswith("slots/"), not row.held, -(row.last_used or 0), row.name)
    )


def _read_row(
    key_fd: int, key: str, key_name: str, candidate: Candidate, goldens: list[Candidate], boot_id: str, me: Holder
) -> Row:
    found, is_slot = candidate.state, candidate.kind is Kind.SLOT
    held, holder = slots.look(key_fd, candidate.name) if is_slot else (False, None)
    data = found.data
    started_at = None if data is None else data.started_at
    return Row(
        key=key,
        directory=key_name,
        name=candidate.name,
        scope=found.scope,
        condition=judge(candidate, goldens, boot_id, held=held, had_holder=holder is not None),
        trusted=found.is_trusted(boot_id),
        read_only=found.read_only,
        held=held,
        holder=holder,
        here=held and _is_here(holder, me),
        last_used=started_at if holder is None else holder.since,
        engine=None if data is None else str(data.engine),
        store=None if data is None else str(data.store),
        driver=None if data is None else data.driver,
        ready_s=None if data is None else data.ready_s,
        remap="" if data is None else data.remap,
    )


def judge(candidate: Candidate, goldens: list[Candidate], boot_id: str, *, held: bool, had_holder: bool) -> Condition:
    """Pure. `had_holder`: somebody has held the slot, so that it is no clone that waits for its first start."""
    if candidate.kind is Kind.GOLDEN:
        if scopes.is_named(candidate.name, scopes.GOLDEN):
            return Condition.GOLDEN
        is_previous = scopes.is_named(candidate.name, scopes.PREVIOUS)
        return Condition.PREVIOUS if is_previous else Condition.OTHER
    found = candidate.state
    verdicts = (
        (held, Condition.HELD),
        (found.read_only, Condition.THROW_AWAY),
        (choice.superseded(found, goldens), Condition.SUPERSEDED),
        (found.data is None, Condition.EMPTY),
        (not found.is_trusted(boot_id), Condition.SUSPICIOUS),
        (not had_holder, Condition.SPARE),
    )
    return next((condition for applies, condition in verdicts if applies), Condition.FREE)


def _read_bad(key_fd: int, key: str, key_name: str, name: str, why: str, me: Holder) -> Row:
    held, holder = slots.look(key_fd, name) if name.startswith("slots/") else (False, None)
    here = held and _is_here(holder, me)
    return Row(key, key_name, name, Condition.UNREADABLE, why=why, held=held, holder=holder, here=here)


def _is_here(holder: Holder | None, me: Holder) -> bool:
    return holder is not None and (holder.container, holder.hostname) == (me.container, me.hostname[:64])


def as_json(row: Row) -> Report:
    """For `--json`: times in seconds since the epoch, sizes in bytes."""
    return {
        **row._asdict(),
        "condition": str(row.condition),
        "holder": None if row.holder is None else row.holder._asdict(),
    }
