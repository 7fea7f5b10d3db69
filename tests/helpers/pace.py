"""The machine's pace: what a bar in milliseconds means on a virtual machine whose neighbours come and go.

The same piece of work was seen to take 0.10 s and 0.19 s within a minute, on an idle machine. That only ever adds,
so times count at the best pace that a test has seen, and at REFERENCE_S on a machine that is slower by itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

REFERENCE_S = 0.008
"""The pace of the machine on which the bars were set. A faster one has to keep them as they are."""


def pace_s() -> float:
    """How long a fixed piece of work takes this machine now, in seconds: the median of a few."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        sum(range(500_000))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def best_of(paces_s: Iterable[float]) -> float:
    """The pace at which times count, of those that were taken around them."""
    return min(REFERENCE_S, *paces_s)


class Pace:
    """Takes the pace around what is measured, and brings times to the best one."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float]] = []
        self._before = pace_s()

    def add(self, took: float) -> None:
        """Something that has just been measured, in any unit."""
        after = pace_s()
        self._taken.append((took, (self._before + after) / 2))
        self._before = after

    def times(self, best_s: float) -> list[float]:
        """All of them, as if the machine had always had this pace."""
        return [took * best_s / pace for took, pace in self._taken]

    @property
    def best_s(self) -> float:
        return best_of(pace for _, pace in self._taken)
