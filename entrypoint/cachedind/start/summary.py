"""The one line that every start ends with: where did my cache go? Pure, but for the stopwatch."""

from __future__ import annotations

import time

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.pool.keys import BASE_KEY

if TYPE_CHECKING:
    from cachedind.base.model import StoragePlan
    from cachedind.dataroot.facts import Place


class Stopwatch:
    """How long each phase of a start took, in milliseconds, in the order of the phases."""

    def __init__(self) -> None:
        self._last = self.started = time.monotonic()
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to `phase`."""
        now = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + (now - self._last) * 1000
        self._last = now

    @property
    def total_ms(self) -> float:
        return (self._last - self.started) * 1000


def describe_age(seconds: float) -> str:
    """90 → "2 min"; a clock that was set back gives "0 s"."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{max(seconds, 0) / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


class Lender(NamedTuple):
    """Whose state a slot began with: `source_key` (empty for the seeds') and `source_scope`, for a start of `key` and
    `scope`; `passed_over` says why it was nothing warmer."""

    key: str
    scope: str
    source_key: str
    source_scope: str
    passed_over: str = ""

    def describe(self) -> str:
        if self.source_key != self.key:
            return f"key {self.source_key}" + (f", scope {self.source_scope}" if self.source_scope else "")
        if self.source_scope == self.scope:
            return "its golden"
        return f"the state of scope {self.source_scope}" if self.source_scope else "a state of a job without scope"


class Origin(NamedTuple):
    """Where this start's cache came from: in one word, in a few, and as fields of a JSON log."""

    temperature: str
    words: str
    fields: dict[str, object]

    @classmethod
    def of_data_root(cls, data_root: str, layers: int, last_used_s: float | None, seeded: int = 0) -> Origin:
        """Direct mode. `last_used_s` is how long ago the data-root was leased before, None where nobody has; `seeded`
        how many images of seeds this start has put in."""
        temperature = "warm" if layers else "cold"
        words = f"{_layers(layers)}{_age(last_used_s)}" if layers else f"nothing in {data_root} yet"
        if seeded and last_used_s is None:
            temperature, words = "seeded", f"{_images(seeded)}, {_layers(layers)}"
        elif seeded:
            words += f", and {_images(seeded)} of seeds"
        return cls(temperature, words, {"last_used_s": _rounded(last_used_s), "seeded": seeded})

    @classmethod
    def of_slot(
        cls, lender: Lender, slot: str, warmth: str, layers: int, last_used_s: float | None, seeded: int = 0
    ) -> Origin:
        """Pool mode. `warmth` is "leased", "cloned" or "fresh"; `seeded` is how many images of seeds this start has put
        in."""
        key, source_key = lender.key, lender.source_key
        of_key = f"key {key}" + (f", scope {lender.scope}" if lender.scope else "")
        why = lender.passed_over
        mine = f"; {of_key}: {why}; slot {slot}" if why else f", {of_key}, slot {slot}"
        more = f", and {_images(seeded)} of seeds" if seeded else ""
        if layers and ((warmth == "cloned" and source_key == BASE_KEY) or (warmth == "fresh" and seeded)):
            where = "put in" if seeded else "from the pool"
            temperature, words = "seeded", f"{_layers(layers)} of seeds, {where}; {mine[2:]}"
        elif not layers and warmth != "fresh":
            temperature, words = "cold", f"a state without layers{mine}"
        elif warmth == "fresh":
            nothing = f"the pool has nothing for {of_key}, slot {slot}"
            temperature, words = "cold", f"nothing that this start can use{mine}" if why else nothing
        elif warmth == "cloned":
            temperature = "cloned"
            words = f"{_layers(layers)} from {lender.describe()}{_age(last_used_s)}{more}{mine}"
        else:
            temperature, words = "warm", f"{_layers(layers)}{_age(last_used_s)}{more}{mine}"
        fields: dict[str, object] = {
            "key": key,
            "scope": lender.scope,
            "slot": slot,
            "source_key": source_key,
            "source_scope": lender.source_scope,
            "last_used_s": _rounded(last_used_s),
            "seeded": seeded,
        }
        return cls(temperature, words, fields)


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _age(last_used_s: float | None) -> str:
    return "" if last_used_s is None else f", last used {describe_age(last_used_s)} ago"


def _rounded(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def summarise(
    plan: StoragePlan, place: Place, origin: Origin, *, layers: int, stopwatch: Stopwatch
) -> tuple[str, dict[str, object]]:
    """The line, and the same as fields for a JSON log."""
    from cachedind.base.sizes import format_bytes

    disk = f"{place.fstype}, {format_bytes(place.free_bytes)} of {format_bytes(place.total_bytes)} free"
    phases = ", ".join(f"{name} {took:.0f}" for name, took in stopwatch.phases.items())
    line = (
        f"{origin.temperature}: {origin.words} ({disk}); {plan.driver} in the {plan.store} store ({plan.reason}); "
        f"{stopwatch.total_ms:.0f} ms: {phases}"
    )
    fields: dict[str, object] = {
        "cache": origin.temperature,
        "layers": layers,
        **origin.fields,
        "data_root": place.path,
        "fstype": place.fstype,
        "free_bytes": place.free_bytes,
        "total_bytes": place.total_bytes,
        "driver": plan.driver,
        "image_store": str(plan.store),
        "reason": plan.reason,
        "phases_ms": {name: round(took, 1) for name, took in stopwatch.phases.items()},
        "total_ms": round(stopwatch.total_ms, 1),
    }
    return line, fields
