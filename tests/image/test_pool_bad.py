"""Promise 3 for pools: whatever is wrong with one costs warmth, never the job, and is told in one line.

With CACHEDIND_STRICT=1 the same ends the start instead, with a code and one line. Nothing outside a pool is ever
written or deleted, wherever links in it lead.
"""

from __future__ import annotations

import json
import re
import secrets
import statistics
from typing import TYPE_CHECKING, NamedTuple

import pytest

from helpers.builds import overlay_project
from helpers.engine import exec_in
from helpers.estates import KEY, Estate, Estates, Visitor, in_pool, small_project
from helpers.flavours import Flavour
from helpers.pace import Pace
from helpers.pools import Disk, slot_of

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

FORKY = Flavour("forky", "graphdriver")
BTRFS, XFS, EXT4 = (Disk(fstype, FORKY) for fstype in ("btrfs", "xfs", "ext4"))
STRICT = {"CACHEDIND_STRICT": "1"}
STRICT_EXIT = 78

SLOT = "SLOT"
"""Stands for the id of the newest slot in what follows."""


@pytest.fixture(scope="module")
def engine(module_engine: Engine) -> Engine:
    return module_engine


def check_refusal(dind: Dind, pattern: str) -> None:
    """A start with CACHEDIND_STRICT has ended with the one line."""
    assert dind.wait_exit() == STRICT_EXIT
    assert "Traceback" not in dind.log()
    [line] = dind.errors
    assert re.search(pattern, line), line
    assert dind.summary is None


def check_cold_job(dind: Dind) -> None:
    """A daemon that builds, wherever it keeps that."""
    dind.wait_ready()
    dind.build(small_project(secrets.token_hex(8)))
    assert "Traceback" not in dind.log()
    assert dind.errors == []


# ---- state files and directories that are not what they must be ----------------------------------------------------

# What `it` becomes. What a link leads to is as good as what was there before: it would be used if it were followed.
HOW = {
    "garbage": r"printf '}{ garbage \377' >$it",
    "empty": ": >$it",
    "truncated": "truncate --size=20 $it",
    "file": "mv $it victim/it; echo garbage >$it",
    "directory": "mv $it victim/it; mkdir $it; echo something >$it/file",
    "link": "mv $it victim/it; ln -s /cachedind/victim/it $it",
    "link beside": "cp -a $it victim/it; mv $it $it.was; ln -s /cachedind/victim/it $it",
}
OUTSIDE = (
    "cd victim; find . -printf '%p %y %s %m %T@ %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0r sha256sum"
)


class Damage(NamedTuple):
    """`path` becomes what `how` says. `says` is in the one warning; without it nothing is lost, and nothing is said.

    `beside` somebody who has the newest slot the start has to clone. Where the pool is not used at all (`refused`), it
    has to be mended by hand.
    """

    path: str
    how: str
    says: str
    summary: str = "warm"
    beside: bool = False
    refused: bool = False
    strict: bool = False

    def __str__(self) -> str:
        return f"{self.path}-{self.how}".replace(f"{KEY}/", "").replace(" ", "-")


JSON = ("truncated", "directory", "link")
SEQUENCE = r"the sequence of the key default was not a file, and is counted anew; it is kept as sequence\.unreadable"
AWAY = "look at it, and move it away"
ASIDE = r"of the pool is set aside: .*; it is kept as aside/[0-9a-f]{12}.*; cachedind rm aside/[0-9a-f]{12} drops it"

