"""What of a pool is evicted, in which order and why. Pure.

    always      free slots that a newer golden supersedes
    by age      what nobody used for max_age_s
    by size     while the pool is over its budget, one after the other:
                  free slots that are not trusted, free slots, golden.previous, golden.other, goldens and free slots
                  that are newer than their scope's golden;
                  each of these by least recent use, a golden's use being that of its scope

Nothing that is held goes. A golden goes after everything else that its scope has: the slots are its clones, and would
keep its layers occupied. A layer goes with the last that lists it. For its size nothing goes that frees nothing of what
is wanting, unless its scope's golden goes too. A filesystem without inodes is as full as one without bytes.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SUPERSEDED = "a newer golden has all that is in it"
THROW_AWAY = "a throw-away (CACHEDIND_ACCESS=ro)"
NOTHING_NEW = "its job left nothing new"
TOO_OLD = "not used for longer than the maximum age"
TOO_LARGE = "the pool is over its maximum size"
TOO_FULL = "the filesystem has too little free space"


class EntryKind(StrEnum):
    """What an entry is; the cheapest loss first."""

    SLOT = "slot"
    PREVIOUS = "previous"
    OTHER = "other"
    GOLDEN = "golden"


_KINDS = tuple(EntryKind)


class Entry(NamedTuple):
    """Something in a pool that can be evicted.

    `key` is the directory name of its key, `name` its own path below that (slots/<id>, scopes/<scope>/golden). `held`:
    somebody holds its lease, or it is the caller's own. `superseded`: a free slot whose state is older than a golden
    that can replace it. `last_used` in seconds since the epoch, `own_bytes` and `inodes` what its removal frees beside
    layers, `layers` those that it lists. `favoured` ones go last of their kind.
    """

    key: str
    name: str
    kind: EntryKind
    held: bool
    superseded: bool
    trusted: bool
    last_used: float
    own_bytes: int
    inodes: int = 0
    favoured: bool = False
    layers: frozenset[str] = frozenset()
    scope: str = ""
    id: str = ""
    """A golden's own: another one may have its name by the time that it is to go."""
    newest: bool = False
    """A free slot with a state that its scope's golden lacks."""

    why: str = SUPERSEDED
    """Why it is superseded."""

    @property
    def family(self) -> tuple[str, str]:
        """Whose golden it would be: its key and scope."""
        return self.key, self.scope


class Budget(NamedTuple):
    """What a pool may take, in bytes, seconds and inodes. None: no such limit."""

    max_bytes: int | None
    min_free_bytes: int | None
    max_age_s: float | None
    min_free_inodes: int | None = None


class Size(NamedTuple):
    """What something takes. Of a layer it is known once somebody has measured it."""

    bytes: int
    inodes: int


NOTHING = Size(0, 0)


class Usage(NamedTuple):
    """What a pool takes, and what its filesystem has left; None where it does not count inodes."""

    used_bytes: int
    free_bytes: int
    free_inodes: int | None = None

    def after(self, freed: Size) -> Usage:
        inodes = None if self.free_inodes is None else self.free_inodes + freed.inodes
        return Usage(self.used_bytes - freed.bytes, self.free_bytes + freed.bytes, inodes)


class _Owners:
    """How many entries list each layer, while entries go."""

    def __init__(self, entries: Iterable[Entry], layer_sizes: Mapping[str, Size]) -> None:
        self._sizes = layer_sizes
        self._counts = Counter(layer_id for entry in entries for layer_id in entry.layers)

    def freed_by(self, entry: Entry) -> Size:
        """What would be free if it went now."""
        last = [self._sizes.get(layer_id, NOTHING) for layer_id in entry.layers if self._counts[layer_id] == 1]
        return Size(
            entry.own_bytes + sum(size.bytes for size in last), entry.inodes + sum(size.inodes for size in last)
        )

    def would_free(self, entries: Sequence[Entry]) -> Size:
        """What would be free if they went, one after the other."""
        freed = self.remove(entries)
        for entry in entries:
            self._counts.update(entry.layers)
        return freed

    def remove(self, entries: Iterable[Entry]) -> Size:
        """The same, and they go."""
        total = NOTHING
        for entry in entries:
            freed = self.freed_by(entry)
            self._counts.subtract(entry.layers)
            total = Size(total.bytes + freed.bytes, total.inodes + freed.inodes)
        return total


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


