"""What is done about damage: planned without side effects, and done without following a link or deleting anything."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind import damage, databases, mending
from cachedind.damage import Damage
from cachedind.mending import Doubt, Patient, plan_mending
from cachedind.model import ImageStore, Loss, StoragePlan
from cachedind.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
CONTAINERD = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
META = "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db"


def of(path: str, storage: StoragePlan = GRAPH) -> Damage:
    return Damage(path, "bad", databases.known(storage).get(path, Loss.NAMES))


def plan(
    *found: Damage,
    storage: StoragePlan = GRAPH,
    kept: frozenset[str] = frozenset(),
    doubted: bool = False,
    has_better: bool = False,
) -> mending.Plan:
    return plan_mending(found, storage, kept, doubted=doubted, has_better=has_better)


def test_where_nothing_is_wrong_nothing_is_done() -> None:
    assert plan() == mending.Plan()
    assert plan(doubted=True) == mending.Plan(prove=True)


@pytest.mark.parametrize("path", ["buildkit/history.db", "network/files/local-kv.db", "volumes/metadata.db", META])
def test_what_no_build_needs_is_moved_alone(path: str) -> None:
    assert plan(of(path), has_better=True) == mending.Plan(move=(path,), prove=True)


@pytest.mark.parametrize("path", ["buildkit/cache.db", "buildkit/snapshots.db"])
def test_buildkits_records_go_together_and_its_name_stays(path: str) -> None:
    moved = plan(of(path)).move
    assert {"buildkit/cache.db", "buildkit/metadata_v2.db", "buildkit/snapshots.db"} <= set(moved)
    assert "engine-id" not in moved
    assert not any(name.startswith(("image/", "overlay2")) for name in moved)


def test_containerds_images_go_with_what_refers_to_them() -> None:
    moved = plan(of(META, CONTAINERD), storage=CONTAINERD).move
    assert {"containerd", "buildkit/cache.db", "buildkit/containerd-overlayfs/metadata_v2.db"} <= set(moved)
    assert "buildkit/containerd-overlayfs/workerid" not in moved


def test_a_pool_with_another_state_takes_that_before_it_loses_a_cache() -> None:
    assert plan(of("buildkit/cache.db"), has_better=True) == mending.Plan(leave=True)
    assert plan(of("image/overlay2/repositories.json"), has_better=True) == mending.Plan(leave=True)


def test_what_there_is_a_copy_of_is_put_back_and_nothing_else_goes() -> None:
    lost = Damage("engine-id", "it is gone", Loss.CACHE)
    expected = mending.Plan(restore=("engine-id",), prove=True)
    assert plan(lost, kept=frozenset({"engine-id"})) == expected
    assert plan(lost, kept=frozenset({"engine-id"}), has_better=True) == expected


STORAGES = st.sampled_from([GRAPH, CONTAINERD])


@given(st.data(), STORAGES, st.booleans(), st.booleans())
def test_no_plan_touches_volumes_or_images_that_are_whole(
    data: st.DataObject, storage: StoragePlan, doubted: bool, has_better: bool
) -> None:
    paths = [*databases.known(storage), damage.identity_file(storage)]
    found = [of(path, storage) for path in data.draw(st.lists(st.sampled_from(paths), unique=True))]
    kept = frozenset(data.draw(st.sets(st.sampled_from([damage.identity_file(storage)]))))
    made = plan(*found, storage=storage, kept=kept, doubted=doubted, has_better=has_better)
    assert not set(made.restore) & set(made.move)
    assert made.leave <= has_better
    assert set(made.restore) <= kept
    assert bool(found) <= (made.prove or made.leave)
    for path in made.move:
        assert not path.startswith(("volumes/", "image/", "overlay2", "/")) or path == "volumes/metadata.db"
        assert ".." not in path
        if path == "containerd":
            assert any(one.loss is Loss.IMAGES for one in found)
    if not any(one.loss >= Loss.CACHE for one in found if one.path not in kept):
        assert not any(path.startswith("buildkit/cache") for path in made.move)


# ---- doing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patient]:
    """A data-root on which every private daemon comes up."""
    monkeypatch.setattr(mending, "_prove", lambda *args: (None, 0))
    (tmp_path / "buildkit").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield Patient(str(tmp_path), fd, GRAPH, -1)
    os.close(fd)


def mend(
    patient: Patient, doubt: Doubt | None = None, *, deadline_s: float = mending.MENDING_S, **more: bool
) -> mending.Result:
    options = {"has_better": False, "in_pool": False, **more}
    return mending.mend(patient, doubt, environ={}, trace=Trace(), deadline=time.monotonic() + deadline_s, **options)


def test_damage_lies_aside_under_its_path_with_the_reason(patient: Patient, tmp_path: Path) -> None:
    (tmp_path / "buildkit" / "history.db").write_text("garbage")
    result = mend(patient)
    assert (result.fit, result.loss) == (True, Loss.RECORDS)
    [moved] = result.moved
    assert (tmp_path / moved.where / "buildkit" / "history.db").read_text() == "garbage"
    assert not (tmp_path / "buildkit" / "history.db").exists()
    why = json.loads((tmp_path / moved.where / "why.json").read_text())
    assert why["paths"] == ["buildkit/history.db"]
    assert "neither meta page is valid" in why["why"]
    [aside] = mending.read_aside(patient.root_fd)
    assert (aside.name, aside.paths) == (moved.where, ("buildkit/history.db",))


def test_everything_stays_in_direct_mode_and_the_last_few_in_a_pool(patient: Patient, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "buildkit" / "history.db").write_text(f"garbage {number}")
        mend(patient)
    assert len(mending.read_aside(patient.root_fd)) == 5
    (tmp_path / "buildkit" / "history.db").write_text("garbage")
    mend(patient, in_pool=True)
    assert len(mending.read_aside(patient.root_fd)) == mending.MAX_IN_POOL


def test_the_engines_name_is_put_back_and_the_other_one_kept_aside(patient: Patient, tmp_path: Path) -> None:
    (tmp_path / "engine-id").write_text("the-engines-own-name")
    mending.keep_copies(patient.root_fd, GRAPH)
    (tmp_path / "buildkit" / "cache.db").touch()
    (tmp_path / "engine-id").write_text("another-name")
    result = mend(patient)
    assert (result.fit, result.loss) == (True, Loss.NOTHING)
    assert (tmp_path / "engine-id").read_text() == "the-engines-own-name"
    assert (tmp_path / result.moved[0].where / "engine-id").read_text() == "another-name"
    (tmp_path / "engine-id").unlink()
    assert mend(patient).loss is Loss.NOTHING
    assert (tmp_path / "engine-id").read_text() == "the-engines-own-name"


def test_without_build_cache_the_engine_may_have_any_name(patient: Patient, tmp_path: Path) -> None:
    (tmp_path / "engine-id").write_text("the-engines-own-name")
    mending.keep_copies(patient.root_fd, GRAPH)
    (tmp_path / "engine-id").unlink()
    assert mend(patient) == mending.Result(True)


@pytest.mark.parametrize("where", [".cachedind", ".cachedind/aside", "buildkit"])
def test_no_link_that_a_job_has_planted_is_followed(
    patient: Patient, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, where: str
) -> None:
    victim = tmp_path_factory.mktemp("victim")
    (victim / "history.db").write_text("precious")
    if where == "buildkit":
        (tmp_path / "buildkit").rmdir()
    else:
        (tmp_path / "buildkit" / "history.db").write_text("garbage")
        (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).symlink_to(victim)
    if where == "buildkit":
        assert mend(patient) == mending.Result(True)
        assert (tmp_path / "buildkit").is_symlink(), "without a pool it is the user's own"
    else:
        with pytest.raises(NotADirectoryError):
            mend(patient)
    assert os.listdir(victim) == ["history.db"]
    assert (victim / "history.db").read_text() == "precious"


def test_what_lies_in_something_that_is_moved_goes_with_it(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "containerd" / "snapshots" / "9"
    inside.mkdir(parents=True)
    found = [Damage("containerd/snapshots/9", "no record", Loss.NOTHING), Damage("containerd/db", "bad", Loss.IMAGES)]
    monkeypatch.setattr(damage, "find", lambda *_, **__: found)
    result = mend(patient._replace(storage=CONTAINERD))
    assert (result.fit, result.loss) == (True, Loss.IMAGES)
    [moved] = result.moved
    assert moved.paths == ("containerd",)
    assert (tmp_path / moved.where / "containerd" / "snapshots" / "9").is_dir()
    assert not (tmp_path / "containerd").exists()


def test_the_rungs_come_one_after_another(patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found, and no daemon comes up until even the images are gone."""
    (tmp_path / "buildkit" / "x").touch()
    (tmp_path / "image").mkdir()
    (tmp_path / "volumes" / "data").mkdir(parents=True)
    seen: list[list[str]] = []

    def prove(*args: object) -> tuple[str | None, int]:
        if args[0] != patient:
            return None, 0
        seen.append(sorted(name for name in os.listdir(tmp_path) if not name.startswith(".")))
        return ("it dies" if "image" in seen[-1] else None), 0

    monkeypatch.setattr(mending, "_prove", prove)
    result = mend(patient, Doubt("no daemon came up"))
    assert seen == [["buildkit", "image", "volumes"], ["image", "volumes"], ["volumes"]]
    assert (result.fit, result.loss) == (True, Loss.IMAGES)
    assert "it dies" in result.why
    kept = {path for moved in result.moved for path in moved.paths}
    assert kept == {"buildkit", "image"}


