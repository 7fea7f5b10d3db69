"""The line that every start ends with."""

from __future__ import annotations

import json
import time

import pytest

from cachedind.facts import Place
from cachedind.model import ImageStore, Mount, StoragePlan
from cachedind.summary import Stopwatch, describe_age, summarise

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
    watch._last = watch._start + sum(phases.values()) / 1000
    return watch


def test_a_warm_start_says_from_what_how_old_on_what_and_how_long_it_took() -> None:
    watch = stopwatch(listen=3.2, lease=40.0)
    line, fields = summarise(PLAN, PLACE, layers=12, last_used_s=300.4, stopwatch=watch)
    assert line.startswith("warm: 12 layers, last used 5 min ago (xfs, 6.0 GiB of 10.0 GiB used); ")
    assert "overlay2 in the graphdriver store" in line
    assert "it works on xfs" in line
    assert line.endswith("43 ms: listen 3, lease 40")
    assert "\n" not in line
    assert json.loads(json.dumps(fields)) == {
        "cache": "warm",
        "layers": 12,
        "last_used_s": 300,
        "data_root": "/var/lib/docker",
        "fstype": "xfs",
        "used_bytes": 6 << 30,
        "total_bytes": 10 << 30,
        "driver": "overlay2",
        "image_store": "graphdriver",
        "reason": "it works on xfs",
        "phases_ms": {"listen": 3.2, "lease": 40.0},
        "total_ms": 43.2,
    }


def test_a_cold_start_says_so() -> None:
    line, fields = summarise(PLAN, PLACE, layers=0, last_used_s=None, stopwatch=stopwatch())
    assert line.startswith("cold: nothing in /var/lib/docker yet (xfs, ")
    assert "last used" not in line
    assert (fields["cache"], fields["last_used_s"]) == ("cold", None)


def test_the_age_of_a_data_root_that_was_never_leased_is_not_told() -> None:
    line, _ = summarise(PLAN, PLACE, layers=3, last_used_s=None, stopwatch=stopwatch())
    assert line.startswith("warm: 3 layers (xfs, ")


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
