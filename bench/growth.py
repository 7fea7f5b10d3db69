"""How a pool grows: what a clone costs by the size of the golden, by how many start at once, and by how many slots
there are; and how long a sweep takes. Without daemons: a start's way through the pool alone, on filesystems of its own.
Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

from cachedind.pool import layers, sweeping
from cachedind.pool.slot_request import Warmth
from helpers import pool_starts
from helpers.children import Child
from helpers.filesystems import filesystems_below

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_request import TakenSlot

FSTYPES = ("ext4", "xfs")
LAYERS = 300
RUNS = 7
SIZES_MB = (100, 1_000, 5_000, 20_000)
FILES = 200_000
INSTANCES = (1, 2, 4, 8, 16)
HELD_S = 2.0
SLOTS = (10, 100, 1_000)
SWEPT = 10_000


class Point(NamedTuple):
    """One measurement: `ms` is a median where there are several."""

    fstype: str
    subject: str
    x: int
    ms: float


def make_golden(pool: Pool, key: str, *, megabytes: int, files: int, layer_count: int = LAYERS) -> TakenSlot:
    """A golden of sparse layers; its slot stays held, so that the next start clones."""
    first = pool_starts.take(pool, pool_starts.slot_request(key))
    pool_starts.begin(first)
    names = [f"layer{number}" for number in range(layer_count)]
    pool_starts.build(first, *names)
    for name in names:
        below = Path(f"/proc/self/fd/{first.slot.data_fd}/overlay2/{name}/diff")
        for number in range(files // layer_count):
            (below / f"f{number}").touch()
        with (below / "large").open("wb") as large:
            large.truncate((megabytes << 20) // layer_count)
    pool_starts.come_up(first)
    first.close()
    holder = pool_starts.take(pool, pool_starts.slot_request(key))
    assert holder.promoted
    os.sync()
    return holder


def take_ms(pool: Pool, key: str) -> tuple[float, TakenSlot]:
    started = time.perf_counter()
    taken = pool_starts.take(pool, pool_starts.slot_request(key))
    return (time.perf_counter() - started) * 1000, taken


def by_size(pool: Pool) -> Iterator[tuple[str, int, float]]:
    for subject, x, size, files in (
        *(("clone, by the golden's MB", size, size, LAYERS) for size in SIZES_MB),
        ("clone, by the golden's files", LAYERS, 100, LAYERS),
        ("clone, by the golden's files", FILES, 100, FILES),
    ):
        key = f"{subject}-{x}"
        holder = make_golden(pool, key, megabytes=size, files=files)
        found = [take_ms(pool, key) for _ in range(RUNS)]
        yield subject, x, statistics.median(ms for ms, _ in found)
        for taken in (holder, *(taken for _, taken in found)):
            taken.close()


def by_instances(pool: Pool, path: Path) -> Iterator[tuple[str, int, float]]:
    for count in INSTANCES:
        # A key for each: slots that others have freed would be leased instead.
        key = f"instances-{count}"
        holder = make_golden(pool, key, megabytes=1000, files=LAYERS)
        at = time.monotonic() + 0.5

        def one(key: str = key, at: float = at) -> float:
            own = pool_starts.open_pool(path)
            time.sleep(max(0.0, at - time.monotonic()))
            taken = pool_starts.take(own, pool_starts.slot_request(key))
            ended = time.monotonic()
            # Held until all have theirs: a slot that is freed meanwhile would be leased by a late one.
            time.sleep(max(0.0, at + HELD_S - time.monotonic()))
            assert taken.warmth is Warmth.CLONED, taken.warmth
            taken.close()
            return ended

        children = [Child(one) for _ in range(count)]
        yield "until the last of so many has its clone", count, (max(c.result() for c in children) - at) * 1000
        holder.close()


def by_slots(pool: Pool) -> Iterator[tuple[str, int, float]]:
    holder = make_golden(pool, "slots", megabytes=10, files=20, layer_count=20)
    there: list[TakenSlot] = []
    for count in SLOTS:
        while len(there) < count:
            taken = pool_starts.take(pool, pool_starts.slot_request("slots"))
            pool_starts.begin(taken)
            pool_starts.come_up(taken)
            there.append(taken)
            for fd in (taken.slot.directory_fd, taken.slot.data_fd):
                os.close(fd)
        found = []
        for _ in range(RUNS):
            ms, taken = take_ms(pool, "slots")
            taken.close()
            found.append(ms)
        yield "a start beside so many slots", count, statistics.median(found)
    for taken in there:
        os.close(taken.slot.lock_fd)
    holder.close()


def swept(pool: Pool) -> Iterator[tuple[str, int, float]]:
    for _ in range(SWEPT):
        os.makedirs(f"{pool.path}/layers/{layers.new_id()}/content")
    time.sleep(sweeping.GRACE_S + 0.1)
    started = time.perf_counter()
    assert sweeping.sweep_layers(pool) == SWEPT
    yield "sweep, by layers that nobody lists", SWEPT, (time.perf_counter() - started) * 1000
    started = time.perf_counter()
    sweeping.empty_trash(pool)
    yield "deleting them", SWEPT, (time.perf_counter() - started) * 1000


def measure(fstype: str) -> Iterator[Point]:
    with tempfile.TemporaryDirectory() as name, filesystems_below(Path(name)) as made:
        path = made.make(fstype, size_mib=8192)
        pool = pool_starts.open_pool(path)
        for part in (by_size(pool), by_instances(pool, path), by_slots(pool), swept(pool)):
            for subject, x, ms in part:
                yield Point(fstype, subject, x, ms)
        pool.close()


def draw(points: list[Point], path: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    subjects = [s for s in dict.fromkeys(p.subject for p in points) if len({p.x for p in points if p.subject == s}) > 1]
    figure, axes = plt.subplots(1, len(subjects), figsize=(4 * len(subjects), 3.2), layout="constrained")
    for axis, subject in zip(axes, subjects, strict=True):
        for fstype in FSTYPES:
            line = [(p.x, p.ms) for p in points if (p.fstype, p.subject) == (fstype, subject)]
            axis.plot(*zip(*line, strict=True), marker="o", label=fstype)
        axis.set(xscale="log", xlabel=subject, ylabel="ms", ylim=(0, None))
        axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench growth", description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="draw it, as PNG")
    parser.add_argument("--json", metavar="FILE", help="all figures")
    options = parser.parse_args()
    points = [point for fstype in FSTYPES for point in measure(fstype)]
    table = Table(box=None)
    for title in ("", "", *FSTYPES):
        table.add_column(title, justify="right" if title else "left")
    for subject, x in dict.fromkeys((point.subject, point.x) for point in points):
        cells = [next(p.ms for p in points if (p.fstype, p.subject, p.x) == (fs, subject, x)) for fs in FSTYPES]
        table.add_row(subject, f"{x:,}", *(f"{ms:.1f} ms" for ms in cells))
    Console().print(table)
    if options.json:
        Path(options.json).write_text(json.dumps([point._asdict() for point in points], indent=1))
    if options.plot:
        draw(points, options.plot)


if __name__ == "__main__":
    main()
