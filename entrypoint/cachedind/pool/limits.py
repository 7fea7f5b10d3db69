"""What of a pool is evicted, in which order and why. Pure.

    always      free slots that a newer golden supersedes
    by age      what nobody used for max_age_s
    by size     while the pool is over its budget, one after the other:
                  free slots that are not trusted, free slots, golden.previous, golden.other, goldens;
                  each of these by least recent use, a golden's use being that of its key

Nothing that is held goes. A golden goes after everything else that its key has: the slots are its clones and would
keep its data occupied. For its size nothing goes that frees nothing of what is wanting, unless its key's golden goes
too. A filesystem without inodes is as full as one without bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SUPERSEDED = "superseded by a newer golden"
TOO_OLD = "not used for longer than the maximum age"
TOO_LARGE = "the pool is over its maximum size"
TOO_FULL = "the filesystem has too little free space"


class EntryKind(StrEnum):
    """What an entry is; the cheapest loss first."""

    SLOT = "slot"
    PREVIOUS = "previous"
    OTHER = "other"
    GOLDEN = "golden"


_ORDER = tuple(EntryKind)


class Entry(NamedTuple):
    """Something in a pool that can be evicted.

    `key` is the directory name of its key, `name` its own path below that (slots/<id>, golden, golden.previous,
    golden.other/<class>). `held`: somebody holds its lease, or it is the caller's own. `superseded`: a free slot whose
    state is older than a golden that can replace it. `last_used` in seconds since the epoch, `unique_bytes` and
    `inodes` what its removal frees. `favoured` ones go last of their kind.
    """

    key: str
    name: str
    kind: EntryKind
    held: bool
    superseded: bool
    trusted: bool
    last_used: float
    unique_bytes: int
    inodes: int = 0
    favoured: bool = False


class Budget(NamedTuple):
    """What a pool may take, in bytes, seconds and inodes. None: no such limit."""

    max_bytes: int | None
    min_free_bytes: int | None
    max_age_s: float | None
    min_free_inodes: int | None = None


class Usage(NamedTuple):
    """What a pool takes, and what its filesystem has left; None where it does not count inodes."""

    used_bytes: int
    free_bytes: int
    free_inodes: int | None = None

    def after(self, gone: Iterable[Entry]) -> Usage:
        going = list(gone)
        freed = sum(entry.unique_bytes for entry in going)
        inodes = None if self.free_inodes is None else self.free_inodes + sum(entry.inodes for entry in going)
        return Usage(self.used_bytes - freed, self.free_bytes + freed, inodes)


class Eviction(NamedTuple):
    entry: Entry
    reason: str


class EvictionPlan(NamedTuple):
    """What to remove, in this order, and by how many bytes and inodes the budget is still exceeded after that."""

    evictions: list[Eviction]
    lacking_bytes: int
    lacking_inodes: int = 0

    @property
    def is_enough(self) -> bool:
        return not self.lacking_bytes and not self.lacking_inodes


def plan_evictions(entries: Iterable[Entry], budget: Budget, usage: Usage, now: float) -> EvictionPlan:
    """Plan the evictions. `usage` is that before all of them, `now` seconds since the epoch.

    A last use that lies in the future counts as now: a clock that went wrong evicts nothing.
    """
    known = list(entries)
    uses = _last_uses(known, now)
    free = sorted((entry for entry in known if not entry.held), key=lambda entry: _order(entry, uses))
    reasons = {entry: _reason_whatever_the_size(entry, now - uses[entry], budget) for entry in free}
    evictions = [Eviction(entry, reason) for entry, reason in reasons.items() if reason]
    usage = usage.after(eviction.entry for eviction in evictions)
    for_size = _plan_for_size([entry for entry in free if not reasons[entry]], budget, usage)
    return for_size._replace(evictions=evictions + for_size.evictions)


def _last_uses(entries: Sequence[Entry], now: float) -> dict[Entry, float]:
    """When each entry was used last. Using any of a key's entries is a use of its golden, for they are its clones."""
    own = {entry: now if entry.held else min(entry.last_used, now) for entry in entries}
    keys: dict[str, float] = {}
    for entry, used in own.items():
        keys[entry.key] = max(used, keys.get(entry.key, used))
    return {entry: keys[entry.key] if entry.kind is EntryKind.GOLDEN else used for entry, used in own.items()}


def _order(entry: Entry, uses: Mapping[Entry, float]) -> tuple[bool, int, bool, float, str, str]:
    is_trusted = entry.trusted or entry.kind is not EntryKind.SLOT
    return is_trusted, _ORDER.index(entry.kind), entry.favoured, uses[entry], entry.key, entry.name


def _reason_whatever_the_size(entry: Entry, age_s: float, budget: Budget) -> str | None:
    if entry.superseded and entry.kind is EntryKind.SLOT:
        return SUPERSEDED
    return TOO_OLD if budget.max_age_s is not None and age_s > budget.max_age_s else None


def _plan_for_size(entries: Iterable[Entry], budget: Budget, usage: Usage) -> EvictionPlan:
    """Go through `entries`, which are in order, until the budget is kept."""
    evictions: list[Eviction] = []
    passed_over: dict[str, list[Entry]] = {}
    for entry in entries:
        reason = _reason_to_free(budget, usage)
        if reason is None:
            break
        if not _frees(entry, reason, budget, usage):
            passed_over.setdefault(entry.key, []).append(entry)
            continue
        going = [*passed_over.pop(entry.key, ()), entry] if entry.kind is EntryKind.GOLDEN else [entry]
        evictions += [Eviction(one, reason) for one in going]
        usage = usage.after(going)
    lacking_bytes = max(_excess_bytes(budget, usage), _missing_bytes(budget, usage), 0)
    return EvictionPlan(evictions, lacking_bytes, max(_missing_inodes(budget, usage), 0))


def _frees(entry: Entry, reason: str, budget: Budget, usage: Usage) -> bool:
    """Whether removing an entry frees anything of what is wanting."""
    wants_bytes = reason is TOO_LARGE or _missing_bytes(budget, usage) > 0
    return (wants_bytes and entry.unique_bytes > 0) or (_missing_inodes(budget, usage) > 0 and entry.inodes > 0)


def _reason_to_free(budget: Budget, usage: Usage) -> str | None:
    if _excess_bytes(budget, usage) > 0:
        return TOO_LARGE
    return TOO_FULL if _missing_bytes(budget, usage) > 0 or _missing_inodes(budget, usage) > 0 else None


def _excess_bytes(budget: Budget, usage: Usage) -> int:
    return 0 if budget.max_bytes is None else usage.used_bytes - budget.max_bytes


def _missing_bytes(budget: Budget, usage: Usage) -> int:
    return 0 if budget.min_free_bytes is None else budget.min_free_bytes - usage.free_bytes


def _missing_inodes(budget: Budget, usage: Usage) -> int:
    if budget.min_free_inodes is None or usage.free_inodes is None:
        return 0
    return budget.min_free_inodes - usage.free_inodes
