"""A pool needs no loop device and no right to make devices: many Kubernetes nodes give neither.

Without that right no engine runs a container: CAP_MKNOD is among what each container has, and runc fails where it has
none to give. So nothing is run here, neither an image nor a step of a build.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import Project
from helpers.flavours import FLAVOURS
from helpers.pools import Disk, slot_of

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour

# /dev is the container's own.
WITHOUT = [
    "sh",
    "-euc",
    'rm -f /dev/loop*; exec setpriv --bounding-set=-mknod --inh-caps=-mknod dockerd-entrypoint.sh "$@"',
    "entrypoint",
]
CAP_MKNOD = 27


def check_poor(dind: Dind) -> None:
    assert dind.sh("ls /dev | grep loop || true") == ""
    status = dind.sh("cat /proc/1/status")
    for name in ("CapEff", "CapPrm", "CapBnd"):
        found = re.search(rf"{name}:\s*([0-9a-f]+)", status)
        assert found
        assert not int(found[1], 16) >> CAP_MKNOD & 1


@pytest.mark.parametrize("flavour", [FLAVOURS[0], FLAVOURS[2]], ids=str)
def test_promoted_and_cloned_without_loop_devices_and_mknod(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    nonce = secrets.token_hex(8)
    dockerfile = "FROM base:latest\nCOPY nonce /one\nWORKDIR /directory\nCOPY nonce two\n"
    project = Project("small:latest", {"Dockerfile": dockerfile, "nonce": nonce}, (), 3)
    first = disk.start(engine, pool, entrypoint=WITHOUT)
    check_poor(first)
    first.build(project)
    first.kill()

    leased = disk.start(engine, pool, entrypoint=WITHOUT)
    cloned = disk.start(engine, pool, entrypoint=WITHOUT)
    assert slot_of(leased) != slot_of(cloned)
    for dind in (leased, cloned):
        check_poor(dind)
        assert re.match("(warm|cloned): ", dind.summary or ""), dind.summary
        assert dind.sh("ls /var/lib/docker/.cachedind/layers") != ""
        assert dind.build(project).uncached == []
        container = dind.docker("create", "--network=none", project.tag, "true")
        dind.docker("cp", f"{container}:/directory/two", "/cachedind-test/two")
        assert dind.sh("cat /cachedind-test/two") == nonce
        assert dind.warnings == []
