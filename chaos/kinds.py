"""The kinds of starts that are played, and what becomes of each: drawn, nothing is done here."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from cachedind.base.trace import POINTS
from helpers.dind import SOCKET
from helpers.flavours import FLAVOURS

if TYPE_CHECKING:
    import random

    from helpers.flavours import Flavour

KILL_POINTS = tuple(point for point in POINTS if not point.startswith(("pool.", "seed.")))
CANCELLED_WITHIN_S = 2.0
REFUSED = {
    "an unknown flag": (("--no-such-flag",), ""),
    "an unknown setting": ((), '{"no-such-setting": true}'),
    "a bridge that is not there": (("--bridge=nosuch0",), ""),
    "an address of another host": (("--host=tcp://203.0.113.1:2375", "--tls=false"), ""),
    "a file that does not parse": ((), "{"),
}
"""Flags, and a daemon.json, with which no engine starts, whatever its data: a user's mistake."""


class Form(StrEnum):
    """By what name the daemon is started."""

    IMAGE = "dockerd-entrypoint.sh"
    EXPLICIT = "dockerd --host"
    BARE = "--entrypoint dockerd"
    DIND = "dind dockerd"
    SHELL = "sh -c dockerd"
    LOOP = "a loop in a shell"

    def options(self, flags: tuple[str, ...], socket: str) -> dict[str, Any]:
        """Entrypoint and arguments of its container, for `Dind.create`; and the setting that names the socket, where an
        argument does not."""
        words = [f"--host={socket}", *flags]
        env = {"DOCKER_HOST": socket} if socket != SOCKET else {}
        match self:
            case Form.IMAGE:
                return {"args": list(flags), "env": env}
            case Form.EXPLICIT:
                return {"args": ["dockerd", *words]}
            case Form.BARE:
                return {"entrypoint": ["dockerd"], "args": words}
            case Form.DIND:
                return {"args": ["dind", "dockerd", *words]}
            case Form.SHELL:
                return {"entrypoint": ["sh", "-c", f"dockerd {' '.join(words)}"]}
            case Form.LOOP:
                script = f"while :; do dockerd-entrypoint.sh {' '.join(flags)}; sleep 1; done"
                return {"entrypoint": ["sh", "-c", script], "env": env}


class Fate(StrEnum):
    """What becomes of a start before anybody builds with it, or while somebody does."""

    LIVES = "lives"
    CANCELLED = "cancelled"
    STEP = "killed at a step"
    KILLED = "killed"
    REFUSED = "refused"


class Start(NamedTuple):
    """One start. `how` says more of its fate (the signal, the step, the victim, the mistake), `after_s` when it comes;
    `slow_s` is how long its engine's program sleeps before it does anything."""

    form: Form
    fate: Fate
    flavour: Flavour
    how: str = ""
    after_s: float = 0.0
    slow_s: float = 0.0

    @property
    def lives(self) -> bool:
        return self.fate is Fate.LIVES

    @property
    def env(self) -> dict[str, str]:
        # The store is always said: what a start that asks for none takes depends on what the key has.
        env = {"CACHEDIND_IMAGE_STORE": self.flavour.store}
        return {**env, "CACHEDIND_KILL_AT": self.how} if self.fate is Fate.STEP else env

    def __str__(self) -> str:
        slow = f", {self.slow_s:g} s slow" if self.slow_s else ""
        when = f" {self.how} after {self.after_s:.2f} s" if self.how else ""
        return f"{self.form} ({self.flavour}{slow}) {self.fate}{when}"


def draw(dice: random.Random, flavour: Flavour, forms: tuple[Form, ...], *, others: bool = True) -> Start:
    """Half of all starts are cancelled. With `others`, some are not of this flavour."""
    flavours = [one for one in FLAVOURS if one == flavour or (others and dice.random() < 0.15)]
    # The usual one, and the one that comes again, twice as often.
    form = dice.choice([*forms, *(form for form in forms if form in (Form.IMAGE, Form.LOOP))])
    start = Start(form, _draw_fate(dice), dice.choice(flavours), slow_s=_draw_slowness(dice))
    match start.fate:
        case Fate.CANCELLED:
            return start._replace(how=dice.choice(("TERM", "KILL")), after_s=dice.uniform(0, CANCELLED_WITHIN_S))
        case Fate.STEP:
            return start._replace(how=dice.choice(KILL_POINTS))
        case Fate.KILLED:
            return start._replace(
                how=dice.choice(("container", "container", "dockerd", "containerd")), after_s=dice.uniform(2, 8)
            )
        case Fate.REFUSED:
            # What a loop starts again and again never ends.
            form = Form.EXPLICIT if form is Form.LOOP else form
            return start._replace(form=form, how=dice.choice(sorted(REFUSED)))
    return start


def draw_living(dice: random.Random, flavour: Flavour, forms: tuple[Form, ...]) -> Start:
    return draw(dice, flavour, forms, others=False)._replace(fate=Fate.LIVES, how="", after_s=0.0)


def _draw_fate(dice: random.Random) -> Fate:
    fates = (Fate.CANCELLED, Fate.STEP, Fate.KILLED, Fate.REFUSED, Fate.LIVES)
    # Where all of a round end early, one that lives is played after them: so more than half here.
    return dice.choices(fates, (56, 6, 6, 5, 27))[0]


def _draw_slowness(dice: random.Random) -> float:
    if dice.random() >= 0.15:
        return 0.0
    return dice.choice((2.0, 2.0, 4.0, 4.0, 8.0, 8.0, 15.0, 50.0))
