"""Which seeds have to be put in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cachedind.engine.images import Record
from cachedind.seeds.model import BadSeed, Entry, Seed, SeedKind
from cachedind.seeds.planning import plan_seeding


def seed(identity: str, name: str = "") -> Seed:
    return Seed(SeedKind.ARCHIVE, name or f"/seeds/{identity}.tar", identity, 1)


def record(number: int) -> Record:
    return Record((f"docker.io/library/n{number}:1",), f"sha256:{number:064}", "")


def entry(identity: str, *numbers: int, name: str = "", bad: tuple[tuple[str, str], ...] = ()) -> Entry:
    return Entry(name or f"/seeds/{identity}.tar", 1.0, tuple(map(record, numbers)), bad)


def test_what_was_never_loaded_is_missing() -> None:
    plan = plan_seeding([seed("a")], {}, lambda _: True)
    assert plan.missing == (seed("a"),)


def test_what_the_store_still_has_is_not() -> None:
    entries = {"a": entry("a", 1, 2)}
    plan = plan_seeding([seed("a")], entries, lambda _: True)
    assert plan == ((), (), (), entries)


def test_one_image_that_is_gone_makes_its_seed_missing() -> None:
    plan = plan_seeding(
        [seed("a"), seed("b")], {"a": entry("a", 1, 2), "b": entry("b", 3)}, lambda one: one != record(2)
    )
    assert plan.missing == (seed("a"),)
    assert plan.superseded == ()


def test_a_newer_file_in_the_same_place_supersedes_the_older_one() -> None:
    plan = plan_seeding([seed("new", "/seeds/a.tar")], {"a": entry("a", 1), "b": entry("b", 2)}, lambda _: True)
    assert plan.missing == (seed("new", "/seeds/a.tar"),)
    assert plan.superseded == (record(1),)
    assert plan.entries == {"b": entry("b", 2)}


def test_a_source_that_is_gone_takes_nothing_with_it() -> None:
    plan = plan_seeding([seed("b")], {"a": entry("a", 1)}, lambda _: True)
    assert plan.superseded == ()
    assert "a" in plan.entries


def test_what_is_known_to_be_bad_is_told_and_not_read_again() -> None:
    entries = {"a": entry("a", bad=(("a.tar", "it is empty"),)), "b": entry("b", 1, bad=(("b (x)", "no"),))}
    plan = plan_seeding([seed("a"), seed("b")], entries, lambda _: True)
    assert plan.missing == ()
    assert plan.bad == (BadSeed("a.tar", "it is empty"), BadSeed("b (x)", "no"))


def test_it_is_read_again_when_its_good_images_are_gone() -> None:
    plan = plan_seeding([seed("b")], {"b": entry("b", 1, bad=(("b (x)", "no"),))}, lambda _: False)
    assert plan.missing == (seed("b"),)
    assert plan.bad == ()


NUMBERS = st.integers(0, 5)
ENTRIES = st.dictionaries(
    NUMBERS.map(str), st.builds(lambda n, images: entry(str(n), *images), NUMBERS, st.lists(NUMBERS, max_size=3))
)


@given(st.lists(NUMBERS.map(str), unique=True), ENTRIES, st.sets(NUMBERS))
def test_after_a_run_nothing_is_missing(identities: list[str], entries: dict[str, Entry], there: set[int]) -> None:
    """Whatever was there: what is noted after loading what a plan calls missing leaves the next plan empty."""
    seeds = [seed(identity) for identity in identities]
    held = {record(number) for number in there}
    plan = plan_seeding(seeds, entries, held.__contains__)
    loaded = {one.identity: entry(one.identity, 7) for one in plan.missing}
    held.add(record(7))
    again = plan_seeding(seeds, {**plan.entries, **loaded}, held.__contains__)
    assert again.missing == ()
    assert again.superseded == ()
