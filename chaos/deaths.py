"""The whole life of a start that does not live: cancelled, killed at a step or amid work, or refused by its engine."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from docker.errors import APIError

from helpers.engine import CommandFailedError
from helpers.waiting import wait_until
from instances import end, has_come_up, kill_inside
from kinds import Fate, Form

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.dind import Dind
    from instances import Player


def die(player: Player, work: Callable[[Dind], object]) -> None:
    """Start it, have `work` done with it if it comes to that, and end it as it was drawn."""
    dind, start = player.dind, player.start
    dind.start()
    match start.fate:
        case Fate.CANCELLED:
            time.sleep(start.after_s)
            if start.how == "TERM":
                dind.stop(timeout_s=2)
        case Fate.REFUSED:
            status = dind.wait_exit(timeout_s=120 + 8 * start.slow_s)
            assert status != 0, dind.describe()
        case Fate.STEP:
            _work_until_killed(dind, work)
            _await_step(player)
        case Fate.KILLED:
            killer = threading.Timer(start.after_s, _kill, (player,))
            killer.start()
            _work_until_killed(dind, work)
            killer.join()
    end(dind, clean=False)


def _work_until_killed(dind: Dind, work: Callable[[Dind], object]) -> None:
    with contextlib.suppress(CommandFailedError, AssertionError, APIError):
        dind.wait_ready(timeout_s=30, every_s=0.3)
        work(dind)


def _await_step(player: Player) -> None:
    """A step that this start never came to is none that kills it. A loop starts again, and is killed there again."""
    if player.start.form is not Form.LOOP:
        wait_until(
            lambda: not player.dind.running or has_come_up(player.dind),
            what="the step",
            timeout_s=90 + 8 * player.start.slow_s,
        )


def _kill(player: Player) -> None:
    if player.start.how != "container":
        kill_inside(player.dind, player.start.how)
        time.sleep(0.3)
    player.dind.kill()
