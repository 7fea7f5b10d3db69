"""The benchmarks' arithmetic."""

from __future__ import annotations

import pytest

from figures import median_of_each, speed_ratio, spread


def test_a_spread_is_median_range_and_count() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0, 4)


def test_speed_is_below_one_for_what_takes_longer() -> None:
    assert speed_ratio([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]) == 0.5


def test_speed_compares_neighbours() -> None:
    """The machine was three times slower in the last two turns, for both: the ratio of medians would say 1/3."""
    assert speed_ratio([1.0, 1.0, 1.0, 3.0, 3.0], [1.0, 1.0, 3.0, 3.0, 3.0]) == 1.0


def test_turns_that_only_one_took_part_in_are_refused() -> None:
    with pytest.raises(ValueError, match="each turn"):
        speed_ratio([1.0, 2.0], [1.0])


def test_phases_that_some_runs_lack_are_the_others_median() -> None:
    found = [{"lease": 1.0, "storage": 5.0}, {"lease": 3.0}, {"lease": 2.0, "maintain": 7.0}, {}]
    assert median_of_each(found) == {"lease": 2.0, "storage": 5.0, "maintain": 7.0}
