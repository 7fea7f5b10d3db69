"""Images of the containerd store are hidden by its containerd, which may take long, or not work at all this time; and
old ones are removed by a private daemon, which is not needed for anything else."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.dind import REAL_DOCKERD
from helpers.flavours import FLAVOURS
from helpers.pools import Disk, slot_of
from helpers.seeds import docker_archive, images, small_image

if TYPE_CHECKING:
    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

DISK = Disk("ext4", FLAVOURS[2])
AGE_S = 10

# Only what is private to a start is slow, or fails: the job's own containerd and its client are as ever.
SLOW = {
    "containerd": 'case "$*" in */private/*) sleep 12 ;; esac',
    "ctr": "sleep 4",
}
FAILING = {
    "containerd": 'case "$*" in */private/*) echo "no such luck" >&2; exit 1 ;; esac',
    "ctr": 'case "$*" in *" images rm "*) echo "no such luck" >&2; exit 1 ;; esac',
}


def standing_in(name: str, script: str) -> list[str]:
    """An entrypoint after which `script` runs whenever a program is called by its name, and then that program."""
    path = name if "/" in name else f"/usr/local/bin/{name}"
    return [
        "sh",
        "-ec",
        f"""real=$(readlink -f {path}); cp "$real" {path}.real; rm {path}; real={path}.real
cat >{path} <<EOF
#!/bin/sh
{script.replace("$", chr(92) + "$")}
exec $real "\\$@"
EOF
chmod 755 {path}; exec dockerd-entrypoint.sh""",
    ]


def built(engine: Engine) -> tuple[Volume, str, Project]:
    """A pool in which a job has built something, and its slot."""
    project = overlay_project(secrets.token_hex(8))
    pool = DISK.volume(engine)
    first = DISK.start(engine, pool)
    first.build(project)
    first.kill()
    return pool, slot_of(first), project


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_one_takes_its_time_and_no_more(engine: Engine, name: str) -> None:
    pool, slot, project = built(engine)
    slow = DISK.start(engine, pool, ready=False, entrypoint=standing_in(name, SLOW[name]))
    slow.wait_ready(90)
    assert (slow.summary or "").startswith("warm: "), slow.describe()
    assert slot_of(slow) == slot
    assert not slow.warnings, slow.warnings
    shows_nothing_and_is_warm(slow, project)


@pytest.mark.parametrize("name", FAILING)
def test_where_it_fails_a_job_is_cold_and_the_next_one_is_warm(engine: Engine, name: str) -> None:
    pool, slot, project = built(engine)
    failing = DISK.start(engine, pool, ready=False, entrypoint=standing_in(name, FAILING[name]))
    failing.wait_ready(90)
    assert (failing.summary or "").startswith("cold: "), failing.describe()
    assert slot_of(failing) != slot
    assert images(failing) == set()
    told = "\n".join(failing.warnings)
    assert f"slot {slot} still has leftovers of the last job" in told
    assert "no such luck" in told
    assert "it stays as it is" in told
    failing.build(overlay_project(secrets.token_hex(8)))
    failing.kill()

    last = DISK.start(engine, pool)
    assert slot_of(last) == slot
    shows_nothing_and_is_warm(last, project)
    assert not last.warnings, last.warnings


def shows_nothing_and_is_warm(dind: Dind, project: Project) -> None:
    assert images(dind) == set()
    assert dind.docker("image", "ls", "--all", "--quiet") == ""
    assert dind.build(project).uncached == []


def test_what_can_wait_costs_no_warm_slot(engine: Engine) -> None:
    """Old images take a private daemon, and this time it is killed, as by a host without memory."""
    disk = Disk("ext4", FLAVOURS[0])
    pool = disk.volume(engine)
    project = overlay_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    first.build(project)
    loaded = small_image(engine, "loaded:1")
    first.put("/loaded", {"it.tar": docker_archive(loaded)})
    first.docker("load", "--input=/loaded/it.tar")
    slot = slot_of(first)
    first.kill()
    second = disk.start(engine, pool)
    second.build(project)
    second.kill()
    time.sleep(AGE_S * 1.2)

    killed = standing_in(REAL_DOCKERD, 'case "$*" in */private/*) kill -KILL $$ ;; esac')
    old = {"CACHEDIND_UNUSED_MAX_AGE": f"{AGE_S}s"}
    third = disk.start(engine, pool, entrypoint=killed, env=old)
    assert slot_of(third) == slot, third.describe()
    [told] = third.warnings
    assert "was killed by signal 9" in told
    assert "old images stay, and nothing is pruned, until another start" in told
    shows_nothing_and_is_warm(third, project)
    third.kill()

    fourth = disk.start(engine, pool, env=old)
    assert slot_of(fourth) == slot
    assert "that no job had for long" in "\n".join(fourth.messages)
    shows_nothing_and_is_warm(fourth, project)
