"""Sweeps, a promotion, evictions and starts at once, interleaved step by step in many orders: nothing is lost."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
import shutil
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cachedind.base.log import Level, Log
from cachedind.host import procfs
from cachedind.pool import golden, key_directory, layer_list, layers, scopes, slot_lease, staging, sweeping
from cachedind.pool.directory import names_in
from helpers import pool_starts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_request import TakenSlot

ROUNDS = 12
CLONES = 8
LONE = "lone"
"""A key of which there is nothing but a golden, which is evicted meanwhile."""
WHOLE: dict[str, tuple[list[str], ...]] = {"k": (["a", "b", "c"], ["a", "b"]), LONE: (["x", "y"], [])}
"""What a start of a key may find: its newest state, or the one from before it."""
BLOCKED_S = 0.02
"""Who does not come to its next step within that waits for a lock, and others go on."""
MANY_STEPS = 40
"""About how many a sweep of a small pool has."""
HERE = threading.local()
"""`steps`, in a thread that goes from step to step."""
WINDOWS: tuple[tuple[object, str], ...] = (
    (layers, "names"),
    (sweeping, "read_lists"),
    (sweeping, "_read_list"),
    (layer_list, "read_list"),
    (layer_list, "write_list"),
)
"""What a sweep and a clone do between steps that a start can be killed at: somebody else may go on before and after."""


class Steps:
    """Lets one thread at a time go from one step (Trace.reach) to its next: of those that wait, the one that `choose`
    says. They are named by their work."""

    def __init__(self, choose: Callable[[list[threading.Thread]], threading.Thread]) -> None:
        self._choose = choose
        self._changed = threading.Condition()
        self._waiting: set[threading.Thread] = set()
        self._allowed: threading.Thread | None = None

    def reach(self, point: str) -> None:
        me = threading.current_thread()
        with self._changed:
            self._waiting.add(me)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._allowed is me)
            self._allowed = None
            self._waiting.discard(me)

    @staticmethod
    def _alive(threads: list[threading.Thread]) -> int:
        return sum(thread.is_alive() for thread in threads)

    def run(self, works: list[Callable[[], None]]) -> list[BaseException]:
        failures: list[BaseException] = []

        def whole(work: Callable[[], None]) -> None:
            HERE.steps = self
            try:
                self.reach("begun")
                work()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=whole, args=(work,), name=work.__name__) for work in works]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while any(thread.is_alive() for thread in threads):
            assert time.monotonic() < end, "somebody waits for ever"
            with self._changed:
                # Until the one that was let go is at its next step, or waits for a lock.
                self._changed.wait_for(lambda: len(self._waiting) == self._alive(threads), timeout=BLOCKED_S)
                if self._waiting and self._allowed is None:
                    self._allowed = self._choose([thread for thread in threads if thread in self._waiting])
                    self._changed.notify_all()
            time.sleep(0)
        return failures


class Turns:
    """Who goes on for how many steps, in that order; who waits for a lock gives way to the next one."""

    def __init__(self, *turns: tuple[str, float]) -> None:
        self._turns = turns
        self.left = [steps for _, steps in turns]

    def choose(self, waiting: list[threading.Thread]) -> threading.Thread:
        by_work = {thread.name: thread for thread in waiting}
        for number, (work, _) in enumerate(self._turns):
            if work in by_work and self.left[number] > 0:
                self.left[number] -= 1
                return by_work[work]
        return waiting[0]


class Actors(NamedTuple):
    """What goes on at once in a pool, each with a pool of its own that waits at every step."""

    path: Path
    steps: Steps
    taken: list[TakenSlot]

    def open(self) -> Pool:
        return pool_starts.open_pool(self.path)._replace(trace=self.steps)  # type: ignore[arg-type]

    def start(self, key: str = "k") -> None:
        log = Log(level=Level.ERROR)
        pool = self.open()
        self.taken.append(slot_lease.promote_due(slot_lease.take(pool, pool_starts.slot_request(key), log), {}, log))

    def start_alone(self) -> None:
        self.start(LONE)

    def promote(self) -> None:
        with contextlib.closing(self.open()) as pool:
            golden.promote_newest(pool, "k", procfs.read_boot_id())

    def evict(self) -> None:
        """A golden, which somebody may be copying."""
        with (
            contextlib.closing(self.open()) as pool,
            key_directory.locked_key(pool, LONE, create=False) as key_fd,
        ):
            assert key_fd is not None
            staging.throw_away(pool, key_fd, scopes.golden_name(""))

    def sweep(self) -> None:
        with contextlib.closing(self.open()) as pool:
            sweeping.sweep_stage(pool)
            sweeping.empty_trash(pool)


@pytest.fixture
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is swept as soon as nobody lists it: only the clock's own ticks are waited for."""
    monkeypatch.setattr(sweeping, "GRACE_S", 0.02)


