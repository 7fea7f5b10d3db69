"""The unit lane: no program is run, nothing is mounted, nothing replaces this process. Needs no root."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import pytest
from hypothesis import settings

import cachedind.linux
import cachedind.processes

# No file of examples in the tree, and no judgement about the speed of a busy machine.
settings.register_profile("cachedind", parent=settings(), database=None, deadline=None)
settings.load_profile("cachedind")


@pytest.fixture(autouse=True)
def no_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tests one of these functions itself imports it at the top of the file, before it is replaced."""

    def refuse(name: str) -> Callable[..., NoReturn]:
        def refused(*args: object, **kwargs: object) -> NoReturn:
            raise AssertionError(f"a unit test called {name}{args}")

        return refused

    monkeypatch.setattr(cachedind.processes, "run", refuse("cachedind.processes.run"))
    monkeypatch.setattr(cachedind.linux, "mount", refuse("cachedind.linux.mount"))
    # All of os.exec* end in one of these two.
    monkeypatch.setattr(os, "execv", refuse("os.execv"))
    monkeypatch.setattr(os, "execve", refuse("os.execve"))
