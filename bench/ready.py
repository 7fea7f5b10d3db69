"""Container start → first `_ping` 200: cachedind against the bare dockerd of the same image, and against that daemon
behind the steps of docker:dind's entrypoint (official.sh).

Subjects take turns; medians and ratios are what counts, single figures are noise.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import docker
from rich.console import Console
from rich.table import Table

from clock import ENTRYPOINT, ENVIRONMENT, Answer, read_answer
from figures import median_of_each, spread
from helpers.dind import REAL_DOCKERD

if TYPE_CHECKING:
    from docker import DockerClient


class Subject(NamedTuple):
    """What is started: a command, and which directories are kept between starts."""

    name: str
    command: list[str]
    kept: tuple[str, ...]


OFFICIAL = ["sh", "-c", (Path(__file__).parent / "official.sh").read_text(), "sh", REAL_DOCKERD]
ENTRY = ["dockerd-entrypoint.sh"]
KEPT, FRESH = ("/var/lib/docker", "/certs"), ("/var/lib/docker", "/certs/client")
SUBJECTS = (
    Subject("bare dockerd", [REAL_DOCKERD], ("/var/lib/docker",)),
    Subject("cachedind, certificates kept", ENTRY, KEPT),
    Subject("cachedind, fresh certificates", ENTRY, FRESH),
    Subject("as docker:dind, certificates kept", OFFICIAL, KEPT),
    Subject("as docker:dind, fresh certificates", OFFICIAL, FRESH),
)


class Run(NamedTuple):
    """One start of a subject."""

    subject: str
    answer: Answer


def measure(client: DockerClient, image: str, subject: Subject, volumes: dict[str, str]) -> Run:
    """Start one container on its volumes, wait for the prober's word, kill it."""
    container = client.containers.create(
        image,
        subject.command,
        entrypoint=ENTRYPOINT,
        privileged=True,
        environment=ENVIRONMENT,
        volumes={name: {"bind": path, "mode": "rw"} for path, name in volumes.items()},
    )
    try:
        container.start()
        return Run(subject.name, read_answer(container, subject.name))
    finally:
        container.remove(force=True, v=True)


def image_of(client: DockerClient, suite: str) -> str:
    """The name that scripts/build-image gave: cachedind:<engine version>-<suite>."""
    pattern = re.compile(rf"cachedind:\d+(\.\d+)+-{suite}")
    for image in client.images.list("cachedind"):
        for tag in image.tags:
            if pattern.fullmatch(tag):
                return tag
    raise SystemExit(f"there is no cachedind image of {suite}: scripts/build-image --suite {suite}")


def run_suite(client: DockerClient, suite: str, runs: int) -> list[Run]:
    """One warming start of each subject, then `runs` rounds in which the subjects take turns."""
    image = image_of(client, suite)
    made = {
        (subject.name, path): client.volumes.create(f"cachedind-bench-{secrets.token_hex(6)}")
        for subject in SUBJECTS
        for path in subject.kept
    }
    found: list[Run] = []
    try:
        for turn in range(runs + 1):
            for subject in SUBJECTS:
                volumes = {path: made[subject.name, path].name for path in subject.kept}
                run = measure(client, image, subject, volumes)
                if turn:
                    found.append(run)
                    sys.stderr.write(f"{suite} {turn}/{runs} {subject.name}: {run.answer.ready_s:.3f} s\n")
    finally:
        for volume in made.values():
            volume.remove(force=True)
    return found


def summarise(found: list[Run]) -> list[dict[str, object]]:
    """Median, range and ratio to the bare daemon of each subject, and the medians of cachedind's phases."""
    bare = spread([run.answer.ready_s for run in found if run.subject == SUBJECTS[0].name])
    rows: list[dict[str, object]] = []
    for subject in SUBJECTS:
        mine = [run.answer for run in found if run.subject == subject.name]
        times = spread([answer.ready_s for answer in mine])
        phases = median_of_each([answer.phases_ms for answer in mine])
        rows.append(
            {
                "subject": subject.name,
                "median_s": round(times.median, 3),
                "min_s": round(times.least, 3),
                "max_s": round(times.most, 3),
                "ratio": round(times.median / bare.median, 3),
                "phases_ms": {name: round(took, 1) for name, took in phases.items()},
            }
        )
    return rows


def show(results: dict[str, list[dict[str, object]]]) -> None:
    table = Table("suite", "subject", "median s", "min", "max", "ratio", "cachedind's phases, ms")
    for suite, rows in results.items():
        for row in rows:
            phases = row["phases_ms"]
            cells = ", ".join(f"{k} {v}" for k, v in phases.items()) if isinstance(phases, dict) else ""
            values = [str(row[key]) for key in ("median_s", "min_s", "max_s", "ratio")]
            table.add_row(suite, str(row["subject"]), *values, cells)
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench ready", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="rounds per suite")
    parser.add_argument(
        "--suite", action="append", choices=("trixie", "forky"), help="may be given twice; both otherwise"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    client = docker.from_env()
    results = {
        suite: summarise(run_suite(client, suite, options.runs)) for suite in options.suite or ("trixie", "forky")
    }
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
