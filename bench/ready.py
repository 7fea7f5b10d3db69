"""Container start → first `_ping` 200: cachedind against the bare dockerd of the same image.

The clock starts with the container's first instruction and stops in the same container, so the outer engine's own work
is not in it. The same small prober measures all subjects: it connects again every 2 ms until it is accepted, and
waits for the answer then. Subjects take turns; medians and ratios are what counts, single figures are noise.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import docker
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

PROBER = """
import os, socket, sys, time
start = float(os.environ.pop("START"))
end = time.monotonic() + 60
while time.monotonic() < end:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    try:
        client.connect("/var/run/docker.sock")
        client.sendall(b"GET /_ping HTTP/1.0\\r\\n\\r\\n")
        if b" 200 " in client.recv(4096):
            print("READY", time.time() - start, flush=True)
            sys.exit()
    except OSError:
        pass
    client.close()
    time.sleep(0.002)
print("GAVE UP", flush=True)
"""
# dash's date costs a millisecond, the same one for every subject.
ENTRYPOINT = ["sh", "-c", 'START=$(date +%s.%N) python3 -IS -c "$PROBER" & exec "$@"', "sh"]


class Subject(NamedTuple):
    """What is started: a command, and which directories are kept between starts."""

    name: str
    command: list[str]
    kept: tuple[str, ...]


SUBJECTS = (
    Subject("bare dockerd", ["dockerd"], ("/var/lib/docker",)),
    Subject("TLS, certificates kept", ["dockerd-entrypoint.sh"], ("/var/lib/docker", "/certs")),
    Subject("TLS, fresh certificates", ["dockerd-entrypoint.sh"], ("/var/lib/docker", "/certs/client")),
)


class Run(NamedTuple):
    """One start. Seconds to the first answer; `phases_ms` is what cachedind says of its own part."""

    subject: str
    ready_s: float
    phases_ms: dict[str, float]


def measure(client: DockerClient, image: str, subject: Subject, volumes: dict[str, str]) -> Run:
    """Start one container on its volumes, wait for the prober's word, kill it."""
    container = client.containers.create(
        image,
        subject.command,
        entrypoint=ENTRYPOINT,
        privileged=True,
        environment={"PROBER": PROBER, "CACHEDIND_LOG_FORMAT": "json"},
        volumes={name: {"bind": path, "mode": "rw"} for path, name in volumes.items()},
    )
    try:
        container.start()
        return read_run(container, subject)
    finally:
        container.remove(force=True, v=True)


def read_run(container: Container, subject: Subject) -> Run:
    """Follow the log until the prober speaks. cachedind's summary line comes before."""
    phases: dict[str, float] = {}
    text = b""
    # The prober ends, and says so, after a minute; killing the container then ends the stream.
    for chunk in container.logs(stream=True, follow=True):
        text += chunk
        while b"\n" in text:
            line, text = text.split(b"\n", 1)
            if line.startswith(b"READY "):
                return Run(subject.name, float(line.split()[1]), phases)
            if line.startswith(b"GAVE UP"):
                raise SystemExit(f"{subject.name}: no answer within a minute")
            if line.startswith(b"{") and b"phases_ms" in line:
                phases = {**json.loads(line)["phases_ms"]}
    raise SystemExit(f"{subject.name}: the container ended before its daemon answered:\n{text.decode()}")


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
                    sys.stderr.write(f"{suite} {turn}/{runs} {subject.name}: {run.ready_s:.3f} s\n")
    finally:
        for volume in made.values():
            volume.remove(force=True)
    return found


def summarise(found: list[Run]) -> list[dict[str, object]]:
    """Median, range and ratio to the bare daemon of each subject, and the medians of cachedind's phases."""
    bare = statistics.median(run.ready_s for run in found if run.subject == SUBJECTS[0].name)
    rows: list[dict[str, object]] = []
    for subject in SUBJECTS:
        mine = [run for run in found if run.subject == subject.name]
        times = [run.ready_s for run in mine]
        phases = {name: statistics.median(run.phases_ms[name] for run in mine) for name in mine[0].phases_ms}
        median = statistics.median(times)
        rows.append(
            {
                "subject": subject.name,
                "median_s": round(median, 3),
                "min_s": round(min(times), 3),
                "max_s": round(max(times), 3),
                "ratio": round(median / bare, 3),
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