def plan_evictions(
    entries: Iterable[Entry], budget: Budget, usage: Usage, now: float, layer_sizes: Mapping[str, Size] | None = None
) -> EvictionPlan:
    """Plan the evictions. `usage` is that before all of them, `now` seconds since the epoch.

    A last use that lies in the future counts as now: a clock that went wrong evicts nothing.
    """
    known = list(entries)
    uses = _last_uses(known, now)
    free = sorted((entry for entry in known if not entry.held), key=lambda entry: _rank(entry, uses))
    reasons = {entry: _reason_whatever_the_size(entry, now - uses[entry], budget) for entry in free}
    evictions = [Eviction(entry, reason) for entry, reason in reasons.items() if reason]
    owners = _Owners(known, layer_sizes or {})
    usage = usage.after(owners.remove(eviction.entry for eviction in evictions))
    for_size = _plan_for_size([entry for entry in free if not reasons[entry]], budget, usage, owners)
    return for_size._replace(evictions=evictions + for_size.evictions)


def _last_uses(entries: Sequence[Entry], now: float) -> dict[Entry, float]:
    """When each entry was used last. Using any of a scope's entries is a use of its golden: they are its clones."""
    own = {entry: now if entry.held else min(entry.last_used, now) for entry in entries}
    last: dict[tuple[str, str], float] = {}
    for entry, used in own.items():
        last[entry.family] = max(used, last.get(entry.family, used))
    return {entry: last[entry.family] if entry.kind is EntryKind.GOLDEN else used for entry, used in own.items()}


def _rank(entry: Entry, uses: Mapping[Entry, float]) -> tuple[bool, int, bool, float, int, str, str]:
    is_trusted = entry.trusted or entry.kind is not EntryKind.SLOT
    kind = _KINDS.index(entry.kind)
    worth = _KINDS.index(EntryKind.GOLDEN) if entry.newest else kind
    return is_trusted, worth, entry.favoured, uses[entry], kind, entry.key, entry.name


def _reason_whatever_the_size(entry: Entry, age_s: float, budget: Budget) -> str | None:
    if entry.superseded and entry.kind is EntryKind.SLOT:
        return entry.why
    return TOO_OLD if budget.max_age_s is not None and age_s > budget.max_age_s else None


def _plan_for_size(entries: Iterable[Entry], budget: Budget, usage: Usage, owners: _Owners) -> EvictionPlan:
    """Go through `entries`, which are in order, until the budget is kept."""
    evictions: list[Eviction] = []
    passed_over: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        reason = _reason_to_free(budget, usage)
        if reason is None:
            break
        # What was passed over goes with its scope's golden, and with it the layers that both have.
        together = [*passed_over.get(entry.family, ()), entry] if entry.kind is EntryKind.GOLDEN else [entry]
        freed = owners.would_free(together)
        if not _helps(freed, reason, budget, usage):
            passed_over.setdefault(entry.family, []).append(entry)
            continue
        if entry.kind is EntryKind.GOLDEN:
            passed_over.pop(entry.family, None)
        evictions += [Eviction(one, reason) for one in together]
        usage = usage.after(owners.remove(together))
    lacking_bytes = max(_excess_bytes(budget, usage), _missing_bytes(budget, usage), 0)
    return EvictionPlan(evictions, lacking_bytes, max(_missing_inodes(budget, usage), 0))


def _helps(freed: Size, reason: str, budget: Budget, usage: Usage) -> bool:
    """Whether that is anything of what is wanting."""
    wants_bytes = reason is TOO_LARGE or _missing_bytes(budget, usage) > 0
    return (wants_bytes and freed.bytes > 0) or (_missing_inodes(budget, usage) > 0 and freed.inodes > 0)


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
