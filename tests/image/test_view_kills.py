"""Starts that are killed while they hide the last job's images: the next one does the rest, and nothing is lost."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.estates import Visitor
from helpers.flavours import FLAVOURS, Flavour
from helpers.pools import Disk
from helpers.seeds import docker_archive, images, small_image

if TYPE_CHECKING:
    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine

STEPS = [
    *((FLAVOURS[0], point) for point in ("view.noted", "view.named", "view.moved")),
    *((FLAVOURS[2], point) for point in ("view.noted", "view.held", "view.gone")),
]


@pytest.mark.parametrize(("flavour", "point"), STEPS, ids=lambda value: str(value))
def test_a_killed_start_hides_nothing_for_good(engine: Engine, flavour: Flavour, point: str) -> None:
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    first = disk.start(engine, pool)
    project = overlay_project(secrets.token_hex(8))
    first.build(project)
    build_id = first.run_image(project)
    loaded = small_image(engine, "loaded:1")
    archive = docker_archive(loaded)
    first.put("/loaded", {"it.tar": archive})
    first.docker("load", "--input=/loaded/it.tar")
    first.kill()

    victim = disk.start(engine, pool, ready=False, env={"CACHEDIND_KILL_AT": point})
    assert victim.wait_exit() == 137, victim.describe()

    dind = disk.start(engine, pool)
    assert unused_images(dind) == 3, "the base, what was built, what was loaded"
    begins_fresh_and_warm(dind, project, build_id)
    dind.kill()
    for _ in ("leased", "cloned"):
        begins_fresh_and_warm(disk.start(engine, pool), project, build_id)


GRAPH_DRIVERS = [flavour for flavour in FLAVOURS if flavour.store == "graphdriver"]
CRASH = r"""sed -i 's/"boot_id": "[^"]*"/"boot_id": "of-before"/' $(find keys -name slot.json -o -name golden.json)"""
EMPTY_PINS = "for pin in $(find keys -path '*/layerdb/mounts/cachedind-*/*' -type f); do : >$pin; echo $pin; done"


LAYERS = "/var/lib/docker/image/overlay2/layerdb/sha256"


@pytest.mark.parametrize("flavour", GRAPH_DRIVERS, ids=str)
def test_pins_that_a_crash_of_the_host_empties_are_made_anew(engine: Engine, flavour: Flavour) -> None:
    """Hiding syncs nothing: what was written in the last half a minute may be empty after it, until a golden of it is
    on the disk. An engine says nothing of that, and its prunes take the layers."""
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    first = disk.start(engine, pool)
    project = overlay_project(secrets.token_hex(8))
    first.build(project)
    first.kill()
    assert disk.start(engine, pool, ready=False, env={"CACHEDIND_KILL_AT": "view.moved"}).wait_exit() == 137

    visitor = Visitor(engine, pool)
    visitor.sh(CRASH)
    assert visitor.sh(EMPTY_PINS) != ""
    dind = disk.start(engine, pool)
    assert images(dind) == set()
    layers = dind.exec("ls", LAYERS).stdout
    assert layers != ""
    for what in ("system", "builder"):
        dind.docker(what, "prune", "--all", "--force")
    assert dind.exec("ls", LAYERS).stdout == layers
    assert unused_images(dind) == 2, "the base, and what was built"


def unused_images(dind: Dind) -> int:
    rows = json.loads(dind.exec("cachedind", "ls", "--json").stdout)["entries"]
    return sum(row["unused_images"] for row in rows if row["here"])


def begins_fresh_and_warm(dind: Dind, project: Project, build_id: str) -> None:
    # A clone that was made in advance, where copying took long, is leased.
    assert (dind.summary or "").startswith(("warm: ", "cloned: ")), dind.describe()
    assert images(dind) == set()
    assert dind.docker("image", "ls", "--all", "--quiet") == ""
    assert dind.build(project).uncached == []
    assert dind.run_image(project) == build_id
    assert not dind.warnings, dind.warnings
