"""What `cachedind rm` and `cachedind gc` remove, whom they leave alone, and that the space is free afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path

import pytest

from cachedind.base.log import Log
from cachedind.host import linux
from cachedind.pool import directory, key_directory, staging, sweeping, upkeep
from cachedind.pool.directory import Pool
from helpers import pool_starts
from helpers.children import child
from helpers.commands import MIB, Command, everything, fill, key_path
from helpers.filesystems import Filesystems


def test_a_key_goes_with_all_it_has_and_the_others_stay(pool: Pool, cachedind: Command) -> None:
    found = fill(pool, "group/project", "group", "project", "keys/group", "aside/x", "x" * 500)
    for key in ("group/project", "aside/x", "x" * 500):
        done = cachedind("rm", key, "--pool", pool.path)
        assert (done.status, done.stderr) == (0, "")
        assert done.stdout.splitlines()[:2] == [
            f"removed golden of key {key}",
            f"removed slot {found[key]} of key {key}",
        ]
        assert not key_path(pool, key).exists()
    assert os.listdir(f"{pool.path}/trash") == []
    left = cachedind("ls", "--json", "--pool", pool.path).entries
    assert sorted({entry["key"] for entry in left}) == ["group", "keys/group", "project"]
    assert len(left) == 6


def test_a_held_slot_stays_and_everything_else_of_its_key_goes(pool: Pool, cachedind: Command) -> None:
    fill(pool, "k")
    held = pool_starts.take(pool, pool_starts.slot_request())
    pool_starts.job(pool, pool_starts.slot_request(), "three")
    for words in (("rm", "k"), ("rm", "--slot", held.slot.id), ("rm", "--all", "-f"), ("rm", "k")):
        done = cachedind(*words, "--pool", pool.path)
        assert done.status == 75
        [line] = done.stderr.splitlines()
        assert f"slot {held.slot.id} of key k is held by container c0ffee (host name pid-{os.getpid()}, since" in line
        assert cachedind("ls", "--json", "--pool", pool.path).states[f"slots/{held.slot.id}"] == "held"
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{held.slot.id}": "held"}
    assert pool_starts.names(held) == ["one", "two"]
    held.slot.close()
    assert cachedind("rm", "--slot", held.slot.id, "--pool", pool.path).status == 0
    assert cachedind("ls", "--json", "--pool", pool.path).entries == []
    assert not key_path(pool).exists()


def test_one_slot_of_many(pool: Pool, cachedind: Command) -> None:
    found = fill(pool, "a", "b")
    assert cachedind("rm", "--slot", found["a"], "--pool", pool.path).status == 0
    left = {(entry["key"], entry["name"]) for entry in cachedind("ls", "--json", "--pool", pool.path).entries}
    assert left == {("a", "scopes/%/golden"), ("b", "scopes/%/golden"), ("b", f"slots/{found['b']}")}


def test_what_was_set_aside_is_dropped_by_the_name_that_the_log_gave_it(pool: Pool, cachedind: Command) -> None:
    fill(pool, "k")
    key_fd = key_directory.open_key(pool, "k", create=False)
    assert key_fd is not None
    where = staging.set_aside(pool, key_fd, "scopes/%/golden", "a test", time.time())
    os.close(key_fd)
    done = cachedind("rm", where, "--pool", pool.path)
    assert (done.status, done.stdout.splitlines()[0]) == (0, f"removed {where}")
    assert os.listdir(f"{pool.path}/aside") == []
    assert len(cachedind("ls", "--json", "--pool", pool.path).entries) == 1


@pytest.mark.parametrize("words", [("nope",), ("--slot", "nope"), ("aside/nope",), ("--slot", "../../golden"), ("",)])
def test_unless_all_that_is_named_is_there_nothing_goes(pool: Pool, cachedind: Command, words: tuple[str, ...]) -> None:
    fill(pool, "k")
    before = everything(Path(pool.path))
    done = cachedind("rm", "k", *words, "--pool", pool.path)
    assert (done.status, done.stdout) == (66, "")
    assert everything(Path(pool.path)) == before


def test_everything_goes_only_when_somebody_says_so(pool: Pool, cachedind: Command) -> None:
    fill(pool, "a", "b")
    before = everything(Path(pool.path))
    for words in (("rm", "--all"), ("rm",), ("rm", "--all", "a")):
        assert cachedind(*words, "--pool", pool.path).status == 2
    assert "Use --force" in cachedind("rm", "--all", "--pool", pool.path, stdin="y\n").stderr
    assert everything(Path(pool.path)) == before
    done = cachedind("rm", "--all", "--force", "--pool", pool.path)
    assert done.status == 0
    assert cachedind("ls", "--pool", pool.path).stdout == "The pool is empty.\n"


def test_space_is_free_when_the_command_ends(pool: Pool, cachedind: Command) -> None:
    taken = pool_starts.take(pool, pool_starts.slot_request())
    pool_starts.begin(taken)
    pool_starts.write(taken, "layer", os.urandom(10 * MIB).hex())
    taken.slot.close()
    linux.syncfs(pool.fd)
    done = cachedind("rm", "k", "--pool", pool.path)
    assert done.stdout.splitlines()[-1].startswith(("20.", "19.")), done.stdout
    assert json.loads(cachedind("status", "--json", "--pool", pool.path).stdout)["filesystem"]["used_bytes"] < 8 * MIB


def test_a_start_beside_a_removal_is_never_robbed(pool: Pool, cachedind: Command) -> None:
    """Starts and removals side by side: who has a slot keeps it."""

    def remove_again_and_again() -> None:
        from cachedind.commands import removal

        own = directory.open_existing(pool.path, pool.trace)
        while True:
            removal.remove_all(own)
            sweeping.empty_trash(own)

    with child(remove_again_and_again):
        for _ in range(60):
            taken = pool_starts.take(pool, pool_starts.slot_request())
            pool_starts.begin(taken)
            pool_starts.write(taken, "mine")
            pool_starts.come_up(taken)
            time.sleep(0.005)
            assert "mine" in pool_starts.names(taken)
            assert (key_path(pool) / "slots" / taken.slot.id / "data" / "mine").exists()
            taken.slot.close()


def test_gc_says_what_went_and_why(pool: Pool, cachedind: Command) -> None:
    fill(pool, "k")
    slot_id = pool_starts.take(pool, pool_starts.slot_request(read_only=True))
    slot_id.slot.close()
    os.mkdir("old", dir_fd=pool.trash_fd)
    done = cachedind("gc", "--pool", pool.path)
    assert done.status == 0
    first = f"removed slot {slot_id.slot.id} of key k: a throw-away (CACHEDIND_ACCESS=ro)"
    assert done.stdout.splitlines()[0] == first
    assert done.stdout.splitlines()[-1].endswith(" freed")
    assert os.listdir(f"{pool.path}/trash") == []
    assert len(cachedind("ls", "--json", "--pool", pool.path).entries) == 2, "what is of use stays"


def test_gc_keeps_to_the_limits_of_its_own_environment_and_tells_what_it_lacks(pool: Pool, cachedind: Command) -> None:
    fill(pool, "a", "b")
    held = pool_starts.take(pool, pool_starts.slot_request("a"))
    pool_starts.write(held, "own", "y" * MIB)
    linux.syncfs(pool.fd)
    report = json.loads(cachedind("gc", "--json", "--pool", pool.path, POOL_MAX_SIZE="1kB").stdout)
    assert {(entry["key"], entry["name"]) for entry in report["evicted"]} >= {("b", "scopes/%/golden")}
    assert report["lacking_bytes"] > MIB // 2
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{held.slot.id}": "held"}
    text = cachedind("gc", "--pool", pool.path, POOL_MAX_SIZE="1kB")
    assert "more would have to go to keep the limits, but the rest is in use" in text.stdout
    held.slot.close()


def test_what_a_pool_lacks_of_inodes_is_told(
    filesystems: Filesystems, cachedind: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    path = filesystems.make("tmpfs", options="nr_inodes=2000")
    with contextlib.closing(pool_starts.open_pool(path)) as pool:
        fill(pool, "b")
        held = pool_starts.take(pool, pool_starts.slot_request("a"))
        for number in range(1900):
            pool_starts.write(held, str(number), "")
        report = json.loads(cachedind("gc", "--json", "--pool", path, POOL_MIN_FREE="1kB").stdout)
        assert {entry["key"] for entry in report["evicted"]} == {"b"}
        assert (report["lacking_bytes"], 0 < report["lacking_inodes"] < 100) == (0, True)
        text = cachedind("gc", "--pool", path).stdout
        told = re.search(r"^(\d+ inodes) more would have to go to keep the limits, but the rest is in use$", text, re.M)
        assert told is not None, text
        upkeep.run(pool, pool_starts.settings(path), "a", time.time()).tell(pool.path, Log())
        (line,) = capfd.readouterr().err.splitlines()
        assert (
            f"the filesystem of the pool {path} has {told[1]} too few free, and evicting all that nobody uses" in line
        )
        held.close()
        upkeep.run(pool, pool_starts.settings(path), "a", time.time()).tell(pool.path, Log())
        assert capfd.readouterr().err == "", "what is free goes"
