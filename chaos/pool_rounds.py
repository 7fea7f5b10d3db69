"""Rounds on one pool: starts of all kinds side by side, builds, people's commands, reboots; what holds after each."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import holds
from deaths import die
from expected import Expected, Played
from helpers.builds import content_project, overlay_project
from helpers.estates import in_pool, small_project, volume_device
from helpers.pools import together
from helpers.powerloss import forget_boot
from helpers.registry import HOST
from helpers.waiting import wait_until
from instances import Player, beginning, end, end_daemon, restart, slot_of
from kinds import Form, draw, draw_living

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume
    from helpers.pools import Disk
    from helpers.registry import Registry
    from instances import Maker
    from kinds import Start

KEYS = ("main", "branch")
REMAPPED = "remapped"
SCOPES = ("build", "test")
MAX_AT_ONCE = 3
COMMANDS = (("ls",), ("status",), ("gc",), ("promote", "main"), ("doctor",), ("ls", "--json", "--no-sizes"))


class PoolGame:
    """One pool that is played on."""

    def __init__(
        self,
        engine: Engine,
        disk: Disk,
        dice: random.Random,
        registry: Registry,
        maker: Maker,
        forms: tuple[Form, ...],
    ) -> None:
        self.engine = engine
        self.disk = disk
        self.dice = dice
        self.forms = forms
        self.registry = registry
        self.maker = maker
        self.counts: Counter[str] = Counter()
        self.pool: Volume = disk.volume(engine)
        self.players: list[Player] = []
        self._projects: dict[str, Project] = {
            key: overlay_project(f"{dice.getrandbits(64):x}") for key in (*KEYS, REMAPPED)
        }
        self._expected = Expected()
        self._pulled = content_project(f"{dice.getrandbits(64):x}", tag=f"{HOST}/content:{disk.fstype}")
        first = self._player(draw_living(dice, disk.flavour, forms)._replace(form=Form.IMAGE, slow_s=0), KEYS[0])
        first.dind.start()
        first.ready()
        first.dind.build(self._pulled)
        first.dind.docker("push", self._pulled.tag, timeout_s=120)
        first.dind.docker("image", "rm", "--force", self._pulled.tag)
        end(first.dind, clean=False)

    def round(self) -> None:
        self.players = [self._draw() for _ in range(self.dice.randint(1, MAX_AT_ONCE))]
        living = [player for player in self.players if player.start.lives]
        works = [self.dice.choice((self._build_new, self._run_for_ever, self._pull)) for _ in self.players]
        with ThreadPoolExecutor(max_workers=MAX_AT_ONCE) as threads:
            ends = [
                threads.submit(self._die, player, work)
                for player, work in zip(self.players, works, strict=True)
                if not player.start.lives
            ]
            if living:
                together(lambda dind: dind.start(), [player.dind for player in living])
            self._command()
            self._hold(living)
            for dying in ends:
                dying.result()
        for player, work in zip(self.players, works, strict=True):
            if player.start.lives:
                work(player.dind)
        for player in living:
            self._come_again(player)
        if not living:
            living = [self._look()]
        self._hold_on(living)
        pruned = {player.dind.name for player in living if self.dice.random() < 0.2}
        for player in living:
            if player.dind.name in pruned:
                player.dind.docker("system", "prune", "--all", "--force")
                self.counts["pruned as the last step"] += 1
        stopped = {player.dind.name for player in living if self.dice.random() < 0.5}
        for player in living:
            end(player.dind, clean=player.dind.name in stopped)
        self._expected.learn(
            [
                Played(one.start, one.key, one.scope, one.read_only, one.dind.name in stopped, one.dind.name in pruned)
                for one in self.players
            ]
        )
        if self.dice.random() < 0.25:
            self._reboot()

    def finish(self) -> None:
        """A last instance, whose witness sweeps what was left; then nothing is left of the pool in the kernel."""
        self.players = []
        last = self._look()
        wait_until(
            lambda: in_pool(last.dind, "ls stage trash") == "stage:\n\ntrash:\n",
            what="stage and trash to be empty",
            diagnose=lambda: in_pool(last.dind, "ls stage trash"),
            timeout_s=60,
        )
        end(last.dind, clean=False)

    # ---- what is played ----------------------------------------------------------------------------------------------

    def _draw(self) -> Player:
        start = draw(self.dice, self.disk.flavour, self.forms)
        if start.flavour.store == "graphdriver" and self.dice.random() < 0.15:
            return self._player(start, REMAPPED)
        return self._player(start, self.dice.choice(KEYS), read_only=self.dice.random() < 0.1)

    def _player(self, start: Start, key: str, *, read_only: bool = False) -> Player:
        scope = self.dice.choice(SCOPES)
        env = {"CACHEDIND_KEY": key, "CACHEDIND_SCOPE": scope, "CACHEDIND_FALLBACK_KEYS": KEYS[0]}
        flags: tuple[str, ...] = self.registry.arguments
        if read_only:
            env["CACHEDIND_ACCESS"] = "ro"
        if key == REMAPPED:
            del env["CACHEDIND_FALLBACK_KEYS"]
            flags = (*flags, "--userns-remap=default")
        dind = self.maker.create(
            self.engine, start, flags=flags, pool=self.pool, env=env, network=self.registry.network
        )
        return Player(start, dind, key, scope, read_only)

    def _look(self) -> Player:
        """One more that lives, where none did."""
        player = self._player(draw_living(self.dice, self.disk.flavour, self.forms), self.dice.choice(KEYS))
        self.players.append(player)
        player.dind.start()
        self._hold([player])
        return player

    def _die(self, player: Player, work: Callable[[Dind], object]) -> None:
        die(player, work)
        self.counts[f"starts {player.start.fate}"] += 1

    def _command(self) -> None:
        words = self.dice.choice((None, None, None, *COMMANDS))
        if words is None:
            return
        volumes = {self.pool.name: {"bind": "/cachedind", "mode": "rw"}}
        visitor = self.engine.dind("forky", args=["cachedind", *words], volumes=volumes)
        assert visitor.wait_exit() in (0, 1, 66), visitor.log()
        self.counts["commands"] += 1
        end(visitor, clean=False)

    def _come_again(self, player: Player) -> None:
        """The same container once more: with its slot, or another one; what it had in that is there."""
        looped = player.start.form is Form.LOOP
        if not looped and self.dice.random() < 0.7:
            return
        dind, before = player.dind, slot_of(player.dind)
        dind.load_base()
        dind.docker("create", "--name=kept", "base:latest", "true")
        how = end_daemon(dind, self.dice) if looped and self.dice.random() < 0.8 else restart(dind, self.dice)
        player.ready()
        same = slot_of(dind) == before
        kept = "kept" in dind.docker("ps", "--all", "--format={{.Names}}").split()
        assert kept is same, f"{dind.name} has {'the same' if same else 'another'} slot, and finds {kept=}"
        if not same:
            holds.nothing_of_others(dind)
        self.counts[f"{how}: {'the same' if same else 'another'} slot{', containers kept' if kept else ''}"] += 1
        self._rebuild(player, same=same)
        dind.docker_status("rm", "--force", "kept")

    def _reboot(self) -> None:
        forget_boot(self.engine, volume_device(self.engine, self.pool))
        self._expected.reboot()
        self.counts["reboots"] += 1

    def _build_new(self, dind: Dind) -> None:
        project = small_project(f"{time.monotonic_ns():x}")
        dind.build(project)
        dind.run_image(project)

    def _pull(self, dind: Dind) -> None:
        dind.docker("pull", self._pulled.tag, timeout_s=120)
        dind.run_image(self._pulled)

    def _run_for_ever(self, dind: Dind) -> None:
        dind.load_base()
        dind.docker("network", "create", f"n{time.monotonic_ns()}")
        dind.docker("run", "-d", "--restart=always", "--network=none", "-v", "data:/data", "base:latest", "sleep", "99")

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def _hold(self, living: list[Player]) -> None:
        """They have just been started: each is ready on a slot of its own, and finds what its key has."""
        for player in living:
            player.ready()
            slot_of(player.dind)
            holds.nothing_of_others(player.dind)
            self._rebuild(player, same=False)
            self.counts[f"began {beginning(player.dind)}"] += 1
            self.counts[f"starts by {player.start.form}"] += 1
            self.counts["slow starts"] += player.start.slow_s > 0
        self._hold_on(living)

    def _rebuild(self, player: Player, *, same: bool) -> None:
        """The key's project, and whether it is as it was."""
        project = self._projects[player.key]
        build = player.dind.build(project)
        player.dind.run_image(project)  # compares what it prints
        if not build.uncached:
            self.counts["rebuilt CACHED"] += 1
            return
        assert not same, f"the same slot, and {build.uncached} were built again by {player.dind.name}"
        state = (player.key, player.scope, str(player.start.flavour))
        why = self._expected.why_cold(state, read_only=player.read_only)
        assert why, f"{build.uncached} were built again for no reason by {player.dind.name}"
        self.counts[f"built: {why}"] += 1

    def _hold_on(self, living: list[Player]) -> None:
        """Whoever lives still has all, alone, and nothing healthy was taken for damaged."""
        holds.each_alone([player.dind for player in living])
        slots = [slot_of(player.dind) for player in living]
        assert len(set(slots)) == len(slots), "two on one slot"
        for player in living:
            holds.no_alarm(player.dind)
            holds.no_alarm_in_pool(player.dind)
            player.dind.run_image(self._projects[player.key])
