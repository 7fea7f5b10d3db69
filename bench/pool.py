"""Pools against bare daemons: how soon instances are ready, alone and eight at once, and how fast builds write.

Everything takes turns; medians and ratios are what counts, single figures are noise. It has the engine make filesystems
of its own (ext4, xfs, btrfs) on loop devices.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from figures import median_of_each, speed_ratio, spread
from helpers.engine import Engine
from starts import BARE, CROWD, measure_crowds, measure_starts
from throughput import DISKS, HOST, measure_writes
from views import measure_views, summarise_views

if TYPE_CHECKING:
    from starts import Gathering, Start
    from throughput import Write

PARTS = ("ready", "crowd", "throughput", "view")
Row = dict[str, object]


def summarise_starts(found: list[Start]) -> list[Row]:
    """Of each case the median, the range and the ratio to the bare daemon, and cachedind's own phases."""
    bare = spread([start.answer.ready_s for start in found if start.case == BARE])
    rows: list[Row] = []
    for place, case in dict.fromkeys((start.place, start.case) for start in found):
        mine = [start.answer for start in found if (start.place, start.case) == (place, case)]
        times = spread([answer.ready_s for answer in mine])
        phases = median_of_each([answer.phases_ms for answer in mine])
        rows.append(
            {
                "pool": place,
                "case": case,
                **times.rounded(),
                "ratio": round(times.median / bare.median, 2),
                "phases_ms": _notable(phases),
            }
        )
    return rows


def _notable(phases: dict[str, float]) -> dict[str, float]:
    return {name: round(took, 1) for name, took in phases.items() if took >= 1}


def summarise_crowds(found: list[Gathering]) -> list[Row]:
    """Of each kind of pool: until the last answers, its ratio to bare daemons, and the median of the single ones."""
    bare = spread([crowd.last_s for crowd in found if crowd.place == BARE])
    rows: list[Row] = []
    for place in dict.fromkeys(crowd.place for crowd in found):
        mine = [crowd for crowd in found if crowd.place == place]
        times = spread([crowd.last_s for crowd in mine])
        each = [answer for crowd in mine for answer in crowd.each]
        words = [word for crowd in mine for word in crowd.words]
        rows.append(
            {
                f"{CROWD} at once": place,
                **times.rounded(),
                "ratio": round(times.median / bare.median, 2),
                "median of each": round(spread([answer.ready_s for answer in each]).median, 3),
                "phases_ms": _notable(median_of_each([answer.phases_ms for answer in each])),
                "said": ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)),
            }
        )
    return rows


def summarise_writes(found: list[Write]) -> list[Row]:
    """Of each workload and side: seconds until written, its speed in terms of direct mode, and of the command alone."""
    rows: list[Row] = []
    for workload, side in dict.fromkeys((write.workload, write.side) for write in found):
        mine = [write for write in found if (write.workload, write.side) == (workload, side)]
        base = [write for write in found if (write.workload, write.side) == (workload, HOST)]
        rows.append(
            {
                "workload": workload,
                "side": side,
                **spread([write.written_s for write in mine]).rounded(),
                "speed": round(
                    speed_ratio([write.written_s for write in base], [write.written_s for write in mine]), 2
                ),
                "without sync": round(spread([write.command_s for write in mine]).median, 3),
                "its speed": round(
                    speed_ratio([write.command_s for write in base], [write.command_s for write in mine]), 2
                ),
            }
        )
    return rows


def measure(part: str, engine: Engine, suite: str, runs: int, disk: str) -> list[Row]:
    match part:
        case "ready":
            return summarise_starts(measure_starts(engine, suite, runs))
        case "crowd":
            return summarise_crowds(measure_crowds(engine, suite, runs))
        case "view":
            return summarise_views(measure_views(engine, suite, runs))
        case _:
            return summarise_writes(measure_writes(engine, suite, runs, disk))


def show(title: str, rows: list[Row]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(
            *(
                ", ".join(f"{k} {v}" for k, v in cell.items()) if isinstance(cell, dict) else str(cell)
                for cell in row.values()
            )
        )
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench pool", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds of each part, after one that warms up")
    parser.add_argument(
        "--suite", action="append", choices=("trixie", "forky"), help="may be given twice; both otherwise"
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="may be given more than once; all otherwise")
    parser.add_argument(
        "--disk", choices=tuple(DISKS), default="new", help="throughput: on new ext4s, or the engine's own disk"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    # Loop devices do not go with a process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, dict[str, list[Row]]] = {}
    session = Engine.connect()
    try:
        for part in options.part or PARTS:
            for suite in options.suite or ("trixie", "forky"):
                scope = session.scope()
                try:
                    rows = measure(part, scope, suite, options.runs, options.disk)
                finally:
                    scope.close()
                results.setdefault(part, {})[suite] = rows
                show(f"{part}, {suite}", rows)
                if options.json:
                    options.json.write_text(json.dumps(results, indent=2) + "\n")
    finally:
        session.close()


if __name__ == "__main__":
    main()
