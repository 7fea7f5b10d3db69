"""What a pool evicts: the order by tables, the promises by properties."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.pool.limits import (
    SUPERSEDED,
    TOO_FULL,
    TOO_LARGE,
    TOO_OLD,
    Budget,
    Entry,
    EntryKind,
    Eviction,
    Usage,
    plan_evictions,
)

NOW = 1_000_000.0
UNLIMITED = Budget(None, None, None)
FULL = Usage(1000, 0)


def entry(
    name: str,
    kind: EntryKind = EntryKind.SLOT,
    *,
    key: str = "k",
    held: bool = False,
    superseded: bool = False,
    trusted: bool = True,
    idle_s: float = 100,
    size: int = 10,
) -> Entry:
    return Entry(key, name, kind, held, superseded, trusted, NOW - idle_s, size)


def golden(key: str, *, idle_s: float = 100, size: int = 10) -> Entry:
    return entry("golden", EntryKind.GOLDEN, key=key, idle_s=idle_s, size=size)


def planned(entries: list[Entry], budget: Budget, usage: Usage = FULL) -> list[tuple[str, str, str]]:
    return [(one.key, one.name, reason) for one, reason in plan_evictions(entries, budget, usage, NOW).evictions]


ONE_OF_EACH = [
    golden("b", idle_s=700),
    golden("a", idle_s=900),
    entry("golden.other/x", EntryKind.OTHER, idle_s=5000),
    entry("golden.previous", EntryKind.PREVIOUS, idle_s=6000),
    entry("slots/new", idle_s=10),
    entry("slots/old", idle_s=20),
    entry("slots/bad", trusted=False, idle_s=5),
    entry("slots/held", held=True, idle_s=9000),
    entry("slots/passed", superseded=True, idle_s=1),
    golden("k", idle_s=8000),
]


def test_a_free_slot_with_the_newest_state_goes_with_the_goldens() -> None:
    """It is the only copy of that state until the next start of its scope."""
    newest = entry("slots/newest", idle_s=9000)._replace(newest=True)
    entries = [entry("golden.previous", EntryKind.PREVIOUS, idle_s=1), newest, golden("k", idle_s=8000)]
    assert [name for _, name, _ in planned(entries, Budget(0, None, None))] == [
        "golden.previous",
        "slots/newest",
        "golden",
    ]


@pytest.mark.parametrize("count", range(9))
def test_order_and_stopping_as_soon_as_it_fits(count: int) -> None:
    order = ["slots/bad", "slots/old", "slots/new", "golden.previous", "golden.other/x", "a", "b", "k"]
    # The superseded slot frees 10 of its own accord.
    found = plan_evictions(ONE_OF_EACH, Budget(990 - 10 * count, None, None), Usage(1000, 0), NOW)
    assert found.lacking_bytes == 0
    first, *others = found.evictions
    assert (first.entry.name, first.reason) == ("slots/passed", SUPERSEDED)
    assert [one.key if one.kind is EntryKind.GOLDEN else one.name for one, _ in others] == order[:count]
    assert {reason for _, reason in others} <= {TOO_LARGE}


def test_a_byte_over_the_budget_is_over_it() -> None:
    assert planned([entry("s")], Budget(1000, None, None)) == []
    assert planned([entry("s")], Budget(999, None, None)) == [("k", "s", TOO_LARGE)]
    assert planned([entry("s")], Budget(None, 500, None), Usage(0, 500)) == []
    assert planned([entry("s")], Budget(None, 501, None), Usage(0, 500)) == [("k", "s", TOO_FULL)]


def test_inodes_are_as_scarce_as_bytes() -> None:
    entries = [
        entry("slots/old", idle_s=20, size=0)._replace(inodes=400),
        entry("slots/few", idle_s=15)._replace(inodes=0),
        entry("slots/new", idle_s=10)._replace(inodes=400),
    ]
    limit = Budget(None, None, None, min_free_inodes=500)
    full = Usage(1000, 10_000, free_inodes=90)
    assert planned(entries, limit, full._replace(free_inodes=500)) == []
    assert planned(entries, limit, full._replace(free_inodes=None)) == [], "a filesystem that does not count them"
    assert planned(entries, limit, full._replace(free_inodes=100)) == [("k", "slots/old", TOO_FULL)]
    assert [name for _, name, _ in planned(entries, limit, full)] == ["slots/old", "slots/new"]
    found = plan_evictions(entries, limit, full._replace(free_inodes=-400), NOW)
    assert (found.lacking_bytes, found.lacking_inodes, found.is_enough) == (0, 100, False)


def test_what_is_favoured_goes_last_of_its_kind() -> None:
    entries = [entry("mine", idle_s=900)._replace(favoured=True), entry("theirs", key="b"), golden("b", idle_s=9000)]
    full = Budget(0, None, None)
    assert [name for _, name, _ in planned(entries, full, Usage(100, 0))] == ["theirs", "mine", "golden"]


def test_what_cannot_be_freed_is_told() -> None:
    assert plan_evictions(ONE_OF_EACH, Budget(0, None, None), Usage(1000, 0), NOW).lacking_bytes == 1000 - 90
    assert plan_evictions(ONE_OF_EACH, Budget(None, 2000, None), Usage(1000, 5), NOW).lacking_bytes == 2000 - 5 - 90
    both = plan_evictions(ONE_OF_EACH, Budget(950, 2000, None), Usage(1000, 5), NOW)
    assert both.lacking_bytes == 2000 - 5 - 90
    assert both.evictions[1].reason == TOO_LARGE
    assert both.evictions[-1].reason == TOO_FULL
    assert plan_evictions([], Budget(10, None, None), Usage(11, 0), NOW).lacking_bytes == 1


def test_without_a_budget_only_the_superseded_go() -> None:
    assert planned(ONE_OF_EACH, UNLIMITED) == [("k", "slots/passed", SUPERSEDED)]


def test_only_a_free_slot_is_superseded() -> None:
    entries = [
        entry("golden", EntryKind.GOLDEN, superseded=True),
        entry("golden.previous", EntryKind.PREVIOUS, superseded=True),
        entry("slots/held", held=True, superseded=True),
    ]
    assert planned(entries, UNLIMITED) == []


def test_age() -> None:
    limit = Budget(None, None, 1000)
    assert planned([entry("s", idle_s=1000)], limit) == []
    assert planned([entry("s", idle_s=1001)], limit) == [("k", "s", TOO_OLD)]
    assert planned([entry("s", idle_s=1001, held=True)], limit) == []
    assert planned([entry("s", idle_s=-1e9)], Budget(None, None, 0)) == []


def test_each_kind_grows_old() -> None:
    entries = [entry(kind.value, kind, idle_s=1001) for kind in EntryKind]
    assert {name for _, name, _ in planned(entries, Budget(None, None, 1000))} == {kind.value for kind in EntryKind}


@pytest.mark.parametrize(
    "in_use", [entry("slots/1", idle_s=50), entry("slots/1", idle_s=9999, held=True)], ids=["recently", "right now"]
)
def test_a_golden_is_as_young_as_its_keys_last_use(in_use: Entry) -> None:
    """An instance that works on a clone uses the golden that it came from."""
    entries = [golden("k", idle_s=9999), golden("other", idle_s=9999), in_use]
    assert planned(entries, Budget(None, None, 1000)) == [("other", "golden", TOO_OLD)]
    # By size as well: "other" has been idle for less long than this golden alone, but for longer than the key.
    entries = [golden("k", idle_s=9999), golden("other", idle_s=500), in_use._replace(own_bytes=0)]
    assert planned(entries, Budget(995, None, None)) == [("other", "golden", TOO_LARGE)]


def test_what_frees_nothing_stays_unless_its_golden_goes() -> None:
    """Clones that wrote nothing yet occupy nothing, but would keep the golden's data occupied."""
    entries = [
        entry("slots/clone", size=0),
        entry("golden.previous", EntryKind.PREVIOUS, size=0),
        golden("k", size=50),
        golden("empty", size=0),
        entry("slots/elsewhere", key="other", size=0),
        entry("slots/full", key="other", size=5),
    ]
    assert planned(entries, Budget(995, None, None)) == [("other", "slots/full", TOO_LARGE)]
    assert planned(entries, Budget(990, None, None)) == [
        ("other", "slots/full", TOO_LARGE),
        ("k", "slots/clone", TOO_LARGE),
        ("k", "golden.previous", TOO_LARGE),
        ("k", "golden", TOO_LARGE),
    ]


