"""Rounds on one data-root of its own: starts of all kinds one after the other, rivals, reboots; nothing disappears."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import holds
from deaths import die
from helpers.builds import overlay_project
from helpers.estates import small_project, volume_device
from helpers.powerloss import forget_boot
from helpers.waiting import wait_until
from instances import Player, beginning, end, end_daemon, restart
from kinds import Form, draw, draw_living

if TYPE_CHECKING:
    import random

    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume
    from helpers.pools import Disk
    from instances import Maker
    from kinds import Start

SHARED = "/shared"
_LIST = {
    "image": ("image", "ls", "--format={{.Repository}}:{{.Tag}}"),
    "container": ("container", "ls", "--all", "--format={{.Names}}"),
    "volume": ("volume", "ls", "--format={{.Name}}"),
    "network": ("network", "ls", "--format={{.Name}}"),
}


class World(NamedTuple):
    """What there is for those with one way of numbering users: a remapped engine has a root of its own."""

    project: Project
    things: dict[str, set[str]]


class DirectGame:
    """One data-root that is played on, and beside it a volume where its daemon's socket is."""

    def __init__(self, engine: Engine, disk: Disk, dice: random.Random, maker: Maker, forms: tuple[Form, ...]) -> None:
        self.engine = engine
        self.disk = disk
        self.dice = dice
        self.forms = forms
        self.maker = maker
        self.counts: Counter[str] = Counter()
        self.data: Volume = disk.volume(engine)
        self.sockets: Volume = engine.volume()
        self.players: list[Player] = []
        self._worlds = {
            remapped: World(overlay_project(f"{dice.getrandbits(64):x}"), {kind: set() for kind in _LIST})
            for remapped in (False, True)
        }
        self._built: set[bool] = set()

    def round(self) -> None:
        first = self._player(draw(self.dice, self.disk.flavour, self.forms, others=False))
        self.players = [first]
        if not first.start.lives:
            die(first, lambda dind: dind.build(small_project(f"{time.monotonic_ns():x}")))
            self.counts[f"starts {first.start.fate}"] += 1
            self.players.append(first := self._player(draw_living(self.dice, self.disk.flavour, self.forms)))
        first.dind.start()
        self._hold(first)
        self._leave_something(first.dind, self._worlds[first.remapped].things)
        if self.dice.random() < 0.4:
            self._refuse(first)
        looped = first.start.form is Form.LOOP
        if looped or self.dice.random() < 0.3:
            how = end_daemon(first.dind, self.dice) if looped else restart(first.dind, self.dice)
            self.counts[how] += 1
            self._hold(first)
        end(first.dind, clean=self.dice.random() < 0.5)
        if self.dice.random() < 0.3:
            forget_boot(self.engine, volume_device(self.engine, self.data))
            self.counts["reboots"] += 1

    def finish(self) -> None:
        """All is there, once more."""
        last = self._player(draw_living(self.dice, self.disk.flavour, self.forms))
        self.players = [last]
        last.dind.start()
        self._hold(last)
        end(last.dind, clean=True)

    # ---- what is played ----------------------------------------------------------------------------------------------

    def _player(self, start: Start, **env: str) -> Player:
        shared = {self.sockets.name: {"bind": SHARED, "mode": "rw"}}
        socket = f"unix://{SHARED}/docker.sock"
        remapped = start.flavour.store == "graphdriver" and self.dice.random() < 0.5
        flags = ("--userns-remap=default",) * remapped
        dind = self.maker.create(
            self.engine, start, flags=flags, socket=socket, volume=self.data, volumes=shared, env=env
        )
        return Player(start, dind, remapped=remapped)

    def _refuse(self, first: Player) -> None:
        """A rival on the same data-root, by whatever name: refused, and the first has noticed nothing."""
        drawn = draw_living(self.dice, self.disk.flavour, self.forms)
        form = Form.EXPLICIT if drawn.form is Form.LOOP else drawn.form  # a loop never ends
        rival = self._player(drawn._replace(form=form, slow_s=0.0), CACHEDIND_LOCK_TIMEOUT="1s")
        self.players.append(rival)
        rival.dind.start()
        assert rival.dind.wait_exit(timeout_s=90) == 75, rival.dind.describe()
        end(rival.dind, clean=False)
        self.counts["rivals refused"] += 1
        self._hold(first)

    def _leave_something(self, dind: Dind, things: dict[str, set[str]]) -> None:
        """One more image, container, volume and network, of which only so many are kept."""
        name = f"n{time.monotonic_ns()}"
        dind.load_base()
        dind.docker("network", "create", name)
        dind.docker("volume", "create", name)
        dind.docker("tag", "base:latest", f"{name}:latest")
        policy = self.dice.choice(("no", "always"))
        mount = f"--volume={name}:/data"
        write = f"echo {name} >/data/name; exec sleep 1000"
        dind.docker(
            "run",
            "-d",
            f"--name={name}",
            f"--restart={policy}",
            "--network=none",
            mount,
            "base:latest",
            "sh",
            "-c",
            write,
        )
        wait_until(lambda: self._said(dind, name) == name, what="the volume to be written")
        dind.build(small_project(name))
        for kind in _LIST:
            things[kind].add(f"{name}:latest" if kind == "image" else name)
        if len(things["container"]) > 4:
            oldest = min(things["container"])
            dind.docker("rm", "--force", oldest)
            dind.docker("volume", "rm", oldest)
            dind.docker("network", "rm", oldest)
            dind.docker("rmi", f"{oldest}:latest")
            for kind in _LIST:
                things[kind].discard(f"{oldest}:latest" if kind == "image" else oldest)

    @staticmethod
    def _said(dind: Dind, name: str) -> str:
        roots = "/var/lib/docker /var/lib/docker/*.*"
        return dind.sh(f"for root in {roots}; do cat $root/volumes/{name}/_data/name || :; done 2>/dev/null")

    # ---- what must hold ----------------------------------------------------------------------------------------------

    def _hold(self, player: Player) -> None:
        """It is ready, all that was there is there, and the project is rebuilt from the cache."""
        dind = player.dind
        player.ready()
        project, things = self._worlds[player.remapped]
        for kind, words in _LIST.items():
            missing = things[kind] - set(dind.docker(*words).split())
            assert not missing, f"{kind}s have disappeared: {missing} of {dind.name}"
        for name in things["volume"]:
            assert self._said(dind, name) == name, f"volume {name} has other content"
        build = dind.build(project)
        dind.run_image(project)
        is_known = player.remapped in self._built
        assert not (is_known and build.uncached), f"{build.uncached} were built again by {dind.name}"
        self._built.add(player.remapped)
        holds.each_alone([dind])
        holds.no_alarm(dind)
        self.counts[f"began {beginning(dind)}"] += 1
        self.counts[f"held, by {player.start.form}"] += 1
        self.counts["remapped"] += player.remapped
        self.counts["slow starts"] += player.start.slow_s > 0
