"""Waiting, bounded and diagnostic: a test that waits in vain says for what, and what it saw instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class WaitedInVainError(AssertionError):
    """Something did not happen in time, or can no longer happen."""


def wait_until(
    attempt: Callable[[], T | None],
    *,
    what: str,
    timeout_s: float = 30.0,
    every_s: float = 0.05,
    diagnose: Callable[[], str] = lambda: "",
    hopeless: Callable[[], str | None] = lambda: None,
) -> T:
    """Call `attempt` until it returns something true, and return that.

    `hopeless` ends the wait early with its sentence, for example "the container exited with 75". `diagnose` is
    asked once, when the wait was in vain. Raises WaitedInVainError.
    """
    started = time.monotonic()
    while True:
        if result := attempt():
            return result
        waited = time.monotonic() - started
        if reason := hopeless():
            raise WaitedInVainError(f"{what}: {reason} (after {waited:.1f} s)\n{diagnose()}")
        if waited > timeout_s:
            raise WaitedInVainError(f"{what}: not within {timeout_s:g} s\n{diagnose()}")
        time.sleep(every_s)
