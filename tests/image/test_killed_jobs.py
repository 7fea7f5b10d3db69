"""What a killed job leaves is right: an instance that goes on with it, and one beside that with a clone, build and run
what an uncached build would give."""

from __future__ import annotations

import random
import secrets
import threading
from typing import TYPE_CHECKING

import pytest
from docker.errors import APIError

from helpers.builds import content_project
from helpers.engine import CommandFailedError
from helpers.flavours import FLAVOURS, Flavour
from helpers.pools import Disk, together

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine

KILLS = 2
TRIES = 12
"""How many kills may come too late, one after the other, before there are KILLS that did not."""


def killed_amid(dind: Dind, work: Callable[[], object], after_s: float) -> bool:
    """Whether the work was still going on when its container was killed, `after_s` after it began: it is told that it
    failed."""
    failed = []

    def run() -> None:
        try:
            work()
        except (APIError, CommandFailedError) as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=after_s)
    dind.kill()
    thread.join(timeout=30)
    assert not thread.is_alive(), "docker exec outlived its container"
    return bool(failed)


def work_of(kind: str, dind: Dind, new: Project) -> Callable[[], object]:
    if kind == "build":
        dind.load_base()
        return lambda: dind.build(new)
    if kind == "prune":
        return lambda: dind.docker("system", "prune", "--all", "--force")
    return lambda: dind.docker("load", "--input=/cachedind-test/saved.tar")


def build_and_run(dind: Dind, project: Project) -> None:
    """Its image tells the checksum of each layer's content, which is known."""
    dind.build(project)
    dind.run_image(project)


LONG_S = {"prune": 0.2, "load": 1.0}
"""About how long such work takes; a build is measured."""


@pytest.mark.everyday("build-forky-containerd", "prune-trixie-graphdriver", "load-forky-containerd")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("flavour", [FLAVOURS[0], FLAVOURS[2]], ids=str)
@pytest.mark.parametrize("kind", ["build", "prune", "load"])
def test_killed_amid(engine: Engine, flavour: Flavour, kind: str) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    dice = random.Random(seed)
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    projects = [content_project(secrets.token_hex(8), tag=f"{name}:latest", layers=4) for name in ("kept", "other")]
    first = disk.start(engine, pool)
    long_s = LONG_S.get(kind, max(first.build(project).seconds for project in projects))
    saved = b""
    if kind == "load":
        first.docker("save", "--output=/cachedind-test/saved.tar", projects[1].tag)
        saved = b"".join(first.container.get_archive("/cachedind-test/saved.tar")[0])
    first.kill()

    interrupted: list[Project] = []
    for number in range(TRIES):
        dind = disk.start(engine, pool)
        if kind == "load":
            dind.docker("system", "prune", "--all", "--force")
            dind.sh("mkdir -p /cachedind-test")
            dind.container.put_archive("/cachedind-test", saved)
        # A name each, which is a directory each: BuildKit takes a file of the same size and time for the same.
        new = content_project(secrets.token_hex(8), tag=f"new{number}:latest", layers=4)
        if killed_amid(dind, work_of(kind, dind, new), dice.uniform(0, 0.8 * long_s)):
            interrupted.append(new)
        if len(interrupted) == KILLS:
            break
    assert len(interrupted) == KILLS, f"only {len(interrupted)} of {TRIES} were killed amid a {kind}"

    pair = [disk.start(engine, pool) for _ in range(2)]
    for project in [*(interrupted if kind == "build" else ()), *projects]:
        together(lambda dind: build_and_run(dind, project), pair)  # noqa: B023 (over before the next one)
    assert [dind.warnings for dind in pair] == [[], []]
