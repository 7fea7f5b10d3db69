"""What the fresh view costs: starts after jobs that left 100 new images, the same ones once more, and none."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from helpers.flavours import FLAVOURS
from helpers.seeds import docker_archive, small_image
from places import keep_mounted
from starts import ENTRY, create, end, launch, say

if TYPE_CHECKING:
    from helpers.engine import Engine

IMAGES = 100
NONE, NEW, SAME = "after none", f"after {IMAGES} new images", f"after the same {IMAGES} once more"
CASES = (NEW, SAME, NONE)


class Cleaning(NamedTuple):
    """One start: milliseconds of its cleaning and of making what is new there the golden, and seconds until it was
    ready."""

    flavour: str
    case: str
    cleaning_ms: float
    promotion_ms: float
    ready_s: float


def measure_views(engine: Engine, suite: str, runs: int) -> list[Cleaning]:
    """`runs` rounds of each image store, after one that warms up: the next job gets the same slot each time."""
    found: list[Cleaning] = []
    for flavour in (one for one in FLAVOURS if one.suite == suite):
        pool = engine.volume("ext4", size_mib=8192)
        keep_mounted(engine, [pool])
        case, archive = "", b""
        for turn in range(3 * runs + 4):
            dind = create(engine, suite, ENTRY, pool=pool, env=flavour.env)
            answer = launch(dind, f"{flavour}, {case}")
            if turn > 3:
                phases = answer.phases_ms
                promotion_ms = phases.get("promote", 0.0)
                found.append(Cleaning(str(flavour), case, phases["maintain"], promotion_ms, answer.ready_s))
                say(f"{flavour} {turn - 3}/{3 * runs} {case}: {found[-1].cleaning_ms:.1f} ms")
            case = CASES[turn % 3]
            if case == NEW:
                images = (small_image(engine, f"image{turn}-{number}:1", kilobytes=8) for number in range(IMAGES))
                archive = docker_archive(*images)
            if case != NONE:
                dind.put("/images", {"all.tar": archive})
                dind.docker("load", "--quiet", "--input", "/images/all.tar", timeout_s=120)
            end(dind)
    return found


def summarise_views(found: list[Cleaning]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for flavour, case in dict.fromkeys((one.flavour, one.case) for one in found):
        mine = [one for one in found if (one.flavour, one.case) == (flavour, case)]
        rows.append(
            {
                "flavour": flavour,
                "start": case,
                "cleaning ms": round(statistics.median(one.cleaning_ms for one in mine), 1),
                "promotion ms": round(statistics.median(one.promotion_ms for one in mine), 1),
                "ready s": round(statistics.median(one.ready_s for one in mine), 3),
            }
        )
    return rows
