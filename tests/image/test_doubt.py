"""Nothing healthy is taken for damaged: reboots, crashes, slow engines, cancelled starts and typos cost nothing.

What a crash of the host has really emptied is found by the lists of files, set aside and named, and nothing else is.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import secrets
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from cachedind.engine import doubt
from helpers.clients import docker_archive
from helpers.dind import REAL_DOCKERD
from helpers.estates import Visitor
from helpers.flavours import FLAVOURS, Flavour
from helpers.pools import DISKS
from helpers.waiting import wait_until
from helpers.ward import NOISE, PLACE, Ward, marked_project

if TYPE_CHECKING:
    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume
    from helpers.pools import Disk
    from helpers.ward import Good

TRIXIE, FORKY, FORKY_C8D = FLAVOURS
GRAPH = (TRIXIE, FORKY)
BOOT = "/opt/cachedind/boot.py"
STRICT = {"CACHEDIND_STRICT": "1"}

REBOOT = r"""sed -i 's/"boot_id": "[^"]*"/"boot_id": "of-before"/' .cachedind/state.json;"""
CLEAN = r"""sed -i 's/"ended": null/"ended": {"status": 0, "clean": true, "at": 1.0}/' .cachedind/state.json;"""
NOT_READY = (
    r"""sed -i 's/"ready_at": [^,]*/"ready_at": null/; s/"ended": {[^}]*}/"ended": null/' .cachedind/state.json;"""
)
LOOKED = "a private daemon came up on it"


@pytest.fixture(scope="module")
def ward(module_engine: Engine) -> Ward:
    return Ward(module_engine)


def check_whole(dind: Dind, good: Good) -> None:
    """Everything that was there is there, and nothing lies aside."""
    assert dind.run_image(good.project) == good.build_id
    assert dind.build(good.project).uncached == [], dind.log()
    assert good.visitor.sh("ls case/.cachedind/aside 2>/dev/null || true") == ""


def end(*dinds: Dind) -> None:
    for dind in dinds:
        dind.kill()
        dind.remove()


# ---- reboots and crashes that cost nothing ---------------------------------------------------------------------------

EVENTS = {
    # Nothing to doubt, and so nothing is looked at.
    "a clean end, then another boot": (CLEAN + REBOOT, ""),
    "killed while idle, then another boot": (REBOOT, doubt.CRASHED),
    "a clock a day ahead": (REBOOT + r"""sed -i 's/_at": 1/_at": 9/' .cachedind/state.json;""", doubt.CRASHED),
    "a state file without a byte": (": >.cachedind/state.json;", doubt.LOST_NOTE),
    "a state file that is gone": ("rm .cachedind/state.json;", doubt.LOST_NOTE),
    "a start that was cancelled": (NOT_READY, doubt.NEVER_READY),
}


@pytest.mark.parametrize("event", EVENTS)
def test_what_is_no_damage_costs_nothing(ward: Ward, flavour: Flavour, event: str) -> None:
    script, why = EVENTS[event]
    good = ward.good(flavour)
    good.damage(
        f"{script} grep -q '\"clean\": true' .cachedind/state.json || {'false' if 'clean' in event else 'true'}"
    )
    dind = ward.start(flavour, good.volume, "case")
    looked = [line for line in dind.messages if LOOKED in line]
    assert [line.partition(":")[0] for line in looked] == ([why] if why else []), dind.log()
    assert not [line for line in dind.warnings if "damaged" in line], dind.log()
    check_whole(dind, good)
    end(dind)
    if why:
        again = ward.start(flavour, good.volume, "case")
        assert not [line for line in (*again.messages, *again.warnings) if "looked" in line], "proven once is enough"
        end(again)


@pytest.mark.everyday("trixie-graphdriver", "forky-containerd")
def test_the_doubt_of_a_crash_outlives_a_start_that_is_killed_amid_looking(ward: Ward, flavour: Flavour) -> None:
    good = ward.good(flavour)
    good.damage(REBOOT)
    for point in ("mend.moved", "mend.proven"):
        victim = ward.create(flavour, good.volume, "case", CACHEDIND_KILL_AT=point)
        victim.start()
        assert victim.wait_exit() == 137
        victim.remove()
    dind = ward.start(flavour, good.volume, "case")
    assert any(line.startswith(doubt.CRASHED) for line in dind.messages), dind.log()
    check_whole(dind, good)
    end(dind)


@pytest.mark.everyday("trixie-graphdriver", "forky-containerd")
def test_the_doubt_of_a_crash_ends_only_when_there_was_time_to_look(ward: Ward, flavour: Flavour) -> None:
    good = ward.good(flavour)
    good.damage(REBOOT)
    late = ward.create(flavour, good.volume, "case")
    start_with(late, NO_TIME)
    [line] = [line for line in late.warnings if "no time left" in line]
    assert "the next start goes on looking" in line
    assert not [line for line in late.messages if LOOKED in line], late.log()
    check_whole(late, good)
    end(late)
    again = ward.start(flavour, good.volume, "case")
    assert [line.partition(":")[0] for line in again.messages if LOOKED in line] == [doubt.CRASHED], again.log()
    assert not [line for line in again.warnings if "no time left" in line]
    check_whole(again, good)
    end(again)
    last = ward.start(flavour, good.volume, "case")
    assert not [line for line in (*last.messages, *last.warnings) if LOOKED in line or "not checked" in line]
    end(last)


# ---- what a crash has emptied ----------------------------------------------------------------------------------------


def tool_image(tag: str, ward: Ward) -> bytes:
    """An image as people load it: the base's files, and one that no other image has."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(ward.engine.base_tar)) as base, tarfile.open(fileobj=layer, mode="w") as tar:
        for entry in base:
            tar.addfile(entry, base.extractfile(entry) if entry.isreg() else None)
        content = tarfile.TarInfo("content")
        content.size = 9
        tar.addfile(content, io.BytesIO(b"the-tool\n"))
    return docker_archive(layer.getvalue(), tag, ["/bin/sh", "-c", "cat /content"])


