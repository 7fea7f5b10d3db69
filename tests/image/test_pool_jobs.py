"""What a job finds in a slot, and what the next one does: leftovers, throw-aways, other branches, other engines."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, NamedTuple

import pytest

from helpers.builds import overlay_project
from helpers.estates import small_project
from helpers.flavours import Flavour
from helpers.pools import Disk, slot_of, together
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

BTRFS = Disk("btrfs", Flavour("forky", "graphdriver"))


def leave_things(dind: Dind) -> None:
    """What a careless job leaves: a service that always restarts, a stopped container, a network, volumes."""
    dind.load_base()
    dind.docker("network", "create", "jobs-network")
    dind.docker("volume", "create", "jobs-volume")
    dind.docker(
        *("run", "--detach", "--name=service", "--restart=always", "--network=jobs-network"),
        *("--volume=jobs-volume:/data", "base:latest", "sh", "-c", "echo ran >>/data/starts; sleep 1000"),
    )
    dind.docker("run", "--name=stopped", "--volume=/anonymous", "base:latest", "true")


def things(dind: Dind) -> dict[str, list[str]]:
    networks = set(dind.docker("network", "ls", "--format={{.Name}}").split()) - {"bridge", "host", "none"}
    return {
        "containers": sorted(dind.docker("ps", "--all", "--format={{.Names}}").split()),
        "networks": sorted(networks),
        "volumes": sorted(dind.docker("volume", "ls", "--quiet").split()),
    }


NOTHING: dict[str, list[str]] = {"containers": [], "networks": [], "volumes": []}


def test_a_jobs_leftovers_are_gone_in_the_next_but_the_build_cache_stays(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("btrfs", flavour)
    pool = disk.volume(engine)
    project = overlay_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    first.build(project)
    leave_things(first)
    left = things(first)
    assert left["containers"] == ["service", "stopped"]
    assert left["networks"] == ["jobs-network"]
    assert len(left["volumes"]) == 2
    first.kill()

    # The one that takes the slot over, and one beside it, whose clone was made before the cleaning or after.
    pair = [disk.start(engine, pool, ready=False, start=False) for _ in range(2)]
    together(lambda dind: dind.start(), pair)
    together(lambda dind: dind.wait_ready(timeout_s=120), pair)
    for dind in pair:
        assert things(dind) == NOTHING
        assert dind.docker("images", "--all", "--quiet") == ""
        assert dind.build(project).uncached == []
        assert dind.warnings == []


@pytest.mark.parametrize(
    ("keep", "gone"),
    [("all", ()), ("containers,networks,volumes", ()), ("networks", ("containers", "volumes"))],
    ids=["all", "each", "networks"],
)
def test_what_is_to_be_kept_is_kept(engine: Engine, keep: str, gone: tuple[str, ...]) -> None:
    pool = BTRFS.volume(engine)
    first = BTRFS.start(engine, pool)
    leave_things(first)
    left = things(first)
    first.kill()
    second = BTRFS.start(engine, pool, env={"CACHEDIND_KEEP": keep})
    assert things(second) == {what: [] if what in gone else names for what, names in left.items()}


def test_a_read_only_instance_sees_the_golden_and_leaves_no_trace(engine: Engine) -> None:
    pool = BTRFS.volume(engine)
    project = overlay_project(secrets.token_hex(8))
    first = BTRFS.start(engine, pool)
    first.build(project)
    build_id = first.run_image(project)
    first.docker("container", "prune", "--force")
    first.kill()

    second = BTRFS.start(engine, pool, env={"CACHEDIND_ACCESS": "ro"})
    golden = digest_of_golden(engine, pool)
    assert (second.summary or "").startswith("cloned: ")
    assert second.build(project).uncached == []
    assert second.run_image(project) == build_id
    poison = overlay_project(secrets.token_hex(8), tag="poison:latest")
    second.build(poison)
    throw_away = slot_of(second)
    second.kill()

    for _ in range(2):
        third = BTRFS.start(engine, pool)
        assert slot_of(third) != throw_away
        assert third.build(project).uncached == []
        assert third.build(poison).uncached != []
        third.build(overlay_project(secrets.token_hex(8), tag="new:latest"))
        third.kill()
        if digest_of_golden(engine, pool) != golden:
            break
    else:
        raise AssertionError("nothing was promoted at all, so nothing is shown")
    # Before the third's own state became the golden, its bytes were those that the second had found.
    wait_until(
        lambda: throw_away not in engine.in_volume(pool, "ls /volume/keys/default/slots"),
        what="the throw-away to be removed",
        timeout_s=30,
    )


def digest_of_golden(engine: Engine, pool: Volume) -> str:
    golden = "/volume/keys/default/scopes/%/golden/data"
    script = f"cd {golden}; find . -type f -print0 | sort -z | xargs -0 sha256sum; find . | sort"
    return engine.in_volume(pool, f"({script}) | sha256sum")


def test_the_golden_is_what_it_was_while_a_read_only_instance_runs(engine: Engine) -> None:
    pool = BTRFS.volume(engine)
    first = BTRFS.start(engine, pool)
    first.build(overlay_project(secrets.token_hex(8)))
    first.kill()
    second = BTRFS.start(engine, pool, env={"CACHEDIND_ACCESS": "ro"})
    before = digest_of_golden(engine, pool)
    second.build(overlay_project(secrets.token_hex(8), tag="other:latest"))
    second.docker("image", "rm", "--force", "base:latest")
    second.kill()
    assert digest_of_golden(engine, pool) == before


def test_a_new_branch_is_warm_from_mains_golden(engine: Engine) -> None:
    pool = BTRFS.volume(engine)
    project = overlay_project(secrets.token_hex(8))
    main = BTRFS.start(engine, pool, env={"CACHEDIND_KEY": "group/project/main"})
    main.build(project)
    build_id = main.run_image(project)
    main.kill()
    env = {"CACHEDIND_KEY": "group/project/feature", "CACHEDIND_FALLBACK_KEYS": "group/project/dev, group/project/main"}
    branch = BTRFS.start(engine, pool, env=env)
    assert "from key group/project/main, last used" in (branch.summary or "")
    assert branch.build(project).uncached == []
    assert branch.run_image(project) == build_id
    own = overlay_project(secrets.token_hex(8), tag="of-the-branch:latest")
    branch.build(own)
    branch.kill()

    # From now on it has a cache of its own, and main has nothing of it.
    again = BTRFS.start(engine, pool, env=env)
    assert (again.summary or "").startswith("warm: ")
    assert again.build(own).uncached == []
    main = BTRFS.start(engine, pool, env={"CACHEDIND_KEY": "group/project/main"})
    assert main.build(own).uncached != []
    stranger = BTRFS.start(engine, pool, env={"CACHEDIND_KEY": "group/another"})
    assert (stranger.summary or "").startswith("cold: ")


def test_the_rest_of_the_pool_is_out_of_the_jobs_sight(engine: Engine) -> None:
    pool = BTRFS.volume(engine)
    dind = BTRFS.start(engine, pool)
    assert dind.sh("ls /cachedind /run/cachedind/pool 2>/dev/null || true") == "/cachedind:"
    mounts = dind.sh("grep -c ' /cachedind ' /proc/self/mountinfo || true")
    assert mounts == "0"
    [daemon] = dind.daemons()
    assert dind.sh(f"grep -E ' /cachedind | /run/cachedind/pool ' /proc/{daemon.pid}/mountinfo || true") == ""
    dind.load_base()
    inside = dind.docker("run", "--rm", "--privileged", "--volume=/:/host", "base:latest", "ls", "/host/cachedind")
    assert inside == ""


def test_ready_at_is_noted_and_the_witness_ends(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("btrfs", flavour)
    pool = disk.volume(engine)
    dind = disk.start(engine, pool)
    slot = slot_of(dind)

    def state() -> dict[str, object]:
        found: dict[str, object] = json.loads(
            engine.in_volume(pool, f"cat /volume/keys/default/slots/{slot}/slot.json")
        )
        return found

    noted = wait_until(lambda: found if (found := state()).get("ready_at") else None, what="ready_at in slot.json")
    assert 0.1 < float(str(noted["ready_s"])) < 60
    wait_until(
        lambda: not [process for process in dind.processes() if "boot.py" in process.command and process.pid != 1],
        what="the witness to end",
    )
    holders = {
        process.comm for process in dind.processes() if process.has_open(f"/keys/default/slots/{slot}/slot.lock")
    }
    assert holders <= {"python", "dockerd", "containerd"}
    dind.stop()
    ended = state()["ended"]
    assert isinstance(ended, dict)
    assert (ended["status"], ended["clean"]) == (0, True)


def test_a_witness_does_not_outlive_its_daemon(engine: Engine) -> None:
    pool = BTRFS.volume(engine)
    # dockerd dies before it is ready: the witness is still waiting then.
    dind = BTRFS.start(engine, pool, ready=False, args=["--default-runtime=none-such"])
    assert dind.wait_exit() != 0
    again = BTRFS.start(engine, pool)
    slots = engine.in_volume(pool, "cat /volume/keys/default/slots/*/slot.json")
    assert '"ready_at": null' in slots or slot_of(again)
    assert again.docker("info", "--format={{.ServerVersion}}")


def test_another_engine_and_back(engine: Engine) -> None:
    old, new = Disk("btrfs", Flavour("trixie", "graphdriver")), Disk("btrfs", Flavour("forky", "graphdriver"))
    pool = old.volume(engine)
    first_project = overlay_project(secrets.token_hex(8), tag="first:latest")
    second_project = overlay_project(secrets.token_hex(8), tag="second:latest")
    first = old.start(engine, pool)
    first.build(first_project)
    first.kill()

    for number in range(3):  # often enough that the older engine's golden is two promotions behind
        upgraded = new.start(engine, pool)
        assert upgraded.build(first_project).uncached == [], f"start {number}"
        upgraded.build(second_project if number == 0 else small_project(secrets.token_hex(8)))
        upgraded.kill()

    back = old.start(engine, pool)
    assert not (back.summary or "").startswith("cold")
    assert back.build(first_project).uncached == []
    back.kill()
    forth = new.start(engine, pool)
    assert forth.build(first_project).uncached == []
    assert forth.build(second_project).uncached == []
    assert forth.warnings == []


def test_another_store_and_back(engine: Engine) -> None:
    graph, ctrd = Disk("btrfs", Flavour("forky", "graphdriver")), Disk("btrfs", Flavour("forky", "containerd"))
    asked = {"CACHEDIND_IMAGE_STORE": "graphdriver"}
    pool = graph.volume(engine)
    projects = {disk: overlay_project(secrets.token_hex(8)) for disk in (graph, ctrd)}
    for disk, env in ((graph, asked), (ctrd, {})):
        dind = disk.start(engine, pool, env=env)
        assert (dind.summary or "").startswith("cold")
        dind.build(projects[disk])
        dind.kill()
    for _ in range(2):
        for disk, env in ((graph, asked), (ctrd, {})):
            dind = disk.start(engine, pool, env=env)
            assert dind.info().store == disk.flavour.store
            assert dind.build(projects[disk]).uncached == []
            dind.kill()


class Wanted(NamedTuple):
    """What a start gets, and the settings and arguments with which it asks for that."""

    driver: str
    store: str = "graphdriver"
    env: Mapping[str, str] = {}
    args: tuple[str, ...] = ()
    daemon_json: str = ""


def test_what_one_job_asks_for_does_not_become_the_keys(engine: Engine, suite: str) -> None:
    """Each later job gets what it would have had; and who asks again is as warm."""
    disk = Disk("btrfs", Flavour(suite, "graphdriver"))
    pool = disk.volume(engine)
    project = small_project(secrets.token_hex(8))
    own = Wanted("overlay2")
    vfs = Wanted("vfs", args=("--storage-driver=vfs",))
    ctrd = Wanted("overlayfs", "containerd", {"TEST_INTEGRATION_USE_SNAPSHOTTER": "1"})
    # What a template of years ago says, for a key of its own too: there it was followed, and ended the start.
    remembered = Wanted("overlay2", env={"DOCKER_DRIVER": "btrfs"})
    fresh = Wanted("overlay2", env={"DOCKER_DRIVER": "btrfs", "CACHEDIND_KEY": "new"})
    flag = Wanted("overlayfs", "containerd", args=("--feature=containerd-snapshotter=true",))
    file = Wanted("overlayfs", "containerd", daemon_json='{"features": {"containerd-snapshotter": true}}')
    requests = [vfs, own, *([ctrd, flag, own, file] if suite == "forky" else []), vfs, remembered, fresh]
    seen: set[str] = set()
    for driver, store, env, args, daemon_json in requests:
        dind = disk.start(engine, pool, ready=False, start=False, env=env, args=args)
        dind.put("/etc/docker", {"daemon.json": daemon_json} if daemon_json else {})
        dind.start()
        dind.wait_ready()
        info = dind.info()
        assert (info.driver, info.store) == (driver, store)
        warm = dind.build(project).uncached == []
        assert warm == (driver in seen and env != fresh.env)
        seen.add(driver)
        ignored = [text for text in dind.warnings if "DOCKER_DRIVER=btrfs is ignored" in text]
        assert len(ignored) == ("DOCKER_DRIVER" in env)
        unshared = [
            text for text in dind.warnings if "layers of vfs cannot be shared: slots with it are leased" in text
        ]
        assert len(unshared) == (driver == "vfs")
        dind.kill()