DAMAGES = (
    *(
        Damage("pool.json", how, r"pool\.json cannot be .*; .* delete .*/pool\.json\.unreadable", strict=how == "link")
        for how in JSON
    ),
    *(
        Damage(f"{KEY}/slots/{SLOT}/slot.json", how, f"slots/{SLOT} {ASIDE}", "cloned", strict=how == "truncated")
        for how in JSON
    ),
    *(Damage(f"{KEY}/scopes/%/golden/golden.json", how, f"golden {ASIDE}", "cloned", beside=True) for how in JSON),
    Damage(f"{KEY}/key.json", "garbage", ""),
    Damage(f"{KEY}/key.json", "directory", ""),
    Damage(f"{KEY}/sequence", "garbage", ""),
    Damage(f"{KEY}/sequence", "empty", ""),
    Damage(f"{KEY}/sequence", "directory", SEQUENCE),
    Damage(f"{KEY}/sequence", "link", SEQUENCE),
    # What is written in a lock is for messages only.
    Damage(f"{KEY}/slots/{SLOT}/slot.lock", "garbage", ""),
    Damage(f"{KEY}/slots/{SLOT}/slot.lock", "directory", f"slots/{SLOT} {ASIDE}", "cloned"),
    Damage(f"{KEY}/slots/{SLOT}/slot.lock", "link", f"slots/{SLOT} {ASIDE}", "cloned", strict=True),
    Damage("pool.lock", "garbage", ""),
    Damage("pool.lock", "directory", f"pool.lock .*{AWAY}", "cold", refused=True, strict=True),
    Damage("pool.lock", "link", f"pool.lock .*{AWAY}", "cold", refused=True),
    *(
        Damage(name, how, f"{name} .*{AWAY}", "cold", refused=True, strict=how == "link")
        for name in ("keys", "layers", "stage", "trash", "aside", KEY)
        for how in ("file", "link")
    ),
    Damage(f"{KEY}/slots", "file", f"slots {ASIDE}", "cloned"),
    Damage(f"{KEY}/slots", "link", f"slots {ASIDE}", "cloned", strict=True),
    Damage(f"{KEY}/slots/{SLOT}", "file", f"slots/{SLOT} {ASIDE}", "cloned"),
    Damage(f"{KEY}/slots/{SLOT}", "link", f"slots/{SLOT} {ASIDE}", "cloned"),
    Damage(f"{KEY}/slots/{SLOT}/data", "link", f"slots/{SLOT} {ASIDE}", "cloned"),
    Damage(f"{KEY}/scopes/%/golden", "link", f"golden {ASIDE}", "cloned", beside=True),
    Damage(f"{KEY}/scopes/%/golden/data", "link beside", f"golden {ASIDE}", "cloned", beside=True),
    Damage(f"{KEY}/scopes/%/golden.other", "link", f"golden.other {ASIDE}"),
)


# One of each kind: what else can be in a file's place is told from these by the same lines of code.
EVERYDAY = (
    *("pool.json-link", "pool.lock-directory", "pool.lock-link", "layers-link", "trash-link", "keys/default-link"),
    *("key.json-garbage", "sequence-link", "slots-file", "slots/SLOT/slot.json-truncated", "slots/SLOT/slot.json-link"),
    *("slots/SLOT/slot.lock-link", "slots/SLOT/data-link", "scopes/%/golden/golden.json-directory"),
    *("scopes/%/golden-link", "scopes/%/golden/data-link-beside", "scopes/%/golden.other-link"),
)


@pytest.mark.everyday(*EVERYDAY)
@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damage_costs_warmth_at_most_and_nothing_outside(estates: Estates, damage: Damage) -> None:
    with estates.lend(BTRFS) as estate:
        slot = slot_of(estate.occupied())
        estate.vacate()
        if damage.beside:
            # One more promotion, so that there is a golden.previous.
            estate.occupied().build(overlay_project(secrets.token_hex(8), tag="new:latest"))
            estate.vacate()
            estate.await_upkeep(estate.occupied())
        estate.drop_spares(slot)
        it = damage.path.replace(SLOT, slot)
        says = damage.says.replace(SLOT, slot)
        do = f"mkdir -p victim; rm -rf victim/it; it={it}; {HOW[damage.how]}; {OUTSIDE}"

        before = estate.visitor.sh(do)
        if damage.strict:
            strict = estate.create(STRICT)
            strict.start()
            said = says.replace(ASIDE, "of the pool is bad: .*nothing of it was changed").replace(r"\.unreadable", "")
            check_refusal(strict, said)
            estate.drop(strict)
            assert estate.visitor.sh(OUTSIDE) == before
        dind = estate.enter()
        about = [line for line in dind.warnings if re.search("pool|set aside|sequence", line)]
        assert len(about) == (1 if says else 0), about
        assert not says or re.search(says, about[0]), about
        assert dind.errors == []
        assert re.match(f"{damage.summary}: ", dind.summary or ""), dind.summary
        if damage.refused:
            check_cold_job(dind)
        else:
            estate.check(dind, beside=() if estate.current is None else (estate.current,))
        assert estate.visitor.sh(OUTSIDE) == before

        if damage.refused:
            estate.drop(dind)
            estate.visitor.sh(f"rm -rf {it}; mv victim/it {it}")
        else:
            estate.succeed(dind)
        estate.visitor.sh("rm -rf victim")


def test_a_pool_of_a_later_version_is_neither_used_nor_changed(estates: Estates) -> None:
    places = f". {KEY}/slots {KEY}/scopes/%/golden"
    look = f"cat pool.json; ls -lR --time-style=full-iso {places} | grep -v pool.lock | sha256sum"
    says = "of a later cachedind.*; use that version's image, or another directory"
    with estates.lend(BTRFS) as estate:
        estate.vacate()
        estate.visitor.sh(
            """cp -p pool.json was; echo '{"version": 99, "min_reader": 99, "layout": "another"}' >pool.json"""
        )
        before = estate.visitor.sh(look)
        strict = estate.create(STRICT)
        strict.start()
        check_refusal(strict, says)
        dind = estate.enter()
        [line] = [line for line in dind.warnings if "pool" in line]
        assert re.search(says, line)
        check_cold_job(dind)
        assert estate.visitor.sh(look) == before
        estate.drop(dind)
        estate.visitor.sh("mv was pool.json")
        estate.check(estate.occupied())


