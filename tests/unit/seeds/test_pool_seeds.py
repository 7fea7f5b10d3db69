"""Seeds in a pool: what becomes a golden. With daemons, they are tested in tests/image."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from cachedind.base import state
from cachedind.base.log import Log
from cachedind.engine.doubt import CRASHED, LOST_NOTE
from cachedind.pool import golden, key_directory
from cachedind.pool.slot_state import STATE_NAME
from cachedind.seeds import pool_seeds

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("why", [CRASHED, LOST_NOTE])
def test_seeds_do_not_make_a_golden_of_what_a_crash_may_have_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    for module, name in ((golden, "promote"), (key_directory, "locked_key")):
        monkeypatch.setattr(module, name, lambda *args, **more: pytest.fail("nothing is promoted"))
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    state.write_state(fd, STATE_NAME, {"doubt": why}, None)
    taken: Any = SimpleNamespace(pool=None, slot=SimpleNamespace(directory_fd=fd))
    assert pool_seeds.promote(taken, "key", Log()) is taken
    assert (state.read_state(fd, STATE_NAME) or {})["doubt"] == why
    os.close(fd)