@pytest.mark.parametrize("flavour", GRAPH, ids=str)
def test_a_loaded_image_with_an_emptied_file_is_set_aside_and_can_be_loaded_again(ward: Ward, flavour: Flavour) -> None:
    good = ward.good(flavour)
    good.damage("")
    first = ward.start(flavour, good.volume, "case")
    first.put("/var/tmp", {"tool.tar": tool_image("tool:latest", ward)})
    first.docker("load", "--input", "/var/tmp/tool.tar")
    assert first.docker("run", "--rm", "--network=none", "tool") == "the-tool"
    end(first)
    good.visitor.sh(f"cd case; {REBOOT} f=$(echo overlay2/*/diff/content); : >$f")

    said = []
    for _ in range(2):
        strict = ward.create(flavour, good.volume, "case", **STRICT)
        strict.start()
        assert strict.wait_exit() == 78
        said += strict.errors
        strict.remove()
    assert said[0] == said[1], "the evidence stays"
    assert "content: it has 0 bytes instead of 9" in said[0]

    dind = ward.start(flavour, good.volume, "case")
    [line] = [line for line in dind.warnings if "damaged" in line]
    assert "content: it has 0 bytes instead of 9" in line
    assert ".cachedind/aside/" in line
    assert dind.build(good.project).uncached == [], "nothing else is gone"
    assert dind.run_image(good.project) == good.build_id
    assert dind.docker("images", "--quiet", "tool") == ""
    dind.put("/var/tmp", {"tool.tar": tool_image("tool:latest", ward)})
    dind.docker("load", "--input", "/var/tmp/tool.tar")
    assert dind.docker("run", "--rm", "--network=none", "tool") == "the-tool"
    end(dind)


@pytest.mark.parametrize("flavour", GRAPH, ids=str)
def test_a_built_image_with_an_emptied_file_is_built_again(ward: Ward, flavour: Flavour) -> None:
    good = ward.good(flavour)
    good.damage(f"{REBOOT} for f in overlay2/*/diff/build-id; do : >$f; done")
    dind = ward.start(flavour, good.volume, "case")
    assert any("build-id: it has 0 bytes" in line for line in dind.warnings), dind.log()
    dind.keep_image(good.project)
    assert dind.build(good.project).uncached != []
    assert dind.run_image(good.project) != ""
    end(dind)


