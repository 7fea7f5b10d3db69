"""The build cache's limit in the words of each engine."""

from __future__ import annotations

import pytest

from cachedind.base.model import EngineVersion, parse_engine_version
from cachedind.settings.build_cache import CacheLimit, default_max_bytes, plan_gc, plan_limit, translate_gc

ENGINE = EngineVersion(28, 5, 2)
GIB = 1 << 30


@pytest.mark.parametrize(
    ("pool_bytes", "max_bytes"),
    [(0, 2 * GIB), (8 * GIB - 4, 2 * GIB), (8 * GIB, 2 * GIB), (8 * GIB + 4, 2 * GIB + 1), (1000 * GIB, 250 * GIB)],
)
def test_a_slot_may_use_a_quarter_of_the_pool(pool_bytes: int, max_bytes: int) -> None:
    assert default_max_bytes(pool_bytes) == max_bytes
    assert plan_limit(None, pool_bytes, ENGINE) == CacheLimit(max_bytes, ENGINE, requested=False)


@pytest.mark.parametrize("pool_bytes", [None, 1000 * GIB])
def test_the_users_limit_comes_first(pool_bytes: int | None) -> None:
    assert plan_limit(5, pool_bytes, ENGINE) == CacheLimit(5, ENGINE, requested=True)


def test_direct_mode_leaves_the_engines_default_alone() -> None:
    assert plan_limit(None, None, ENGINE) is None


@pytest.mark.parametrize("version", ["20.10.24+dfsg1", "26.1.5+dfsg1", "27.5.1"])
def test_before_28_there_is_one_number_and_it_has_to_be_switched_on(version: str) -> None:
    limit = CacheLimit(10**10, parse_engine_version(version), requested=True)
    assert plan_gc(limit) == {"enabled": True, "defaultKeepStorage": "10000000000"}


@pytest.mark.parametrize("version", ["28.0.0", "28.5.2", "29.0.0-rc.1", "30.1.0"])
def test_from_28_on_there_are_rules_and_cache_mounts_stay_for_two_weeks(version: str) -> None:
    limit = CacheLimit(10**10, parse_engine_version(version), requested=True)
    assert plan_gc(limit) == {
        "enabled": True,
        "policy": [
            {"filter": ["type=source.local", "unused-for=48h"], "maxUsedSpace": "10000000000"},
            {"filter": ["type=source.git.checkout", "unused-for=48h"], "maxUsedSpace": "10000000000"},
            {"filter": ["type=exec.cachemount", "unused-for=336h"], "maxUsedSpace": "10000000000"},
            {"maxUsedSpace": "10000000000"},
            {"all": True, "maxUsedSpace": "10000000000"},
        ],
    }


RULE = {"all": True, "filter": ["unused-for=48h"]}


@pytest.mark.parametrize(
    ("gc", "old", "lost"),
    [
        ({"enabled": True, "defaultReservedSpace": "5GB"}, {"enabled": True, "defaultKeepStorage": "5GB"}, []),
        ({"defaultReservedSpace": "5GB", "DefaultMaxUsedSpace": "9GB"}, {"defaultKeepStorage": "9GB"}, []),
        ({"defaultKeepStorage": "3GB", "defaultMaxUsedSpace": "9GB"}, {"defaultKeepStorage": "3GB"}, []),
        ({"defaultMinFreeSpace": "9GB"}, {}, ["defaultMinFreeSpace"]),
        ({"policy": [{**RULE, "reservedSpace": "5GB"}]}, {"policy": [{**RULE, "keepStorage": "5GB"}]}, []),
        (
            {"policy": [{**RULE, "minFreeSpace": "5GB"}, {**RULE, "maxUsedSpace": "1GB", "minFreeSpace": "5GB"}]},
            {"policy": [{**RULE, "keepStorage": "1GB"}]},
            ["minFreeSpace"],
        ),
        ({"policy": [RULE, 7], "keepStorage": 7, "nonsense": 1}, None, []),
        ({"enabled": True, "defaultKeepStorage": "5GB", "policy": [{**RULE, "keepStorage": "5GB"}]}, None, []),
        ({}, None, []),
    ],
)
def test_a_users_rules_in_an_older_engines_words(
    gc: dict[str, object], old: dict[str, object] | None, lost: list[str]
) -> None:
    """`old` None: as they are."""
    assert translate_gc(gc, EngineVersion(26, 1, 5)) == (gc if old is None else old, lost)
    assert translate_gc(gc, EngineVersion(28, 0, 0)) == (gc, [])
