"""Chaos: rounds of starts, builds, kills at any point and people's commands on one pool, and what must hold after each.

The same seed plays the same rounds: what is done in which order, to whom, and for how long is drawn from it. When a
SIGKILL hits is up to the machine.

After every round: each instance that was not killed is ready and has a slot of its own; an unchanged project is rebuilt
CACHED, or cold, and its image prints what it should in either case; nobody has a traceback. At the end nothing is left:
no loop device, no mount, nothing in stage and trash.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cachedind.trace import POINTS
from helpers.builds import overlay_project
from helpers.dind import Dind
from helpers.engine import CommandFailedError, Engine
from helpers.estates import attached_images, in_pool
from helpers.flavours import FLAVOURS
from helpers.pools import HOMES, Home, slot_of, together
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.builds import Project
    from helpers.engine import Volume

KEYS = ("main", "branch")
MAX_AT_ONCE = 3
KILL_POINTS = tuple(point for point in POINTS if not point.startswith(("image.", "pool.", "seed.")))
COMMANDS = (("ls",), ("status",), ("gc",), ("promote", "main"), ("doctor",), ("ls", "--json", "--no-sizes"))


class Player(NamedTuple):
    """One instance of a round: where it kills itself (empty: nowhere), and after how many seconds somebody else does
    (None: nobody)."""

    dind: Dind
    kill_at: str
    killed_after_s: float | None
    victim: str

    @property
    def survives(self) -> bool:
        return not self.kill_at and self.killed_after_s is None


class Game:
    """One pool that is played on."""

    def __init__(self, engine: Engine, home: Home, dice: random.Random) -> None:
        self.engine = engine
        self.home = home
        self.dice = dice
        self.pool: Volume = home.volume(engine)
        self.projects: dict[str, Project] = {key: overlay_project(f"{dice.getrandbits(64):x}") for key in KEYS}
        self.counts: Counter[str] = Counter()

    def round(self) -> None:
        players = [self._draw() for _ in range(self.dice.randint(1, MAX_AT_ONCE))]
        people = self.dice.choice((None, *COMMANDS))
        busy = [self.dice.choice((self._build_new, self._run_for_ever, self._build_again)) for _ in players]
        threads = [threading.Thread(target=self._kill, args=(player,)) for player in players]
        together(lambda dind: dind.start(), [player.dind for player in players])
        for thread in threads:
            thread.start()
        if people is not None:
            self._command(people)
        for player, work in zip(players, busy, strict=True):
            if player.survives:
                self._check(player.dind)
            else:
                with contextlib.suppress(CommandFailedError, AssertionError):
                    work(player.dind)
        for thread in threads:
            thread.join()
        self._compare([player.dind for player in players if player.survives])
        for player, work in zip(players, busy, strict=True):
            if player.survives:
                work(player.dind)
        for player in players:
            self._end(player)

    # ---- what is played ----------------------------------------------------------------------------------------------

    def _draw(self) -> Player:
        flavours = [flavour for flavour in FLAVOURS if flavour == self.home.flavour or self.dice.random() < 0.15]
        flavour = self.dice.choice(flavours)
        kill_at = self.dice.choice(KILL_POINTS) if self.dice.random() < 0.25 else ""
        killed = self.dice.uniform(0.05, 3.0) if not kill_at and self.dice.random() < 0.4 else None
        env = {"CACHEDIND_KEY": self.dice.choice(KEYS), "CACHEDIND_FALLBACK_KEYS": "main"}
        if kill_at:
            env["CACHEDIND_KILL_AT"] = kill_at
        if self.dice.random() < 0.15:
            env["CACHEDIND_ACCESS"] = "ro"
        dind = Home(self.home.fstype, flavour).start(self.engine, self.pool, ready=False, start=False, env=env)
        return Player(dind, kill_at, killed, self.dice.choice(("container", "container", "dockerd", "containerd")))

    def _kill(self, player: Player) -> None:
        if player.killed_after_s is None:
            return
        time.sleep(player.killed_after_s)
        if player.victim != "container":
            with contextlib.suppress(CommandFailedError):
                player.dind.sh(f"for p in $(pgrep -x {player.victim}); do kill -9 $p; done", check=False)
            time.sleep(0.3)
        player.dind.kill()
        self.counts[f"SIGKILL of the {player.victim}"] += 1

    def _command(self, words: tuple[str, ...]) -> None:
        volumes = {self.pool.name: {"bind": "/cachedind", "mode": "rw"}}
        visitor = self.engine.dind("forky", args=["cachedind", *words], volumes=volumes)
        assert visitor.wait_exit() in (0, 1, 66), visitor.log()
        assert "Traceback" not in visitor.log(), visitor.log()
        self.counts["commands"] += 1
        self._forget(visitor)

    def _project(self, dind: Dind) -> Project:
        environment = dict(pair.split("=", 1) for pair in dind.container.attrs["Config"]["Env"])
        return self.projects[environment["CACHEDIND_KEY"]]

    def _build_again(self, dind: Dind) -> None:
        dind.build(self._project(dind))

    def _build_new(self, dind: Dind) -> None:
        project = overlay_project(f"{time.monotonic_ns():x}", tag="new:latest")
        dind.build(project)
        dind.run_image(project)

    def _run_for_ever(self, dind: Dind) -> None:
        dind.load_base()
        dind.docker("network", "create", f"n{time.monotonic_ns()}")
        dind.docker("run", "-d", "--restart=always", "--network=none", "-v", "data:/data", "base:latest", "sleep", "99")

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def _check(self, dind: Dind) -> None:
        dind.wait_ready(timeout_s=120)
        assert dind.docker("ps", "--all", "--quiet") == "", dind.describe()
        project = self._project(dind)
        build = dind.build(project)
        dind.run_image(project)  # compares what it prints
        self.counts["rebuilt CACHED" if not build.uncached else "rebuilt cold"] += 1
        self.counts[f"began {(dind.summary or '?').partition(':')[0]}"] += 1
        assert "Traceback" not in dind.log(), dind.log()

    def _compare(self, dinds: list[Dind]) -> None:
        places = [dind.sh("stat -c %d:%i /var/lib/docker") for dind in dinds]
        assert len(set(places)) == len(places), "two on one data-root"
        slots = [slot_of(dind) for dind in dinds]
        assert len(set(slots)) == len(slots), "two on one slot"
        if self.home.fstype not in ("btrfs", "xfs"):
            assert len(attached_images(self.engine, self.pool)) <= 1

    def _end(self, player: Player) -> None:
        if player.kill_at:
            # A step that this start never came to is none that kills it.
            wait_until(
                lambda: not player.dind.running or "API listen on" in player.dind.log(), what="the step", timeout_s=90
            )
            self.counts["SIGKILL at a step" if not player.dind.running else "steps not come to"] += 1
        assert "Traceback" not in player.dind.log(), player.dind.log()
        self._forget(player.dind)

    def _forget(self, dind: Dind) -> None:
        dind.kill()
        dind.remove()
        self.engine.dinds.remove(dind)

    def finish(self) -> None:
        """A last instance, whose witness sweeps what was left; then nothing is left of the pool in the kernel."""
        dind = self.home.start(self.engine, self.pool, env={"CACHEDIND_KEY": KEYS[0]})
        self._check(dind)
        wait_until(
            lambda: in_pool(dind, "ls stage trash") == "stage:\n\ntrash:\n",
            what="stage and trash to be empty",
            diagnose=lambda: in_pool(dind, "ls stage trash"),
            timeout_s=60,
        )
        self._forget(dind)
        if self.home.fstype not in ("btrfs", "xfs"):
            wait_until(lambda: not attached_images(self.engine, self.pool), what="the image to be detached")


def play(engine: Engine, home: Home, seed: int, rounds: int, deadline: float, tell: Callable[[str], None]) -> Game:
    game = Game(engine, home, random.Random(seed))
    for number in range(rounds):
        if time.monotonic() > deadline:
            break
        try:
            game.round()
        except BaseException:
            tell(f"{home}: seed {seed}, round {number} failed")
            raise
        game.counts["rounds"] += 1
        tell(f"{home}: seed {seed}, round {number}: {dict(game.counts)}")
    game.finish()
    return game


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="what is played; drawn and told when not given")
    parser.add_argument("--rounds", type=int, default=10, help="on each of the host filesystems")
    parser.add_argument("--minutes", type=float, default=30, help="no round begins later than that")
    parser.add_argument("--home", action="append", choices=[home.fstype for home in HOMES], help="only on these")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    sys.stderr.write(f"seed {seed}\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    deadline = time.monotonic() + options.minutes * 60
    total: Counter[str] = Counter()
    session = Engine.connect()
    try:
        for home in HOMES:
            if options.home and home.fstype not in options.home:
                continue
            scope = session.scope()
            try:
                game = play(scope, home, seed, options.rounds, deadline, say)
            finally:
                scope.close()
            total += game.counts
    finally:
        session.close()
    for what, count in sorted(total.items()):
        print(f"{count:6} {what}")
    if options.json:
        options.json.write_text(json.dumps({"seed": seed, **total}, indent=2) + "\n")


if __name__ == "__main__":
    main()
