"""What several places demand, what a trial of one driver says of another, and which drivers have to be tried."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cachedind.base.errors import DriverConflictError
from cachedind.base.model import ExistingData, Verdict
from cachedind.dataroot.storage import plan_storage
from cachedind.dataroot.storage_facts import Demand, StorageRequest, needs_fuse_verdict, unite_demands, verdict_for
from helpers.backings import BACKINGS, ENGINES, GRAPH, NOTHING, argument, facts_of, held


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


@given(st.sampled_from(sorted(BACKINGS)), st.sampled_from(sorted(ENGINES)))
def test_without_a_request_the_fuse_verdict_is_asked_for_only_when_it_was_collected(backing: str, engine: str) -> None:
    facts = facts_of(backing, engine)
    assume(not needs_fuse_verdict(NOTHING, StorageRequest(), facts.verdicts["overlay2"]))
    plan_storage(facts._replace(verdicts={"overlay2": facts.verdicts["overlay2"]}), StorageRequest())