def _dies_on(patient: Patient) -> Callable[..., tuple[str | None, int]]:
    """A private daemon that comes up everywhere else."""
    return lambda who, *args: ("it dies" if who.data_root == patient.data_root else None, 0)


@pytest.mark.parametrize("has_better", [False, True])
def test_where_no_daemon_comes_up_anywhere_the_data_is_not_to_blame(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_better: bool
) -> None:
    (tmp_path / "image").mkdir()
    monkeypatch.setattr(mending, "_prove", lambda *args: ("no memory", 0))
    result = mend(patient, Doubt("no daemon came up"), has_better=has_better)
    assert result.fit
    assert result.loss is None
    assert result.unproven.endswith("no memory")
    assert sorted(os.listdir(tmp_path)) == [".cachedind", "buildkit", "image"]
    assert os.listdir(tmp_path / ".cachedind") == []


def test_where_a_pool_has_better_nothing_more_is_tried(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending, "_prove", _dies_on(patient))
    result = mend(patient, Doubt("no daemon came up"), has_better=True, in_pool=True)
    assert not result.fit
    assert result.why == "no daemon came up; it dies"
    assert result.moved == ()


@pytest.mark.parametrize("in_pool", [False, True])
def test_when_the_time_is_over_there_is_a_daemon_without_images_or_another_slot(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pool: bool
) -> None:
    """A daemon that hangs uses up the time of a proof, and no start may do so again and again."""
    (tmp_path / "image").mkdir()
    (tmp_path / "volumes").mkdir()
    proofs: list[str] = []

    def hang(who: Patient, *args: object) -> tuple[str | None, int]:
        proofs.append(who.data_root)
        if who.data_root != patient.data_root:
            return None, 0
        time.sleep(0.06)
        return "it did not answer in time", 0

    monkeypatch.setattr(mending, "_prove", hang)
    result = mend(patient, Doubt("no daemon came up"), deadline_s=0.05 if in_pool else 0.1, in_pool=in_pool)
    assert result.fit is not in_pool
    if in_pool:
        assert result.moved == ()
        assert len(proofs) == 1
    else:
        assert len(proofs) == 3  # as it was, beside it, and without what can be made anew
        assert "no time left" in result.unproven
        assert sorted(os.listdir(tmp_path)) == [".cachedind", "volumes"]


def test_a_proof_ends_with_the_time(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[float] = []

    @contextlib.contextmanager
    def private_daemon(*args: object, deadline: float, **more: object) -> Iterator[None]:
        ends.append(deadline)
        yield

    monkeypatch.undo()
    monkeypatch.setattr(mending, "private_daemon", private_daemon)
    began = time.monotonic()
    for deadline_s in (7, 1000):
        mend(patient, Doubt("no daemon came up"), deadline_s=deadline_s)
    first, second = (until - began for until in ends)
    assert first < 8
    assert second < mending.PROOF_S + 1
