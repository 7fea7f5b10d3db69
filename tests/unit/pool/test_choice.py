"""Which slot or golden a start gets, when a slot becomes the golden, and which slots nobody would miss. Pure."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.model import DataRootState, Ended, EngineVersion, ImageStore
from cachedind.engine.doubt import CRASHED, UNPROVEN
from cachedind.pool.choice import (
    COMES_BACK_S,
    Requirements,
    is_compatible,
    may_come_back,
    needs_promotion,
    plan_choice,
    superseded,
    why_incompatible,
    why_nothing_warmer,
)
from cachedind.pool.slot_state import Candidate, Kind, SlotState, class_name, parse_slot_state

BOOT = "b00t"
OLD, NEW = EngineVersion(26, 1, 5), EngineVersion(28, 5, 2)
GRAPH, CTRD = ImageStore.GRAPHDRIVER, ImageStore.CONTAINERD
USUAL = Requirements(NEW, "x86_64")


def state(
    sequence: int,
    *,
    engine: EngineVersion = NEW,
    store: ImageStore = GRAPH,
    ready: bool = True,
    boot_id: str = BOOT,
    arch: str = "x86_64",
    read_only: bool = False,
    durable: bool = False,
    scope: str = "",
) -> SlotState:
    driver = "overlay2" if store is GRAPH else "overlayfs"
    data = DataRootState(engine, store, driver, "btrfs", boot_id, 1000.0, 1001.0 if ready else None)
    return SlotState(data, arch, sequence, read_only=read_only, durable=durable, scope=scope)


def slot(name: str, found: SlotState) -> Candidate:
    return Candidate(Kind.SLOT, f"slots/{name}", found)


def golden(found: SlotState, name: str = "golden") -> Candidate:
    return Candidate(Kind.GOLDEN, name, found._replace(durable=True))


def ranked(*candidates: Candidate, requirements: Requirements = USUAL) -> list[str]:
    return [candidate.name for candidate in plan_choice(list(candidates), requirements, BOOT)]


EMPTY = SlotState(None, "x86_64", 0)


def test_the_newest_slot_wins() -> None:
    assert ranked(slot("a", state(3)), slot("b", state(5)), golden(state(4))) == ["slots/b", "golden", "slots/a"]


def test_a_newer_golden_beats_a_stale_slot() -> None:
    assert ranked(slot("stale", state(3)), golden(state(4))) == ["golden", "slots/stale"]


def test_of_equally_new_ones_the_slot_needs_no_clone() -> None:
    assert ranked(golden(state(4)), slot("spare", state(4))) == ["slots/spare", "golden"]


def with_data(found: SlotState, **values: object) -> SlotState:
    assert found.data is not None
    return found._replace(data=found.data._replace(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "suspicious",
    [
        state(9, boot_id="the host went down"),
        with_data(state(9), doubt=CRASHED),
        with_data(state(9, ready=False), doubt=UNPROVEN),
        # Nothing of a job is in it.
        state(9, ready=False)._replace(pure=True),
    ],
    ids=["crash", "killed amid mending", "slow", "empty"],
)
def test_a_suspicious_slot_comes_after_a_trusted_golden(suspicious: SlotState) -> None:
    assert ranked(slot("bad", suspicious), golden(state(2))) == ["golden", "slots/bad"]
    assert ranked(slot("bad", suspicious)) == ["slots/bad"], "better than nothing"


def test_a_start_that_was_cancelled_costs_nobody_the_newest_state() -> None:
    assert ranked(slot("cancelled", state(9, ready=False)), golden(state(2))) == ["slots/cancelled", "golden"]


def test_a_clean_end_is_trusted_after_a_reboot() -> None:
    clean = with_data(state(9, boot_id="before"), ended=Ended(0, clean=True))
    assert ranked(slot("clean", clean), golden(state(2))) == ["slots/clean", "golden"]
    assert needs_promotion(clean, [golden(state(2))], BOOT)


@pytest.mark.parametrize(
    ("ended", "more", "comes_back"),
    [
        (Ended(0, True, 100.0), {}, True),
        (Ended(143, False, 100.0), {}, True),
        (Ended(0, True, 100.0), {"container": ""}, False),
        (Ended(0, True, 100.0), {"read_only": True}, False),
        (Ended(0, True, 100.0 - COMES_BACK_S), {}, False),
        (Ended(0, True, 200.0), {}, False),  # by a clock that was wrong
        (None, {}, False),  # killed
    ],
)
def test_who_was_asked_to_end_may_come_back(ended: Ended | None, more: dict[str, Any], comes_back: bool) -> None:
    found = with_data(state(9)._replace(**{"container": "c0ffee", **more}), ended=ended)
    assert may_come_back(found, 101.0) is comes_back


def test_a_golden_that_was_on_disk_is_trusted_after_a_crash() -> None:
    assert ranked(slot("s", state(9, boot_id="before")), golden(state(2, boot_id="before")))[0] == "golden"


def test_this_engines_own_state_comes_before_an_older_engines_newer_one() -> None:
    assert ranked(slot("old", state(9, engine=OLD)), slot("own", state(3))) == ["slots/own", "slots/old"]


def test_a_newer_engines_state_is_not_for_an_older_engine() -> None:
    assert ranked(
        slot("new", state(9)), slot("own", state(3, engine=OLD)), requirements=Requirements(OLD, "x86_64")
    ) == ["slots/own"]


def test_a_patch_release_is_the_same_engine() -> None:
    assert ranked(slot("a", state(9, engine=EngineVersion(28, 5, 9)))) == ["slots/a"]


def test_store_and_driver_that_were_asked_for() -> None:
    both = (slot("graph", state(9)), slot("ctrd", state(3, store=CTRD)))
    assert ranked(*both) == ["slots/graph", "slots/ctrd"]
    assert ranked(*both, requirements=USUAL._replace(store=CTRD)) == ["slots/ctrd"]
    assert ranked(*both, requirements=USUAL._replace(driver="overlayfs")) == ["slots/ctrd"]
    assert ranked(*both, requirements=USUAL._replace(driver="fuse-overlayfs")) == []


VFS = state(9)._replace(asked="driver")
assert VFS.data is not None
VFS = VFS._replace(data=VFS.data._replace(driver="vfs"))


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [
        (USUAL, ["slots/own"]),
        (USUAL._replace(driver="vfs"), ["slots/vfs"]),
        (USUAL._replace(docker_driver="vfs"), ["slots/vfs", "slots/own"]),
        (USUAL._replace(docker_driver="overlay2"), ["slots/own"]),
        (USUAL._replace(store=GRAPH), ["slots/own"]),
        (USUAL._replace(store=CTRD), ["slots/ctrd"]),
        (USUAL._replace(driver="overlayfs"), ["slots/ctrd"]),
    ],
)
def test_what_one_start_asked_for_is_for_those_that_ask_for_it(requirements: Requirements, expected: list[str]) -> None:
    own, ctrd = slot("own", state(3)), slot("ctrd", state(5, store=CTRD)._replace(asked="store"))
    assert ranked(slot("vfs", VFS), ctrd, own, requirements=requirements) == expected


def test_a_driver_that_nobody_asked_for_is_the_keys() -> None:
    """Where nothing but vfs works, the pool is as warm as any."""
    assert ranked(slot("vfs", VFS._replace(asked=""))) == ["slots/vfs"]


def test_throw_aways_other_architectures_and_what_has_nothing_new_are_nobodys() -> None:
    assert ranked(slot("emptied", state(9)._replace(nothing_new=True))) == []
    assert ranked(slot("ro", state(9, read_only=True)), slot("arm", state(9, arch="aarch64"))) == []


def test_an_empty_slot_is_the_last_choice() -> None:
    assert ranked(slot("empty", EMPTY), slot("bad", state(1, ready=False)), golden(state(0)))[-1] == "slots/empty"


BUILD = USUAL._replace(scope="build")


def test_the_own_scopes_state_comes_before_newer_ones_of_others() -> None:
    own, other = slot("own", state(3, scope="build")), golden(state(9, scope="web"), "web")
    assert ranked(own, other, requirements=BUILD) == ["slots/own", "web"]
    assert ranked(own, other, requirements=USUAL._replace(scope="web")) == ["web", "slots/own"]
    assert ranked(own, other) == ["web", "slots/own"], "no scope is one, too"


@pytest.mark.parametrize(
    "own",
    [
        state(5, scope="build", boot_id="the host went down"),
        state(5, scope="build")._replace(pure=True),
        SlotState(None, "x86_64", 0, scope="build"),
    ],
    ids=["doubted", "seeds alone", "empty"],
)
def test_a_state_of_the_own_scope_that_is_worth_little_comes_after_others(own: SlotState) -> None:
    assert ranked(slot("own", own), golden(state(2, scope="web"), "web"), requirements=BUILD) == ["web", "slots/own"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (state(3), ""),
        (state(3, engine=EngineVersion(29, 1, 0)), "of a newer engine (29.1.0)"),
        (state(3, arch="aarch64"), "of another architecture (aarch64)"),
        (with_data(state(3), remap="100000.100000"), "with other remapped users (100000.100000)"),
        (VFS, "with another storage driver (vfs)"),
    ],
)
def test_why_a_state_is_not_used(found: SlotState, reason: str) -> None:
    assert why_incompatible(found, USUAL) == reason
    assert is_compatible(found, USUAL) is not bool(reason)
    assert why_incompatible(state(3, store=CTRD), USUAL._replace(store=GRAPH)) == "in another image store (containerd)"
    assert why_incompatible(state(3), USUAL._replace(remap="1.1")) == "without userns-remap"


OLDER, NEWER = state(9, engine=OLD), state(9, engine=EngineVersion(29, 1, 0))
CRASH = state(9, boot_id="before")
NEVER = state(9, ready=False)
WENT_DOWN = "not to be trusted yet (the host went down since its last daemon)"
NEVER_CAME_UP = "not to be trusted yet (no daemon came up on it at its last start)"
VFS_OF_ALL = VFS._replace(asked="")


@pytest.mark.parametrize(
    ("found", "got", "words"),
    [
        # Nothing of the key.
        ([EMPTY, state(3, read_only=True)], None, ""),
        ([NEWER], None, "what is there is of a newer engine (29.1.0)"),
        ([NEWER], EMPTY, "what is there is of a newer engine (29.1.0)"),
        (
            [state(3, store=CTRD)],
            None,
            "what is there is with another storage driver (overlayfs in the containerd store)",
        ),
        ([state(3)], None, "what is there is held by other instances"),
        ([state(3, scope="web")], None, "what is there is held by other instances"),
        ([state(3)._replace(nothing_new=True)], None, "what is there is not worth a lease (its job left nothing new)"),
        (
            [NEWER, VFS, state(3), state(4, scope="web")],
            None,
            "none of 4 fits: 2 held by other instances, 1 of a newer engine (29.1.0), "
            "1 with another storage driver (vfs)",
        ),
        # Another scope's state.
        ([NEWER, state(9, scope="api")], state(3, scope="web"), "what this scope has is of a newer engine (29.1.0)"),
        (
            [CRASH, NEWER],
            state(3, scope="web"),
            f"none of 2 of this scope fits: 1 {WENT_DOWN}, 1 of a newer engine (29.1.0)",
        ),
        ([state(0)._replace(nothing_new=True)], state(3, scope="web"), ""),
        ([state(9, scope="api")], state(3, scope="web"), ""),
        # A state of its own scope: others at work are no reason.
        ([state(9), state(2)], state(3), ""),
        ([NEWER, state(2, engine=NEW)], state(3), "what is newer is of a newer engine (29.1.0)"),
        ([CRASH, OLDER], state(3), f"none of 2 newer ones fits: 1 {WENT_DOWN}, 1 of an older engine (26.1.5)"),
        ([state(9, scope="web")], state(3), ""),
    ],
)
def test_why_a_start_got_nothing_warmer(found: list[SlotState], got: SlotState | None, words: str) -> None:
    """Whatever of this engine is good is at work."""
    there = [slot(str(number), one) for number, one in enumerate(found)]
    at_work = frozenset(
        one.name for one in there if one.state.is_trusted(BOOT) and one.state.data and one.state.data.engine == NEW
    )
    requirements = USUAL._replace(driver="overlay2")
    assert why_nothing_warmer(there, requirements, BOOT, got, at_work) == words


@pytest.mark.parametrize(
    ("found", "lends", "words"),
    [
        (VFS_OF_ALL, True, "of a driver whose layers cannot be shared (vfs)"),
        (VFS_OF_ALL._replace(scope="web"), False, "of a driver whose layers cannot be shared (vfs)"),
        (CRASH, True, WENT_DOWN),
        (CRASH._replace(scope="web"), False, WENT_DOWN),
        (NEVER, True, NEVER_CAME_UP),
        (NEVER._replace(scope="web"), False, NEVER_CAME_UP),
        (state(9), True, "passed over by this start"),
        (state(9), False, "passed over by this start"),
    ],
)
def test_why_a_start_got_nothing_though_a_free_slot_fits(found: SlotState, lends: bool, words: str) -> None:
    assert why_nothing_warmer([slot("a", found)], USUAL, BOOT, None, lends=lends) == f"what is there is {words}"


def test_the_best_state_there_is_needs_no_reason() -> None:
    for ranked in ([slot("a", state(5)), golden(state(4)), slot("b", state(3))], [golden(OLDER), slot("w", CRASH)]):
        best = plan_choice(ranked, USUAL, BOOT)[0]
        assert why_nothing_warmer([one for one in ranked if one is not best], USUAL, BOOT, best.state) == ""


@pytest.mark.parametrize(
    ("found", "goldens", "wanted"),
    [
        (state(3), [], True),
        (state(3), [golden(state(2))], True),
        (state(3), [golden(state(3))], False),
        (state(3), [golden(state(4))], False),
        (state(3), [golden(state(4, engine=OLD))], True),
        (state(3), [golden(state(4)), golden(state(2, engine=OLD), "golden.other/x")], False),
        (state(3, ready=False), [], False),
        (state(3, boot_id="before the crash"), [], False),
        (with_data(state(3), doubt=CRASHED), [], False),
        (with_data(state(3), doubt=CRASHED, ended=Ended(0, clean=True)), [], False),
        (with_data(state(3), doubt=UNPROVEN), [], True),
        (state(3, read_only=True), [], False),
        (EMPTY, [], False),
        (state(3, scope="a"), [golden(state(4, scope="b"))], True),
        (state(3, scope="a"), [golden(state(4, scope="a"))], False),
        (state(3)._replace(nothing_new=True), [], False),
    ],
)
def test_when_a_slot_becomes_the_golden(found: SlotState, goldens: list[Candidate], wanted: bool) -> None:
    assert needs_promotion(found, goldens, BOOT) is wanted


@pytest.mark.parametrize(
    ("found", "goldens", "expected"),
    [
        (state(3), [], False),
        (state(3), [golden(state(3))], False),
        (state(3), [golden(state(4))], True),
        (state(3), [golden(state(4, engine=OLD))], False),
        (state(5, ready=False), [golden(state(4))], False),
        (state(5, ready=False)._replace(pure=True), [golden(state(4))], True),
        (state(5, ready=False), [], False),
        (state(5, read_only=True), [], True),
        (EMPTY, [], False),
        (EMPTY, [golden(state(1))], True),
        (state(3, scope="a"), [golden(state(4, scope="b"))], False),
        (SlotState(None, "x86_64", 0, scope="a"), [golden(state(4, scope="b"))], False),
        (state(4)._replace(nothing_new=True), [golden(state(4))], True),
        (state(0)._replace(nothing_new=True), [], True),
    ],
)
def test_which_free_slots_nobody_would_miss(found: SlotState, goldens: list[Candidate], expected: bool) -> None:
    assert superseded(found, goldens) is expected


states = st.builds(
    state,
    st.integers(0, 9),
    engine=st.sampled_from([OLD, NEW]),
    store=st.sampled_from([GRAPH, CTRD]),
    ready=st.booleans(),
    boot_id=st.sampled_from([BOOT, "before"]),
    arch=st.sampled_from(["x86_64", "aarch64"]),
    read_only=st.booleans(),
) | st.just(EMPTY)
candidates = st.lists(
    st.builds(slot, st.text("abc", min_size=1, max_size=3), states) | st.builds(golden, states), max_size=8
)
all_requirements = st.builds(
    Requirements, st.sampled_from([OLD, NEW]), st.just("x86_64"), st.sampled_from([None, GRAPH, CTRD])
)


@given(candidates, all_requirements)
def test_nothing_that_does_not_fit_is_ever_chosen(found: list[Candidate], requirements: Requirements) -> None:
    chosen = plan_choice(found, requirements, BOOT)
    for candidate in chosen:
        data = candidate.state.data
        assert not candidate.state.read_only
        assert candidate.state.arch == requirements.arch
        if data is not None:
            assert data.engine.release <= requirements.engine.release
            assert requirements.store in (None, data.store)
    assert len(chosen) == sum(is_compatible(candidate.state, requirements) for candidate in found)
    likely = [candidate.state.is_likely(BOOT) for candidate in chosen]
    assert likely == sorted(likely, reverse=True)
    assert all(candidate.state.is_likely(BOOT) for candidate in chosen if candidate.state.is_trusted(BOOT))


def test_a_state_of_one_remap_is_of_use_to_that_alone() -> None:
    plain = state(1)
    assert plain.data is not None
    remapped = plain._replace(data=plain.data._replace(remap="165536.165536"))
    requirements = USUAL._replace(remap="165536.165536")
    assert [is_compatible(found, USUAL) for found in (plain, remapped)] == [True, False]
    assert [is_compatible(found, requirements) for found in (plain, remapped)] == [False, True]
    assert not is_compatible(remapped, USUAL._replace(remap="1.1"))
    assert class_name(plain) != class_name(remapped)


@given(candidates, states)
def test_what_deserves_promotion_is_not_superseded(found: list[Candidate], one: SlotState) -> None:
    goldens = [candidate for candidate in found if candidate.kind is Kind.GOLDEN]
    assert not (needs_promotion(one, goldens, BOOT) and superseded(one, goldens))


def test_classes_do_not_replace_each_other() -> None:
    names = {
        class_name(found)
        for found in (
            state(1),
            state(1, engine=OLD),
            state(1, store=CTRD),
            state(1, store=CTRD)._replace(asked="store"),
            state(1, arch="aarch64"),
            EMPTY,
        )
    }
    assert len(names) == 6
    assert all("/" not in name and not name.startswith(".") for name in names)


GOOD: dict[str, object] = {
    "engine": "28.5.2",
    "image_store": "graphdriver",
    "driver": "overlay2",
    "fstype": "btrfs",
    "boot_id": BOOT,
    "started_at": 1000.0,
    "ready_at": 1001.0,
    "arch": "x86_64",
    "sequence": 3,
}


def test_a_state_file_is_read() -> None:
    assert parse_slot_state(GOOD) == state(3)
    assert parse_slot_state({"arch": "x86_64", "sequence": 0}) == EMPTY


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional={key: st.just(good) | json_values for key, good in GOOD.items()}))
def test_any_object_is_a_state_or_a_value_error(raw: dict[str, object]) -> None:
    with contextlib.suppress(ValueError):
        found = parse_slot_state(raw)
        # Whatever was accepted can be judged, and named as a file.
        assert "/" not in class_name(found)
        superseded(found, [])
        plan_choice([slot("x", found)], USUAL, BOOT)