SNAPSHOTS = "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots"
EACH_FILE = f"find {SNAPSHOTS} -type f -printf '%p %s %n %m %u %T@\\n' | sort"


def test_files_that_a_crash_has_emptied_are_written_again_from_packed_layers(ward: Ward) -> None:
    flavour = FORKY_C8D
    good = ward.good(flavour)
    good.damage("")
    first = ward.start(flavour, good.volume, "case")
    first.put("/var/tmp", {"tool.tar": tool_image("tool:latest", ward)})
    first.docker("load", "--input", "/var/tmp/tool.tar")
    assert first.docker("run", "--name=kept", "--network=none", "tool") == "the-tool"
    end(first)
    before = good.visitor.sh(f"cd case; {REBOOT} {EACH_FILE}")

    healthy = ward.create(flavour, good.volume, "case", CACHEDIND_KILL_AT="mend.proven")
    healthy.start()
    assert healthy.wait_exit() == 137
    healthy.remove()
    assert good.visitor.sh(f"cd case; {EACH_FILE}") == before, "what is whole is not touched"

    which = "-path '*/fs/content' -o -path '*/fs/bin/busybox' -size +0 -o -path '*/fs/build-id'"
    good.visitor.sh(f"cd case; for f in $(find {SNAPSHOTS} {which}); do : >$f; done")
    strict = ward.create(flavour, good.volume, "case", **STRICT)
    strict.start()
    assert strict.wait_exit() == 78
    assert "fs: " in strict.errors[0]
    strict.remove()

    dind = ward.start(flavour, good.volume, "case")
    [line] = [line for line in dind.warnings if "damaged" in line]
    assert "0 bytes instead of" in line
    assert "nothing is lost" in line
    assert "were restored from the images' compressed layers" in line
    assert dind.docker("run", "--rm", "--network=none", "tool") == "the-tool"
    assert dind.docker("start", "--attach", "kept") == "the-tool", "a container on it has them, too"
    assert dind.run_image(good.project) == good.build_id
    assert dind.build(good.project).uncached == [], "nothing else is gone"
    end(dind)


# ---- engines that are slow, killed, or refuse ------------------------------------------------------------------------


NO_TIME = "from cachedind.engine import hollow\nhollow.TIME_S = 0.0\n"
"""For looking at layers."""


def start_with(dind: Dind, patch: str) -> None:
    """Start an instance with this put before all that its start does."""
    program = dind.container.get_archive(BOOT)[0]
    with tarfile.open(fileobj=io.BytesIO(b"".join(program))) as tar:
        file = tar.extractfile("boot.py")
        assert file is not None
        source = file.read().decode()
    dind.put(os.path.dirname(BOOT), {os.path.basename(BOOT): _after_path(source, patch)})
    dind.start()
    dind.wait_ready()


def start_slowly(dind: Dind, seconds: float, patience_s: float) -> None:
    """Start an instance whose private daemons take so long, and are given that much time."""
    patch = (
        "from cachedind.engine import cleaning, private_containerd, proof\n"
        f"proof.PROOF_S = cleaning.DEADLINE_S = private_containerd.DEADLINE_S = {patience_s}\n"
        "_start = private_containerd.Program\n"
        "def _slowly(argv, **more):\n"
        "    if 'dockerd' in argv[0]:\n"
        f"        argv = ('sh', '-c', 'sleep {seconds}; exec \"$@\"', 'sh', *argv)\n"
        "    return _start(argv, **more)\n"
        "private_containerd.Program = _slowly\n"
    )
    start_with(dind, patch)


def _after_path(source: str, patch: str) -> str:
    """Before the first thing that boot.py does with the package."""
    at = re.search(r"^(from cachedind|import cachedind|    from cachedind|    import cachedind)", source, re.MULTILINE)
    assert at, source
    indent = "    " if at[0].startswith(" ") else ""
    return source[: at.start()] + "".join(f"{indent}{line}\n" for line in patch.splitlines()) + source[at.start() :]


