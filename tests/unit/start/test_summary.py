"""The line that every start ends with."""

from __future__ import annotations

import json
import time

import pytest

from cachedind.base.model import ImageStore, Mount, StoragePlan
from cachedind.dataroot.facts import Place
from cachedind.pool.keys import BASE_KEY
from cachedind.start.summary import Lender, Origin, Stopwatch, describe_age, summarise

PLACE = Place(
    "/var/lib/docker",
    Mount("/var/lib/docker", "/", "xfs", "/dev/sda", frozenset(), frozenset()),
    total_bytes=10 << 30,
    free_bytes=4 << 30,
    total_inodes=1,
    free_inodes=1,
)
PLAN = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "it works on xfs")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (90 * 60, "90 min"),
        (7200, "2 h"),
        (47 * 3600, "47 h"),
        (48 * 3600, "2 d"),
        (400 * 86400, "400 d"),
    ],
)
def test_describe_age(seconds: float, text: str) -> None:
    assert describe_age(seconds) == text


def stopwatch(**phases: float) -> Stopwatch:
    watch = Stopwatch()
    watch.phases = phases
    watch._last = watch.started + sum(phases.values()) / 1000
    return watch


def of_data_root(layers: int, last_used_s: float | None) -> Origin:
    return Origin.of_data_root("/var/lib/docker", layers, last_used_s)


def test_a_warm_start_says_from_what_how_old_on_what_and_how_long_it_took() -> None:
    watch = stopwatch(listen=3.2, lease=40.0)
    line, fields = summarise(PLAN, PLACE, of_data_root(12, 300.4), layers=12, stopwatch=watch)
    assert line.startswith("warm: 12 layers, last used 5 min ago (xfs, 4.0 GiB of 10.0 GiB free); ")
    assert "overlay2 in the graphdriver store" in line
    assert "it works on xfs" in line
    assert line.endswith("43 ms: listen 3, lease 40")
    assert "\n" not in line
    assert json.loads(json.dumps(fields)) == {
        "cache": "warm",
        "layers": 12,
        "last_used_s": 300,
        "seeded": 0,
        "data_root": "/var/lib/docker",
        "fstype": "xfs",
        "free_bytes": 4 << 30,
        "total_bytes": 10 << 30,
        "driver": "overlay2",
        "image_store": "graphdriver",
        "reason": "it works on xfs",
        "phases_ms": {"listen": 3.2, "lease": 40.0},
        "total_ms": 43.2,
    }


def test_a_cold_start_says_so() -> None:
    line, fields = summarise(PLAN, PLACE, of_data_root(0, None), layers=0, stopwatch=stopwatch())
    assert line.startswith("cold: nothing in /var/lib/docker yet (xfs, ")
    assert "last used" not in line
    assert (fields["cache"], fields["last_used_s"]) == ("cold", None)


def test_the_age_of_a_data_root_that_was_never_leased_is_not_told() -> None:
    line, _ = summarise(PLAN, PLACE, of_data_root(3, None), layers=3, stopwatch=stopwatch())
    assert line.startswith("warm: 3 layers (xfs, ")


@pytest.mark.parametrize(
    ("warmth", "source_key", "layers", "begins"),
    [
        ("leased", "a/b", 3, "warm: 3 layers, last used 60 s ago, key a/b, slot 5107 (xfs, "),
        ("cloned", "a/b", 1, "cloned: 1 layer from its golden, last used 60 s ago, key a/b, slot 5107 (xfs, "),
        ("cloned", "main", 3, "cloned: 3 layers from key main, last used 60 s ago, key a/b, slot 5107 "),
        ("cloned", "a/b", 0, "cold: a state without layers, key a/b, slot 5107 (xfs, "),
        ("fresh", "", 0, "cold: the pool has nothing for key a/b, slot 5107 (xfs, "),
    ],
)
def test_a_start_in_a_pool_says_whose_cache_it_has(warmth: str, source_key: str, layers: int, begins: str) -> None:
    origin = Origin.of_slot(Lender("a/b", "", source_key, ""), "5107", warmth, layers, 60)
    line, fields = summarise(PLAN, PLACE, origin, layers=layers, stopwatch=stopwatch())
    assert line.startswith(begins)
    assert (fields["key"], fields["slot"], fields["source_key"]) == ("a/b", "5107", source_key)
    assert fields["cache"] == line.partition(":")[0]


