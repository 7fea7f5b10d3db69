"""Jobs of one project: each scope has its own golden, what has nothing new replaces nothing, and what a job has emptied
costs the next nothing."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cachedind.base.model import ImageStore, StoragePlan
from cachedind.pool import changes, key_directory
from cachedind.pool.slot_request import Warmth
from helpers import tenants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_request import SlotRequest, TakenSlot
    from helpers.filesystems import Filesystems

GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")


@pytest.fixture
def pool(filesystems: Filesystems) -> Iterator[Pool]:
    with contextlib.closing(tenants.open_pool(filesystems.make("ext4"))) as made:
        yield made


def of(scope: str, key: str = "k", *, read_only: bool = False) -> SlotRequest:
    found = tenants.slot_request(key, read_only=read_only)
    return found._replace(requirements=found.requirements._replace(scope=scope))


def start(pool: Pool, wanted: SlotRequest, *, keeps: bool = False) -> TakenSlot:
    """Up to the moment at which the job begins."""
    taken = tenants.take(pool, wanted)
    tenants.begin(taken)
    changes.note_beginning(taken.slot.owner, GRAPH, keeps=keeps)
    tenants.come_up(taken)
    return taken


def job(pool: Pool, scope: str, *layers: str) -> TakenSlot:
    """A whole job that builds these layers; returns what it had, closed."""
    taken = start(pool, of(scope))
    tenants.build(taken, *layers)
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
            assert {"w0", "w1"} <= set(tenants.layers_of(web))
            assert {"a0", "a1"} <= set(tenants.layers_of(api))
    assert set(goldens(pool)) == {"web", "api"}


def test_a_scope_without_a_state_begins_with_a_clone_of_the_newest_and_takes_nobodys_slot(pool: Pool) -> None:
    first = job(pool, "build", "b0")
    with contextlib.closing(start(pool, of("lint"))) as lint:
        assert (lint.warmth, lint.found.scope, lint.source_key) == (Warmth.CLONED, "build", "k")
        assert tenants.layers_of(lint) == ["b0"]
    with contextlib.closing(start(pool, of("build"))) as build:
        assert (build.warmth, build.slot.id) == (Warmth.LEASED, first.slot.id)


@pytest.mark.parametrize("scopes", [("", ""), ("lint", "build")], ids=["no scopes", "scopes"])
def test_a_job_that_builds_nothing_never_keeps_others_cold(pool: Pool, scopes: tuple[str, str]) -> None:
    lint, build = scopes
    for number in range(4):
        with contextlib.closing(start(pool, of(lint))), contextlib.closing(start(pool, of(build))) as one:
            if number:
                assert tenants.layers_of(one) == ["b0", "b1"], number
            else:
                tenants.build(one, "b0", "b1")


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
    assert (second.warmth, tenants.layers_of(second)) == (Warmth.CLONED, layers)
    assert goldens(pool) == before
    prune(second)
    second.close()

    third = start(pool, of(""))
    assert tenants.layers_of(third) == [], "the project wants it so"
    third.close()


def test_several_jobs_that_end_empty_at_the_same_time_are_one(pool: Pool) -> None:
    layers = [f"b{number}" for number in range(6)]
    job(pool, "", *layers)
    beside = [start(pool, of("")) for _ in range(3)]
    for taken in beside:
        prune(taken)
        taken.close()
    with contextlib.closing(start(pool, of(""))) as after:
        assert tenants.layers_of(after) == layers


def test_a_job_between_ends_the_row(pool: Pool) -> None:
    layers = [f"b{number}" for number in range(6)]
    job(pool, "", *layers)
    for number in range(3):
        emptied = start(pool, of(""))
        prune(emptied)
        emptied.close()
        job(pool, "", f"n{number}")
    with contextlib.closing(start(pool, of(""))) as last:
        assert set(tenants.layers_of(last)) == {*layers, "n0", "n1", "n2"}


def test_a_throw_away_of_another_scope_sees_the_newest_state(pool: Pool) -> None:
    job(pool, "build", "b0")
    with contextlib.closing(start(pool, of("lint", read_only=True))) as taken:
        assert tenants.layers_of(taken) == ["b0"]


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
            tenants.build(taken, place.replace("/", "-"))
    key, _, scope = asked.partition("/")
    wanted = of(scope, key)._replace(fallback_keys=("main", "old"))
    with contextlib.closing(start(pool, wanted)) as taken:
        assert tenants.layers_of(taken) == ([expected.replace("/", "-")] if expected else [])