def test_a_wrong_clock_neither_ages_nor_protects() -> None:
    """Of two slots from the future none is older; a third one, from the past, goes before them."""
    entries = [entry("b", idle_s=-500), entry("a", idle_s=-900), entry("c", idle_s=1)]
    assert [name for _, name, _ in planned(entries, Budget(0, None, None))] == ["c", "a", "b"]


# ---- properties ------------------------------------------------------------------------------------------------

ENTRIES = st.lists(
    st.builds(
        Entry,
        key=st.sampled_from("abc"),
        name=st.text("xyz", max_size=4),
        kind=st.sampled_from(list(EntryKind)),
        held=st.booleans(),
        superseded=st.booleans(),
        trusted=st.booleans(),
        last_used=st.floats(NOW - 2000, NOW + 500),
        own_bytes=st.integers(0, 100),
        inodes=st.integers(0, 100),
        favoured=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda one: (one.key, one.name),
)
LIMITS = st.none() | st.integers(0, 1200)
BUDGETS = st.builds(Budget, LIMITS, LIMITS, st.none() | st.floats(0, 2000), LIMITS)
USAGES = st.builds(Usage, st.integers(0, 1200), st.integers(0, 1200), st.none() | st.integers(0, 1200))


def lacking(budget: Budget, usage: Usage) -> int:
    over = 0 if budget.max_bytes is None else usage.used_bytes - budget.max_bytes
    under = 0 if budget.min_free_bytes is None else budget.min_free_bytes - usage.free_bytes
    return max(over, under, 0)


def lacking_inodes(budget: Budget, usage: Usage) -> int:
    if budget.min_free_inodes is None or usage.free_inodes is None:
        return 0
    return max(budget.min_free_inodes - usage.free_inodes, 0)


def freed(evictions: list[Eviction]) -> int:
    return sum(one.own_bytes for one, _ in evictions)


def after(usage: Usage, evictions: list[Eviction]) -> Usage:
    inodes = None if usage.free_inodes is None else usage.free_inodes + sum(one.inodes for one, _ in evictions)
    return Usage(usage.used_bytes - freed(evictions), usage.free_bytes + freed(evictions), inodes)


@given(ENTRIES, BUDGETS, USAGES)
def test_a_plan_names_each_entry_once_and_never_a_held_one(entries: list[Entry], budget: Budget, usage: Usage) -> None:
    evicted = [one for one, _ in plan_evictions(entries, budget, usage, NOW).evictions]
    assert len(set(evicted)) == len(evicted)
    assert set(evicted) <= {one for one in entries if not one.held}


@given(ENTRIES, BUDGETS, USAGES)
def test_never_more_than_needed_and_what_is_lacking_is_told(entries: list[Entry], budget: Budget, usage: Usage) -> None:
    plan = plan_evictions(entries, budget, usage, NOW)
    left = after(usage, plan.evictions)
    assert (plan.lacking_bytes, plan.lacking_inodes) == (lacking(budget, left), lacking_inodes(budget, left))
    assert [reason in (TOO_LARGE, TOO_FULL) for _, reason in plan.evictions] == sorted(
        reason in (TOO_LARGE, TOO_FULL) for _, reason in plan.evictions
    ), "what goes whatever the size goes first"
    if plan.evictions and plan.evictions[-1].reason in (TOO_LARGE, TOO_FULL):
        before = after(usage, plan.evictions[:-1])
        assert lacking(budget, before) > 0 or lacking_inodes(budget, before) > 0
    evicted = {one for one, _ in plan.evictions}
    kept = [one for one in entries if not one.held and one not in evicted]
    assert not (plan.lacking_bytes and any(one.own_bytes for one in kept))
    assert not (plan.lacking_inodes and any(one.inodes for one in kept))


@given(ENTRIES, BUDGETS, USAGES)
def test_a_golden_goes_after_the_free_slots_of_its_scope(entries: list[Entry], budget: Budget, usage: Usage) -> None:
    evicted = [one for one, _ in plan_evictions(entries, budget, usage, NOW).evictions]
    for index, one in enumerate(evicted):
        if one.kind is EntryKind.GOLDEN:
            free = {slot for slot in entries if slot.kind is EntryKind.SLOT and not slot.held}
            assert {slot for slot in free if slot.family == one.family} <= set(evicted[:index])


@given(ENTRIES, BUDGETS, USAGES, st.randoms(use_true_random=False))
def test_the_order_of_the_entries_is_of_no_account(
    entries: list[Entry], budget: Budget, usage: Usage, random: Random
) -> None:
    shuffled = list(entries)
    random.shuffle(shuffled)
    assert plan_evictions(shuffled, budget, usage, NOW) == plan_evictions(entries, budget, usage, NOW)


@given(ENTRIES, BUDGETS, USAGES)
def test_what_is_too_old_does_not_depend_on_sizes(entries: list[Entry], budget: Budget, usage: Usage) -> None:
    def whatever_the_size(plan_of: list[Entry], limits: Budget) -> list[tuple[str, str, str]]:
        found = plan_evictions(plan_of, limits, usage, NOW).evictions
        return [(one.key, one.name, reason) for one, reason in found if reason in (SUPERSEDED, TOO_OLD)]

    sizeless = [one._replace(own_bytes=0) for one in entries]
    assert whatever_the_size(entries, budget) == whatever_the_size(sizeless, Budget(None, None, budget.max_age_s))
