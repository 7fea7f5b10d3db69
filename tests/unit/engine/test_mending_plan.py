"""What is planned about damage: as little as helps, and never volumes or images that are whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.model import ImageStore, Loss, StoragePlan
from cachedind.engine import damage, databases, mending_plan, paths
from cachedind.engine.damage import Damage
from cachedind.engine.hollow import Found

GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
CONTAINERD = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
WHOLE = Found()
HOLLOW = Found(bad={"image/layer": "bin/sh: it has 0 bytes instead of 9"})
META = "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db"


def of(path: str, storage: StoragePlan = GRAPH) -> Damage:
    return Damage(path, "bad", databases.known(storage).get(path, Loss.NAMES))


def plan(
    *found: Damage,
    storage: StoragePlan = GRAPH,
    copies: frozenset[str] = frozenset(),
    emptied: Found = WHOLE,
    in_pool: bool = False,
    has_better: bool = False,
) -> mending_plan.Plan:
    return mending_plan.plan_mending(found, emptied, storage, copies, in_pool=in_pool, has_better=has_better)


def test_where_nothing_is_wrong_nothing_is_done() -> None:
    assert plan() == mending_plan.Plan()
    assert plan(in_pool=True, has_better=True) == mending_plan.Plan()


@pytest.mark.parametrize("path", ["buildkit/history.db", "network/files/local-kv.db", "volumes/metadata.db", META])
def test_what_no_build_needs_is_moved_alone(path: str) -> None:
    assert plan(of(path)).if_it_fails == (path,)
    assert plan(of(path), in_pool=True, has_better=True).move == (path,)


@pytest.mark.parametrize("path", ["buildkit/cache.db", "buildkit/snapshots.db", META])
def test_in_direct_mode_nothing_is_moved_before_a_daemon_has_failed_on_it(path: str) -> None:
    made = plan(of(path))
    assert (made.move, made.restore, made.at_once) == ((), (), None)
    assert path in made.if_it_fails
    assert made.later == of(path).loss


@pytest.mark.parametrize("path", ["buildkit/cache.db", "buildkit/snapshots.db"])
def test_buildkits_records_go_together_and_its_name_stays(path: str) -> None:
    moved = plan(of(path)).if_it_fails
    assert {"buildkit/cache.db", "buildkit/metadata_v2.db", "buildkit/snapshots.db"} <= set(moved)
    assert "engine-id" not in moved
    assert not any(name.startswith(("image/", "overlay2")) for name in moved)


def test_containerds_images_go_with_what_refers_to_them() -> None:
    moved = plan(of(META, CONTAINERD), storage=CONTAINERD, in_pool=True).move
    assert {"containerd", "buildkit/cache.db", "buildkit/containerd-overlayfs/metadata_v2.db"} <= set(moved)
    assert "buildkit/containerd-overlayfs/workerid" not in moved


def test_a_pool_with_another_state_takes_that_before_it_loses_a_cache() -> None:
    for path in ("buildkit/cache.db", "image/overlay2/repositories.json"):
        assert plan(of(path), in_pool=True, has_better=True) == mending_plan.Plan(leave=True)
    assert plan(emptied=HOLLOW, in_pool=True, has_better=True) == mending_plan.Plan(leave=True)


def test_what_there_is_a_copy_of_is_put_back_and_nothing_else_goes() -> None:
    lost = Damage("engine-id", "it is gone", Loss.CACHE)
    expected = mending_plan.Plan(restore=("engine-id",), at_once=Loss.NOTHING)
    assert plan(lost, copies=frozenset({"engine-id"})) == expected
    assert plan(lost, copies=frozenset({"engine-id"}), in_pool=True, has_better=True) == expected


def test_only_layers_that_are_proven_to_be_empty_go_at_once() -> None:
    assert plan(emptied=HOLLOW) == mending_plan.Plan(move=("image/layer",), at_once=Loss.LAYERS)
    assert plan(emptied=Found(held={"image/layer": "in use"}, unchecked=("much",))) == mending_plan.Plan()
    cached = plan(emptied=HOLLOW._replace(cached=True))
    assert {"image/layer", "buildkit/cache.db"} <= set(cached.move)
    assert cached.at_once is Loss.CACHE


def test_what_no_daemon_can_tell_of_is_moved_at_once() -> None:
    stray = f"{paths.snapshots('overlayfs')}/70"
    made = plan(Damage(stray, "no record of it", Loss.NOTHING, silent=True), storage=CONTAINERD)
    assert made == mending_plan.Plan(move=(stray,), at_once=Loss.NOTHING)
    lost = plan(of("buildkit/snapshots.db")._replace(silent=True))
    assert {"buildkit/snapshots.db", "buildkit/cache.db"} <= set(lost.move)
    assert (lost.if_it_fails, lost.at_once) == ((), Loss.CACHE)


STORAGES = st.sampled_from([GRAPH, CONTAINERD])


@given(st.data(), STORAGES, st.booleans(), st.booleans())
def test_no_plan_touches_volumes_or_images_that_are_whole(
    data: st.DataObject, storage: StoragePlan, in_pool: bool, has_better: bool
) -> None:
    places = [*databases.known(storage), damage.identity_file(storage)]
    found = [of(path, storage) for path in data.draw(st.lists(st.sampled_from(places), unique=True))]
    copies = frozenset(data.draw(st.sets(st.sampled_from([damage.identity_file(storage)]))))
    made = plan(*found, storage=storage, copies=copies, in_pool=in_pool, has_better=in_pool and has_better)
    moved = {*made.move, *made.if_it_fails}
    assert not set(made.restore) & moved
    assert made.leave <= has_better
    assert set(made.restore) <= copies
    assert in_pool or not made.move
    for path in moved:
        assert not path.startswith(("volumes/", "image/", "overlay2", "/")) or path == "volumes/metadata.db"
        assert ".." not in path
        if path == "containerd":
            assert any(one.loss is Loss.IMAGES for one in found)
    if not any(one.loss >= Loss.CACHE for one in found if one.path not in copies):
        assert not any(path.startswith("buildkit/cache") for path in moved)
