"""How soon instances of a pool are ready: one at a time, and eight at once."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from clock import ENTRYPOINT, ENVIRONMENT, Answer, read_answer
from helpers.dind import REAL_DOCKERD
from helpers.pools import together
from places import PLACES, Place, directories, keep_mounted, small_project

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

CROWD = 8
ENTRY = "dockerd-entrypoint.sh"
BARE = "bare dockerd"
DIRECT = "direct"
_KEY = "main"
_SLOW = {"PAUSE": "0.01"}
"""Eight probers that look 500 times a second would be a load of their own."""
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
    data_roots = dict(zip((REAL_DOCKERD, ENTRY), directories(engine, 2), strict=True))
    pools = {place: engine.volume(place.fstype, size_mib=8192) for place in PLACES}
    keep_mounted(engine, list(pools.values()))
    for command, mount in data_roots.items():
        fill(create(engine, suite, command, volumes=mount))
    for pool in pools.values():
        fill(create(engine, suite, ENTRY, pool=pool, env={"CACHEDIND_KEY": _KEY}))
    found: list[Start] = []
    for turn in range(runs + 1):
        starts = [_without_pool(engine, suite, command, mount) for command, mount in data_roots.items()]
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
    end(dind)


def end(dind: Dind) -> None:
    """Let its witness do what comes late, and remove it."""
    time.sleep(_LATE_WORK_S)
    dind.remove()


def _without_pool(engine: Engine, suite: str, command: str, mount: dict[str, dict[str, str]]) -> Start:
    dind = create(engine, suite, command, volumes=mount)
    case = BARE if command == REAL_DOCKERD else DIRECT
    answer = launch(dind, case)
    end(dind)
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
        dind = create(engine, suite, ENTRY, pool=pool, env=env)
        answer = launch(dind, f"{place.name}, {case}")
        if answer.summary.get("cache") not in EXPECTED[case]:
            raise SystemExit(f"{place.name}, {case}: not what was to be measured: {answer.summary.get('msg')}")
        starts.append(Start(case, place.name, answer))
        if holder is None:
            holder = dind
            time.sleep(_LATE_WORK_S)
        else:
            end(dind)
    if holder is not None:
        holder.remove()
    return starts


# ---- eight at once -------------------------------------------------------------------------------------------------


def measure_crowds(engine: Engine, suite: str, runs: int) -> list[Gathering]:
    """`runs` rounds, all on warm data: eight clones on each kind of pool, and eight with a volume each, which are bare
    daemons, or in direct mode.
    """
    pools = {place: engine.volume(place.fstype, size_mib=8192) for place in PLACES}
    alone = {command: directories(engine, CROWD) for command in (REAL_DOCKERD, ENTRY)}
    keep_mounted(engine, list(pools.values()))
    for command, mounts in alone.items():
        for mount in mounts:
            fill(create(engine, suite, command, volumes=mount))
    for pool in pools.values():
        env = {"CACHEDIND_KEY": _KEY}
        fill(create(engine, suite, ENTRY, pool=pool, env=env))
        end(_launched(create(engine, suite, ENTRY, pool=pool, env=env)))  # makes the first one's state the golden
    found = []
    for turn in range(runs + 1):
        # A key of its own for each round: slots that the last one has freed would be leased.
        env = {"CACHEDIND_KEY": f"branch-{turn}", "CACHEDIND_FALLBACK_KEYS": _KEY}
        crowds = [
            _gather(name, [create(engine, suite, command, volumes=mount, env=_SLOW) for mount in alone[command]])
            for name, command in ((BARE, REAL_DOCKERD), (DIRECT, ENTRY))
        ]
        crowds += [
            _gather(place.name, [create(engine, suite, ENTRY, pool=pool, env={**_SLOW, **env}) for _ in range(CROWD)])
            for place, pool in pools.items()
        ]
        for crowd in crowds:
            say(
                f"{suite} {turn}/{runs} {CROWD} at once, {crowd.place}: {crowd.last_s:.3f} s ({', '.join(crowd.words)})"
            )
        found += crowds if turn else []
    return found


def _launched(dind: Dind) -> Dind:
    launch(dind, "the second one")
    return dind


def _gather(name: str, dinds: list[Dind]) -> Gathering:
    answers = together(lambda dind: launch(dind, name), dinds)
    time.sleep(_LATE_WORK_S)
    together(lambda dind: dind.remove(), dinds)
    last = max(answer.answered for answer in answers) - min(answer.started for answer in answers)
    return Gathering(name, last, tuple(answers))
