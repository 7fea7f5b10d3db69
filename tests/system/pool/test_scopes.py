"""Jobs of one project: each scope has its own golden, what has nothing new replaces nothing, and what a job has emptied
costs the next nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cachedind.base import state
from cachedind.base.model import ImageStore, StoragePlan
from cachedind.host import procfs
from cachedind.pool import (
    changes,
    clone,
    eviction,
    golden,
    key_directory,
    slot_lease,
    slot_state,
    survey,
)
from cachedind.pool.slot_request import Warmth
from helpers import pool_starts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.pool.directory import Pool
    from cachedind.pool.mutable import LeftOut
    from cachedind.pool.slot_request import SlotRequest, TakenSlot
    from helpers.filesystems import Filesystems

GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")


@pytest.fixture
def pool(filesystems: Filesystems) -> Iterator[Pool]:
    with contextlib.closing(pool_starts.open_pool(filesystems.make("ext4"))) as made:
        yield made


def of(scope: str, key: str = "k", *, read_only: bool = False) -> SlotRequest:
    found = pool_starts.slot_request(key, read_only=read_only)
    return found._replace(requirements=found.requirements._replace(scope=scope))


def start(pool: Pool, wanted: SlotRequest, *, keeps: bool = False) -> TakenSlot:
    """Up to the moment at which the job begins."""
    taken = pool_starts.take(pool, wanted)
    pool_starts.begin(taken)
    changes.note_beginning(taken.slot.owner, GRAPH, keeps=keeps)
    pool_starts.come_up(taken)
    return taken


def job(pool: Pool, scope: str, *layers: str) -> TakenSlot:
    """A whole job that builds these layers; returns what it had, closed."""
    taken = start(pool, of(scope))
    pool_starts.build(taken, *layers)
    taken.close()
    return taken


def prune(taken: TakenSlot) -> None:
    data = Path(f"/proc/self/fd/{taken.slot.data_fd}")
    for part in ("overlay2", "image"):
        shutil.rmtree(data / part, ignore_errors=True)


def goldens(pool: Pool) -> dict[str, int]:
    with key_directory.locked_key(pool, "k", create=False) as key_fd:
        assert key_fd is not None
        candidates, bad = key_directory.read_candidates(key_fd)
    assert bad == []
    return {one.state.scope: one.state.sequence for one in candidates if one.name.endswith("/golden")}


def test_each_scope_begins_with_its_own_state(pool: Pool) -> None:
    job(pool, "web", "w0", "w1")
    job(pool, "api", "a0", "a1")
    for _ in range(3):
        with contextlib.closing(start(pool, of("web"))) as web, contextlib.closing(start(pool, of("api"))) as api:
            assert {"w0", "w1"} <= set(pool_starts.layers_of(web))
            assert {"a0", "a1"} <= set(pool_starts.layers_of(api))
    assert set(goldens(pool)) == {"web", "api"}


def test_a_scope_without_a_state_begins_with_a_clone_of_the_newest_and_takes_nobodys_slot(pool: Pool) -> None:
    first = job(pool, "build", "b0")
    with contextlib.closing(start(pool, of("lint"))) as lint:
        assert (lint.warmth, lint.found.scope, lint.source_key) == (Warmth.CLONED, "build", "k")
        assert pool_starts.layers_of(lint) == ["b0"]
    with contextlib.closing(start(pool, of("build"))) as build:
        assert (build.warmth, build.slot.id) == (Warmth.LEASED, first.slot.id)


@pytest.mark.parametrize("scopes", [("", ""), ("lint", "build")], ids=["no scopes", "scopes"])
def test_a_job_that_builds_nothing_never_keeps_others_cold(pool: Pool, scopes: tuple[str, str]) -> None:
    lint, build = scopes
    for number in range(4):
        with contextlib.closing(start(pool, of(lint))), contextlib.closing(start(pool, of(build))) as one:
            if number:
                assert pool_starts.layers_of(one) == ["b0", "b1"], number
            else:
                pool_starts.build(one, "b0", "b1")


def test_an_unchanged_state_replaces_nothing(pool: Pool) -> None:
    job(pool, "", "b0")
    job(pool, "")
    before = goldens(pool)
    for _ in range(3):
        job(pool, "")
    assert goldens(pool) == before


def test_what_is_kept_besides_layers_counts_as_a_change(pool: Pool) -> None:
    job(pool, "", "b0")
    job(pool, "")
    before = goldens(pool)
    start(pool, of(""), keeps=True).close()
    start(pool, of("")).close()
    assert goldens(pool)[""] > before[""]


def test_a_state_that_a_job_has_emptied_replaces_nothing_unless_that_happens_twice_in_a_row(pool: Pool) -> None:
    layers = [f"b{number}" for number in range(6)]
    job(pool, "", *layers)
    job(pool, "")
    before = goldens(pool)
    emptied = start(pool, of(""))
    prune(emptied)
    emptied.close()

    second = start(pool, of(""))
    assert (second.warmth, pool_starts.layers_of(second)) == (Warmth.CLONED, layers)
    assert goldens(pool) == before
    prune(second)
    second.close()

    third = start(pool, of(""))
    assert pool_starts.layers_of(third) == [], "the project wants it so"
    third.close()


def test_what_a_job_leaves_in_kept_volumes_is_never_yesterdays(pool: Pool) -> None:
    """Also where its last step was a prune: that costs the next job a cold cache, and no data."""
    job(pool, "", *(f"b{number}" for number in range(6)))
    for text in ("first", "second", "third"):
        with contextlib.closing(start(pool, of(""), keeps=True)) as taken:
            volume = Path(f"/proc/self/fd/{taken.slot.data_fd}/volumes/mine")
            volume.mkdir(parents=True, exist_ok=True)
            (volume / "file").write_text(text)
            prune(taken)
        with contextlib.closing(start(pool, of(""), keeps=True)) as following:
            assert Path(f"/proc/self/fd/{following.slot.data_fd}/volumes/mine/file").read_text() == text


@pytest.mark.parametrize(("before", "after"), [(0, 20), (20, 0), (20, 20)], ids=["grows", "shrinks", "others"])
def test_containers_that_are_kept_do_not_make_a_job_look_emptied(pool: Pool, before: int, after: int) -> None:
    """Their layers are not the pool's, and go with them."""

    def run(taken: TakenSlot, name: str, count: int) -> None:
        for number in range(count):
            (Path(f"/proc/self/fd/{taken.slot.data_fd}/overlay2") / f"{name}{number}" / "diff").mkdir(parents=True)

    job(pool, "", "b0", "b1")
    with contextlib.closing(start(pool, of(""), keeps=True)) as taken:
        run(taken, "old", before)
    with contextlib.closing(start(pool, of(""), keeps=True)) as taken:
        for path in Path(f"/proc/self/fd/{taken.slot.data_fd}/overlay2").glob("old*"):
            shutil.rmtree(path)
        run(taken, "new", after)
    with contextlib.closing(start(pool, of(""), keeps=True)) as taken:
        assert pool_starts.layers_of(taken) == ["b0", "b1"]
        left = {path.name[:3] for path in Path(f"/proc/self/fd/{taken.slot.data_fd}/overlay2").iterdir()}
        assert left - {"b0", "b1"} == ({"new"} if after else set())


