"""Whose cache it is when nobody says so: one line tells that all share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.flavours import Flavour
from helpers.pools import Disk

if TYPE_CHECKING:
    from helpers.engine import Engine

DISK = Disk("directory", Flavour("forky", "graphdriver"))
UNSAID = {"CACHEDIND_KEY": ""}


def test_a_pool_without_a_key_says_once_that_all_share_it(engine: Engine) -> None:
    pool = DISK.volume(engine)
    silent = DISK.start(engine, pool, env=UNSAID)
    [warning] = silent.warnings
    for part in ("no key: ", "CACHEDIND_KEY", "CI_PROJECT_PATH", "GITHUB_REPOSITORY", "so the key is default"):
        assert part in warning
    assert "key default, slot" in (silent.summary or "")
    strict = DISK.start(engine, pool, env={**UNSAID, "CACHEDIND_STRICT": "1"})
    assert len(strict.warnings) == 1, "which is no degradation"


def test_who_says_whose_cache_it_is_is_not_told(engine: Engine) -> None:
    pool = DISK.volume(engine)
    for env, key in (({"CACHEDIND_KEY": "default"}, "default"), ({**UNSAID, "DRONE_REPO": "shop/web"}, "shop/web")):
        dind = DISK.start(engine, pool, env=env)
        assert f"key {key}, slot" in (dind.summary or "")
        assert dind.warnings == []
    direct = engine.dind("forky", volume=engine.volume())
    direct.wait_ready()
    assert direct.warnings == []