def test_slow_is_not_dead(ward: Ward, flavour: Flavour) -> None:
    good = ward.good(flavour)
    good.damage(NOT_READY)
    slow = ward.create(flavour, good.volume, "case")
    start_slowly(slow, 4, 1)
    [line] = [line for line in slow.warnings if "proven" in line]
    assert "did not answer in time" in line
    check_whole(slow, good)
    end(slow)
    again = ward.start(flavour, good.volume, "case")
    assert not [line for line in (*again.messages, *again.warnings) if "proven" in line or LOOKED in line], again.log()
    end(again)


# ---- crashes, in a pool ----------------------------------------------------------------------------------------------

GOLDENS = "ls keys/default/scopes/*/golden*/golden.json 2>/dev/null || true"
ON_DISK = f"grep -l 'durable.*true' $({GOLDENS}) || true"
CRASH = r"""sed -i 's/"boot_id": "[^"]*"/"boot_id": "of-before"/' """ f"keys/default/slots/*/slot.json $({GOLDENS});"
HOLLOW = "for f in $(find keys/default/slots/*/data -path '*/build-id' -type f); do : >$f; echo $f; done"
"""Files of layers that are a slot's own: those of others are behind links."""
OTHER_SIZE = 9
"""Of a second project's nonce: a context in the same place whose files have the same sizes and times is the same one to
BuildKit."""


def check_right(dind: Dind, what: Project) -> None:
    """A build of the project has what it should, whatever was cached of it."""
    dind.keep_image(what)
    dind.build(what)
    assert re.fullmatch(r"[0-9a-f-]{36}", dind.run_image(what)), dind.log()


@pytest.mark.parametrize("disk", DISKS[:2], ids=str)
def test_a_slot_that_there_was_no_time_to_look_at_is_no_golden(engine: Engine, disk: Disk) -> None:
    pool = disk.volume(engine)
    what = marked_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    first.build(what)
    end(first)
    visitor = Visitor(engine, pool)
    visitor.sh(CRASH)
    late = disk.start(engine, pool, ready=False, start=False)
    start_with(late, NO_TIME)
    assert any("no time left" in line for line in late.warnings), late.log()
    assert late.build(what).uncached == [], late.log()
    end(late)
    again = disk.start(engine, pool)
    assert [line.partition(":")[0] for line in again.messages if LOOKED in line] == [doubt.CRASHED], again.log()
    assert again.build(what).uncached == []
    assert visitor.sh(GOLDENS) == ""
    end(again)
    last = disk.start(engine, pool)
    assert last.build(what).uncached == []
    assert visitor.sh(GOLDENS) != "", last.log()
    assert last.warnings == []


@pytest.mark.everyday("golden-ext4-trixie-graphdriver", "alone-btrfs-forky-containerd")
@pytest.mark.parametrize("disk", DISKS[:2], ids=str)
@pytest.mark.parametrize("has_golden", [False, True], ids=["alone", "golden"])
def test_emptied_layers_of_a_slot_break_no_job(engine: Engine, disk: Disk, has_golden: bool) -> None:
    pool = disk.volume(engine)
    visitor = Visitor(engine, pool)
    what, other = marked_project(secrets.token_hex(8)), marked_project(secrets.token_hex(OTHER_SIZE))
    for project in (what, other) if has_golden else (what,):
        dind = disk.start(engine, pool)
        dind.build(project)
        if project is other:
            wait_until(lambda: visitor.sh(ON_DISK), what="a golden on the disk")
        end(dind)
    assert bool(visitor.sh(GOLDENS)) is has_golden
    visitor.sh(CRASH)
    assert visitor.sh(HOLLOW) != ""
    for _ in range(2):
        dind = disk.start(engine, pool)
        check_right(dind, what)
        check_right(dind, other)
        end(dind)
    dind = disk.start(engine, pool)
    assert dind.build(what).uncached == dind.build(other).uncached == [], dind.log()
    assert dind.warnings == []