def test_several_jobs_that_end_empty_at_the_same_time_are_one(pool: Pool) -> None:
    layers = [f"b{number}" for number in range(6)]
    job(pool, "", *layers)
    beside = [start(pool, of("")) for _ in range(3)]
    for taken in beside:
        prune(taken)
        taken.close()
    with contextlib.closing(start(pool, of(""))) as after:
        assert pool_starts.layers_of(after) == layers


def test_a_job_between_ends_the_row(pool: Pool) -> None:
    layers = [f"b{number}" for number in range(6)]
    job(pool, "", *layers)
    for number in range(3):
        emptied = start(pool, of(""))
        prune(emptied)
        emptied.close()
        job(pool, "", f"n{number}")
    with contextlib.closing(start(pool, of(""))) as last:
        assert set(pool_starts.layers_of(last)) == {*layers, "n0", "n1", "n2"}


def test_a_throw_away_of_another_scope_sees_the_newest_state(pool: Pool) -> None:
    job(pool, "build", "b0")
    with contextlib.closing(start(pool, of("lint", read_only=True))) as taken:
        assert pool_starts.layers_of(taken) == ["b0"]


def test_what_cannot_be_told_counts_as_a_change(pool: Pool) -> None:
    job(pool, "", "b0")
    taken = start(pool, of(""))
    (Path(f"/proc/self/fd/{taken.slot.directory_fd}") / changes.NAME).write_text("{")
    taken.close()
    before = goldens(pool)
    start(pool, of("")).close()
    assert goldens(pool)[""] > before[""]


