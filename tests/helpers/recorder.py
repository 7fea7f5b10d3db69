"""A record, made outside of all containers, of who held a data-root's lock and who ran a daemon, and when."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from helpers.engine import Engine, exec_in
from helpers.inside import RECORD_HOLDERS
from helpers.waiting import wait_until


class Look(NamedTuple):
    """What was seen at one moment of the engine's clock; containers by their ids."""

    time: float
    holders: frozenset[str]
    daemons: frozenset[str]


class Hold(NamedTuple):
    """From the first to the last look at which a container held the lock."""

    container: str
    first: float
    last: float


class Recorder:
    """A running recorder. Made by `recording`."""

    def __init__(self, engine: Engine) -> None:
        self._bench = engine.workbench
        self._path = f"/var/lib/docker/{engine.new_name('record')}"

    def start(self) -> None:
        command = f'exec python3 -IS -c "$1" {self._path}.stop >{self._path} 2>&1'
        self._bench.exec_run(["sh", "-c", command, "sh", RECORD_HOLDERS], detach=True)
        wait_until(self.looks, what="the recorder's first look")

    def stop(self) -> None:
        exec_in(self._bench, ["touch", f"{self._path}.stop"])

    def _entries(self) -> list[dict[str, object]]:
        # Docker has not run the recorder yet where there is no such file.
        text = exec_in(self._bench, ["sh", "-c", f"! [ -e {self._path} ] || cat {self._path}"]).stdout
        # The last line may still be on its way; anything else that is not JSON is the recorder's own failure.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def looks(self) -> list[Look]:
        """Everything seen so far, in order; equal looks in a row are told apart only every half second."""
        return [
            Look(float(str(entry["time"])), _ids(entry["holders"]), _ids(entry["daemons"])) for entry in self._entries()
        ]

    def longest_gap(self) -> float:
        """The longest time, in seconds, for which the recorder did not look."""
        return max(float(str(entry["longest_gap"])) for entry in self._entries())

    def holder(self, among: Iterable[str]) -> str | None:
        """The one of these containers that was last seen to hold its lock."""
        held = self.looks()[-1].holders & frozenset(among)
        return next(iter(held)) if len(held) == 1 else None

    def holds(self, among: Iterable[str]) -> list[Hold]:
        """One interval for each of these containers that ever held, by its beginning."""
        wanted = frozenset(among)
        found: dict[str, Hold] = {}
        for look in self.looks():
            for container in look.holders & wanted:
                first = found[container].first if container in found else look.time
                found[container] = Hold(container, first, look.time)
        return sorted(found.values(), key=lambda hold: hold.first)


def _ids(value: object) -> frozenset[str]:
    assert isinstance(value, list)
    return frozenset(map(str, value))


def overlaps(holds: Iterable[Hold]) -> list[str]:
    """Sentences about every two neighbouring intervals that have a moment in common."""
    return [
        f"{first.container[:12]} held until {first.last:.3f}, {second.container[:12]} from {second.first:.3f} on"
        for first, second in itertools.pairwise(sorted(holds, key=lambda hold: hold.first))
        if second.first <= first.last
    ]


@contextmanager
def recording(engine: Engine) -> Iterator[Recorder]:
    """Record while the block runs."""
    recorder = Recorder(engine)
    recorder.start()
    try:
        yield recorder
    finally:
        recorder.stop()