# ---- pools that cannot be written ----------------------------------------------------------------------------------


def test_a_read_only_pool_is_not_used(estates: Estates) -> None:
    says = "read-only filesystem.*; mount it read-write"
    with estates.lend(BTRFS) as estate:
        estate.vacate()
        strict = estate.create(STRICT, read_only_volume=True)
        strict.start()
        check_refusal(strict, says)
        dind = estate.create(read_only_volume=True)
        dind.start()
        check_cold_job(dind)
        [line] = [line for line in dind.warnings if "pool" in line]
        assert re.search(says, line)
        estate.drop(dind)
        estate.check(estate.occupied())


def test_a_new_read_only_pool_is_not_used(engine: Engine) -> None:
    dind = BTRFS.start(engine, BTRFS.volume(engine), read_only_volume=True)
    [line] = [line for line in dind.warnings if "pool" in line]
    assert re.search("read-only filesystem.*; mount it read-write", line)
    check_cold_job(dind)


FILL = """
for size in 1M 4k; do dd if=/dev/zero bs=$size of=ballast oflag=append conv=notrunc 2>/dev/null || true; done
sync
"""


@pytest.mark.parametrize("disk", [BTRFS, XFS, EXT4], ids=str)
@pytest.mark.parametrize("how", ["idle", "beside"])
def test_a_full_pool_costs_warmth_at_most(engine: Engine, disk: Disk, how: str) -> None:
    estate = Estate(engine, disk, size_mib=1100)
    neighbours: tuple[Dind, ...] = (estate.occupied(),)
    if how == "idle":
        estate.vacate()
        neighbours = ()
    estate.visitor.sh(FILL)
    dind = estate.enter()
    full = [line for line in dind.warnings if "full" in line]
    assert len(full) == 1, dind.warnings
    check_cold_job(dind)
    estate.drop(dind)
    for neighbour in neighbours:
        assert neighbour.docker("version")

    estate.visitor.sh("rm ballast; sync")
    again = estate.enter()
    assert again.warnings == []
    estate.check(again, beside=neighbours)
    estate.drop(again)
    estate.close()


FILL_SLOT = {
    "bytes": "dd if=/dev/zero of=/var/lib/docker/ballast bs=1M 2>/dev/null || true; sync -f /var/lib/docker",
    "inodes": "mkdir /var/lib/docker/ballast; cd /var/lib/docker/ballast; seq 99999 | xargs touch 2>/dev/null || true",
}


@pytest.mark.parametrize(("disk", "what"), [(EXT4, "bytes"), (EXT4, "inodes"), (BTRFS, "bytes")], ids=str)
def test_a_pool_that_its_only_project_has_filled_has_room_for_it(engine: Engine, disk: Disk, what: str) -> None:
    """What a start of the key could have is all that can go, and goes."""
    if disk is EXT4:
        device = engine.loop_device(f"/var/lib/docker/{engine.new_name('volume')}.img", 512)
        exec_in(engine.workbench, ["mkfs.ext4", "-q", "-N", "12000", device])
        pool = engine.volume_on(device, "ext4")
    else:
        pool = disk.volume(engine, 1100)
    first = disk.start(engine, pool)
    check_cold_job(first)
    first.sh(FILL_SLOT[what])
    first.kill()
    second = disk.start(engine, pool)
    assert slot_of(second) != slot_of(first)
    [told] = [line for line in second.warnings if "full" in line]
    assert "was full: 1 of its slots and goldens were evicted" in told
    check_cold_job(second)


@pytest.mark.parametrize("disk", [BTRFS, XFS, EXT4], ids=str)
def test_a_new_pool_on_a_full_disk_is_not_used(engine: Engine, disk: Disk) -> None:
    estate = Estate(engine, disk, size_mib=400)
    estate.visitor.sh(FILL)
    strict = estate.create(STRICT)
    strict.start()
    check_refusal(strict, "full")
    dind = estate.enter()
    assert len([line for line in dind.warnings if "full" in line]) == 1, dind.warnings
    check_cold_job(dind)


