"""The decision on a data-root with data, and what no decision may do.

The tables follow reference/storage.md (a1, c1 to c4): each row is what a probe of that filesystem says.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedind.base.errors import (
    CachedindError,
    DriverConflictError,
    DriverUnavailableError,
    EngineTooOldError,
    NotPrivilegedError,
    NoUsableDriverError,
)
from cachedind.base.model import COPYING_DRIVERS, EngineVersion, ExistingData, ImageStore, Remap
from cachedind.dataroot.storage import choose_pair, plan_storage
from cachedind.dataroot.storage_facts import Demand, StorageRequest, verdict_for
from helpers.backings import BACKINGS, CTRD, ENGINES, GRAPH, REMAP, argument, decided, facts_of, held, store_demand

PRIORS = {
    "overlay2": ((GRAPH, "overlay2"), "ext4"),
    "vfs": ((GRAPH, "vfs"), "ext4"),
    "fuse-overlayfs": ((GRAPH, "fuse-overlayfs"), "overlay"),
    "btrfs": ((GRAPH, "btrfs"), "btrfs"),
    "containerd overlayfs": ((CTRD, "overlayfs"), "ext4"),
}


@pytest.mark.parametrize("recorded", [True, False], ids=["noted", "by marks alone"])
@pytest.mark.parametrize("docker_driver", ["", "overlay2", "vfs", "btrfs", "overlayfs", "aufs"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("prior", PRIORS)
def test_data_keeps_its_driver_whatever_docker_driver_says(
    prior: str, engine: str, docker_driver: str, recorded: bool
) -> None:
    pair, backing = PRIORS[prior]
    facts = facts_of(backing, engine, held(pair, recorded=recorded))
    request = StorageRequest(docker_driver=docker_driver)
    if pair[0] is CTRD and engine == "23":
        with pytest.raises(EngineTooOldError, match="containerd"):
            plan_storage(facts, request)
        return
    plan = plan_storage(facts, request)
    assert decided(plan) == pair
    stale = bool(docker_driver) and docker_driver != pair[1]
    assert [f"DOCKER_DRIVER={docker_driver} is ignored" in note for note in plan.notes] == [True] * stale
    assert [degradation.what for degradation in plan.degradations] == (
        [f"storage driver {pair[1]}"] if pair[1] in ("vfs", "fuse-overlayfs") else []
    )


@pytest.mark.parametrize("demanded", ["overlay2", "vfs", "fuse-overlayfs", "btrfs", "overlayfs", "native", "aufs"])
@pytest.mark.parametrize("engine", ["26.1", "28.5", "29.1"])
@pytest.mark.parametrize("prior", PRIORS)
def test_an_explicit_driver_that_contradicts_data_is_a_conflict_that_names_both(
    prior: str, engine: str, demanded: str
) -> None:
    pair, backing = PRIORS[prior]
    facts = facts_of(backing, engine, held(pair))
    request = StorageRequest(argument(demanded), allow_vfs=True)
    if demanded == pair[1]:
        assert decided(plan_storage(facts, request)) == pair
        return
    with pytest.raises(DriverConflictError) as caught:
        plan_storage(facts, request)
    assert caught.value.exit_code == 78
    assert f"--storage-driver {demanded}" in caught.value.cause
    assert f"holds {pair[1]} data" in caught.value.cause
    assert "drop it" in caught.value.hint
    assert "another volume" in caught.value.hint


@pytest.mark.parametrize("store", ImageStore)
@pytest.mark.parametrize("prior", PRIORS)
def test_an_explicit_store_that_contradicts_data_is_a_conflict(prior: str, store: ImageStore) -> None:
    pair, backing = PRIORS[prior]
    facts = facts_of(backing, "28.5", held(pair))
    request = StorageRequest(None, store_demand(store))
    if store is pair[0]:
        assert decided(plan_storage(facts, request)) == pair
        return
    with pytest.raises(DriverConflictError, match=f"CACHEDIND_IMAGE_STORE={store} contradicts"):
        plan_storage(facts, request)


@pytest.mark.parametrize("engine", ["26.1", "28.5", "29.1"])
@pytest.mark.parametrize("prior", PRIORS)
def test_userns_remap_contradicts_containerd_data_alone(prior: str, engine: str) -> None:
    pair, backing = PRIORS[prior]
    facts = facts_of(backing, engine, held(pair))
    if pair[0] is CTRD:
        with pytest.raises(DriverConflictError, match="userns-remap"):
            plan_storage(facts, StorageRequest(userns_remap=REMAP))
        return
    assert decided(plan_storage(facts, StorageRequest(userns_remap=REMAP))) == pair


@pytest.mark.parametrize(
    ("prior", "backing", "error"),
    [
        ("overlay2", "overlay", DriverUnavailableError),
        ("overlay2", "ramfs", DriverUnavailableError),
        ("overlay2", "no privileges", NotPrivilegedError),
        ("fuse-overlayfs", "overlay without /dev/fuse", DriverUnavailableError),
        ("btrfs", "ext4", DriverUnavailableError),
        ("containerd overlayfs", "overlay", DriverUnavailableError),
    ],
)
@pytest.mark.parametrize("allow_vfs", [False, True], ids=["", "vfs allowed"])
def test_data_whose_driver_does_not_work_here_is_never_given_another_driver(
    prior: str, backing: str, error: type[CachedindError], allow_vfs: bool
) -> None:
    pair, _ = PRIORS[prior]
    with pytest.raises(error) as caught:
        plan_storage(facts_of(backing, existing=held(pair)), StorageRequest(allow_vfs=allow_vfs))
    assert f"holds {pair[1]} data, and {pair[1]} does not work here" in caught.value.cause
    if error is DriverUnavailableError:
        assert BACKINGS[backing].fstype in caught.value.hint


def test_vfs_data_stays_vfs_without_permission_and_where_overlay_works() -> None:
    plan = plan_storage(facts_of("ext4", existing=held((GRAPH, "vfs"))), StorageRequest())
    assert decided(plan) == (GRAPH, "vfs")
    assert plan.degradations[0].why == "it was chosen before"


@pytest.mark.parametrize(
    ("wrote", "runs", "refused"),
    [
        ("28.5", "26.1", True),
        ("29.1", "28.5", True),
        ("26.1", "23", True),
        ("26.1", "26.1", False),
        ("26.1", "28.5", False),
        ("28.5", "29.1", False),
    ],
)
def test_a_newer_engines_data_is_refused_by_an_older_engine(wrote: str, runs: str, refused: bool) -> None:
    facts = facts_of("ext4", runs, held((GRAPH, "overlay2"), engine=wrote))
    if not refused:
        assert plan_storage(facts, StorageRequest()).driver == "overlay2"
        return
    with pytest.raises(EngineTooOldError) as caught:
        plan_storage(facts, StorageRequest())
    assert caught.value.exit_code == 65
    assert str(ENGINES[wrote]) in caught.value.cause
    assert str(ENGINES[runs]) in caught.value.cause


def test_patch_releases_are_interchangeable_and_an_emptied_data_root_forgets_its_engine() -> None:
    newer_patch = ExistingData(((GRAPH, "overlay2"),), EngineVersion(28, 5, 9), None)
    assert plan_storage(facts_of(existing=newer_patch), StorageRequest()).driver == "overlay2"
    emptied = ExistingData((), ENGINES["29.1"], None)
    assert plan_storage(facts_of("ext4", "26.1", emptied), StorageRequest()).driver == "overlay2"


@pytest.mark.parametrize(
    ("database", "containerd", "refused"),
    [
        ((1, 4), "1.7.24", True),
        ((1, 5), "2.2.1", True),
        ((2, 0), "2.2.1", True),
        ((1, 4), "2.0.0", False),
        ((1, 3), "2.2.1", False),
        ((1, 5), "2.99.0", False),
        ((1, 5), "", False),
        (None, "1.7.24", False),
    ],
)
def test_a_plain_daemons_data_is_refused_where_its_database_is_a_newer_containerds(
    database: tuple[int, int] | None, containerd: str, refused: bool
) -> None:
    """What is not known is not refused."""
    existing = held((GRAPH, "overlay2"))._replace(database=database)
    facts = facts_of("ext4", "26.1", existing)._replace(containerd=containerd)
    if not refused:
        assert plan_storage(facts, StorageRequest()).driver == "overlay2"
        return
    with pytest.raises(EngineTooOldError) as caught:
        plan_storage(facts, StorageRequest())
    assert caught.value.exit_code == 65
    for word in ("containerd", str(ENGINES["26.1"]), containerd):
        assert word in caught.value.cause


@pytest.mark.parametrize(
    ("engine", "database", "told"),
    [
        ("28.5", (1, 4), True),  # Debian's 28.5 has written it, or Docker's 29
        ("29.1", (1, 4), False),
        ("28.5", (1, 3), False),
        ("28.5", None, False),
    ],
)
def test_where_the_data_does_not_tell_who_wrote_it_one_line_does(
    engine: str, database: tuple[int, int] | None, told: bool
) -> None:
    existing = held((GRAPH, "overlay2"))._replace(database=database)
    notes = plan_storage(facts_of("ext4", engine, existing)._replace(containerd="2.1.9"), StorageRequest()).notes
    assert [note for note in notes if "nothing in" in note and str(ENGINES[engine]) in note] == list(notes)
    assert len(notes) == told


BOTH = ((GRAPH, "overlay2"), (CTRD, "overlayfs"))
VFS_TOO = ((GRAPH, "overlay2"), (GRAPH, "vfs"))


@pytest.mark.parametrize(
    ("existing", "request_", "chosen"),
    [
        pytest.param(held(*BOTH), StorageRequest(), BOTH[0], id="graph drivers before containerd, as 29 does"),
        pytest.param(ExistingData(BOTH, None, BOTH[1]), StorageRequest(), BOTH[1], id="the note decides"),
        pytest.param(
            ExistingData(BOTH, None, BOTH[1]),
            StorageRequest(None, store_demand(GRAPH)),
            BOTH[1],
            id="the note even against a demand",
        ),
        pytest.param(ExistingData(BOTH, None, (GRAPH, "vfs")), StorageRequest(), BOTH[0], id="a note without data"),
        pytest.param(held(*BOTH), StorageRequest(None, store_demand(CTRD)), BOTH[1], id="a demanded store"),
        pytest.param(held(*BOTH), StorageRequest(argument("overlayfs")), BOTH[1], id="a demanded driver"),
        pytest.param(held(*VFS_TOO), StorageRequest(), VFS_TOO[0], id="vfs last"),
        pytest.param(held(*reversed(VFS_TOO)), StorageRequest(), VFS_TOO[0], id="vfs last in any order"),
        pytest.param(
            held((GRAPH, "vfs"), (CTRD, "overlayfs")), StorageRequest(), (CTRD, "overlayfs"), id="vfs after all"
        ),
    ],
)
def test_which_of_several_data_is_meant(
    existing: ExistingData, request_: StorageRequest, chosen: tuple[ImageStore, str]
) -> None:
    assert choose_pair(existing, request_) == chosen


def test_data_that_is_passed_over_is_named() -> None:
    plan = plan_storage(facts_of(existing=held(*BOTH)), StorageRequest())
    assert plan.notes == (
        "the data-root also holds data of overlayfs (containerd), which overlay2 (graphdriver) does not show; "
        "it is kept and takes space",
    )


# ---- whatever the facts ------------------------------------------------------------------------------------------

PAIRS = [*(pair for pair, _ in PRIORS.values()), (CTRD, "native"), (CTRD, "btrfs"), (GRAPH, "zfs")]
DRIVERS = sorted({driver for _, driver in PAIRS} | {"aufs"})
maybe_pair = st.none() | st.sampled_from(PAIRS)
demands = st.none() | st.sampled_from(DRIVERS).map(argument)
stores = st.none() | st.sampled_from(ImageStore).map(store_demand)


@settings(max_examples=500)
@given(
    backing=st.sampled_from(sorted(BACKINGS)),
    engine=st.sampled_from(sorted(ENGINES)),
    pairs=st.lists(st.sampled_from(PAIRS), max_size=3, unique=True),
    recorded=maybe_pair,
    wrote=st.none() | st.sampled_from(sorted(ENGINES)),
    driver=demands,
    store=stores,
    docker_driver=st.sampled_from(["", *DRIVERS]),
    userns_remap=st.sampled_from([None, REMAP]),
    allow_vfs=st.booleans(),
)
def test_no_plan_breaks_a_promise(
    backing: str,
    engine: str,
    pairs: list[tuple[ImageStore, str]],
    recorded: tuple[ImageStore, str] | None,
    wrote: str | None,
    driver: Demand | None,
    store: Demand | None,
    docker_driver: str,
    userns_remap: Remap | None,
    allow_vfs: bool,
) -> None:
    existing = ExistingData(tuple(pairs), ENGINES[wrote] if wrote else None, recorded)
    facts = facts_of(backing, engine, existing)
    request = StorageRequest(driver, store, docker_driver, userns_remap, allow_vfs)
    try:
        plan = plan_storage(facts, request)
    except (DriverConflictError, DriverUnavailableError, EngineTooOldError, NotPrivilegedError, NoUsableDriverError):
        return
    assert verdict_for(plan.driver, facts).works
    if plan.driver in COPYING_DRIVERS:
        assert allow_vfs or driver == argument(plan.driver) or decided(plan) in pairs
        assert plan.degradations
    if pairs:
        assert decided(plan) in pairs
        assert wrote is None or ENGINES[wrote].release <= facts.engine.release
    if driver:
        assert plan.driver == driver.value
    if store:
        assert str(plan.store) == store.value
    if plan.store is CTRD:
        assert not userns_remap, "dockerd does not start with userns-remap and the containerd store"
        assert facts.engine.major >= 24, "the engine has no containerd store"
    if docker_driver and plan.driver != docker_driver and not driver:
        assert any("DOCKER_DRIVER" in note for note in plan.notes), "DOCKER_DRIVER was passed over silently"
