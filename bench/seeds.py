"""Seeds against a loop of `docker load` in a bare daemon: the same ten archives, about 1 GB, cold and warm.

Both sides take turns, each on a new volume of its own. Of cachedind the summary's own phase counts, private daemon
included, of the bare daemon the loop alone, which begins when that is ready; so neither side's start is in the figures.
The last columns have the starts too: from the first instruction until the daemon answers and has all images.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

from clock import ENTRYPOINT, ENVIRONMENT, read_answer
from figures import spread
from helpers.dind import REAL_DOCKERD
from helpers.engine import Engine
from helpers.flavours import FLAVOURS, Flavour
from helpers.seeds import NAMES, SeedVolume, images, make_ten

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Volume

BARE, CACHEDIND = "docker load, one after another", "cachedind"
COLD, WARM = "cold", "warm"

_LOOP = """
set -e
begin=$(date +%s.%N)
for file in /seeds/*.tar; do docker load --quiet --input "$file" >/dev/null; done
echo "$begin $(date +%s.%N)"
"""


class Round(NamedTuple):
    """One side's way with the ten: seconds to put them in, and until the daemon had them, starts included."""

    side: str
    state: str
    seeding_s: float
    there_s: float


def save_plainly(engine: Engine, source: SeedVolume) -> None:
    """The ten as scripts/save-seeds writes them: one plain archive for each."""
    ten = make_ten(engine)
    volumes = {**ten.mount, source.volume.name: {"bind": "/plain", "mode": "rw"}}
    dind = engine.dind("forky", volume=engine.volume(), volumes=volumes)
    dind.wait_ready(timeout_s=120)
    for number, name in enumerate(sorted(NAMES)):
        dind.docker("save", "--output", f"/plain/{number}.tar", name, timeout_s=120)
    dind.sh("sync -f /plain; chmod -R a+rX /plain")
    dind.remove()


def measure(engine: Engine, flavour: Flavour, source: SeedVolume, runs: int) -> list[Round]:
    found: list[Round] = []
    for turn in range(runs):
        for side in (BARE, CACHEDIND) if turn % 2 else (CACHEDIND, BARE):
            volume = engine.volume()
            for state in (COLD, WARM):
                one = (_bare if side == BARE else _ours)(engine, flavour, source, volume, state)
                sys.stderr.write(f"{flavour} {turn + 1}/{runs} {side}, {state}: {one.seeding_s:.3f} s\n")
                found.append(one)
    return found


def _create(engine: Engine, flavour: Flavour, source: SeedVolume, volume: Volume, words: list[str]) -> Dind:
    env = {**ENVIRONMENT, **flavour.env}
    return engine.dind(
        flavour.suite, args=words, entrypoint=ENTRYPOINT, env=env, volume=volume, volumes=source.mount, start=False
    )


def _bare(engine: Engine, flavour: Flavour, source: SeedVolume, volume: Volume, state: str) -> Round:
    store = str(flavour.store == "containerd").lower()
    dind = _create(engine, flavour, source, volume, [REAL_DOCKERD, "--feature", f"containerd-snapshotter={store}"])
    if flavour.suite == "trixie":  # which has no such option, and no other store by itself
        dind.remove()
        dind = _create(engine, flavour, source, volume, [REAL_DOCKERD])
    dind.start()
    answer = read_answer(dind.container, BARE)
    begin, end = map(float, dind.sh(f"unset DOCKER_HOST\n{_LOOP}", timeout_s=300).split())
    _check(dind)
    return Round(BARE, state, end - begin, answer.ready_s + end - begin)


def _ours(engine: Engine, flavour: Flavour, source: SeedVolume, volume: Volume, state: str) -> Round:
    dind = _create(engine, flavour, source, volume, ["dockerd-entrypoint.sh"])
    dind.start()
    answer = read_answer(dind.container, CACHEDIND)
    _check(dind)
    return Round(CACHEDIND, state, answer.phases_ms["seed"] / 1000, answer.ready_s)


def _check(dind: Dind) -> None:
    assert images(dind) == NAMES, dind.describe()
    # Both sides end as jobs do.
    dind.kill()
    dind.remove()


def summarise(found: list[Round]) -> list[dict[str, object]]:
    """Of each side and state the median, the range, and the ratios to the loop."""
    rows: list[dict[str, object]] = []
    for state in (COLD, WARM):
        bare = [one for one in found if (one.side, one.state) == (BARE, state)]
        for side in (BARE, CACHEDIND):
            mine = [one for one in found if (one.side, one.state) == (side, state)]
            times, there = spread([one.seeding_s for one in mine]), spread([one.there_s for one in mine])
            rows.append(
                {
                    "state": state,
                    "side": side,
                    **times.rounded(),
                    "ratio": round(times.median / spread([one.seeding_s for one in bare]).median, 3),
                    "with start": round(there.median, 3),
                    "its ratio": round(there.median / spread([one.there_s for one in bare]).median, 3),
                }
            )
    return rows


def show(title: str, rows: list[dict[str, object]]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench seeds", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument(
        "--suite", action="append", choices=("trixie", "forky"), help="may be given twice; both otherwise"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, list[dict[str, object]]] = {}
    session = Engine.connect()
    try:
        source = SeedVolume(session)
        save_plainly(session, source)
        for flavour in FLAVOURS:
            if flavour.suite not in (options.suite or ("trixie", "forky")):
                continue
            scope = session.scope()
            try:
                rows = summarise(measure(scope, flavour, source, options.runs))
            finally:
                scope.close()
            results[str(flavour)] = rows
            show(str(flavour), rows)
            if options.json:
                options.json.write_text(json.dumps(results, indent=2) + "\n")
    finally:
        session.close()


if __name__ == "__main__":
    main()
