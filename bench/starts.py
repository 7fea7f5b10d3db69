"""How soon instances of a pool are ready: one at a time, and eight at once."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from clock import ENTRYPOINT, ENVIRONMENT, Answer, read_answer
from helpers.pools import together
from places import PLACES, Place, keep_mounted, small_project

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

CROWD = 8
BARE = "bare dockerd"
DIRECT = "direct"
_KEY = "main"
_LATE_WORK_S = 1.5
"""For the witness: a state whose `ready_at` is missing would not be trusted by the next start."""

EXPECTED = {"leased": ("warm",), "cloned": ("cloned", "warm"), "cloned from fallback": ("cloned",), "fresh": ("cold",)}
"""What cachedind has to say of each case. A copy that takes long may have been made before, as a spare."""


class Start(NamedTuple):
    """One start: in which case, on which kind of pool ("-" without one)."""

    case: str
    place: str
    answer: Answer


class Gathering(NamedTuple):
    """Several started together: seconds from the first one's first instruction to the last one's answer, and of each
    one by itself, with what cachedind said of it.
    """

    place: str
    last_s: float
    each: tuple[Answer, ...]

    @property
    def words(self) -> list[str]:
        return sorted(str(answer.summary.get("cache", "-")) for answer in self.each)


def create(engine: Engine, suite: str, command: str, *, env: dict[str, str] | None = None, **options: object) -> Dind:
    """A container that is not started yet."""
    env = {**ENVIRONMENT, **(env or {})}
    return engine.dind(suite, args=[command], entrypoint=ENTRYPOINT, env=env, start=False, **options)


def launch(dind: Dind, what: str) -> Answer:
    dind.start()
    return read_answer(dind.container, what)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


# ---- one at a time -------------------------------------------------------------------------------------------------


def measure_starts(engine: Engine, suite: str, runs: int) -> list[Start]:
    """`runs` rounds in which the cases take turns, after one that warms up."""
    data_roots = {"dockerd": engine.volume(), "dockerd-entrypoint.sh": engine.volume()}
    pools = {place: engine.volume(place.fstype, size_mib=8192) for place in PLACES}
    keep_mounted(engine, list(pools.values()))
    for command, volume in data_roots.items():
        fill(create(engine, suite, command, volume=volume))
    for pool in pools.values():
        fill(create(engine, suite, "dockerd-entrypoint.sh", pool=pool, env={"CACHEDIND_KEY": _KEY}))
    found: list[Start] = []
    for turn in range(runs + 1):
        starts = [_without_pool(engine, suite, command, volume) for command, volume in data_roots.items()]
        for place, pool in pools.items():
            starts += _on_pool(engine, suite, place, pool, turn)
        for start in starts:
            say(f"{suite} {turn}/{runs} {start.place}, {start.case}: {start.answer.ready_s:.3f} s")
        found += starts if turn else []
    return found


def fill(dind: Dind) -> None:
    """Let an instance build the small project once, and remove it."""
    launch(dind, "the first one")
    dind.build(small_project())
    _end(dind)


def _end(dind: Dind) -> None:
    time.sleep(_LATE_WORK_S)
    dind.remove()


def _without_pool(engine: Engine, suite: str, command: str, volume: Volume) -> Start:
    dind = create(engine, suite, command, volume=volume)
    case = BARE if command == "dockerd" else DIRECT
    answer = launch(dind, case)
    _end(dind)
    return Start(case, "-", answer)


def _on_pool(engine: Engine, suite: str, place: Place, pool: Volume, turn: int) -> list[Start]:
    """The newest slot is leased, and made the golden; the others start beside its holder, one after the other."""
    cases = {
        "leased": {"CACHEDIND_KEY": _KEY},
        "cloned": {"CACHEDIND_KEY": _KEY},
        "cloned from fallback": {"CACHEDIND_KEY": f"branch-{turn}", "CACHEDIND_FALLBACK_KEYS": _KEY},
        "fresh": {"CACHEDIND_KEY": f"new-{turn}"},
    }
    starts = []
    holder = None
    for case, env in cases.items():
        dind = create(engine, suite, "dockerd-entrypoint.sh", pool=pool, env=env)
        answer = launch(dind, f"{place.name}, {case}")
        if answer.summary.get("cache") not in EXPECTED[case]:
            raise SystemExit(f"{place.name}, {case}: not what was to be measured: {answer.summary.get('msg')}")
        starts.append(Start(case, place.name, answer))
        if holder is None:
            holder = dind
            time.sleep(_LATE_WORK_S)
        else:
            _end(dind)
    if holder is not None:
        holder.remove()
    return starts


# ---- eight at once -------------------------------------------------------------------------------------------------


def measure_crowds(engine: Engine, suite: str, runs: int) -> list[Gathering]:
    """`runs` rounds: eight on each warm pool, and eight with an empty volume each: bare daemons, and in direct mode."""
    pools = {place: engine.volume(place.fstype, size_mib=8192) for place in PLACES}
    keep_mounted(engine, list(pools.values()))
    for pool in pools.values():
        fill(create(engine, suite, "dockerd-entrypoint.sh", pool=pool))
    found = []
    for turn in range(runs + 1):
        crowds = [_gather(engine, suite, BARE, "dockerd"), _gather(engine, suite, DIRECT, "dockerd-entrypoint.sh")]
        crowds += [_gather(engine, suite, place.name, "dockerd-entrypoint.sh", pool) for place, pool in pools.items()]
        for crowd in crowds:
            say(
                f"{suite} {turn}/{runs} {CROWD} at once, {crowd.place}: {crowd.last_s:.3f} s ({', '.join(crowd.words)})"
            )
        found += crowds if turn else []
    return found


def _gather(engine: Engine, suite: str, name: str, command: str, pool: Volume | None = None) -> Gathering:
    # Eight probers that look 500 times a second would be a load of their own.
    dinds = [create(engine, suite, command, pool=pool, env={"PAUSE": "0.01"}) for _ in range(CROWD)]
    answers = together(lambda dind: launch(dind, name), dinds)
    time.sleep(_LATE_WORK_S)
    together(lambda dind: dind.remove(), dinds)
    last = max(answer.answered for answer in answers) - min(answer.started for answer in answers)
    return Gathering(name, last, tuple(answers))