WHERE = [
    # What the pool has, as key/scope, the newest last; what a start asks for; with what it begins.
    (["main/build"], "mr/build", "main/build"),
    (["main/build", "main/web"], "mr/build", "main/build"),
    (["main/build", "mr/web"], "mr/build", "mr/web"),
    (["mr/web", "main/build"], "mr/build", "mr/web"),
    (["main/"], "mr/build", "main/"),
    (["main/build"], "mr/", "main/build"),
    (["mr/build", "mr/web"], "mr/build", "mr/build"),
    (["mr/build", "mr/"], "mr/", "mr/"),
    (["mr/", "mr/build"], "mr/", "mr/"),
    (["mr/web", "mr/api"], "mr/build", "mr/api"),
    (["other/build", "old/build"], "mr/build", "old/build"),
    (["other/build"], "mr/build", ""),
]


@pytest.mark.parametrize(("there", "asked", "expected"), WHERE)
def test_which_state_a_start_begins_with(pool: Pool, there: list[str], asked: str, expected: str) -> None:
    for place in there:
        key, _, scope = place.partition("/")
        with contextlib.closing(start(pool, of(scope, key))) as taken:
            prune(taken)
            pool_starts.build(taken, place.replace("/", "-"))
    key, _, scope = asked.partition("/")
    wanted = of(scope, key)._replace(fallback_keys=("main", "old"))
    with contextlib.closing(start(pool, wanted)) as taken:
        assert pool_starts.layers_of(taken) == ([expected.replace("/", "-")] if expected else [])


def test_contexts_that_outnumber_layers_do_not_make_a_job_look_emptied(pool: Pool) -> None:
    """A client in a new container leaves two directories with each build, which are no layers."""
    built: list[str] = []
    for number in range(10):
        with contextlib.closing(start(pool, of(""))) as taken:
            assert pool_starts.layers_of(taken) == built, number
            built.append(f"n{number:02}")
            pool_starts.build(taken, built[-1])
            for name in ("context", "dockerfile"):
                (Path(f"/proc/self/fd/{taken.slot.data_fd}/overlay2") / f"{name}{number}" / "diff").mkdir(parents=True)


