"""The one line that every start ends with: where did my cache go? Pure, but for the stopwatch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachedind.facts import Place
    from cachedind.model import StoragePlan


class Stopwatch:
    """How long each phase of a start took, in milliseconds, in the order of the phases."""

    def __init__(self) -> None:
        self._last = self._start = time.monotonic()
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to `phase`."""
        now = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + (now - self._last) * 1000
        self._last = now

    @property
    def total_ms(self) -> float:
        return (self._last - self._start) * 1000


def describe_age(seconds: float) -> str:
    """90 → "2 min"; a clock that was set back gives "0 s"."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{max(seconds, 0) / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def summarise(
    plan: StoragePlan, place: Place, *, layers: int, last_used_s: float | None, stopwatch: Stopwatch
) -> tuple[str, dict[str, object]]:
    """The line, and the same as fields for a JSON log. `last_used_s` is how long ago the data-root was leased
    before.
    """
    from cachedind.facts import format_bytes

    used = place.total_bytes - place.free_bytes
    temperature = "warm" if layers else "cold"
    age = "" if last_used_s is None else f", last used {describe_age(last_used_s)} ago"
    found = f"{layers} layers{age}" if layers else f"nothing in {place.path} yet"
    disk = f"{place.fstype}, {format_bytes(used)} of {format_bytes(place.total_bytes)} used"
    phases = ", ".join(f"{name} {took:.0f}" for name, took in stopwatch.phases.items())
    line = (
        f"{temperature}: {found} ({disk}); {plan.driver} in the {plan.store} store ({plan.reason}); "
        f"{stopwatch.total_ms:.0f} ms: {phases}"
    )
    fields: dict[str, object] = {
        "cache": temperature,
        "layers": layers,
        "last_used_s": None if last_used_s is None else round(last_used_s),
        "data_root": place.path,
        "fstype": place.fstype,
        "used_bytes": used,
        "total_bytes": place.total_bytes,
        "driver": plan.driver,
        "image_store": str(plan.store),
        "reason": plan.reason,
        "phases_ms": {name: round(took, 1) for name, took in stopwatch.phases.items()},
        "total_ms": round(stopwatch.total_ms, 1),
    }
    return line, fields
