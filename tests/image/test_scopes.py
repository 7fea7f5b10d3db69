"""Jobs of one project: each begins with what it has left itself, whatever the others do beside it."""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.flavours import FLAVOURS, Flavour
from helpers.pools import Disk, slot_of
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

EXT4 = Disk("ext4", Flavour("forky", "graphdriver"))


def begin(disk: Disk, engine: Engine, pool: Volume, **environ: str) -> Dind:
    return disk.start(engine, pool, env=environ)


def job(disk: Disk, engine: Engine, pool: Volume, project: Project | None, **environ: str) -> Dind:
    """A whole job, which ends as CI ends it."""
    dind = begin(disk, engine, pool, **environ)
    if project is not None:
        dind.build(project)
    dind.kill()
    return dind


SIDE_BY_SIDE = [(Disk("ext4", FLAVOURS[0]), True), (Disk("xfs", FLAVOURS[2]), True), (EXT4, False)]


@pytest.mark.everyday("containerd", "forky-no scopes")
@pytest.mark.parametrize(("disk", "named"), SIDE_BY_SIDE, ids=["trixie", "containerd", "forky-no scopes"])
def test_jobs_of_a_pipeline_side_by_side_are_warm_from_the_second_round_on(
    engine: Engine, disk: Disk, named: bool
) -> None:
    """Three that build something of their own, and one that only asks for the version; they begin and end in another
    order each time."""
    pool = disk.volume(engine)
    projects: dict[str, Project | None] = {
        name: overlay_project(secrets.token_hex(8), tag=f"{name}:latest") for name in ("web", "api", "worker")
    }
    projects["lint"] = None
    orders = [list(order) for order in itertools.permutations(projects)][:: 24 // 4]
    for round_number, order in enumerate(orders if named else orders[:2]):
        dinds = {name: disk.start(engine, pool, ready=False, start=False, env=scope(name, named)) for name in order}
        for dind in dinds.values():
            dind.start()
        for dind in dinds.values():
            dind.wait_ready(timeout_s=120)
        for name, project in projects.items():
            if project is None:
                dinds[name].docker("version")
            elif not named and round_number == 0 and name != "web":
                continue  # without scopes the newest state is that of one of them
            else:
                build = dinds[name].build(project)
                if round_number and (named or name == "web"):
                    assert build.uncached == [], (name, round_number, dinds[name].summary)
        for name in reversed(order):
            dinds[name].kill()


def scope(name: str, named: bool) -> Mapping[str, str]:
    return {"CI_JOB_NAME": f"{name} 1/2"} if named else {}


@pytest.mark.parametrize("disk", [Disk("btrfs", FLAVOURS[0]), Disk("ext4", FLAVOURS[2])], ids=str)
def test_a_prune_of_everything_as_a_jobs_last_step_costs_the_next_nothing(engine: Engine, disk: Disk) -> None:
    pool = disk.volume(engine)
    project = overlay_project(secrets.token_hex(8))
    job(disk, engine, pool, project)
    pruned = begin(disk, engine, pool)
    assert pruned.build(project).uncached == []
    pruned.docker("system", "prune", "--all", "--force", "--volumes")
    pruned.kill()

    after = begin(disk, engine, pool)
    assert after.build(project).uncached == []
    assert slot_of(after) != slot_of(pruned)
    assert f"slot {slot_of(pruned)} is passed over: its job removed most of what it began with" in after.log()
    assert after.warnings == []
    wait_until(
        lambda: slot_of(pruned) not in engine.in_volume(pool, "ls /volume/keys/default/slots"),
        what="the emptied slot to be removed",
        timeout_s=30,
    )


def test_a_new_job_begins_with_the_newest_state_of_the_others_and_leaves_them_theirs(engine: Engine) -> None:
    pool = EXT4.volume(engine)
    project = overlay_project(secrets.token_hex(8))
    first = job(EXT4, engine, pool, project, CACHEDIND_SCOPE="build")

    lint = begin(EXT4, engine, pool, CACHEDIND_SCOPE="lint")
    assert "from the state of scope build" in (lint.summary or "")
    assert "key default, scope lint, slot" in (lint.summary or "")
    assert lint.build(project).uncached == []
    build = begin(EXT4, engine, pool, CACHEDIND_SCOPE="build")
    assert (build.summary or "").startswith("warm: ")
    assert slot_of(build) == slot_of(first)
    assert build.build(project).uncached == []


def test_a_cold_start_says_what_was_there_and_why_it_does_not_fit(engine: Engine) -> None:
    pool = EXT4.volume(engine)
    nothing = begin(EXT4, engine, pool)
    assert "cold: the pool has nothing for key default, slot" in (nothing.summary or "")
    nothing.build(overlay_project(secrets.token_hex(8)))
    nothing.kill()
    older = begin(Disk("ext4", Flavour("trixie", "graphdriver")), engine, pool)
    assert (older.summary or "").startswith(
        "cold: nothing that this start can use; key default: what is there is of a newer engine (28."
    )
