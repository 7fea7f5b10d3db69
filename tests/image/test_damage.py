"""Damaged data-roots: the same start ends with a working daemon, and no more is lost than the ladder promises.

One good data-root per engine and store, copied for each damage. What is to be lost is in the table of
docs/reliability.md; a test fails when more is, and when a build is not right.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cachedind.base.model import Loss
from cachedind.base.trace import POINTS
from helpers.estates import Visitor
from helpers.flavours import FLAVOURS, Flavour
from helpers.pools import DISKS
from helpers.ward import (
    CUT,
    DIRECTORY,
    EMPTY,
    GONE,
    LINK,
    META_PAGES,
    NOISE,
    PIPE,
    PLACE,
    ZEROS,
    Ward,
    marked_project,
    on,
)

if TYPE_CHECKING:
    from helpers.engine import Engine

CONTAINERD = "containerd/daemon"
META = f"{CONTAINERD}/io.containerd.metadata.v1.bolt/meta.db"
SNAPSHOTS = f"{CONTAINERD}/io.containerd.snapshotter.v1.overlayfs"


class Damage(NamedTuple):
    """A file, what is done to it, and the worst that may be lost by that."""

    name: str
    script: str
    loss: Loss
    flavours: tuple[Flavour, ...]

    def __str__(self) -> str:
        return self.name


TRIXIE, FORKY, FORKY_C8D = FLAVOURS


def _table() -> list[Damage]:
    cases: list[Damage] = []

    def add(what: str, path: str, loss: Loss, flavours: tuple[Flavour, ...], **ways: str) -> None:
        for way, how in ways.items():
            cases.append(Damage(f"{what} {way}", on(path, how), loss, flavours))

    add("cache.db", "buildkit/cache.db", Loss.CACHE, (TRIXIE,), cut=CUT, link=LINK)
    add("cache.db", "buildkit/cache.db", Loss.CACHE, (FORKY_C8D,), directory=DIRECTORY)
    add("snapshots.db", "buildkit/snapshots.db", Loss.CACHE, (FORKY,), headless=META_PAGES)
    add("worker's metadata", "buildkit/containerd-overlayfs/metadata_v2.db", Loss.CACHE, (FORKY_C8D,), noise=NOISE)
    add("networks", "network/files/local-kv.db", Loss.RECORDS, (TRIXIE, FORKY_C8D), cut=CUT)
    add("volumes", "volumes/metadata.db", Loss.RECORDS, (FORKY,), zeros=ZEROS)
    add("containerd's meta.db", META, Loss.NOTHING, (TRIXIE,), cut=CUT)
    add("containerd's meta.db", META, Loss.IMAGES, (FORKY_C8D,), cut=CUT)
    names = "image/overlay2/repositories.json"
    add("names", names, Loss.NAMES, (TRIXIE,), cut=CUT)
    add("names", names, Loss.NAMES, (FORKY,), noise=NOISE)
    add("engine-id", "engine-id", Loss.NOTHING, (FORKY,), gone=GONE)
    add("engine-id", "engine-id", Loss.NOTHING, (TRIXIE,), swapped='echo other >"$f"')
    add("workerid", "buildkit/containerd-overlayfs/workerid", Loss.NOTHING, (FORKY_C8D,), empty=EMPTY)
    uuid = f"{CONTAINERD}/io.containerd.grpc.v1.introspection/uuid"
    add("containerd's uuid", uuid, Loss.NOTHING, (FORKY_C8D,), noise=NOISE)
    options = "mkdir -p volumes/more/_data; echo '{\"MountType\"' >volumes/more/opts.json"
    cases.append(Damage("a volume's options cut", options, Loss.RECORDS, (TRIXIE,)))
    # Without these a daemon comes up, and each build fails.
    add("snapshots.db", "buildkit/snapshots.db", Loss.CACHE, (TRIXIE,), lost=GONE)
    add("snapshots.db", "buildkit/snapshots.db", Loss.CACHE, (FORKY,), empty=EMPTY)
    add("containerd's meta.db", META, Loss.IMAGES, (FORKY_C8D,), lost=GONE)
    add("snapshotter's db", f"{SNAPSHOTS}/metadata.db", Loss.IMAGES, (FORKY_C8D,), empty=EMPTY)
    # The lowest layer, so that others lie on it.
    record = "$(for d in image/overlay2/layerdb/sha256/*; do [ -e $d/parent ] || echo $d; done)"
    add("a layer", f"overlay2/$(cat {record}/cache-id)", Loss.IMAGES, (FORKY,), lost=GONE)
    # For these an engine waits without end: "Loading containers: start."
    add("a layer's size", f"{record}/size", Loss.IMAGES, (TRIXIE,), pipe=PIPE)
    for flavour in (TRIXIE, FORKY_C8D):
        script = "mkdir -p containers/one; mkfifo containers/one/config.v2.json"
        cases.append(Damage("a container planted", script, Loss.RECORDS, (flavour,)))
    return cases


TABLE = _table()
CASES = [(damage, flavour) for damage in TABLE for flavour in damage.flavours]


@pytest.fixture(scope="module")
def ward(module_engine: Engine) -> Ward:
    return Ward(module_engine)


@pytest.mark.parametrize(("damage", "flavour"), CASES, ids=[f"{damage}-{flavour}" for damage, flavour in CASES])
def test_a_damaged_data_root_has_a_working_daemon_in_the_same_start(
    ward: Ward, damage: Damage, flavour: Flavour
) -> None:
    good = ward.good(flavour)
    good.damage(damage.script)
    dind = ward.start(flavour, good.volume, "case")
    try:
        loss = damage.loss
        assert len([line for line in dind.warnings if "the data was damaged" in line]) == 1, dind.log()
        if loss < Loss.NAMES:
            assert dind.run_image(good.project) == good.build_id
        dind.keep_image(good.project)
        build = dind.build(good.project)
        assert (build.uncached == []) is (loss < Loss.CACHE), build.output
        build_id = dind.run_image(good.project)
        assert (build_id == good.build_id) is (loss < Loss.CACHE)
        dind.kill()
    finally:
        dind.remove()
    if loss is not Loss.NOTHING:
        aside = good.visitor.sh("ls case/.cachedind/aside")
        assert aside.strip(), "direct mode keeps what it moves away"
    if not damage.name.endswith(("cut", "gone")):
        return
    again = ward.start(flavour, good.volume, "case")
    try:
        assert again.warnings == [], again.log()
        assert again.build(good.project).uncached == []
        assert again.run_image(good.project) == build_id
    finally:
        again.remove()


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("mend.")])
def test_a_start_is_killed_amid_mending_and_the_next_mends(ward: Ward, point: str) -> None:
    good = ward.good(TRIXIE)
    good.damage(on("network/files/local-kv.db", NOISE))
    victim = ward.create(TRIXIE, good.volume, "case", CACHEDIND_KILL_AT=point)
    victim.start()
    assert victim.wait_exit() == 137
    victim.remove()
    dind = ward.start(TRIXIE, good.volume, "case")
    assert dind.build(good.project).uncached == []
    assert dind.run_image(good.project) == good.build_id
    dind.remove()


def test_what_lies_aside_is_told_by_the_doctor(ward: Ward) -> None:
    good = ward.good(TRIXIE)
    good.damage(on("volumes/metadata.db", NOISE))
    dind = ward.start(TRIXIE, good.volume, "case")
    report = json.loads(dind.exec("cachedind", "doctor", "--json", "--", f"--data-root={PLACE}/case").stdout)
    [one] = report["aside"]
    assert one.startswith(".cachedind/aside/")
    assert "volumes/metadata.db" in one
    dind.remove()


# ---- slots of a pool -------------------------------------------------------------------------------------------------

HURT = f"{CONTAINERD}/io.containerd.metadata.v1.bolt/meta.db"


def test_a_damaged_slot_gives_way_to_its_golden(engine: Engine) -> None:
    disk = DISKS[1]
    pool = disk.volume(engine)
    what = marked_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    first.build(what)
    build_id = first.run_image(what)
    first.kill()
    first.remove()
    second = disk.start(engine, pool)  # makes a golden of the first one's state
    assert second.build(what).uncached == []
    second.kill()
    second.remove()
    visitor = Visitor(engine, pool)
    visitor.sh(f"for f in keys/default/slots/*/data/{HURT}; do {NOISE}; done")
    third = disk.start(engine, pool)
    assert third.build(what).uncached == [], third.log()
    assert third.run_image(what) == build_id
    assert any("is set aside" in line for line in third.warnings), third.log()


def test_a_slot_in_which_nothing_can_be_moved_gives_way_too(engine: Engine) -> None:
    """The last job has left a link in the place of what is set aside."""
    disk = DISKS[1]
    pool = disk.volume(engine)
    what = marked_project(secrets.token_hex(8))
    for _ in range(2):
        dind = disk.start(engine, pool)
        dind.build(what)
        build_id = dind.run_image(what)
        dind.kill()
        dind.remove()
    Visitor(engine, pool).sh(
        f"for f in keys/default/slots/*/data/volumes/metadata.db; do {NOISE}; "
        'd="$(dirname "$(dirname "$f")")/.cachedind"; mkdir -p "$d"; rm -rf "$d/aside"; ln -s /etc "$d/aside"; done'
    )
    third = disk.start(engine, pool)
    assert third.build(what).uncached == [], third.log()
    assert third.run_image(what) == build_id
    [line] = [line for line in third.warnings if "is set aside" in line]
    assert ".cachedind/aside is not a directory" in line


def test_a_golden_that_fails_is_dropped_and_the_one_before_is_cloned(engine: Engine) -> None:
    disk = DISKS[1]
    pool = disk.volume(engine)
    what = marked_project(secrets.token_hex(8))
    for _ in range(3):  # a golden, a golden before it, and a slot
        dind = disk.start(engine, pool)
        dind.build(what)
        build_id = dind.run_image(what)
        dind.build(marked_project(secrets.token_hex(8)))
        dind.kill()
        dind.remove()
    visitor = Visitor(engine, pool)
    visitor.sh(f"for f in keys/default/slots/*/data/{HURT} keys/default/scopes/%/golden/data/{HURT}; do {NOISE}; done")
    dind = disk.start(engine, pool)
    assert dind.build(what).uncached == [], dind.log()
    assert dind.run_image(what) == build_id
    assert sum("is set aside" in line for line in dind.warnings) >= 2, dind.log()


def test_a_slot_on_which_no_daemon_came_up_is_proven_before_a_job_gets_it(engine: Engine) -> None:
    disk = DISKS[1]
    pool = disk.volume(engine)
    what = marked_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    first.build(what)
    first.kill()
    first.remove()
    # Killed before its daemon answers, and the only state that there is: the golden was made of it.
    victim = disk.start(engine, pool, ready=False, start=False, env={"CACHEDIND_KILL_AT": "hide.unmounted"})
    victim.start()
    victim.wait_exit()
    victim.remove()
    Visitor(engine, pool).sh("for d in keys/default/scopes/%/golden*; do mv $d trash/; done")
    second = disk.start(engine, pool)
    assert any("a private daemon came up on it" in line for line in second.messages), second.log()
    assert second.build(what).uncached == []
