"""The decision: filesystems, what the data-root holds, what is demanded, engines.

The tables follow reference/storage.md (a1, c1 to c4): each row is what a probe of that filesystem says.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cachedind.base.errors import (
    CachedindError,
    DriverConflictError,
    DriverUnavailableError,
    EngineTooOldError,
    NotPrivilegedError,
    NoUsableDriverError,
)
from cachedind.base.model import COPYING_DRIVERS, EngineVersion, ExistingData, ImageStore, Remap, StoragePlan, Verdict
from cachedind.dataroot.storage import (
    Demand,
    StorageFacts,
    StorageRequest,
    choose_pair,
    name_asked,
    needs_fuse_verdict,
    plan_storage,
    unite_demands,
    verdict_for,
)

REMAP = Remap("default", 165536, 165536)
GRAPH, CTRD = ImageStore.GRAPHDRIVER, ImageStore.CONTAINERD
ENGINES = {
    "23": EngineVersion(23, 0, 6),
    "26.1": EngineVersion(26, 1, 5),
    "28.5": EngineVersion(28, 5, 2),
    "29.1": EngineVersion(29, 1, 0),
}
NOTHING = ExistingData((), None, None)


class Backing(NamedTuple):
    """A filesystem as the trials see it."""

    fstype: str
    overlay: bool
    fuse: bool
    why: str = "tried"
    privilege: bool = False


# storage.md a1, one row per filesystem; "works" is what the probe finds on it.
BACKINGS = {
    "ext4": Backing("ext4", overlay=True, fuse=True),
    "ext4 casefold": Backing("ext4", overlay=False, fuse=True, why="the backing filesystem is unfit (merged)"),
    "xfs": Backing("xfs", overlay=True, fuse=True),
    "xfs ftype=0": Backing("xfs", overlay=False, fuse=True, why="directory entries carry no d_type"),
    "btrfs": Backing("btrfs", overlay=True, fuse=True),
    "tmpfs": Backing("tmpfs", overlay=True, fuse=True),
    "f2fs": Backing("f2fs", overlay=True, fuse=True),
    "zfs 2.2": Backing("zfs", overlay=True, fuse=True),
    "zfs 2.1": Backing("zfs", overlay=False, fuse=True, why="merged/other: Invalid argument"),
    "overlay": Backing("overlay", overlay=False, fuse=True, why="the backing filesystem is unfit (merged)"),
    "overlay without /dev/fuse": Backing("overlay", overlay=False, fuse=False, why="unfit"),
    "ramfs": Backing("ramfs", overlay=False, fuse=True, why="merged/other: Invalid argument"),
    "nfs": Backing("nfs4", overlay=False, fuse=True, why="unfit"),
    "9p": Backing("9p", overlay=False, fuse=False, why="unfit"),
    "no privileges": Backing("ext4", overlay=False, fuse=False, why="no permission", privilege=True),
}


def facts_of(
    backing: str = "ext4", engine: str = "28.5", existing: ExistingData = NOTHING, *, fuse: bool | None = None
) -> StorageFacts:
    found = BACKINGS[backing]
    verdicts = {
        "overlay2": Verdict("overlay2", found.overlay, found.why, found.privilege and not found.overlay),
        "fuse-overlayfs": Verdict("fuse-overlayfs", found.fuse if fuse is None else fuse, "tried", found.privilege),
    }
    return StorageFacts("/var/lib/docker", found.fstype, ENGINES[engine], existing, verdicts)


def held(*pairs: tuple[ImageStore, str], engine: str | None = None, recorded: bool = False) -> ExistingData:
    return ExistingData(pairs, ENGINES[engine] if engine else None, pairs[0] if recorded else None)


def argument(driver: str) -> Demand:
    return Demand(driver, f"the argument --storage-driver {driver}")


def store_demand(store: ImageStore) -> Demand:
    return Demand(str(store), f"CACHEDIND_IMAGE_STORE={store}")


def decided(plan: StoragePlan) -> tuple[ImageStore, str]:
    return plan.store, plan.driver


# ---- an empty data-root ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backing", "before_29", "from_29"),
    [
        ("ext4", (GRAPH, "overlay2"), (CTRD, "overlayfs")),
        ("xfs", (GRAPH, "overlay2"), (CTRD, "overlayfs")),
        ("btrfs", (GRAPH, "overlay2"), (CTRD, "overlayfs")),
        ("tmpfs", (GRAPH, "overlay2"), (CTRD, "overlayfs")),
        ("f2fs", (GRAPH, "overlay2"), (CTRD, "overlayfs")),
        ("zfs 2.2", (GRAPH, "overlay2"), (CTRD, "overlayfs")),
        ("ext4 casefold", (GRAPH, "fuse-overlayfs"), (GRAPH, "fuse-overlayfs")),
        ("xfs ftype=0", (GRAPH, "fuse-overlayfs"), (GRAPH, "fuse-overlayfs")),
        ("zfs 2.1", (GRAPH, "fuse-overlayfs"), (GRAPH, "fuse-overlayfs")),
        ("overlay", (GRAPH, "fuse-overlayfs"), (GRAPH, "fuse-overlayfs")),
        ("ramfs", (GRAPH, "fuse-overlayfs"), (GRAPH, "fuse-overlayfs")),
        ("nfs", (GRAPH, "fuse-overlayfs"), (GRAPH, "fuse-overlayfs")),
        ("overlay without /dev/fuse", None, None),
        ("9p", None, None),
        ("no privileges", None, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fresh_data_root_gets_the_best_that_is_proven(
    backing: str, engine: str, before_29: tuple[ImageStore, str] | None, from_29: tuple[ImageStore, str] | None
) -> None:
    expected = from_29 if engine == "29.1" else before_29
    facts = facts_of(backing, engine)
    if expected is None:
        error = NotPrivilegedError if BACKINGS[backing].privilege else NoUsableDriverError
        with pytest.raises(error) as caught:
            plan_storage(facts, StorageRequest())
        assert BACKINGS[backing].why in caught.value.cause
        return
    plan = plan_storage(facts, StorageRequest())
    assert decided(plan) == expected
    assert bool(plan.degradations) == (plan.driver == "fuse-overlayfs")
    assert plan.notes == ()


@pytest.mark.parametrize("backing", ["overlay without /dev/fuse", "9p"])
@pytest.mark.parametrize("engine", ENGINES)
def test_vfs_is_the_last_choice_where_it_is_allowed(backing: str, engine: str) -> None:
    plan = plan_storage(facts_of(backing, engine), StorageRequest(allow_vfs=True))
    assert decided(plan) == (GRAPH, "vfs")
    assert "full copy" in plan.degradations[0].cost
    assert BACKINGS[backing].why in plan.degradations[0].why


def test_vfs_is_not_chosen_where_anything_else_works() -> None:
    assert plan_storage(facts_of("ext4"), StorageRequest(allow_vfs=True)).driver == "overlay2"
    assert plan_storage(facts_of("overlay"), StorageRequest(allow_vfs=True)).driver == "fuse-overlayfs"


def test_want_of_privileges_is_told_from_an_unfit_filesystem() -> None:
    with pytest.raises(NotPrivilegedError) as caught:
        plan_storage(facts_of("no privileges"), StorageRequest())
    assert caught.value.exit_code == 77
    assert "--privileged" in caught.value.hint
    with pytest.raises(NoUsableDriverError) as unfit:
        plan_storage(facts_of("9p"), StorageRequest())
    assert unfit.value.exit_code == 69
    assert "CACHEDIND_ALLOW_VFS=1" in unfit.value.hint
    assert "overlay2: unfit; fuse-overlayfs: tried" in unfit.value.cause


@pytest.mark.parametrize(
    ("engine", "backing", "docker_driver", "expected", "ignored"),
    [
        ("28.5", "ext4", "overlay2", (GRAPH, "overlay2"), False),
        ("29.1", "ext4", "overlay2", (GRAPH, "overlay2"), False),
        ("29.1", "ext4", "overlayfs", (CTRD, "overlayfs"), False),
        ("23", "ext4", "overlayfs", (GRAPH, "overlay2"), True),
        ("28.5", "ext4", "fuse-overlayfs", (GRAPH, "fuse-overlayfs"), False),
        ("28.5", "btrfs", "btrfs", (GRAPH, "btrfs"), False),
        ("28.5", "ext4", "btrfs", (GRAPH, "overlay2"), True),
        ("28.5", "zfs 2.1", "zfs", (GRAPH, "zfs"), False),
        ("28.5", "overlay", "overlay2", (GRAPH, "fuse-overlayfs"), True),
        ("28.5", "ext4", "vfs", (GRAPH, "overlay2"), True),
        ("29.1", "ext4", "vfs", (CTRD, "overlayfs"), True),
        ("29.1", "ext4", "native", (CTRD, "overlayfs"), True),
        ("28.5", "ext4", "aufs", (GRAPH, "overlay2"), True),
        ("28.5", "ext4", "devicemapper", (GRAPH, "overlay2"), True),
    ],
)
def test_docker_driver_is_a_wish_on_a_fresh_data_root(
    engine: str, backing: str, docker_driver: str, expected: tuple[ImageStore, str], ignored: bool
) -> None:
    plan = plan_storage(facts_of(backing, engine), StorageRequest(docker_driver=docker_driver))
    assert decided(plan) == expected
    assert [note.startswith(f"DOCKER_DRIVER={docker_driver} is ignored: ") for note in plan.notes] == [True] * ignored


@pytest.mark.parametrize("driver", ["btrfs", "zfs"])
def test_docker_driver_is_not_followed_to_volumes_that_a_pool_could_not_clone(driver: str) -> None:
    facts = facts_of("btrfs" if driver == "btrfs" else "zfs 2.2")
    assert decided(plan_storage(facts, StorageRequest(docker_driver=driver))) == (GRAPH, driver)
    plan = plan_storage(facts, StorageRequest(docker_driver=driver, in_pool=True))
    assert decided(plan) == (GRAPH, "overlay2")
    assert plan.notes == (f"DOCKER_DRIVER={driver} is ignored: a clone of a pool's slot would leave its layers out",)


@pytest.mark.parametrize(
    ("backing", "engine", "request_", "asked"),
    [
        ("ext4", "28.5", StorageRequest(), ""),
        ("ext4", "28.5", StorageRequest(driver=argument("overlay2"), store=store_demand(GRAPH)), ""),
        ("ext4", "28.5", StorageRequest(docker_driver="overlay2"), ""),
        ("ext4", "28.5", StorageRequest(driver=argument("vfs")), "driver"),
        ("ext4", "28.5", StorageRequest(driver=argument("fuse-overlayfs")), "driver"),
        ("ext4", "28.5", StorageRequest(docker_driver="vfs", allow_vfs=True), "driver"),
        ("ext4", "28.5", StorageRequest(docker_driver="vfs"), ""),
        ("ext4", "28.5", StorageRequest(store=store_demand(CTRD)), "store"),
        ("ext4", "28.5", StorageRequest(store=store_demand(CTRD), driver=argument("overlayfs")), "store"),
        ("ext4", "29.1", StorageRequest(store=store_demand(CTRD)), ""),
        ("ext4", "29.1", StorageRequest(store=store_demand(GRAPH)), "store"),
        ("ext4", "29.1", StorageRequest(userns_remap=REMAP), ""),
        # Where nothing else works it is what everybody gets.
        ("overlay without /dev/fuse", "28.5", StorageRequest(driver=argument("vfs"), allow_vfs=True), ""),
        ("overlay without /dev/fuse", "28.5", StorageRequest(driver=argument("vfs")), ""),
        ("overlay without /dev/fuse", "28.5", StorageRequest(allow_vfs=True), ""),
        ("overlay", "28.5", StorageRequest(driver=argument("fuse-overlayfs")), ""),
    ],
)
def test_which_wish_led_where_nobody_else_would_go(
    backing: str, engine: str, request_: StorageRequest, asked: str
) -> None:
    facts = facts_of(backing, engine)
    assert name_asked(facts, request_, plan_storage(facts, request_)) == asked


def test_docker_driver_vfs_is_followed_where_vfs_is_allowed() -> None:
    plan = plan_storage(facts_of("ext4"), StorageRequest(docker_driver="vfs", allow_vfs=True))
    assert decided(plan) == (GRAPH, "vfs")
    assert plan.degradations


@pytest.mark.parametrize(
    ("engine", "backing", "request_", "expected"),
    [
        pytest.param("28.5", "ext4", StorageRequest(argument("overlay2")), (GRAPH, "overlay2"), id="overlay2"),
        pytest.param("29.1", "ext4", StorageRequest(argument("overlay2")), (GRAPH, "overlay2"), id="overlay2 on 29"),
        pytest.param("28.5", "ext4", StorageRequest(argument("overlayfs")), (CTRD, "overlayfs"), id="overlayfs"),
        pytest.param("28.5", "ext4", StorageRequest(argument("vfs")), (GRAPH, "vfs"), id="vfs by argument"),
        pytest.param("28.5", "9p", StorageRequest(argument("native")), (CTRD, "native"), id="native by argument"),
        pytest.param(
            "28.5", "overlay", StorageRequest(argument("fuse-overlayfs")), (GRAPH, "fuse-overlayfs"), id="fuse"
        ),
        pytest.param("28.5", "btrfs", StorageRequest(argument("btrfs")), (GRAPH, "btrfs"), id="btrfs"),
        pytest.param(
            "28.5",
            "btrfs",
            StorageRequest(argument("btrfs"), store_demand(CTRD)),
            (CTRD, "btrfs"),
            id="btrfs, which both stores have",
        ),
        pytest.param("28.5", "ext4", StorageRequest(None, store_demand(CTRD)), (CTRD, "overlayfs"), id="containerd"),
        pytest.param("29.1", "ext4", StorageRequest(None, store_demand(GRAPH)), (GRAPH, "overlay2"), id="graphdriver"),
        pytest.param("29.1", "ext4", StorageRequest(userns_remap=REMAP), (GRAPH, "overlay2"), id="userns-remap on 29"),
        pytest.param(
            "29.1",
            "overlay",
            StorageRequest(None, store_demand(CTRD), allow_vfs=True),
            (CTRD, "native"),
            id="containerd without overlay, copying allowed",
        ),
        pytest.param(
            "28.5",
            "ext4",
            StorageRequest(argument("overlay2"), docker_driver="vfs"),
            (GRAPH, "overlay2"),
            id="an argument beats DOCKER_DRIVER",
        ),
    ],
)
def test_demands_on_a_fresh_data_root(
    engine: str, backing: str, request_: StorageRequest, expected: tuple[ImageStore, str]
) -> None:
    assert decided(plan_storage(facts_of(backing, engine), request_)) == expected


@pytest.mark.parametrize(
    ("engine", "backing", "request_", "error", "said"),
    [
        pytest.param(
            "28.5",
            "ext4",
            StorageRequest(argument("overlay2"), store_demand(CTRD)),
            DriverConflictError,
            "CACHEDIND_IMAGE_STORE=containerd",
            id="a driver of the other store",
        ),
        pytest.param(
            "28.5",
            "ext4",
            StorageRequest(argument("overlayfs"), store_demand(GRAPH)),
            DriverConflictError,
            "CACHEDIND_IMAGE_STORE=graphdriver",
            id="a snapshotter for graph drivers",
        ),
        pytest.param(
            "23",
            "ext4",
            StorageRequest(argument("overlayfs")),
            DriverConflictError,
            "this engine",
            id="overlayfs on 23",
        ),
        pytest.param(
            "28.5", "ext4", StorageRequest(argument("aufs")), DriverConflictError, "aufs", id="a driver of the past"
        ),
        pytest.param(
            "28.5", "ext4", StorageRequest(argument("btrfs")), NoUsableDriverError, "is on ext4", id="btrfs on ext4"
        ),
        pytest.param(
            "28.5",
            "overlay",
            StorageRequest(argument("overlay2")),
            NoUsableDriverError,
            "unfit",
            id="overlay2 on overlay",
        ),
        pytest.param(
            "28.5",
            "no privileges",
            StorageRequest(argument("overlay2")),
            NotPrivilegedError,
            "no permission",
            id="overlay2 without privileges",
        ),
        pytest.param(
            "29.1",
            "overlay",
            StorageRequest(None, store_demand(CTRD)),
            NoUsableDriverError,
            "only native would work",
            id="containerd without overlay",
        ),
        pytest.param(
            "28.5",
            "ext4",
            StorageRequest(argument("overlayfs"), userns_remap=REMAP),
            DriverConflictError,
            "overlayfs",
            id="a snapshotter with userns-remap",
        ),
        pytest.param(
            "28.5",
            "ext4",
            StorageRequest(None, store_demand(CTRD), userns_remap=REMAP),
            DriverConflictError,
            "CACHEDIND_IMAGE_STORE=containerd",
            id="the containerd store with userns-remap",
        ),
        pytest.param(
            "23",
            "ext4",
            StorageRequest(None, store_demand(CTRD)),
            DriverConflictError,
            "CACHEDIND_IMAGE_STORE=containerd",
            id="the containerd store on 23",
        ),
    ],
)
def test_demands_that_cannot_be_met_on_a_fresh_data_root(
    engine: str, backing: str, request_: StorageRequest, error: type[CachedindError], said: str
) -> None:
    with pytest.raises(error) as caught:
        plan_storage(facts_of(backing, engine), request_)
    assert said in caught.value.cause


@pytest.mark.parametrize(
    ("recorded", "engine", "request_", "expected"),
    [
        ((CTRD, "overlayfs"), "28.5", StorageRequest(), (CTRD, "overlayfs")),
        ((GRAPH, "overlay2"), "29.1", StorageRequest(), (GRAPH, "overlay2")),
        ((GRAPH, "vfs"), "28.5", StorageRequest(), (GRAPH, "overlay2")),
        ((GRAPH, "btrfs"), "28.5", StorageRequest(), (GRAPH, "overlay2")),
        ((CTRD, "overlayfs"), "28.5", StorageRequest(None, store_demand(GRAPH)), (GRAPH, "overlay2")),
        ((CTRD, "overlayfs"), "28.5", StorageRequest(argument("overlay2")), (GRAPH, "overlay2")),
        ((CTRD, "overlayfs"), "28.5", StorageRequest(userns_remap=REMAP), (GRAPH, "overlay2")),
        ((CTRD, "overlayfs"), "23", StorageRequest(), (GRAPH, "overlay2")),
    ],
    ids=[
        "kept",
        "kept although 29 prefers containerd",
        "vfs is not kept without permission",
        "not kept where it no longer works",
        "a demanded store beats it",
        "a demanded driver beats it",
        "userns-remap beats it",
        "an engine without that store",
    ],
)
def test_a_start_that_left_no_data_is_followed_where_nothing_speaks_against_it(
    recorded: tuple[ImageStore, str], engine: str, request_: StorageRequest, expected: tuple[ImageStore, str]
) -> None:
    facts = facts_of("ext4", engine, ExistingData((), None, recorded))
    assert decided(plan_storage(facts, request_)) == expected


# ---- a data-root with data ---------------------------------------------------------------------------------------

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


# ---- the small ones ----------------------------------------------------------------------------------------------


def test_demands_of_several_places_are_one_where_they_agree() -> None:
    assert unite_demands([]) is None
    assert unite_demands([Demand("vfs", "here"), Demand("vfs", "there")]) == Demand("vfs", "here")
    with pytest.raises(DriverConflictError, match="here contradicts there"):
        unite_demands([Demand("vfs", "here"), Demand("overlay2", "there")])


@pytest.mark.parametrize(
    ("existing", "request_", "overlay_works", "needed"),
    [
        (NOTHING, StorageRequest(), True, False),
        (NOTHING, StorageRequest(), False, True),
        (held((GRAPH, "fuse-overlayfs")), StorageRequest(), True, True),
        (held((GRAPH, "overlay2")), StorageRequest(), True, False),
        (NOTHING, StorageRequest(docker_driver="fuse-overlayfs"), True, True),
        (NOTHING, StorageRequest(argument("fuse-overlayfs")), True, True),
        (NOTHING, StorageRequest(argument("btrfs"), docker_driver="vfs"), True, False),
    ],
)
def test_fuse_overlayfs_is_tried_only_where_it_matters(
    existing: ExistingData, request_: StorageRequest, overlay_works: bool, needed: bool
) -> None:
    verdict = Verdict("overlay2", overlay_works, "")
    assert needs_fuse_verdict(existing, request_, verdict) is needed


@pytest.mark.parametrize(
    ("driver", "backing", "works"),
    [
        ("overlay2", "ext4", True),
        ("overlayfs", "ext4", True),
        ("overlayfs", "ramfs", False),
        ("fuse-overlayfs", "overlay", True),
        ("vfs", "9p", True),
        ("native", "9p", True),
        ("btrfs", "btrfs", True),
        ("btrfs", "ext4", False),
        ("zfs", "zfs 2.1", True),
        ("zfs", "ext4", False),
        ("devmapper", "ext4", False),
    ],
)
def test_verdict_for_any_driver(driver: str, backing: str, works: bool) -> None:
    assert verdict_for(driver, facts_of(backing)).works is works


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


@given(st.sampled_from(sorted(BACKINGS)), st.sampled_from(sorted(ENGINES)))
def test_without_a_wish_the_fuse_verdict_is_asked_for_only_when_it_was_collected(backing: str, engine: str) -> None:
    facts = facts_of(backing, engine)
    assume(not needs_fuse_verdict(NOTHING, StorageRequest(), facts.verdicts["overlay2"]))
    plan_storage(facts._replace(verdicts={"overlay2": facts.verdicts["overlay2"]}), StorageRequest())


@pytest.mark.parametrize("noted", ["vfs", "fuse-overlayfs"])
def test_a_second_choice_that_left_no_data_is_not_kept(noted: str) -> None:
    existing = ExistingData((), EngineVersion(26, 1, 5), (ImageStore.GRAPHDRIVER, noted))
    verdicts = {name: Verdict(name, works=True, why="") for name in ("overlay2", "fuse-overlayfs")}
    facts = StorageFacts("/var/lib/docker", "ext4", EngineVersion(26, 1, 5), existing, verdicts)
    assert plan_storage(facts, StorageRequest(allow_vfs=True)).driver == "overlay2"
