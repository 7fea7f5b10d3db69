"""What is made of measurements: medians, ranges, ratios. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Spread(NamedTuple):
    """Several measurements of one thing, in their own unit."""

    median: float
    least: float
    most: float
    runs: int

    def rounded(self, digits: int = 3) -> dict[str, float]:
        """For a JSON file."""
        return {
            "median": round(self.median, digits),
            "min": round(self.least, digits),
            "max": round(self.most, digits),
            "runs": self.runs,
        }


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


def median_of_each(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each phase over the runs that have it, in the order of the first one."""
    names = list(dict.fromkeys(name for phases in found for name in phases))
    return {name: statistics.median(phases[name] for phases in found if name in phases) for name in names}


def speed_ratio(base: Sequence[float], mine: Sequence[float]) -> float:
    """How fast something is in terms of the base: 0.5 where it takes twice as long. Of times in turns.

    The median of the ratios of neighbours, not the ratio of medians: what else the machine did in one turn hit both.
    """
    if len(base) != len(mine):
        raise ValueError("each turn has a time of both")
    return statistics.median(one / other for one, other in zip(base, mine, strict=True))
