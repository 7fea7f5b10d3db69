"""Which cache mounts a copy leaves empty: pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cachedind.pool import mutable
from cachedind.pool.mutable import Amount, CacheMount

LIMIT = Amount(100, 1000)
NONE = Amount(0, 0)

amounts = st.builds(Amount, st.integers(0, 300), st.integers(0, 3000))


def mounts(*found: Amount) -> list[CacheMount]:
    return [CacheMount(str(number), f"/{number}", amount) for number, amount in enumerate(found)]


def left_out(*found: Amount, others: Amount = NONE) -> list[str]:
    return [mount.name for mount in mutable.plan(mounts(*found), others, LIMIT).mounts]


def test_what_is_within_the_limit_is_copied() -> None:
    assert left_out() == left_out(Amount(60, 600), Amount(40, 400)) == []


def test_the_largest_goes_first_and_no_more_than_has_to() -> None:
    assert left_out(Amount(40, 0), Amount(50, 0), Amount(30, 0)) == ["1"]
    assert left_out(Amount(90, 0), Amount(101, 0), Amount(95, 0)) == ["1", "2"]
    assert left_out(Amount(0, 400), Amount(0, 500), Amount(0, 300)) == ["1"]


def test_what_there_is_enough_room_for_does_not_count() -> None:
    """Many bytes in few files stay where there are only too many files."""
    assert left_out(Amount(1, 900), Amount(101, 50)) == ["1"]
    assert left_out(Amount(99, 50), Amount(1, 1001)) == ["1"]


def test_others_take_their_part_but_never_more_than_half() -> None:
    assert left_out(Amount(60, 0), Amount(10, 0), others=Amount(30, 0)) == []
    assert left_out(Amount(60, 0), Amount(10, 0), others=Amount(31, 0)) == ["0"]
    assert left_out(Amount(40, 0), Amount(10, 0), others=Amount(10_000, 0)) == []
    assert left_out(Amount(41, 0), Amount(10, 0), others=Amount(10_000, 0)) == ["0"]


@given(st.lists(amounts, max_size=6), amounts)
def test_a_copy_of_the_copy_leaves_nothing_out(found: list[Amount], others: Amount) -> None:
    going = mutable.plan(mounts(*found), others, LIMIT)
    kept = [mount for mount in mounts(*found) if mount.name not in going.names]
    assert mutable.plan(kept, others, LIMIT) == mutable.NOTHING
    assert sum(mount.amount.files for mount in kept) <= LIMIT.files
    assert sum(mount.amount.bytes for mount in kept) <= LIMIT.bytes


def test_what_is_left_out_is_told_in_one_line() -> None:
    one = CacheMount("k", "/root/.cache/go-build", Amount(40_000, 5 << 30))
    line = str(mutable.LeftOut((one,)).degradation())
    assert line == (
        "the cache mount /root/.cache/go-build (40000 files, 5.0 GiB) is not copied for other instances: "
        "copying takes too long above 50000 files, or 2.0 GiB without reflinks, in all; "
        "instances that begin with a clone find that cache mount empty, and so do all once the newest state is one of "
        "theirs; "
        "docker buildx prune --filter type=exec.cachemount removes them here; smaller ones are copied"
    )
    assert str(one._replace(amount=Amount(50_001, 1))) == "/root/.cache/go-build (more than 50000 files)"
    many = mutable.LeftOut(tuple(one._replace(amount=Amount(number, 1)) for number in range(9))).degradation()
    assert many.what.startswith("the cache mounts /root/.cache/go-build (0 files, 1 B), ")
    assert many.what.endswith(", … are not copied for other instances")
    assert mutable.NOTHING.remark() == ""