def test_strict_changes_nothing_of_a_slot_that_a_crash_has_emptied(engine: Engine) -> None:
    disk = DISKS[0]
    pool = disk.volume(engine)
    visitor = Visitor(engine, pool)
    what = marked_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    first.build(what)
    end(first)
    visitor.sh(f"{CRASH} {HOLLOW}")
    slots, said = visitor.sh("ls keys/default/slots"), []
    for _ in range(2):
        strict = disk.start(engine, pool, ready=False, env=STRICT)
        assert strict.wait_exit() == 78
        said += strict.errors
        strict.remove()
    assert said[0] == said[1], "the evidence stays"
    assert "build-id: it has 0 bytes" in said[0]
    assert visitor.sh("ls keys/default/slots; ls aside") == slots
    dind = disk.start(engine, pool)
    check_right(dind, what)


def slots_and_goldens(visitor: Visitor) -> str:
    return visitor.sh("ls -d keys/default/scopes/%/golden* keys/default/slots/*; ls aside")


@pytest.mark.everyday("btrfs-forky-containerd")
@pytest.mark.parametrize("disk", DISKS[:2], ids=str)
def test_in_a_pool_slow_is_not_dead_either(engine: Engine, disk: Disk) -> None:
    pool = disk.volume(engine)
    what = marked_project(secrets.token_hex(8))
    for _ in range(2):
        dind = disk.start(engine, pool)
        dind.build(marked_project(secrets.token_hex(OTHER_SIZE)))
        dind.build(what)
        dind.docker("create", "--name=left", "--network=none", "small")
        end(dind)
    visitor = Visitor(engine, pool)
    before = set(slots_and_goldens(visitor).split())
    slow = disk.start(engine, pool, ready=False, start=False)
    start_slowly(slow, 4, 1)
    assert any("stays as it is" in line for line in slow.warnings), slow.log()
    assert slow.docker("ps", "--all", "--quiet") == "", "what the last job left is not shown"
    assert before <= set(slots_and_goldens(visitor).split())
    end(slow)
    again = disk.start(engine, pool)
    assert again.build(what).uncached == [], again.log()
    assert visitor.sh("ls aside") == ""


CANCELLED_AT = ("lease.recorded", "bind.bound", "hide.unmounted")
TYPOS: tuple[tuple[list[str], str], ...] = (
    (["--no-such-flag-of-a-newer-engine=1"], ""),
    (["--bridge=nosuch0"], ""),
    (["--host=tcp://203.0.113.1:2375", "--tls=false"], ""),
    ([], '{"no-such-setting": true}'),
    ([], "{"),
)
"""Flags, and a daemon.json, with which no engine starts: a user's mistake."""


@pytest.mark.everyday("ext4-trixie-graphdriver", "btrfs-forky-containerd")
@pytest.mark.parametrize("disk", DISKS, ids=str)
def test_neither_cancelled_starts_nor_typos_burn_the_cache(engine: Engine, disk: Disk) -> None:
    pool = disk.volume(engine)
    what = marked_project(secrets.token_hex(8))
    first = disk.start(engine, pool)
    first.build(what)
    end(first)
    for number, (args, daemon_json) in enumerate(TYPOS):
        point = CANCELLED_AT[number % len(CANCELLED_AT)]
        cancelled = disk.start(engine, pool, ready=False, env={"CACHEDIND_KILL_AT": point})
        assert cancelled.wait_exit() == 137
        cancelled.remove()
        refused = disk.start(engine, pool, ready=False, start=False, args=args)
        if daemon_json:
            refused.put("/etc/docker", {"daemon.json": daemon_json})
        refused.start()
        status = refused.wait_exit()
        assert status != 0
        assert (status == 78) is (daemon_json == "{"), (args, daemon_json)
        refused.remove()
    for _ in range(2):
        after_s = random.uniform(0, 2)
        killed = disk.start(engine, pool, ready=False)
        time.sleep(after_s)
        end(killed)
    dind = disk.start(engine, pool)
    assert dind.build(what).uncached == [], dind.log()
    assert not [line for line in dind.warnings if "aside" in line]


