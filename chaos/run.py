"""Chaos: rounds of starts, builds, kills at any point and people's commands, and what must hold after each.

The same seed plays the same rounds: what is done in which order, to whom, and for how long is drawn from it. When a
signal hits is up to the machine.

Starts (kinds.py): half are cancelled within two seconds; others die at a named step or amid a build, or have a mistake
in their configuration. Daemons are started by every name that they have in the image, end and are started again in the
same container, some with remapped users, and some have engines that take their time. A job of a pool is one of two
scopes of its key, and its last step may be to prune everything. Between rounds the host may have another boot_id, after
clean ends or none. A round is played on a pool (pool_rounds.py) or on a data-root of its own (direct_rounds.py).

After every round: each instance that lives is ready, alone on its data-root, and in a pool on a slot of its own; an
unchanged project is rebuilt CACHED, or for a reason that the rounds explain, and its image prints what it should;
nothing was set aside or moved aside that was not damaged; nothing disappeared from a data-root; nobody has a
traceback. At the end nothing is left: no loop device, no mount, nothing in stage and trash. What does not hold is told
in full, and the next round is played on a new pool or data-root.

With --power-loss the host loses its power amid builds instead (helpers/powerloss.py), so many times for each of the
host filesystems, with a pool and with a data-root of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from direct_rounds import DirectGame
from helpers.engine import Engine
from helpers.flavours import Flavour
from helpers.pools import DISKS, Disk
from helpers.powerloss import Ordeal
from helpers.registry import Registry
from instances import Maker
from kinds import Form
from pool_rounds import PoolGame

if TYPE_CHECKING:
    from collections.abc import Callable

    Game = DirectGame | PoolGame

DIRECT = (*DISKS, Disk("ext4", Flavour("forky", "containerd")))
FAILED = "rounds FAILED"


class Options(NamedTuple):
    """What is played: `rounds` or losses of power on each host filesystem, none of which begins after `deadline` (of
    time.monotonic())."""

    seed: int
    rounds: int
    power_loss: int
    deadline: float


def play(session: Engine, what: str, make: Callable[[Engine, random.Random], Game], options: Options) -> Counter[str]:
    """Rounds, on a new pool or data-root after one that failed."""
    total: Counter[str] = Counter()
    number = 0
    while number < options.rounds and time.monotonic() < options.deadline:
        seed = options.seed + number
        scope = session.scope()
        game = None
        try:
            game = make(scope, random.Random(seed))
            while number < options.rounds and time.monotonic() < options.deadline:
                game.round()
                number += 1
                game.counts["rounds"] += 1
                say(f"{what}: round {number}: {dict(game.counts)}")
            game.finish()
        except Exception:
            number += 1
            total[FAILED] += 1
            players = "" if game is None else "\n".join(player.describe() for player in game.players)
            say(f"{what}: round {number} failed (begun with seed {seed}):\n{traceback.format_exc()}\n{players}")
        finally:
            total += Counter() if game is None else game.counts
            scope.close()
    return total


def play_all(session: Engine, arguments: argparse.Namespace, options: Options) -> Counter[str]:
    total: Counter[str] = Counter()
    maker = Maker(session)
    forms = tuple(form for form in Form if not arguments.form or form.name.lower() in arguments.form)
    registry = None if arguments.direct else Registry(session)
    for disk in _chosen(DISKS if registry is not None else DIRECT, arguments.disk):

        def make(scope: Engine, dice: random.Random, disk: Disk = disk) -> Game:
            if registry is None:
                return DirectGame(scope, disk, dice, maker, forms)
            return PoolGame(scope, disk, dice, registry, maker, forms)

        total += play(session, f"{disk}, {'data-root' if registry is None else 'pool'}", make, options)
    return total


def _chosen(disks: tuple[Disk, ...], fstypes: list[str] | None) -> list[Disk]:
    return [disk for disk in disks if not fstypes or disk.fstype in fstypes]


def lose_power(engine: Engine, disk: Disk, options: Options, tell: Callable[[str], None]) -> Counter[str]:
    total: Counter[str] = Counter()
    for pooled in (True, False):
        what = f"{disk}, {'pool' if pooled else 'data-root'}"
        ordeal = Ordeal(engine, disk, pooled=pooled, dice=random.Random(options.seed))
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
    parser.add_argument("--disk", action="append", choices=[disk.fstype for disk in DISKS], help="only on these")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    names = [form.name.lower() for form in Form]
    parser.add_argument("--form", action="append", choices=names, help="daemons are started by these names alone")
    parser.add_argument("--direct", action="store_true", help="on data-roots, not on pools")
    parser.add_argument("--power-loss", type=int, default=0, metavar="N", help="play N losses of power instead")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    say(f"seed {seed}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    deadline = time.monotonic() + arguments.minutes * 60
    options = Options(seed, arguments.rounds, arguments.power_loss, deadline)
    total: Counter[str] = Counter()
    session = Engine.connect()
    try:
        if options.power_loss:
            for disk in _chosen(DISKS, arguments.disk):
                scope = session.scope()
                try:
                    total += lose_power(scope, disk, options, say)
                finally:
                    scope.close()
        else:
            total += play_all(session, arguments, options)
    finally:
        session.close()
    for what, count in sorted(total.items()):
        print(f"{count:6} {what}")
    status = 1 if total[FAILED] else 0
    if arguments.json:
        arguments.json.write_text(json.dumps({"seed": seed, **total}, indent=2) + "\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
