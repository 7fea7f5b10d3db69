"""What `cachedind ls` and `status` tell of real pools, without daemons, and that looking disturbs nobody."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from cachedind.base.model import Holder
from cachedind.commands import forecast, inventory
from cachedind.dataroot import facts
from cachedind.host import flock, linux, procfs
from cachedind.pool import directory, key_directory, slot_state, slots, staging
from cachedind.pool.directory import Pool
from cachedind.pool.slot_request import SlotRequest, Warmth
from helpers import pool_starts
from helpers.children import child
from helpers.commands import MIB, OLD, Command, everything, key_path
from helpers.filesystems import Filesystems


def test_each_thing_is_told_for_what_it_is(pool: Pool, cachedind: Command) -> None:
    first = pool_starts.job(pool, pool_starts.slot_request("group/project", engine=OLD), "one", OLD)
    held = pool_starts.take(pool, pool_starts.slot_request("group/project"))
    pool_starts.begin(held)
    pool_starts.come_up(held)
    beside = [pool_starts.take(pool, pool_starts.slot_request("group/project")) for _ in range(3)]
    for taken in beside[:2]:
        pool_starts.begin(taken)
    pool_starts.come_up(beside[0])
    throw_away = pool_starts.take(pool, pool_starts.slot_request("group/project", read_only=True))
    for taken in (*beside, throw_away):
        taken.slot.close()
    again = pool_starts.take(pool, pool_starts.slot_request("group/project"))
    again.slot.close()
    assert again.slot.id == beside[0].slot.id
    spare = slots.create(pool, "group/project", None, {**again.raw, "sequence": 99})
    spare.close()
    empty = slots.create(pool, "other", None, {"arch": pool_starts.ARCH, "sequence": 0})
    empty.close()

    before = everything(Path(pool.path))
    done = cachedind("ls", "--json", "--no-sizes", "--pool", pool.path)
    assert everything(Path(pool.path)) == before, "looking has changed something"
    assert (done.status, done.stderr) == (0, "")
    assert done.states == {
        "scopes/%/golden": "golden",
        f"scopes/%/golden.other/26.1-graphdriver-overlay2-{pool_starts.ARCH}": "golden (other engine)",
        f"slots/{first}": "held",
        f"slots/{beside[0].slot.id}": "free",
        f"slots/{beside[1].slot.id}": "superseded",
        f"slots/{beside[2].slot.id}": "free",  # nothing was begun on this clone of the other engine's golden
        f"slots/{throw_away.slot.id}": "throw-away",
        f"slots/{spare.id}": "spare",
        f"slots/{empty.id}": "empty",
    }
    [entry] = [entry for entry in done.entries if entry["held"]]
    assert entry["key"] == "group/project"
    assert entry["holder"]["container"] == "c0ffee"
    assert entry["holder"]["hostname"] == f"pid-{os.getpid()}"
    assert abs(entry["last_used"] - time.time()) < 60
    assert (entry["engine"], entry["driver"], entry["store"], entry["ready_s"]) == (
        "28.5.2",
        "overlay2",
        "graphdriver",
        0.1,
    )
    text = cachedind("ls", "group/project", "--pool", pool.path)
    assert f"held by c0ffee (pid-{os.getpid()})" in text.stdout
    assert "\x1b" not in text.stdout
    assert len(text.stdout.splitlines()) == 9, "a header, two goldens and six slots, each on one line"
    held.slot.close()


def test_a_slot_of_another_boot_is_suspicious(pool: Pool, cachedind: Command) -> None:
    slot_id = pool_starts.job(pool, pool_starts.slot_request(), "one")
    path = key_path(pool) / "slots" / slot_id / slot_state.STATE_NAME
    path.write_text(path.read_text().replace(procfs.read_boot_id(), "another-boot"))
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{slot_id}": "suspicious"}
    assert cachedind("promote", "k", "--pool", pool.path).status == 1


def test_sizes_tell_what_removing_would_free(pool: Pool, cachedind: Command) -> None:
    first = pool_starts.take(pool, pool_starts.slot_request())
    pool_starts.begin(first)
    pool_starts.build(first, "layer", size=MIB)
    pool_starts.come_up(first)
    first.slot.close()
    again = pool_starts.take(pool, pool_starts.slot_request())
    pool_starts.write(again, "own", "y" * MIB)
    linux.syncfs(pool.fd)
    found = {entry["name"]: entry for entry in cachedind("ls", "--json", "--pool", pool.path).entries}
    slot = found[f"slots/{again.slot.id}"]
    assert slot["unique_bytes"] == pytest.approx(MIB, abs=MIB // 8)
    assert slot["shared_bytes"] == pytest.approx(MIB, abs=MIB // 8)
    assert 5 < slot["unique_inodes"] < 50
    assert found["scopes/%/golden"]["unique_bytes"] < MIB // 8
    assert found["scopes/%/golden"]["shared_bytes"] == slot["shared_bytes"]
    unmeasured = cachedind("ls", "--json", "--no-sizes", "--pool", pool.path).entries
    assert {entry["unique_bytes"] for entry in unmeasured} == {entry["unique_inodes"] for entry in unmeasured} == {None}
    again.slot.close()


def test_who_looks_sends_no_start_elsewhere(pool: Pool) -> None:
    """A free lock that is taken for a moment, to see whether it is free, would make a start pass the slot by."""
    slot_id = pool_starts.job(pool, pool_starts.slot_request(), "one")

    def look_about() -> None:
        own = directory.open_existing(pool.path, pool.trace)
        while True:
            inventory.read_rows(own, directory.names_in(own.keys_fd), time.time())

    with child(look_about), child(look_about):
        for _ in range(300):
            taken = pool_starts.take(pool, pool_starts.slot_request())
            taken.slot.close()
            assert (taken.warmth, taken.slot.id) == (Warmth.LEASED, slot_id)


def test_who_looks_takes_nobody_who_looks_for_a_holder(pool: Pool) -> None:
    slot_id = pool_starts.job(pool, pool_starts.slot_request(), "one")
    fd = os.open(key_path(pool) / "slots" / slot_id / slots.LOCK_NAME, os.O_RDONLY)
    assert flock.lock_shared(fd)
    with key_directory.locked_key(pool, "k", create=False) as key_fd:
        assert key_fd is not None
        started = time.monotonic()
        held, holder = slots.look(key_fd, f"slots/{slot_id}")
        # The key was locked all the while, as when somebody copies.
        assert time.monotonic() - started < 2
    os.close(fd)
    assert not held
    assert holder is not None


@pytest.mark.parametrize("words", [("ls",), ("status",), ("rm", "k"), ("rm", "--all", "-f"), ("gc",), ("promote", "k")])
def test_where_no_pool_is_none_is_made(tmp_path: Path, cachedind: Command, words: tuple[str, ...]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (empty, tmp_path / "none"):
        done = cachedind(*words, "--pool", path)
        assert (done.status, done.stdout) == (66, "")
        [line] = done.stderr.splitlines()
        assert line.startswith(f"cachedind: error: there is no pool at {path}: ")
    assert list(empty.iterdir()) == []
    assert not (tmp_path / "none").exists()
    off = cachedind(*words, POOL="")
    assert off.status == 66
    assert "CACHEDIND_POOL is empty" in off.stderr
    assert cachedind(*words, POOL=str(empty)).status == 66


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"version": 9, "min_reader": 9}', "is of a later cachedind"),
        ("{", "cannot be understood"),
        ("", "cannot be understood"),
        ('{"version": 1, "min_reader": 1, "backing": "directory"}', "is of version 1"),
        ('{"min_reader": 1}', "its pool.json has no version"),
    ],
)
def test_a_pool_that_this_version_does_not_know_is_left_alone(
    pool: Pool, cachedind: Command, text: str, said: str
) -> None:
    record = Path(pool.path) / "pool.json"
    record.write_text(text)
    for words in (("ls",), ("rm", "--all", "-f"), ("gc", "--json")):
        done = cachedind(*words, "--pool", pool.path)
        assert (done.status, done.stdout) == (74, "")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert record.read_text() == text


def test_looking_works_on_a_read_only_mount(pool: Pool, cachedind: Command) -> None:
    slot_id = pool_starts.job(pool, pool_starts.slot_request(), "one")
    linux.mount("none", pool.path, "", 32 | 1)  # MS_REMOUNT | MS_RDONLY
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{slot_id}": "free"}
    assert cachedind("status", "--pool", pool.path).status == 0
    done = cachedind("rm", "k", "--pool", pool.path)
    assert done.status == 74
    assert "Read-only file system" in done.stderr
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{slot_id}": "free"}


def test_the_status_counts_what_is_there(pool: Pool, cachedind: Command) -> None:
    pool_starts.job(pool, pool_starts.slot_request("a"), "one")
    mine = pool_starts.take(pool, pool_starts.slot_request("b"))
    pool_starts.begin(mine)
    os.mkdir("half-made", dir_fd=pool.stage_fd)
    os.mkdir("gone", dir_fd=pool.trash_fd)
    where = staging.set_aside(pool, pool.stage_fd, "half-made", "it looked\nbad", 1000.0)
    report = json.loads(cachedind("status", "--json", "--pool", pool.path, POOL_MAX_SIZE="1GB", MAX_AGE="2d").stdout)
    assert report["pool"] == {"path": pool.path}
    assert report["filesystem"]["fstype"] == "btrfs"
    assert report["filesystem"]["total_bytes"] == 512 * MIB
    assert report["layers"] == {"count": 0, "bytes": 0}
    assert report["holds"] == {
        "keys": 2,
        "goldens": 0,
        "slots": 2,
        "held": 1,
        "unreadable": 0,
        "stage": 0,
        "trash": 1,
    }
    assert report["aside"] == [
        {"id": where.removeprefix("aside/"), "was": "half-made", "why": "it looked\nbad", "at": 1000.0}
    ]
    assert report["limits"]["pool_max_size_bytes"] == 10**9
    assert report["limits"]["pool_min_free_bytes"] == 512 * MIB // 20, "what is in force where nothing is said"
    assert report["limits"]["max_age_s"] == 2 * 86400
    assert report["limits"]["cache_max_size_bytes"] == 2 << 30, "a quarter of the pool, but 2 GiB at least"
    assert report["here"] is None
    assert report["filesystem"]["free_inodes"] is None, "btrfs counts none"
    text = cachedind("status", "--pool", pool.path)
    assert "inodes" not in text.stdout.partition("limits")[0]
    assert f"{where}: half-made: it looked\\nbad" in text.stdout
    assert "this container holds no slot of this pool" in text.stdout
    mine.slot.close()


def test_the_status_tells_how_many_inodes_are_left(filesystems: Filesystems, cachedind: Command) -> None:
    path = filesystems.make("tmpfs", options="nr_inodes=2000")
    pool_starts.open_pool(path).close()
    report = json.loads(cachedind("status", "--json", "--pool", path).stdout)
    found = report["filesystem"]
    assert found["total_inodes"] == found["used_inodes"] + found["free_inodes"] == 2000
    assert 5 < found["used_inodes"] < 50
    assert report["limits"]["pool_min_free_inodes"] == 100
    text = cachedind("status", "--pool", path).stdout
    assert any(line.split() == ["free", "inodes", str(found["free_inodes"])] for line in text.splitlines()), text


def test_a_container_knows_its_own_slot(pool: Pool, cachedind: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = pool_starts.take(pool, pool_starts.slot_request("mine"))
    pool_starts.begin(mine)
    me = Holder("c0ffee", f"pid-{os.getpid()}", 0.0)
    monkeypatch.setattr(facts, "read_holder_of_now", lambda now: me)
    own = {"key": "mine", "slot": mine.slot.id, "ready": False, "ready_s": None}
    assert json.loads(cachedind("status", "--json", "--pool", pool.path).stdout)["here"] == own
    pool_starts.come_up(mine)
    own |= {"ready": True, "ready_s": 0.1}
    assert json.loads(cachedind("status", "--json", "--pool", pool.path).stdout)["here"] == own
    mine.slot.close()
    assert json.loads(cachedind("status", "--json", "--pool", pool.path).stdout)["here"] is None, "held no longer"


def test_the_forecast_is_what_a_start_then_does(pool: Pool) -> None:
    def compare(slot_request: SlotRequest, expected: str, warmth: Warmth) -> None:
        assert forecast.forecast(pool, slot_request) == expected
        another.append(pool_starts.take(pool, slot_request))
        assert another[-1].warmth is warmth

    another: list[Any] = []
    compare(pool_starts.slot_request(), "start cold: the pool has nothing that fits for key k", Warmth.FRESH)
    first = another[0].slot
    pool_starts.begin(another[0])
    pool_starts.come_up(another[0])
    first.close()
    lend = f"clone slots/{first.id} of key k"
    assert forecast.forecast(pool, pool_starts.slot_request(read_only=True)) == lend
    compare(pool_starts.slot_request("branch", ("none", "k")), lend, Warmth.CLONED)
    compare(pool_starts.slot_request(), f"lease slots/{first.id} of key k", Warmth.LEASED)
    compare(pool_starts.slot_request(), "clone the golden of key k", Warmth.CLONED)
    compare(pool_starts.slot_request(read_only=True), "clone the golden of key k", Warmth.CLONED)
    compare(pool_starts.slot_request("other", ("none", "k")), "clone the golden of key k", Warmth.CLONED)
    compare(pool_starts.slot_request(engine=OLD), "start cold: the pool has nothing that fits for key k", Warmth.FRESH)
    for taken in another[1:]:
        taken.slot.close()


ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def break_everything(pool: Pool, victim: Path) -> None:
    """What somebody who was root on the pool might leave."""
    good = key_path(pool) / "slots" / pool_starts.job(pool, pool_starts.slot_request(), "one")
    names = iter(range(100))

    def slot(text: str | None) -> Path:
        path = good.parent / f"{ESCAPE}{next(names)}"
        path.mkdir()
        if text is not None:
            (path / "slot.json").write_text(text)
        return path

    valid = (good / "slot.json").read_text()
    for text in (None, "", "{garbage", "[]", "null", "\x00" * 5000, '{"a":' * 100_000, valid.replace("28.5.2", ESCAPE)):
        slot(text)
    slot(valid.replace('"min_reader": 1', '"min_reader": 2'))
    slot(valid.replace('"started_at": ', '"started_at": 1e999, "was": '))
    slot(valid)  # without a lock, without data
    linked = slot(valid)
    (linked / "data").symlink_to(victim)
    (linked / "slot.lock").symlink_to(victim / "precious")
    os.mkfifo(slot(None) / "slot.json")
    (slot(None) / "slot.json").mkdir()
    (slot(None) / "slot.json").symlink_to(victim / "precious")
    (good.parent / "link").symlink_to(victim)
    (good.parent / "file").write_text("x")
    os.mkdir(os.fsencode(good.parent) + b"/\xff\xfe")
    (key_path(pool) / "scopes/%").mkdir(parents=True)
    (key_path(pool) / "scopes/%/golden").symlink_to(victim)
    (key_path(pool) / "scopes/%/golden.previous").write_text("x")
    (key_path(pool) / "scopes/odd").symlink_to(victim)
    keys = key_path(pool).parent
    (keys / "link").symlink_to(victim)
    (keys / "file").write_text("x")
    for name in (f"{ESCAPE}key", "x" * 190 + "~" + "0" * 60, "%zz", "lost+found"):
        (keys / name).mkdir()
        (keys / name / "key.json").write_text(json.dumps({"min_reader": 1, "key": "k"}))
        (keys / name / "scopes/%/golden").mkdir(parents=True)
    (keys / "loop").mkdir()
    (keys / "loop" / "slots").symlink_to("../loop")
    (keys / "loop" / "scopes").symlink_to(victim)
    aside = Path(pool.path) / "aside"
    for number, text in enumerate(("{", "[]", '{"min_reader": 1, "why": {"a": 1}, "at": "x", "was": 3}')):
        (aside / str(number)).mkdir()
        (aside / str(number) / "why.json").write_text(text)
    (aside / "link").symlink_to(victim)
    (aside / f"{ESCAPE}").write_text("x")


def test_garbage_is_told_and_nothing_worse(pool: Pool, cachedind: Command, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("precious")
    break_everything(pool, victim)
    before = everything(Path(pool.path))
    shown = []
    for words in (("ls",), ("ls", "--no-sizes"), ("ls", "k"), ("status",), ("ls", "--json"), ("status", "--json")):
        done = cachedind(*words, "--pool", pool.path)
        assert (done.status, done.stderr) == (0, ""), words
        assert "\x1b" not in done.stdout
        assert "\x07" not in done.stdout
        shown.append(done)
    assert everything(Path(pool.path)) == before
    unreadable = [entry for entry in shown[4].entries if entry["condition"] == "unreadable"]
    assert len(unreadable) >= 18
    assert all(entry["why"] for entry in unreadable)
    directories = {entry["directory"]: entry["key"] for entry in shown[4].entries}
    assert directories.pop("loop", "loop") == "loop"
    assert directories == {
        "k": "k",
        **{name: name for name in ("link", "file", "%zz", "lost+found", f"{ESCAPE}key", "x" * 190 + "~" + "0" * 60)},
    }, "a key.json that lies is not believed"
    assert json.loads(shown[5].stdout)["holds"]["unreadable"] == len(unreadable)

    assert cachedind("promote", "k", "--pool", pool.path).status in (0, 1)
    assert cachedind("gc", "--json", "--pool", pool.path).status == 0
    assert cachedind("rm", "--all", "--force", "--pool", pool.path).status == 0
    assert cachedind("ls", "--json", "--pool", pool.path).entries == []
    assert json.loads(cachedind("status", "--json", "--pool", pool.path).stdout)["aside"] == []
    assert [path.read_text() for path in victim.iterdir()] == ["precious"]
    again = pool_starts.take(pool, pool_starts.slot_request())
    assert again.warmth is Warmth.FRESH
    again.slot.close()


@pytest.mark.parametrize("part", ["keys", "aside", "stage", "trash"])
def test_a_part_of_the_pool_that_is_none(pool: Pool, cachedind: Command, tmp_path: Path, part: str) -> None:
    path = Path(pool.path) / part
    path.rmdir()
    path.symlink_to(tmp_path)
    done = cachedind("ls", "--pool", pool.path)
    assert (done.status, done.stdout) == (74, "")
    assert f"{part} in the pool {pool.path} is not the directory that cachedind made" in done.stderr