@pytest.fixture
def _windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """WINDOWS are steps, too."""

    def with_steps(work: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(work)
        def between(*args: object, **more: object) -> object:
            steps = getattr(HERE, "steps", None)
            if steps is None:
                return work(*args, **more)
            steps.reach("before")
            try:
                return work(*args, **more)
            finally:
                steps.reach("after")

        return between

    for module, name in WINDOWS:
        monkeypatch.setattr(module, name, with_steps(getattr(module, name)))


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("_no_grace", "_windows")
@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_no_order_of_steps_loses_anything(directory: Path) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    dice = random.Random(seed)
    for number in range(ROUNDS):
        path = directory / str(number)
        with contextlib.closing(pool_starts.open_pool(path)) as pool:
            build(pool, "a", "b")
            build(pool, "c")
            build(pool, "x", "y", key=LONE)
            pool_starts.take(pool, pool_starts.slot_request(LONE)).close()
            staging.throw_away(pool, pool.keys_fd, f"{LONE}/slots")
            build(pool, "gone", key="other")
            pool_starts.take(pool, pool_starts.slot_request("other")).close()
            staging.throw_away(pool, pool.keys_fd, "other")
        actors = Actors(path, Steps(dice.choice), [])
        works = [
            actors.promote,
            actors.sweep,
            actors.sweep,
            actors.evict,
            *[actors.start] * CLONES,
            *[actors.start_alone] * 3,
        ]
        try:
            assert actors.steps.run(works) == [], f"round {number}"
            check(actors, number)
        finally:
            close(actors)


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("_no_grace", "_windows")
@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
@pytest.mark.parametrize(
    ("stopped", "amid", "then"),
    [("start_alone", "sweep", "evict"), ("sweep", "promote", ""), ("sweep", "start_alone", "evict")],
)
def test_one_stops_at_each_of_its_steps(directory: Path, stopped: str, amid: str, then: str) -> None:
    """... while `amid` goes on, which stops, too: at its beginning, its end, and where the dice say. Next: `then`."""
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    dice = random.Random(seed)
    with contextlib.closing(pool_starts.open_pool(directory / "pool")) as pool:
        build(pool, "a", "b")
        build(pool, "x", "y", key=LONE)
        pool_starts.take(pool, pool_starts.slot_request(LONE)).close()
        staging.throw_away(pool, pool.keys_fd, f"{LONE}/slots")
        sweeping.empty_trash(pool)
    for steps in itertools.count():
        for cut in (0, math.inf, *dice.sample(range(1, MANY_STEPS), 4)):
            path = directory / f"{steps} {cut}"
            shutil.copytree(directory / "pool", path, symlinks=True)
            time.sleep(0.03)
            whole = [(work, math.inf) for work in (then, amid, stopped)]
            turns = Turns((stopped, steps), (amid, cut), *whole)
            actors = Actors(path, Steps(turns.choose), [])
            works = [getattr(actors, work) for work in (stopped, amid, then) if work]
            try:
                assert actors.steps.run(works) == [], path.name
                for taken in actors.taken:
                    assert pool_starts.layers_of(taken) in WHOLE[LONE], f"{path.name}: {taken.warmth}"
            finally:
                close(actors)
            with contextlib.closing(pool_starts.open_pool(path)) as pool:
                with contextlib.closing(pool_starts.take(pool, pool_starts.slot_request())) as after:
                    assert pool_starts.layers_of(after) == ["a", "b"], path.name
                assert names_in(pool.aside_fd) == [], path.name
        if turns.left[0]:
            return


def close(actors: Actors) -> None:
    for taken in actors.taken:
        taken.close()
        taken.pool.close()


def check(actors: Actors, number: int) -> None:
    with contextlib.closing(pool_starts.open_pool(actors.path)) as pool:
        time.sleep(0.05)
        sweeping.sweep_stage(pool)
        sweeping.empty_trash(pool)
        for taken in actors.taken:
            assert pool_starts.layers_of(taken) in WHOLE[taken.key], f"round {number}: {taken.warmth}"
        assert len({taken.slot.id for taken in actors.taken}) == CLONES + 3
        with contextlib.closing(pool_starts.take(pool, pool_starts.slot_request())) as after:
            assert pool_starts.layers_of(after) == ["a", "b", "c"], "the newest state is lost"
        alone = any(pool_starts.layers_of(taken) for taken in actors.taken if taken.key == LONE)
        assert len(layers.names(pool.layers_fd)) == (5 if alone else 3), "what nobody lists is still there"


def build(pool: Pool, *names: str, key: str = "k") -> None:
    taken = pool_starts.take(pool, pool_starts.slot_request(key))
    pool_starts.begin(taken)
    pool_starts.build(taken, *names)
    pool_starts.come_up(taken)
    taken.close()