def test_a_start_waits_while_another_scope_clones_the_only_slot(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    job(pool, "build", "b0")
    copying, go_on = threading.Event(), threading.Event()
    copy = clone.copy

    def slowly(*args: Any) -> LeftOut:
        copying.set()
        assert go_on.wait(20)
        return copy(*args)

    monkeypatch.setattr(clone, "copy", slowly)
    with ThreadPoolExecutor(2) as threads:
        lint = threads.submit(pool_starts.take, pool, of("lint"))
        assert copying.wait(20)
        monkeypatch.setattr(clone, "copy", copy)
        build = threads.submit(pool_starts.take, pool, of("build"))
        time.sleep(0.3)
        assert not build.done(), "it does not wait"
        go_on.set()
        for taken in (lint.result(20), build.result(20)):
            assert pool_starts.layers_of(taken) == ["b0"]
            taken.close()


def test_one_who_promotes_by_hand_does_not_make_two_emptied_jobs_of_one_round_a_row(pool: Pool) -> None:
    layers = [f"b{number}" for number in range(6)]
    job(pool, "", *layers)
    first, second = start(pool, of("")), start(pool, of(""))
    prune(first)
    first.close()
    golden.promote_newest(pool, "k", procfs.read_boot_id())
    prune(second)
    second.close()
    with contextlib.closing(start(pool, of(""))) as after:
        assert pool_starts.layers_of(after) == layers


def test_a_note_that_could_not_be_written_does_not_make_a_state_the_oldest(pool: Pool) -> None:
    job(pool, "", "b0")
    taken = pool_starts.take(pool, of(""))
    before = taken.found.sequence
    pool_starts.come_up(taken)  # the decision was not noted down: a full disk
    found = slot_state.parse_slot_state(state.read_state(taken.slot.directory_fd, slot_state.STATE_NAME) or {})
    assert found.sequence == before > 0
    taken.close()


def test_a_golden_is_another_state_than_the_slot_that_is_as_new(pool: Pool) -> None:
    job(pool, "", "b0")
    job(pool, "")
    with contextlib.closing(pool_starts.take(pool, of(""))) as taken:
        assert taken.warmth is Warmth.LEASED
        assert taken.found.sequence == goldens(pool)[""]
        assert slot_lease.has_other(taken, of(""))
    with (
        contextlib.closing(pool_starts.take(pool, of(""))),
        contextlib.closing(pool_starts.take(pool, of(""))) as clone_of_it,
    ):
        assert clone_of_it.warmth is Warmth.CLONED
        assert not slot_lease.has_other(clone_of_it, of(""))


def test_what_a_job_made_whose_readiness_nobody_noted_is_new_in_the_next(pool: Pool) -> None:
    job(pool, "", "b0")
    job(pool, "")
    lost = pool_starts.take(pool, of(""))
    pool_starts.begin(lost)
    changes.note_beginning(lost.slot.owner, GRAPH, keeps=False)
    pool_starts.build(lost, "x")
    lost.close()  # its witness died
    again = pool_starts.take(pool, of(""))
    assert again.slot.id == lost.slot.id
    goes_on = again.found.begun not in (0, again.found.sequence)
    assert goes_on
    pool_starts.begin(again)
    changes.note_beginning(again.slot.owner, GRAPH, keeps=False, goes_on=goes_on)
    pool_starts.come_up(again)
    again.close()
    with contextlib.closing(start(pool, of(""))), contextlib.closing(start(pool, of(""))) as beside:
        assert pool_starts.layers_of(beside) == ["b0", "x"]


@pytest.mark.parametrize("how", ["gone", "file", "link"])
def test_a_root_that_a_job_has_replaced_costs_the_key_nothing(pool: Pool, how: str) -> None:
    taken = start(pool, of(""))
    raw = state.read_state(taken.slot.directory_fd, slot_state.STATE_NAME)
    state.write_state(taken.slot.directory_fd, slot_state.STATE_NAME, {"remap": "100000.100000"}, raw)
    root = Path(f"/proc/self/fd/{taken.slot.data_fd}/100000.100000")
    if how == "file":
        root.write_text("x")
    elif how == "link":
        root.symlink_to("/etc")
    changed = json.loads((root.parent.parent / f"{taken.slot.directory_fd}/{changes.NAME}").read_text())
    assert changed["names"] == []
    taken.close()
    remapped = of("")._replace(requirements=of("").requirements._replace(remap="100000.100000"))
    pool_starts.take(pool, remapped).close()
    pool_starts.take(pool, of("")).close()


def test_a_scope_of_which_nothing_is_left_has_no_directory(pool: Pool) -> None:
    for scope in ("build", "lint"):
        job(pool, scope, scope)
        job(pool, scope)
    entries = survey.survey(pool, sizes=False, now=time.time()).entries
    for entry in entries:
        if entry.scope == "lint":
            assert eviction.remove_entry(pool, entry)
    assert os.listdir(f"{pool.path}/keys/k/scopes") == ["build"]


def test_a_daemon_that_is_started_again_in_its_container_goes_on_with_its_slot(pool: Pool) -> None:
    """Whatever its job has done so far: nothing that has a layer, say."""
    job(pool, "", "b0")
    job(pool, "")
    here = of("")._replace(requirements=of("").requirements._replace(container="c0ffee"))
    with contextlib.closing(start(pool, of(""))):
        first = start(pool, here)
        raw = state.read_state(first.slot.directory_fd, slot_state.STATE_NAME)
        values: dict[str, object] = {"holder": {"container": "c0ffee"}}
        state.write_state(first.slot.directory_fd, slot_state.STATE_NAME, values, raw)
        first.close()
        job(pool, "", "newer")
        again = pool_starts.take(pool, here)
        assert again.slot.id == first.slot.id
        again.close()


def leave(pool: Pool, wanted: SlotRequest, values: dict[str, object]) -> None:
    """A free slot with a layer, whose state says what `values` say."""
    taken = pool_starts.take(pool, wanted)
    pool_starts.begin(taken)
    pool_starts.build(taken, f"{wanted.scope}0")
    pool_starts.come_up(taken)
    raw = state.read_state(taken.slot.directory_fd, slot_state.STATE_NAME)
    state.write_state(taken.slot.directory_fd, slot_state.STATE_NAME, values, raw)
    taken.close()


CRASH: dict[str, object] = {"boot_id": "before the crash"}
CANCELLED: dict[str, object] = {"ready_at": None, "pure": True}
DOUBTED = "what is there is not to be trusted yet"


@pytest.mark.parametrize(
    ("values", "scope", "read_only", "words"),
    [
        ({"engine": "29.1.0"}, "build", False, "what is there is of a newer engine (29.1.0)"),
        ({"driver": "vfs"}, "web", False, "what is there is of a driver whose layers cannot be shared (vfs)"),
        ({"driver": "vfs"}, "build", True, "what is there is of a driver whose layers cannot be shared (vfs)"),
        (CRASH, "web", False, f"{DOUBTED} (the host went down since its last daemon)"),
        (CRASH, "build", True, f"{DOUBTED} (the host went down since its last daemon)"),
        (CANCELLED, "web", False, f"{DOUBTED} (no daemon came up on it at its last start)"),
    ],
)
def test_a_cold_start_says_why(pool: Pool, values: dict[str, object], scope: str, read_only: bool, words: str) -> None:
    leave(pool, of(scope), values)
    with contextlib.closing(pool_starts.take(pool, of("build", read_only=read_only))) as taken:
        assert (taken.warmth, taken.passed_over) == (Warmth.FRESH, words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"engine": "29.1.0"}, "what this scope has is of a newer engine (29.1.0)"),
        ({"remap": "1.1"}, "what this scope has is with other remapped users (1.1)"),
        (CRASH, "what this scope has is not to be trusted yet (the host went down since its last daemon)"),
    ],
)
def test_a_start_with_another_scopes_state_says_why_not_its_own(
    pool: Pool, values: dict[str, object], words: str
) -> None:
    leave(pool, of("build"), values)
    leave(pool, of("web"), {})
    with contextlib.closing(pool_starts.take(pool, of("build"))) as taken:
        assert (taken.warmth, taken.found.scope, taken.passed_over) == (Warmth.CLONED, "web", words)


