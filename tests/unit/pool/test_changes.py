"""What a job has made of the state that it began with. Pure."""

from __future__ import annotations

import pytest

from cachedind.pool.changes import Change, judge

TEN = frozenset("0123456789")


def some(text: str) -> frozenset[str]:
    return frozenset(text)


@pytest.mark.parametrize(
    ("before", "there", "whole", "expected"),
    [
        (TEN, TEN, TEN, Change.NONE),
        (some(""), some(""), some(""), Change.NONE),
        # A container's own layer is there, and no engine's.
        (TEN, TEN | some("c"), TEN, Change.NONE),
        # Among what was there before some are no layers (a cache mount, a context): they stay.
        (TEN, TEN, some("01234567"), Change.NONE),
        (TEN, TEN | some("n"), TEN | some("n"), Change.SOME),
        (some(""), some("n"), some("n"), Change.SOME),
        # As much as before, or not much less: an engine's collector, a rebuilt stage.
        (TEN, some("0123456n"), some("0123456n"), Change.SOME),
        (TEN, some("012345678"), some("012345678"), Change.SOME),
        (TEN, some("abcdefgh"), some("abcdefgh"), Change.SOME),
        (TEN, some("01234"), some("01234"), Change.SOME),
        (TEN, some("0123"), some("0123"), Change.EMPTIED),
        (TEN, some(""), some(""), Change.EMPTIED),
        (TEN, some("n"), some("n"), Change.EMPTIED),
        # Contexts, cache mounts and what else is no layer outnumber the layers: nothing was lost.
        (TEN, TEN, some("0"), Change.NONE),
        (TEN, TEN | some("n"), some("0n"), Change.SOME),
        (TEN, some("01234567n"), some("0n"), Change.SOME),
    ],
)
def test_what_counts_as_a_change(
    before: frozenset[str], there: frozenset[str], whole: frozenset[str], expected: Change
) -> None:
    assert judge(before, there, whole, keeps=False) is expected


def test_where_something_is_to_be_kept_everything_counts_as_a_change() -> None:
    """A volume's content is no layer: the cache may be there."""
    assert judge(TEN, TEN, TEN, keeps=True) is Change.SOME
    assert judge(TEN, some("0"), some("0"), keeps=True) is Change.SOME
