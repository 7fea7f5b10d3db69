"""Clocks that are wrong: an instance that lives a year ahead or behind finds the newest state, and loses nobody's."""

from __future__ import annotations

import io
import json
import os
import secrets
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.estates import in_pool
from helpers.pools import DISKS, Disk, slot_of
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

BTRFS = DISKS[1]
BOOT = "/opt/cachedind/boot.py"
MAX_AGE = {"CACHEDIND_MAX_AGE": "30d"}
YEAR_S = 365 * 86_400


def start_with_clock(engine: Engine, disk: Disk, pool: Volume, offset_s: int) -> Dind:
    """An instance of which cachedind's own part is told another time; what it hands over to is not."""
    dind = disk.start(engine, pool, ready=False, start=False, env=MAX_AGE)
    program = dind.container.get_archive(BOOT)[0]
    with tarfile.open(fileobj=io.BytesIO(b"".join(program))) as tar:
        file = tar.extractfile("boot.py")
        assert file is not None
        source = file.read().decode()
    clock = f"import time\n_time = time.time\ntime.time = lambda: _time() + {offset_s}\n"
    dind.put(os.path.dirname(BOOT), {os.path.basename(BOOT): clock + source})
    dind.start()
    dind.wait_ready()
    return dind


def await_upkeep(dind: Dind) -> None:
    """The witness's last work is done: it ends."""
    script = "! grep -qs '[b]oot.py' $(ls -d /proc/[0-9]*/cmdline | grep -vx /proc/1/cmdline)"
    wait_until(lambda: dind.exec("sh", "-c", script, check=False).status == 0, what="the witness to end")


@pytest.mark.everyday("ahead")
@pytest.mark.parametrize("offset_s", [-YEAR_S, YEAR_S], ids=["behind", "ahead"])
def test_a_year_apart(engine: Engine, offset_s: int) -> None:
    pool = BTRFS.volume(engine)
    other, mine, new = (overlay_project(secrets.token_hex(8), tag=f"{tag}:latest") for tag in ("other", "mine", "new"))
    for key, project in (("other", other), ("default", mine)):
        first = BTRFS.start(engine, pool, env={"CACHEDIND_KEY": key, **MAX_AGE})
        first.build(project)
        await_upkeep(first)
        first.kill()

    wrong = start_with_clock(engine, BTRFS, pool, offset_s)
    noted = json.loads(in_pool(wrong, f"cat keys/default/slots/{slot_of(wrong)}/slot.json"))
    assert abs(noted["started_at"] - time.time() - offset_s) < 600, "it has the right time"
    assert wrong.build(mine).uncached == []
    wrong.build(new)
    await_upkeep(wrong)
    beside = BTRFS.start(engine, pool, env=MAX_AGE)
    assert slot_of(beside) != slot_of(wrong)
    assert beside.build(mine).uncached == []
    await_upkeep(beside)
    beside.kill()
    wrong.kill()

    right = BTRFS.start(engine, pool, env=MAX_AGE)
    # What the one beside had is a later start's, so it is newer: whatever the time was in either.
    assert slot_of(right) == slot_of(beside)
    assert right.build(mine).uncached == []
    await_upkeep(right)
    assert {"other", "default"} <= set(in_pool(right, "ls keys").split())
    right.kill()
    last = BTRFS.start(engine, pool, env={"CACHEDIND_KEY": "other", **MAX_AGE})
    assert last.build(other).uncached == []
    assert last.warnings == []