def test_a_start_says_that_others_hold_all_there_is(pool: Pool) -> None:
    with contextlib.closing(start(pool, of("build"))), contextlib.closing(pool_starts.take(pool, of("build"))) as taken:
        assert (taken.warmth, taken.passed_over) == (Warmth.FRESH, "what is there is held by other instances")


def test_a_start_says_of_its_own_key_why_it_has_another_keys_state(pool: Pool) -> None:
    job(pool, "build", "b0")
    wanted = of("build", "branch")._replace(fallback_keys=("k",))
    leave(pool, wanted._replace(fallback_keys=()), {"engine": "29.1.0"})
    with contextlib.closing(pool_starts.take(pool, wanted)) as taken:
        assert (taken.source_key, taken.passed_over) == ("k", "what is there is of a newer engine (29.1.0)")


def test_a_start_that_goes_on_without_what_it_found_says_so(pool: Pool) -> None:
    job(pool, "build", "b0")
    with contextlib.closing(pool_starts.take(pool, of("build")._replace(fresh=True))) as taken:
        assert (taken.warmth, taken.passed_over) == (Warmth.FRESH, "what is there is passed over by this start")


def test_the_newest_state_that_a_scope_has_finished_needs_no_reason(pool: Pool) -> None:
    assert job(pool, "build", "b0").passed_over == ""
    assert job(pool, "build", "b1").passed_over == ""
    with contextlib.closing(start(pool, of("build"))) as one, contextlib.closing(start(pool, of("build"))) as other:
        assert (one.warmth, one.passed_over) == (Warmth.LEASED, "")
        assert (other.warmth, other.passed_over) == (Warmth.CLONED, "")
        with contextlib.closing(pool_starts.take(pool, of("build"))) as third:
            assert third.passed_over == ""
    leave(pool, of("build"), CRASH)
    with contextlib.closing(start(pool, of("build"))) as taken:
        assert taken.passed_over == (
            "what is newer is not to be trusted yet (the host went down since its last daemon)"
        )
