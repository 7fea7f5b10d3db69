"""Images that no job sees: counted, kept while a job of the key has them now and then, and removed after that."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from helpers.builds import overlay_project
from helpers.pools import Disk
from helpers.seeds import docker_archive, small_image

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour
    from helpers.seeds import Image

KILOBYTES = 3000
SOON = {"CACHEDIND_UNUSED_MAX_AGE": "3s"}
TOLD = "that no job had for long (CACHEDIND_UNUSED_MAX_AGE)"


class Counted(NamedTuple):
    images: int
    bytes: int


def counted(dind: Dind) -> Counted:
    """What `cachedind ls` says of the slot of an instance."""
    rows = json.loads(dind.exec("cachedind", "ls", "--json").stdout)["entries"]
    [row] = [row for row in rows if row["here"]]
    return Counted(row["unused_images"], row["unused_bytes"])


def load(dind: Dind, image: Image) -> None:
    dind.put("/loaded", {"it.tar": docker_archive(image)})
    dind.docker("load", "--input=/loaded/it.tar")


@pytest.mark.timeout(400)
def test_what_no_job_had_for_long_goes_and_nothing_else(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    image = small_image(engine, "loaded:1", kilobytes=KILOBYTES)
    project = overlay_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    assert counted(first) == (0, 0)
    first.build(project)
    build_id = first.run_image(project)
    load(first, image)
    assert counted(first) == (0, 0), "it sees all of them"
    first.kill()

    second = disk.start(engine, pool)
    three = counted(second)
    assert three.images == 3, "the base, what was built, what was loaded"
    assert three.bytes > KILOBYTES << 10
    assert not [line for line in second.messages if TOLD in line]
    # Whose layers a job has again is no longer unused.
    load(second, image)
    assert counted(second).images == 2
    second.kill()

    # A tenth more than that since the first job's end, also where starts are quick.
    time.sleep(4)
    third = disk.start(engine, pool, env=SOON)
    assert [line for line in third.messages if f"removed 2 images {TOLD}" in line], third.describe()
    assert third.docker("images", "--all", "--quiet") == ""
    assert counted(third).images == 1, "the second job had it"
    assert third.build(project).uncached == [], "it is in the build cache"
    assert third.run_image(project) == build_id
    load(third, image)
    assert third.docker("run", "--rm", "--network=none", image.name) == image.text.strip()
    assert not third.warnings, third.warnings
