"""The size of an image: a promise that the host can keep, and that its small ups and downs do not change."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.errors import PoolUnusableError
from cachedind.pool.loop_image import (
    MIB,
    MINIMUM_BYTES,
    STEP_BYTES,
    HostSpace,
    SizeAction,
    SizePlan,
    Superblock,
    default_reserve,
    parse_superblock,
    plan_size,
)

GIB = 1 << 30
BIG = HostSpace(total=100 * GIB, free=60 * GIB, allocated=0)


def plan(
    space: HostSpace,
    current: int | None = None,
    *,
    wanted: int | None = None,
    min_free: int | None = None,
    fstype: str = "btrfs",
) -> SizePlan:
    superblock = None if current is None else Superblock(fstype, current)
    return plan_size(space, superblock, wanted_bytes=wanted, min_free_bytes=min_free, fstype=fstype)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (HostSpace(1000 * GIB, 500 * GIB, 0), 50 * GIB),
        (HostSpace(100 * GIB, 60 * GIB, 0), 5 * GIB),
        (HostSpace(10 * GIB, 8 * GIB, 0), GIB),
        (HostSpace(10 * GIB, GIB, 0), GIB // 2),
        (HostSpace(10 * GIB, GIB, GIB), GIB),
    ],
)
def test_the_reserve(space: HostSpace, expected: int) -> None:
    assert default_reserve(space) == expected


@pytest.mark.parametrize(
    ("space", "wanted", "min_free", "expected"),
    [
        pytest.param(BIG, None, None, 55 * GIB, id="what the host has, less the reserve"),
        pytest.param(BIG, 20 * GIB, None, 20 * GIB, id="what is wanted"),
        pytest.param(BIG, 20 * GIB + 5, None, 20 * GIB, id="in steps"),
        pytest.param(BIG, 200 * GIB, None, 55 * GIB, id="not more than the host has"),
        pytest.param(BIG, None, 0, 60 * GIB, id="no reserve"),
        pytest.param(BIG, None, 50 * GIB, 10 * GIB, id="a large one"),
        pytest.param(HostSpace(GIB, GIB, 0), None, None, GIB // 2, id="a small disk"),
    ],
)
def test_a_new_image(space: HostSpace, wanted: int | None, min_free: int | None, expected: int) -> None:
    assert plan(space, wanted=wanted, min_free=min_free) == SizePlan(SizeAction.CREATE, expected)


@pytest.mark.parametrize(
    ("space", "wanted", "fstype", "cause"),
    [
        (HostSpace(GIB, 400 * MIB, 0), None, "btrfs", r"400 MiB of 1024 MiB are free.*200 MiB must stay free.*256 MiB"),
        (HostSpace(GIB, 800 * MIB, 0), None, "xfs", r"xfs needs at least 512 MiB"),
        (BIG, 100 * MIB, "btrfs", r"CACHEDIND_POOL_SIZE is 100 MiB, and btrfs needs at least 256 MiB"),
        (HostSpace(GIB, 0, 0), None, "btrfs", r"0 MiB of 1024 MiB are free"),
    ],
)
def test_too_small_a_disk_or_wish(space: HostSpace, wanted: int | None, fstype: str, cause: str) -> None:
    with pytest.raises(PoolUnusableError, match=cause):
        plan(space, wanted=wanted, fstype=fstype)


@pytest.mark.parametrize(
    ("current", "free", "allocated", "wanted", "expected"),
    [
        pytest.param(55 * GIB, 60 * GIB, 0, None, SizePlan(SizeAction.KEEP, 55 * GIB), id="as planned"),
        pytest.param(55 * GIB, 40 * GIB, 20 * GIB, None, SizePlan(SizeAction.KEEP, 55 * GIB), id="filled by itself"),
        pytest.param(55 * GIB, 62 * GIB, 0, None, SizePlan(SizeAction.KEEP, 55 * GIB), id="a little more room"),
        pytest.param(55 * GIB, 80 * GIB, 0, None, SizePlan(SizeAction.GROW, 75 * GIB), id="much more room"),
        pytest.param(55 * GIB, 58 * GIB, 0, None, SizePlan(SizeAction.KEEP, 55 * GIB), id="a little less room"),
        pytest.param(55 * GIB, 30 * GIB, 0, None, SizePlan(SizeAction.SHRINK, 25 * GIB), id="much less room"),
        pytest.param(10 * GIB, 60 * GIB, 0, 10 * GIB + STEP_BYTES, SizePlan(SizeAction.GROW, 10 * GIB + STEP_BYTES)),
        pytest.param(10 * GIB, 60 * GIB, 0, 9 * GIB, SizePlan(SizeAction.SHRINK, 9 * GIB), id="less is wanted"),
        pytest.param(512 * MIB, 2 * GIB, 0, MIB, SizePlan(SizeAction.SHRINK, 256 * MIB), id="not below the minimum"),
        pytest.param(256 * MIB, 2 * GIB, 0, MIB, SizePlan(SizeAction.KEEP, 256 * MIB), id="the smallest"),
    ],
)
def test_an_image_that_is_there(
    current: int, free: int, allocated: int, wanted: int | None, expected: SizePlan
) -> None:
    assert plan(HostSpace(100 * GIB, free, allocated), current, wanted=wanted) == expected


def test_xfs_grows_but_does_not_shrink() -> None:
    assert plan(BIG, 90 * GIB, fstype="xfs") == SizePlan(SizeAction.KEEP, 90 * GIB)
    assert plan(BIG, 10 * GIB, fstype="xfs") == SizePlan(SizeAction.GROW, 55 * GIB)


@pytest.mark.parametrize(
    ("total", "free", "allocated", "refused"),
    [
        (100 * GIB, 255 * MIB, 5 * GIB, True),
        (100 * GIB, 256 * MIB, 5 * GIB, False),
        (10 * GIB, 102 * MIB, 5 * GIB, True),
        (10 * GIB, 103 * MIB, 5 * GIB, False),
        (100 * GIB, 0, 20 * GIB, False),
    ],
)
def test_a_nearly_full_disk(total: int, free: int, allocated: int, refused: bool) -> None:
    space = HostSpace(total, free, allocated)
    if not refused:
        plan(space, 20 * GIB)
        return
    with pytest.raises(
        PoolUnusableError, match=r"nearly full: \d+ MiB of \d+ MiB are free.*grow by 15360 MiB"
    ) as caught:
        plan(space, 20 * GIB)
    assert "free at least" in caught.value.hint


sizes = st.integers(0, 4096 * GIB)


@given(total=sizes, free=sizes, allocated=sizes, current=st.none() | sizes, wanted=st.none() | sizes)
def test_no_more_is_promised_than_the_host_can_hold(
    total: int, free: int, allocated: int, current: int | None, wanted: int | None
) -> None:
    space = HostSpace(max(total, free), free, allocated)
    try:
        planned = plan(space, current, wanted=wanted)
    except PoolUnusableError:
        return
    reserve = default_reserve(space)
    if planned.action is SizeAction.KEEP:
        assert planned.size_bytes == current
    else:
        assert planned.size_bytes % STEP_BYTES == 0
    if planned.action in (SizeAction.CREATE, SizeAction.GROW):
        assert planned.size_bytes <= allocated + free - reserve
        assert wanted is None or planned.size_bytes <= wanted
    elif planned.size_bytes > MINIMUM_BYTES["btrfs"]:
        # What is kept may take half of the reserve, and no more.
        assert planned.size_bytes <= max(allocated + free - reserve // 2, 0)
        assert wanted is None or planned.size_bytes <= wanted


@given(free=sizes, allocated=sizes, current=st.none() | sizes, wanted=st.none() | sizes)
def test_a_planned_size_is_kept_by_the_next_start(
    free: int, allocated: int, current: int | None, wanted: int | None
) -> None:
    space = HostSpace(free + allocated, free, allocated)
    try:
        planned = plan(space, current, wanted=wanted)
        again = plan(space, planned.size_bytes, wanted=wanted)
    except PoolUnusableError:
        return
    assert again == SizePlan(SizeAction.KEEP, planned.size_bytes)


def btrfs_head(size: int) -> bytes:
    return bytes(0x10040) + b"_BHRfS_M" + bytes(0x28) + struct.pack("<Q", size) + bytes(100)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (btrfs_head(123456789), Superblock("btrfs", 123456789)),
        (b"XFSB" + struct.pack(">IQ", 4096, 1000), Superblock("xfs", 4096000)),
        (b"XFSB", None),
        (b"", None),
        (bytes(70000), None),
        (b"\x7fELF" * 20000, None),
    ],
)
def test_superblocks(head: bytes, expected: Superblock | None) -> None:
    assert parse_superblock(head) == expected


@given(st.binary(max_size=200))
def test_any_garbage_is_no_superblock_or_one(head: bytes) -> None:
    parse_superblock(head)
    parse_superblock(b"XFSB" + head)
