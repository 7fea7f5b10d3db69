"""What a job has made of the state that it began with: told by the layers that were there before it, and are now.

A state with no layer more and none less than before is that state again, and one that has lost most of what it began
with (a job's last step was `docker system prune -af`) is worth less: neither replaces anything. Only when two jobs of a
scope, one after the other, leave so little is that what the project wants. A prune takes records of the build cache,
and leaves the layers that images have which no job sees: so the records are counted as well.
"""

from __future__ import annotations

import contextlib
import os
import stat
from enum import StrEnum

from cachedind.base import releases, state
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import build_records, immutable, remapping
from cachedind.host import beneath
from cachedind.pool import clone, key_directory, scopes, slot_state
from cachedind.pool.layers import Owner

if TYPE_CHECKING:
    from cachedind.base.model import DataRootState, StoragePlan
    from cachedind.pool.slot_state import SlotState
    from cachedind.pool.slots import Slot

NAME = "begun.json"
"""In a slot's directory: the names of the directories of layers that were there when its job began."""
_MAX_RECORDS = 5000
"""Of the build cache. A state file holds a megabyte."""
EMPTIED = "emptied"
"""In a scope's directory: the number of the last start when a job of the scope was found to have left less."""


class Change(StrEnum):
    NONE = "none"
    EMPTIED = "emptied"
    SOME = "some"


def judge(before: frozenset[str], there: frozenset[str], whole: frozenset[str], *, keeps: bool) -> Change:
    """Pure. Names of layers: `before` the job, `there` now, `whole` those of them that no engine writes to any more:
    what has come and is not whole belongs to containers, or is a context or a cache mount. `keeps` tells that more than
    layers stays for the next job, of which nothing is known here."""
    if keeps:
        return Change.SOME
    if 2 * len((before & there) | whole) < len(before):
        return Change.EMPTIED
    return Change.NONE if before <= there and whole <= before else Change.SOME


def has_lost_most(before: frozenset[str], there: frozenset[str]) -> bool:
    """Whether of records of the build cache less than half is left, new ones counted. Pure."""
    return 2 * len(there) < len(before)


def note_beginning(owner: Owner, storage: StoragePlan, *, keeps: bool, goes_on: bool = False) -> None:
    """Note down what is there before a job's daemon comes up. `goes_on`: nobody knows whether the last daemon came up,
    and what it may have made is new, too. Needs the lease, and no daemon on the data. Raises OSError."""
    parent, _ = immutable.shared_directories(storage)
    if goes_on and _read(owner).get("parent") == parent:
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=owner.directory_fd)
    if not parent:
        return
    remap = storage.remap.directory if storage.remap else ""
    with contextlib.suppress(FileNotFoundError):
        root_fd = remapping.open_in(owner.data_fd, remap)
        try:
            names = _names(root_fd, parent)
            records = build_records.read_names(root_fd, storage.store, storage.driver) or frozenset()
        finally:
            os.close(root_fd)
        values: dict[str, object] = {
            "parent": parent,
            "names": sorted(names),
            "records": sorted(records)[:_MAX_RECORDS],
            "keeps": keeps,
        }
        state.write_state(owner.directory_fd, NAME, values, None, durable=False)


def find(owner: Owner, found: DataRootState | None) -> Change:
    """What the last job has changed. What cannot be known counts as a change. Needs the lease, and no daemon on the
    data. Costs a look at the names of all layers; where these differ, one at the engine's records."""
    storage, raw = clone.storage_of(found), _read(owner)
    names, keeps = raw.get("names"), raw.get("keeps") is not False
    if storage is None or found is None or not isinstance(names, list):
        return Change.SOME
    parent, leaf = immutable.shared_directories(storage)
    if raw.get("parent") != parent:
        return Change.SOME
    before = frozenset(map(str, names))
    try:
        root_fd = remapping.open_in(owner.data_fd, found.remap)
    except OSError:  # whatever lies there instead is for the start that leases it to find
        return Change.SOME
    try:
        if not _is_engines_own(root_fd, parent):
            return Change.SOME
        if not keeps and _has_lost_records(root_fd, storage, raw.get("records")):
            return Change.EMPTIED
        there = _names(root_fd, parent)
        if there == before:
            return judge(before, there, there, keeps=keeps)
        return judge(before, there, _whole(root_fd, storage, found, parent, leaf, there), keeps=keeps)
    finally:
        os.close(root_fd)


def _has_lost_records(root_fd: int, storage: StoragePlan, before: object) -> bool:
    there = build_records.read_names(root_fd, storage.store, storage.driver)
    if there is None or not isinstance(before, list):
        return False
    return has_lost_most(frozenset(map(str, before)), there)


