"""The decision on an empty data-root.

The tables follow reference/storage.md (a1, c1 to c4): each row is what a probe of that filesystem says.
"""

from __future__ import annotations

import pytest

from cachedind.base.errors import CachedindError, DriverConflictError, NotPrivilegedError, NoUsableDriverError
from cachedind.base.model import EngineVersion, ExistingData, ImageStore, Verdict
from cachedind.dataroot.storage import name_asked, plan_storage
from cachedind.dataroot.storage_facts import StorageFacts, StorageRequest
from helpers.backings import BACKINGS, CTRD, ENGINES, GRAPH, REMAP, argument, decided, facts_of, store_demand


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
def test_docker_driver_is_a_preference_on_a_fresh_data_root(
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
def test_which_request_led_where_nobody_else_would_go(
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


@pytest.mark.parametrize("noted", ["vfs", "fuse-overlayfs"])
def test_a_second_choice_that_left_no_data_is_not_kept(noted: str) -> None:
    existing = ExistingData((), EngineVersion(26, 1, 5), (ImageStore.GRAPHDRIVER, noted))
    verdicts = {name: Verdict(name, works=True, why="") for name in ("overlay2", "fuse-overlayfs")}
    facts = StorageFacts("/var/lib/docker", "ext4", EngineVersion(26, 1, 5), existing, verdicts)
    assert plan_storage(facts, StorageRequest(allow_vfs=True)).driver == "overlay2"
