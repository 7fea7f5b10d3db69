"""The commands for people as people call them: in a throw-away container on the same volume, and by docker exec in an
instance, from whose jobs the pool is hidden."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from helpers.clients import run_once
from helpers.estates import small_project
from helpers.pools import DISKS, Disk, big_project, slot_of
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Done, Engine, Volume

MIB = 1 << 20


@pytest.fixture(params=DISKS, ids=str)
def disk(request: pytest.FixtureRequest) -> Disk:
    found: Disk = request.param
    return found


class Desk:
    """Where a person sits who looks after a pool."""

    def __init__(self, engine: Engine, disk: Disk, pool: Volume) -> None:
        self._engine, self._disk, self._pool = engine, disk, pool

    def visit(self, *words: str, **options: Any) -> Done:
        """docker run --rm --privileged -v POOL:/cachedind cachedind cachedind …"""
        volumes = {self._pool.name: {"bind": "/cachedind", "mode": options.pop("mode", "rw")}}
        more = {"privileged": True, "volumes": volumes, **options}
        done = run_once(self._engine, self._disk.flavour.suite, "cachedind", *words, **more)
        assert "Traceback" not in done.output, done.output
        return done

    def rows(self, *words: str) -> dict[str, dict[str, Any]]:
        done = self.visit("ls", "--json", *words)
        assert done.status == 0, done.output
        return {entry["name"]: entry for entry in json.loads(done.stdout)["entries"]}


def inside(dind: Dind, *words: str) -> Done:
    """docker exec CONTAINER cachedind …"""
    done = dind.exec("cachedind", *words, check=False)
    assert "Traceback" not in done.output, done.output
    return done


def is_hidden(dind: Dind) -> bool:
    mounts = set(dind.sh("awk '{ print $5 }' /proc/1/mountinfo").split())
    own = {"/run/cachedind/pool.mnt", "/var/lib/docker/.cachedind/layers"}
    return not [where for where in mounts - own if "cachedind" in where]


@pytest.mark.everyday("ext4-trixie-graphdriver", "btrfs-forky-containerd")
def test_what_people_see_and_do(engine: Engine, disk: Disk) -> None:
    pool = disk.volume(engine)
    desk = Desk(engine, disk, pool)
    assert desk.visit("ls").status == 66, "nothing is made by looking"
    assert engine.in_volume(pool, "ls -A /volume | grep -v lost+found || true") == ""

    first = disk.start(engine, pool, env={"CACHEDIND_KEY": "group/project"})
    first.build(big_project("1", megabytes=16))
    first.sh("sync -f /var/lib/docker")
    slot = f"slots/{slot_of(first)}"

    # A held slot, seen from two sides: holder, sizes and what runs on it.
    wait_until(lambda: desk.rows("--no-sizes")[slot]["ready_s"] is not None, what="the witness to have noted it down")
    outside = desk.rows()
    own = {entry["name"]: entry for entry in json.loads(inside(first, "ls", "--json").stdout)["entries"]}
    assert set(own) == set(outside)
    row = outside[slot]
    assert (row["key"], row["condition"], row["held"], row["here"]) == ("group/project", "held", True, False)
    assert own[slot]["here"] is True
    assert row["holder"]["container"] == first.id[:12]
    assert abs(row["holder"]["since"] - time.time()) < 120
    assert row["unique_bytes"] > 16 * MIB
    assert (row["engine"], row["store"]) == (engine.engine_version(disk.flavour.suite), disk.flavour.store)
    assert row["driver"] == disk.flavour.overlay
    assert 0 < row["ready_s"] < 60
    assert is_hidden(first), "what looks into the pool must leave nothing mounted"
    assert first.docker("info", "--format={{.Driver}}") == disk.flavour.overlay
    text = inside(first, "ls")
    assert f"held by {first.id[:12]} (this one)" in text.stdout
    assert "\x1b" not in text.stdout

    status = json.loads(inside(first, "status", "--json").stdout)
    assert status["here"] == {
        "key": "group/project",
        "slot": slot_of(first),
        "ready": True,
        "ready_s": row["ready_s"],
    }
    assert status["filesystem"]["fstype"] == disk.fstype
    assert status["layers"]["count"] == 0, "what nobody has promoted is in its slot alone"
    assert json.loads(desk.visit("status", "--json").stdout)["here"] is None

    # What is held is not removed, from neither side, and goes on.
    for done in (desk.visit("rm", "group/project"), inside(first, "rm", "--slot", slot_of(first))):
        assert done.status == 75, done.output
        assert f"is held by container {first.id[:12]}" in done.stderr
    assert first.docker_status("image", "inspect", "big:latest") == 0
    assert desk.visit("promote", "group/project").status == 1

    # Free: promoted, cloned from, collected, removed.
    first.kill()
    assert desk.rows()[slot]["condition"] == "free"
    done = desk.visit("promote", "group/project", "--json")
    [promoted] = json.loads(done.stdout)
    assert (done.status, promoted["slot"]) == (0, slot_of(first))
    rows = desk.rows()
    assert rows["scopes/%/golden"]["shared_bytes"] > 16 * MIB
    assert rows[slot]["unique_bytes"] < 8 * MIB, "the golden shares it"
    second = disk.start(engine, pool, env={"CACHEDIND_KEY": "branch", "CACHEDIND_FALLBACK_KEYS": "group/project"})
    assert (second.summary or "").startswith("cloned: ")
    throw_away = disk.start(engine, pool, env={"CACHEDIND_KEY": "group/project", "CACHEDIND_ACCESS": "ro"})
    throw_away.kill()
    done = desk.visit("gc", "--json")
    assert done.status == 0, done.output
    evicted = {(entry["key"], entry["name"]) for entry in json.loads(done.stdout)["evicted"]}
    assert ("group/project", f"slots/{slot_of(throw_away)}") in evicted
    done = desk.visit("rm", "group/project")
    assert done.status == 0, done.output
    assert {entry["key"] for entry in desk.rows().values()} == {"branch"}
    assert second.build(big_project("1", megabytes=16)).uncached == [], "a clone needs its golden no more"
    second.kill()
    assert desk.visit("rm", "--all").status == 2
    done = desk.visit("rm", "--all", "--force")
    assert done.status == 0, done.output
    assert desk.visit("ls").stdout == "The pool is empty.\n"
    third = disk.start(engine, pool)
    assert (third.summary or "").startswith("cold: ")


def test_the_doctor_tells_what_a_start_would_begin_with(engine: Engine, disk: Disk) -> None:
    pool = disk.volume(engine)
    desk = Desk(engine, disk, pool)

    def section(done: Done) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(done.stdout)["pool"]
        return found

    def expect(start: str, **env: str) -> None:
        done = desk.visit("doctor", "--json", env={**disk.flavour.env, **env})
        found = section(done)
        assert (found["mode"], found["why"]) == ("pool", "something is mounted at /cachedind")
        assert "a slot of the pool takes its place" in json.loads(done.stdout)["data_root"]["note"]
        assert found["a_start_would"].startswith(start), found

    expect("make a new pool, and start cold")
    assert engine.in_volume(pool, "ls -A /volume | grep -v lost+found || true") == ""
    first = disk.start(engine, pool)
    report = inside(first, "doctor", "--json")
    found = section(report)
    assert found["this_container_holds"] == f"slot {slot_of(first)} of key default"
    assert json.loads(report.stdout)["lease"] == f"held by this container: it is {found['this_container_holds']}"
    assert found["mode"] == "pool"
    assert found["why"] == "something is mounted at /cachedind, where this container's jobs do not see it"
    assert found["a_start_would"] == "start cold: the pool has nothing that fits for key default"
    assert is_hidden(first)
    first.kill()
    expect("start cold: the pool has nothing that fits for key default")  # it has built nothing
    first = disk.start(engine, pool)
    first.build(small_project("1"))
    first.kill()
    expect(f"lease slots/{slot_of(first)} of key default")
    expect("start cold", CACHEDIND_KEY="other")
    expect("clone slots/", CACHEDIND_KEY="other", CACHEDIND_FALLBACK_KEYS="none,default")
    again = disk.start(engine, pool)
    assert slot_of(again) == slot_of(first)
    expect("clone the golden of key default", CACHEDIND_ACCESS="ro")
    expect("clone the golden of key default")
    off = desk.visit("doctor", "--json", env={"CACHEDIND_POOL": ""})
    assert section(off) == {"mode": "direct", "why": "CACHEDIND_POOL is empty"}
    nowhere = run_once(engine, disk.flavour.suite, "cachedind", "doctor", "--json", privileged=True)
    assert section(nowhere) == {
        "mode": "direct",
        "why": "nothing is mounted at /cachedind, and CACHEDIND_POOL is not set",
    }


def test_looking_needs_little(engine: Engine, disk: Disk) -> None:
    """Without privileges, and on a volume that is mounted read-only."""
    pool = disk.volume(engine)
    desk = Desk(engine, disk, pool)
    disk.start(engine, pool).kill()
    for options in ({"privileged": False}, {"mode": "ro"}, {"mode": "ro", "privileged": False}):
        done = desk.visit("ls", **options)
        assert done.status == 0, done.output
        assert " free " in done.stdout