def _read(owner: Owner) -> dict[str, object]:
    with contextlib.suppress(ValueError, OSError):
        return state.read_state(owner.directory_fd, NAME) or {}
    return {}


def _is_engines_own(root_fd: int, parent: str) -> bool:
    """Whether that is a directory, or is not there: what a job has put in its place is not to be judged."""
    try:
        return stat.S_ISDIR(beneath.look(root_fd, parent).st_mode)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _names(root_fd: int, parent: str) -> frozenset[str]:
    return frozenset(name for name in beneath.names(root_fd, parent) if name != "l")


def _whole(
    root_fd: int, storage: StoragePlan, found: DataRootState, parent: str, leaf: str, there: frozenset[str]
) -> frozenset[str]:
    if not releases.are_tested([found.engine]):
        return there
    shared = {name for name in there if _is_link(root_fd, immutable.place(parent, name, leaf))}
    at = len(parent) + 1
    new = {path[at:].removesuffix(f"/{leaf}" if leaf else "") for path in immutable.find(root_fd, storage)}
    return there & (shared | new | immutable.find_results(root_fd, storage, found.engine))


def _is_link(root_fd: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISLNK(beneath.look(root_fd, path).st_mode)
    return False


# ---- twice in a row --------------------------------------------------------------------------------------------------


def is_second(scope_fd: int, begun: int) -> bool:
    """Whether another job of the scope had left less, and was found to, before the one with the number `begun` began.
    Raises OSError."""
    try:
        raw = state.read_state(scope_fd, EMPTIED) or {}
    except ValueError:
        return False
    at = raw.get("at")
    return isinstance(at, int) and begun >= at


def note_emptied(scope_fd: int, number: int | None) -> None:
    """Note down that a job was found to have left less, with the number of the last start of the key; None: one has
    left something new. Raises OSError."""
    if number is not None:
        state.write_state(scope_fd, EMPTIED, {"at": number}, None, durable=False)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(EMPTIED, dir_fd=scope_fd)


# ---- a slot that was leased ---------------------------------------------------------------------------------------


def foresee(key_fd: int, name: str, found: SlotState) -> SlotState:
    """What read_judged will say of a free slot, as far as it can be told without its lease. Changes nothing. Raises
    OSError."""
    if not found.begun or found.begun != found.sequence:
        return found
    with contextlib.ExitStack() as undo:
        directory_fd = key_directory.open_below(key_fd, name)
        undo.callback(os.close, directory_fd)
        data_fd = key_directory.open_below(directory_fd, "data")
        undo.callback(os.close, data_fd)
        change = find(Owner(directory_fd, data_fd), found.data)
    if change is Change.SOME:
        return found
    return found._replace(sequence=found.before, nothing_new=change is Change.EMPTIED or not found.before)


def read_unjudged(slot: Slot) -> tuple[dict[str, object], SlotState]:
    """A leased slot's state, read again as it was not ours before. Raises ValueError, OSError."""
    raw = state.read_state(slot.directory_fd, slot_state.STATE_NAME) or {}
    return raw, slot_state.parse_slot_state(raw)


def read_judged(key_fd: int, slot: Slot, number: int) -> tuple[dict[str, object], SlotState]:
    """A leased slot's state, read again as it was not ours before. What its last job has left is compared with what it
    began with, once. `number` is that of the key's last start. Needs the key's lock. Raises ValueError, OSError."""
    raw, found = read_unjudged(slot)
    if not found.begun or found.begun != found.sequence:
        return raw, found
    change = find(slot.owner, found.data)
    with scopes.opened(key_fd, found.scope) as scope_fd:
        is_kept = not found.before or scopes.exists(scope_fd, scopes.GOLDEN)
        if change is Change.EMPTIED and (not is_kept or is_second(scope_fd, found.begun)):
            change = Change.SOME
        if change is not Change.NONE:
            note_emptied(scope_fd, number if change is Change.EMPTIED else None)
    judged: dict[str, object] = {"begun": 0, "nothing_new": change is Change.EMPTIED}
    if change is not Change.SOME:
        judged |= {"sequence": found.before, "nothing_new": change is Change.EMPTIED or not found.before}
    with contextlib.suppress(OSError):  # a full disk: the next start compares again
        state.write_state(slot.directory_fd, slot_state.STATE_NAME, judged, raw, durable=False)
    raw = {**raw, **judged}
    return raw, slot_state.parse_slot_state(raw)