# ---- odd places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fstype", ["tmpfs", "ramfs", "overlay"])
def test_a_pool_that_will_not_last_says_so_and_works(engine: Engine, fstype: str) -> None:
    wanted = {"CACHEDIND_POOL": "/some/dir", "CACHEDIND_ALLOW_EPHEMERAL_POOL": "1", "CACHEDIND_KEY": "default"}
    env = wanted if fstype == "overlay" else {}
    pool: Volume | None = None if fstype == "overlay" else engine.volume(fstype)

    def enter(**more: str) -> Dind:
        return engine.dind("forky", pool=pool, env={**env, **FORKY.env, **more})

    check_refusal(enter(**STRICT), "the pool will not last: .*mount a named volume or a host directory")
    dind = enter()
    check_cold_job(dind)
    assert [line for line in dind.warnings if "the pool will not last" in line] == dind.warnings[:1]
    # The others are no place for overlay2.
    assert len(dind.warnings) == (1 if fstype == "tmpfs" else 2)
    assert slot_of(dind)


@pytest.mark.parametrize("fstype", ["tmpfs", "overlay"])
def test_a_pool_is_warm_as_long_as_it_lasts(engine: Engine, fstype: str) -> None:
    """One in memory as long as anybody has it mounted, one in the container's own layer as long as that container."""
    project = small_project(secrets.token_hex(8))
    if fstype == "tmpfs":
        pool = engine.volume(fstype)
        Visitor(engine, pool)
        first = engine.dind("forky", pool=pool, env=FORKY.env)
    else:
        first = engine.dind("forky", env={"CACHEDIND_POOL": "/some/dir", "CACHEDIND_ALLOW_EPHEMERAL_POOL": "1"})
    first.wait_ready()
    assert first.info().driver == ("overlay2" if fstype == "tmpfs" else "fuse-overlayfs")
    assert first.build(project).uncached != []
    build_id = first.run_image(project)
    slot = slot_of(first)
    first.kill()
    if fstype == "tmpfs":
        second = engine.dind("forky", pool=pool, env=FORKY.env)
    else:
        second = first
        second.start()
    second.wait_ready()
    [summary] = [line for line in second.messages if line.startswith("warm: ")]
    assert f"slot {slot}" in summary
    assert second.build(project).uncached == []
    assert second.run_image(project) == build_id


def test_a_pool_that_nobody_has_mounted_is_none(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, volume=engine.volume(), env={"CACHEDIND_POOL": "/some/dir"})
    dind.wait_ready()
    [warning] = dind.warnings
    assert "no pool: CACHEDIND_POOL=/some/dir is a directory in the container's own layer" in warning
    assert "CACHEDIND_ALLOW_EPHEMERAL_POOL=1" in warning
    assert dind.sh("ls -d /some", check=False) == ""


# ---- many ------------------------------------------------------------------------------------------------------------

MANY = 1000
COPY = f"""
import json, os, shutil
os.chdir("/volume/{KEY}/slots")
[slot] = [name for name in os.listdir(".") if not name.startswith("copy")]
text = json.load(open(f"{{slot}}/slot.json"))
text["sequence"] = 0
for number in range({MANY}):
    os.makedirs(f"copy{{number:08}}/data")
    with open(f"copy{{number:08}}/slot.json", "w") as file:
        json.dump(text, file)
    shutil.copy(f"{{slot}}/slot.lock", f"copy{{number:08}}/slot.lock")
"""


@pytest.mark.alone
def test_a_thousand_slots_are_no_matter(estates: Estates) -> None:
    """The lease of a warm start is at most 50 ms slower than with a single slot. The witness evicts them."""
    with estates.lend(BTRFS) as estate:
        took = {"one": Pace(), "many": Pace()}
        estate.vacate()
        for _ in range(3):
            for what, lease_ms in took.items():
                # A promotion takes longer than all that, and differently long.
                promoter = estate.create({"CACHEDIND_KILL_AT": "lease.recorded"})
                promoter.start()
                assert promoter.wait_exit() == 137
                estate.drop(promoter)
                if what == "many":
                    estate.visitor.sh(f"python3 -c '{COPY}'; sync -f .")
                dind = estate.enter({"CACHEDIND_LOG_FORMAT": "json"})
                lease_ms.add(phases(dind)["lease"])
                estate.await_upkeep(dind)
                assert in_pool(dind, f"ls {KEY}/slots | wc -l") == "1\n", "superseded slots are still there"
                assert dind.build(estate.project).uncached == []
                estate.drop(dind)
        best_s = min(lease_ms.best_s for lease_ms in took.values())
        many, one = (statistics.median(took[what].times(best_s)) for what in ("many", "one"))
        print(f"lease with one slot {one:.1f} ms, with a thousand {many:.1f} ms")
        assert many - one <= 50


def phases(dind: Dind) -> dict[str, float]:
    """How long each phase of a start with a JSON log took, in milliseconds."""
    lines = [json.loads(line) for line in dind.log().splitlines() if line.startswith('{"time"')]
    [found] = [line["phases_ms"] for line in lines if "phases_ms" in line]
    assert [line for line in lines if line["level"] != "info"] == []
    return dict(found)
