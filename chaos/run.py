"""Chaos: rounds of starts, builds, kills at any point and people's commands on one pool, and what must hold after each.

The same seed plays the same rounds: what is done in which order, to whom, and for how long is drawn from it. When a
SIGKILL hits is up to the machine.

After every round: each instance that was not killed is ready and has a slot of its own; an unchanged project is rebuilt
CACHED, or cold, and its image prints what it should in either case; nobody has a traceback. At the end nothing is left:
no loop device, no mount, nothing in stage and trash.

With --power-loss the host loses its power amid builds instead (helpers/powerloss.py), so many times for each of the
host filesystems, with a pool and with a data-root of its own. With --each-file a file is damaged before a start, each
kind of file in each way (files.py).
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
from files import damage_each_file
from helpers.builds import content_project, overlay_project
from helpers.dind import Dind
from helpers.engine import CommandFailedError, Engine
from helpers.estates import attached_images, in_pool
from helpers.flavours import FLAVOURS
from helpers.pools import HOMES, Home, slot_of, together
from helpers.powerloss import Ordeal
from helpers.registry import HOST, Registry
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.builds import Project
    from helpers.engine import Volume

KEYS = ("main", "branch")
MAX_AT_ONCE = 3
KILL_POINTS = tuple(point for point in POINTS if not point.startswith(("image.", "pool.", "seed.")))
COMMANDS = (("ls",), ("status",), ("gc",), ("promote", "main"), ("doctor",), ("ls", "--json", "--no-sizes"))

_KILL = """
for file in /proc/[0-9]*/comm; do
  if [ "$(cat "$file" 2>/dev/null)" = NAME ]; then pid=${file%/comm}; kill -9 "${pid#/proc/}"; fi
done
"""


class Options(NamedTuple):
    """What is played: `rounds` or losses of power on each host filesystem, none of which begins after `deadline` (of
    time.monotonic())."""

    seed: int
    rounds: int
    power_loss: int
    deadline: float


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

    def __init__(self, engine: Engine, home: Home, dice: random.Random, registry: Registry) -> None:
        self.engine = engine
        self.home = home
        self.dice = dice
        self.registry = registry
        self.pool: Volume = home.volume(engine)
        self.projects: dict[str, Project] = {key: overlay_project(f"{dice.getrandbits(64):x}") for key in KEYS}
        self.pulled = content_project(f"{dice.getrandbits(64):x}", tag=f"{HOST}/content:{home.fstype}")
        self.counts: Counter[str] = Counter()
        first = self._start(home, {"CACHEDIND_KEY": KEYS[0]})
        first.wait_ready(timeout_s=120)
        first.build(self.pulled)
        first.docker("push", self.pulled.tag, timeout_s=120)
        first.docker("image", "rm", "--force", self.pulled.tag)
        self._forget(first)

    def _start(self, home: Home, env: dict[str, str], *, start: bool = True) -> Dind:
        return home.start(
            self.engine,
            self.pool,
            ready=False,
            env=env,
            args=list(self.registry.arguments),
            network=self.registry.network,
            start=start,
        )

    def round(self) -> None:
        players = [self._draw() for _ in range(self.dice.randint(1, MAX_AT_ONCE))]
        people = self.dice.choice((None, *COMMANDS))
        works = (self._build_new, self._run_for_ever, self._build_again, self._pull)
        busy = [self.dice.choice(works) for _ in players]
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
        dind = self._start(Home(self.home.fstype, flavour), env, start=False)
        return Player(dind, kill_at, killed, self.dice.choice(("container", "container", "dockerd", "containerd")))

    def _kill(self, player: Player) -> None:
        if player.killed_after_s is None:
            return
        time.sleep(player.killed_after_s)
        if player.victim != "container":
            with contextlib.suppress(CommandFailedError):
                player.dind.sh(_KILL.replace("NAME", player.victim), check=False)
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

    def _pull(self, dind: Dind) -> None:
        dind.docker("pull", self.pulled.tag, timeout_s=120)
        dind.run_image(self.pulled)

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
        dind = self._start(self.home, {"CACHEDIND_KEY": KEYS[0]})
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


def play(engine: Engine, home: Home, options: Options, registry: Registry, tell: Callable[[str], None]) -> Counter[str]:
    seed = options.seed
    game = Game(engine, home, random.Random(seed), registry)
    for number in range(options.rounds):
        if time.monotonic() > options.deadline:
            break
        try:
            game.round()
        except BaseException:
            tell(f"{home}: seed {seed}, round {number} failed")
            raise
        game.counts["rounds"] += 1
        tell(f"{home}: seed {seed}, round {number}: {dict(game.counts)}")
    game.finish()
    return game.counts


def lose_power(engine: Engine, home: Home, options: Options, tell: Callable[[str], None]) -> Counter[str]:
    total: Counter[str] = Counter()
    for pooled in (True, False):
        what = f"{home}, {'pool' if pooled else 'data-root'}"
        ordeal = Ordeal(engine, home, pooled=pooled, dice=random.Random(options.seed))
        for number in range(options.power_loss):
            if time.monotonic() > options.deadline:
                break
            try:
                ordeal.suffer()
            except BaseException:
                tell(f"{what}: seed {options.seed}, loss {number} failed")
                raise
            tell(f"{what}: seed {options.seed}, loss {number}: {dict(ordeal.counts)}")
        ordeal.close()
        total += Counter({f"{what}: {name}": count for name, count in ordeal.counts.items()})
    return total


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="what is played; drawn and told when not given")
    parser.add_argument("--rounds", type=int, default=10, help="on each of the host filesystems")
    parser.add_argument("--minutes", type=float, default=30, help="no round begins later than that")
    parser.add_argument("--home", action="append", choices=[home.fstype for home in HOMES], help="only on these")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--power-loss", type=int, default=0, metavar="N", help="play N losses of power instead")
    parser.add_argument("--each-file", action="store_true", help="damage each kind of file instead")
    parser.add_argument("--flips", type=int, default=2, help="with --each-file: bits of each, four times in databases")
    parser.add_argument("--registry", type=Path, required=True, help="Debian's docker-registry, the program")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    say(f"seed {seed}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    deadline = time.monotonic() + arguments.minutes * 60
    options = Options(seed, arguments.rounds, arguments.power_loss, deadline)
    total: Counter[str] = Counter()
    session = Engine.connect()
    try:
        for flavour in FLAVOURS if arguments.each_file else ():
            total += damage_each_file(session, flavour, random.Random(seed), arguments.flips, deadline, say)
        registry = None if options.power_loss or arguments.each_file else Registry(session, arguments.registry)
        for home in HOMES:
            if arguments.each_file or (arguments.home and home.fstype not in arguments.home):
                continue
            scope = session.scope()
            try:
                total += (
                    lose_power(scope, home, options, say)
                    if registry is None
                    else play(scope, home, options, registry, say)
                )
            finally:
                scope.close()
    finally:
        session.close()
    for what, count in sorted(total.items()):
        print(f"{count:6} {what}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seed": seed, **total}, indent=2) + "\n")


if __name__ == "__main__":
    main()