@pytest.mark.everyday("btrfs-forky-containerd")
@pytest.mark.parametrize("disk", DISKS[:2], ids=str)
def test_a_slot_that_ends_a_daemon_goes_and_its_golden_only_when_it_fails_too(engine: Engine, disk: Disk) -> None:
    pool = disk.volume(engine)
    what = marked_project(secrets.token_hex(8))
    for _ in range(2):
        dind = disk.start(engine, pool)
        dind.build(what)
        end(dind)
    visitor = Visitor(engine, pool)
    is_graph = disk.flavour.store == "graphdriver"
    hurt = "buildkit/cache.db" if is_graph else "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db"
    slots = visitor.sh("ls keys/default/slots").split()
    visitor.sh(f"for f in keys/default/slots/*/data/{hurt}; do {NOISE}; done")
    dind = disk.start(engine, pool)
    assert dind.build(what).uncached == [], dind.log()
    # A clone that was made in advance, where copying took long, is hurt as well.
    assert 1 <= len([line for line in dind.warnings if "is set aside" in line]) <= len(slots), dind.log()
    assert "golden" in visitor.sh("ls keys/default/scopes/%")


# ---- what is moved is recorded first ---------------------------------------------------------------------------------


def test_a_move_that_nobody_has_told_of_is_told_by_the_next_start(ward: Ward) -> None:
    good = ward.good(TRIXIE)
    good.damage(f"f=volumes/metadata.db; {NOISE}")
    victim = ward.create(TRIXIE, good.volume, "case", CACHEDIND_KILL_AT="mend.settled")
    victim.start()
    assert victim.wait_exit() == 137
    victim.remove()
    dind = ward.start(TRIXIE, good.volume, "case")
    [line] = [line for line in dind.warnings if "an earlier start" in line]
    assert "volumes/metadata.db" in line
    report = json.loads(dind.exec("cachedind", "doctor", "--json", "--", f"--data-root={PLACE}/case").stdout)
    assert "volumes/metadata.db" in report["aside"][0]
    end(dind)
    again = ward.start(TRIXIE, good.volume, "case")
    assert not [line for line in again.warnings if "an earlier start" in line]
    end(again)


# ---- somebody else's daemon ------------------------------------------------------------------------------------------


def foreign_daemon(engine: Engine, flavour: Flavour, volume: Volume) -> Dind:
    """The engine itself, started past everything of ours, as docker:dind would run it."""
    argv = [REAL_DOCKERD, "--iptables=false", "--bridge=none", f"--storage-driver={flavour.overlay}"]
    dind = engine.dind(flavour.suite, volume=volume, entrypoint=argv, start=False)
    features = {"containerd-snapshotter": flavour.store == "containerd"}
    dind.put("/etc/docker", {"daemon.json": json.dumps({"features": features})})
    dind.start()
    dind.wait_ready()
    return dind


def test_a_daemon_that_takes_no_lock_of_ours_is_neither_mended_nor_joined(engine: Engine, flavour: Flavour) -> None:
    volume = engine.volume()
    foreign = foreign_daemon(engine, flavour, volume)
    look = "cd /var/lib/docker; find . -path ./.cachedind -prune -o -printf '%p %y %i\\n' | sort"
    before = foreign.sh(look)
    refused = engine.dind(flavour.suite, volume=volume, env={**flavour.env, "CACHEDIND_LOCK_TIMEOUT": "1s"})
    assert refused.wait_exit() == 75
    [line] = refused.errors
    assert "does not hold cachedind's lease" in line
    assert foreign.sh(look) == before
    assert foreign.docker("info", "--format", "{{.Driver}}") == flavour.overlay

    waiting = engine.dind(flavour.suite, volume=volume, env={**flavour.env, "CACHEDIND_LOCK_TIMEOUT": "1m"})
    waiting.wait_log("a daemon of another image has")
    foreign.kill()
    waiting.wait_ready()
    assert not [line for line in waiting.warnings if "damaged" in line]