@pytest.mark.parametrize(
    ("lender", "warmth", "begins"),
    [
        (Lender("k", "build", "k", "build"), "leased", "warm: 3 layers, last used 60 s ago, key k, scope build, slot"),
        (Lender("k", "lint", "k", "build"), "cloned", "cloned: 3 layers from the state of scope build, last used 60 s"),
        (
            Lender("k", "lint", "k", ""),
            "cloned",
            "cloned: 3 layers from a state of a job without scope, last used 60 s",
        ),
        (Lender("k", "lint", "main", "build"), "cloned", "cloned: 3 layers from key main, scope build, last used 60 s"),
        (Lender("k", "lint", "main", ""), "cloned", "cloned: 3 layers from key main, last used 60 s ago, key k, scope"),
        (
            Lender("k", "", "", "", "what is there is of a newer engine (29.1.0)"),
            "fresh",
            "cold: nothing that this start can use; key k: what is there is of a newer engine (29.1.0); slot 5107 (xfs",
        ),
        (
            Lender("k", "", "main", "", "what is there is in another image store (containerd)"),
            "cloned",
            "cloned: 3 layers from key main, last used 60 s ago; key k: what is there is in another image store (cont",
        ),
        (
            Lender("k", "lint", "k", "lint", "what is newer is not to be trusted yet (why)"),
            "leased",
            "warm: 3 layers, last used 60 s ago; key k, scope lint: what is newer is not to be trusted yet (why); slot",
        ),
        (
            Lender("k", "lint", BASE_KEY, "", "what is there is held by other instances"),
            "cloned",
            "seeded: 3 layers of seeds, from the pool; key k, scope lint: what is there is held by other instances; sl",
        ),
    ],
)
def test_a_start_says_which_jobs_state_it_has_and_why_nothing_warmer(lender: Lender, warmth: str, begins: str) -> None:
    origin = Origin.of_slot(lender, "5107", warmth, 3, 60)
    line, fields = summarise(PLAN, PLACE, origin, layers=3, stopwatch=stopwatch())
    assert line.startswith(begins)
    assert (fields["scope"], fields["source_scope"]) == (lender.scope, lender.source_scope)


@pytest.mark.parametrize(
    ("layers", "last_used_s", "begins"),
    [
        (7, None, "seeded: 2 images, 7 layers (xfs, "),
        (7, 60, "warm: 7 layers, last used 60 s ago, and 2 images of seeds (xfs, "),
    ],
)
def test_images_that_were_put_in_are_told(layers: int, last_used_s: float | None, begins: str) -> None:
    origin = Origin.of_data_root("/var/lib/docker", layers, last_used_s, seeded=2)
    line, fields = summarise(PLAN, PLACE, origin, layers=layers, stopwatch=stopwatch())
    assert line.startswith(begins)
    assert fields["seeded"] == 2


@pytest.mark.parametrize(
    ("warmth", "source_key", "seeded", "begins"),
    [
        ("fresh", "", 1, "seeded: 3 layers of seeds, put in; key k, slot 5107 (xfs, "),
        ("cloned", "", 0, "seeded: 3 layers of seeds, from the pool; key k, slot 5107 (xfs, "),
        (
            "cloned",
            "k",
            1,
            "cloned: 3 layers from its golden, last used 60 s ago, and 1 image of seeds, key k, slot 5107",
        ),
        ("leased", "k", 2, "warm: 3 layers, last used 60 s ago, and 2 images of seeds, key k, slot 5107 (xfs, "),
    ],
)
def test_a_pool_tells_seeds_from_a_jobs_cache(warmth: str, source_key: str, seeded: int, begins: str) -> None:
    origin = Origin.of_slot(Lender("k", "", source_key, ""), "5107", warmth, 3, 60, seeded)
    line, _ = summarise(PLAN, PLACE, origin, layers=3, stopwatch=stopwatch())
    assert line.startswith(begins)


def test_laps_belong_to_phases_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = Stopwatch()
    for phase, took in (("listen", 0.010), ("lease", 0.500), ("listen", 0.002)):
        now += took
        watch.lap(phase)
    assert {name: round(took) for name, took in watch.phases.items()} == {"listen": 12, "lease": 500}
    assert list(watch.phases) == ["listen", "lease"]
    assert round(watch.total_ms) == 512
