"""The commands for people on real pools, without daemons: what they tell, what they remove, and whom they disturb."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cachedind.__main__ import main
from cachedind.base import state
from cachedind.base.model import EngineVersion, Holder
from cachedind.commands import inventory
from cachedind.dataroot import facts
from cachedind.host import flock, linux, procfs
from cachedind.pool import directory, golden, slots
from cachedind.pool.directory import Pool
from cachedind.pool.keys import directory_name
from cachedind.pool.slot_lease import SlotRequest, Warmth
from helpers import tenants
from helpers.children import child, in_child
from helpers.filesystems import Filesystems
from helpers.waiting import wait_until

OLD = EngineVersion(26, 1, 5)
MIB = 1 << 20


class Done(NamedTuple):
    status: int
    stdout: str
    stderr: str

    @property
    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.stdout)["entries"]
        return found

    @property
    def states(self) -> dict[str, str]:
        return {entry["name"]: entry["condition"] for entry in self.entries}


@pytest.fixture
def cachedind(tmp_path: Path) -> Callable[..., Done]:
    """`cachedind …` in a process of its own, which may go to another mount namespace."""

    def cachedind(*words: str | Path, stdin: str = "", **environ: str) -> Done:
        out, err, given = (tmp_path / name for name in ("stdout", "stderr", "stdin"))
        given.write_text(stdin)

        def work() -> int:
            for number, path in enumerate((given, out, err)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC * (number > 0)), number)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
            for name in [name for name in os.environ if name.startswith(("CACHEDIND_", "CI_"))]:
                del os.environ[name]
            os.environ |= {f"CACHEDIND_{name}": value for name, value in environ.items()}
            sys.argv = ["cachedind", *map(str, words)]
            try:
                return main()
            except SystemExit as end:
                return end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()

        status = in_child(work)
        done = Done(status, out.read_text(), err.read_text())
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return cachedind


Command = Callable[..., Done]


@pytest.fixture(autouse=True)
def image_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "image"
    monkeypatch.setattr(directory, "IMAGE_MOUNT", str(path))
    return path


@pytest.fixture
def pool(filesystems: Filesystems) -> Iterator[Pool]:
    """A pool on btrfs."""
    pool = tenants.open_pool(filesystems.make("btrfs"))
    yield pool
    pool.close()


def key_path(pool: Pool, key: str = "k") -> Path:
    return Path(pool.tree) / "keys" / directory_name(key)


def everything(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that a change would show in."""
    found = {}
    for entry in sorted(path.rglob("*")):
        status = entry.lstat()
        content = entry.read_bytes() if stat.S_ISREG(status.st_mode) and entry.name != "pool.img" else b""
        found[str(entry.relative_to(path))] = (status.st_mode, status.st_mtime_ns, content)
    return found


# ---- looking ---------------------------------------------------------------------------------------------------------


def test_each_thing_is_told_for_what_it_is(pool: Pool, cachedind: Command) -> None:
    first = tenants.job(pool, tenants.slot_request("group/project", engine=OLD), "one", OLD)
    held = tenants.take(pool, tenants.slot_request("group/project"))
    tenants.begin(held)
    tenants.come_up(held)
    beside = [tenants.take(pool, tenants.slot_request("group/project")) for _ in range(3)]
    for taken in beside[:2]:
        tenants.begin(taken)
    tenants.come_up(beside[0])
    throw_away = tenants.take(pool, tenants.slot_request("group/project", read_only=True))
    for taken in (*beside, throw_away):
        taken.slot.close()
    again = tenants.take(pool, tenants.slot_request("group/project"))
    again.slot.close()
    assert again.slot.id == beside[0].slot.id
    spare = slots.create(pool, "group/project", None, {**again.raw, "sequence": 99})
    spare.close()
    empty = slots.create(pool, "other", None, {"arch": tenants.ARCH, "sequence": 0})
    empty.close()

    before = everything(Path(pool.path))
    done = cachedind("ls", "--json", "--no-sizes", "--pool", pool.path)
    assert everything(Path(pool.path)) == before, "looking has changed something"
    assert (done.status, done.stderr) == (0, "")
    assert done.states == {
        "golden": "golden",
        f"golden.other/26.1-graphdriver-overlay2-{tenants.ARCH}": "golden (other engine)",
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
    slot_id = tenants.job(pool, tenants.slot_request(), "one")
    path = key_path(pool) / "slots" / slot_id / slots.STATE_NAME
    path.write_text(path.read_text().replace(procfs.read_boot_id(), "another-boot"))
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{slot_id}": "suspicious"}
    assert cachedind("promote", "k", "--pool", pool.path).status == 1


def test_sizes_tell_what_removing_would_free(pool: Pool, cachedind: Command) -> None:
    first = tenants.take(pool, tenants.slot_request())
    tenants.begin(first)
    tenants.write(first, "layer", "x" * MIB)
    tenants.come_up(first)
    first.slot.close()
    again = tenants.take(pool, tenants.slot_request())
    tenants.write(again, "own", "y" * MIB)
    linux.syncfs(pool.tree_fd)
    found = {entry["name"]: entry for entry in cachedind("ls", "--json", "--pool", pool.path).entries}
    slot = found[f"slots/{again.slot.id}"]
    assert (slot["unique_bytes"], slot["shared_bytes"]) == (MIB, MIB)
    assert (found["golden"]["unique_bytes"], found["golden"]["shared_bytes"]) == (0, MIB)
    unmeasured = cachedind("ls", "--json", "--no-sizes", "--pool", pool.path).entries
    assert {entry["unique_bytes"] for entry in unmeasured} == {None}
    again.slot.close()


def test_who_looks_sends_no_start_elsewhere(pool: Pool) -> None:
    """A free lock that is taken for a moment, to see whether it is free, would make a start pass the slot by."""
    slot_id = tenants.job(pool, tenants.slot_request(), "one")

    def look_about() -> None:
        own = directory.open_existing(pool.path, pool.trace)
        while True:
            inventory.read_rows(own, directory.names_in(own.keys_fd), time.time())

    with child(look_about), child(look_about):
        for _ in range(300):
            taken = tenants.take(pool, tenants.slot_request())
            taken.slot.close()
            assert (taken.warmth, taken.slot.id) == (Warmth.LEASED, slot_id)


def test_who_looks_takes_nobody_who_looks_for_a_holder(pool: Pool) -> None:
    slot_id = tenants.job(pool, tenants.slot_request(), "one")
    fd = os.open(key_path(pool) / "slots" / slot_id / slots.LOCK_NAME, os.O_RDONLY)
    assert flock.lock_shared(fd)
    with slots.locked_key(pool, "k", create=False) as key_fd:
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
        ('{"version": 9, "min_reader": 9, "backing": "directory"}', "is of a later cachedind"),
        ("{", "cannot be understood"),
        ("", "cannot be understood"),
        ('{"min_reader": 1, "backing": "tape", "fstype": "x"}', "cannot be understood"),
        ('{"min_reader": 1, "backing": "directory", "clone": "by hand", "fstype": "x"}', "cannot be understood"),
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
    slot_id = tenants.job(pool, tenants.slot_request(), "one")
    linux.mount("none", pool.path, "", 32 | 1)  # MS_REMOUNT | MS_RDONLY
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{slot_id}": "free"}
    assert cachedind("status", "--pool", pool.path).status == 0
    done = cachedind("rm", "k", "--pool", pool.path)
    assert done.status == 74
    assert "Read-only file system" in done.stderr
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{slot_id}": "free"}


def test_the_status_counts_what_is_there(pool: Pool, cachedind: Command) -> None:
    tenants.job(pool, tenants.slot_request("a"), "one")
    mine = tenants.take(pool, tenants.slot_request("b"))
    tenants.begin(mine)
    os.mkdir("half-made", dir_fd=pool.stage_fd)
    os.mkdir("gone", dir_fd=pool.trash_fd)
    where = directory.set_aside(pool, pool.stage_fd, "half-made", "it looked\nbad", 1000.0)
    report = json.loads(cachedind("status", "--json", "--pool", pool.path, POOL_MAX_SIZE="1GB", MAX_AGE="2d").stdout)
    assert report["pool"] == {"path": pool.path, "backing": "directory", "clone_method": "subvolume"}
    assert report["filesystem"]["fstype"] == "btrfs"
    assert report["filesystem"]["total_bytes"] == 512 * MIB
    assert report["image"] is None
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
    text = cachedind("status", "--pool", pool.path)
    assert f"{where}: half-made: it looked\\nbad" in text.stdout
    assert "this container holds no slot of this pool" in text.stdout
    mine.slot.close()


def test_a_container_knows_its_own_slot(pool: Pool, cachedind: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tenants.take(pool, tenants.slot_request("mine"))
    tenants.begin(mine)
    me = Holder("c0ffee", f"pid-{os.getpid()}", 0.0)
    monkeypatch.setattr(facts, "read_holder_of_now", lambda now: me)
    own = {"key": "mine", "slot": mine.slot.id, "ready": False, "ready_s": None}
    assert json.loads(cachedind("status", "--json", "--pool", pool.path).stdout)["here"] == own
    tenants.come_up(mine)
    own |= {"ready": True, "ready_s": 0.1}
    assert json.loads(cachedind("status", "--json", "--pool", pool.path).stdout)["here"] == own
    mine.slot.close()
    assert json.loads(cachedind("status", "--json", "--pool", pool.path).stdout)["here"] is None, "held no longer"


# ---- what a start would do -----------------------------------------------------------------------------------------


def test_the_forecast_is_what_a_start_then_does(pool: Pool) -> None:
    def compare(slot_request: SlotRequest, expected: str, warmth: Warmth) -> None:
        assert inventory.forecast(pool, slot_request) == expected
        another.append(tenants.take(pool, slot_request))
        assert another[-1].warmth is warmth

    another: list[Any] = []
    compare(tenants.slot_request(), "start cold: the pool has nothing that fits for key k", Warmth.FRESH)
    first = another[0].slot
    tenants.begin(another[0])
    tenants.come_up(another[0])
    first.close()
    lend = f"make slots/{first.id} of key k its golden, and clone that"
    assert inventory.forecast(pool, tenants.slot_request(read_only=True)) == lend
    compare(tenants.slot_request("branch", ("none", "k")), lend, Warmth.CLONED)
    compare(tenants.slot_request(), f"lease slots/{first.id} of key k", Warmth.LEASED)
    compare(tenants.slot_request(), "clone the golden of key k", Warmth.CLONED)
    compare(tenants.slot_request(read_only=True), "clone the golden of key k", Warmth.CLONED)
    compare(tenants.slot_request("other", ("none", "k")), "clone the golden of key k", Warmth.CLONED)
    compare(tenants.slot_request(engine=OLD), "start cold: the pool has nothing that fits for key k", Warmth.FRESH)
    for taken in another[1:]:
        taken.slot.close()


# ---- hostile content -------------------------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def break_everything(pool: Pool, victim: Path) -> None:
    """What somebody who was root on the pool might leave."""
    good = key_path(pool) / "slots" / tenants.job(pool, tenants.slot_request(), "one")
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
    (key_path(pool) / "golden").symlink_to(victim)
    (key_path(pool) / "golden.previous").write_text("x")
    keys = key_path(pool).parent
    (keys / "link").symlink_to(victim)
    (keys / "file").write_text("x")
    for name in (f"{ESCAPE}key", "x" * 190 + "~" + "0" * 60, "%zz", "lost+found"):
        (keys / name).mkdir()
        (keys / name / "key.json").write_text(json.dumps({"min_reader": 1, "key": "k"}))
        (keys / name / "golden").mkdir()
    (keys / "loop").mkdir()
    (keys / "loop" / "slots").symlink_to("../loop")
    (keys / "loop" / "golden.other").symlink_to(victim)
    aside = Path(pool.tree) / "aside"
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
    again = tenants.take(pool, tenants.slot_request())
    assert again.warmth is Warmth.FRESH
    again.slot.close()


@pytest.mark.parametrize("part", ["keys", "aside", "stage", "trash"])
def test_a_part_of_the_pool_that_is_none(pool: Pool, cachedind: Command, tmp_path: Path, part: str) -> None:
    path = Path(pool.tree) / part
    path.rmdir()
    path.symlink_to(tmp_path)
    done = cachedind("ls", "--pool", pool.path)
    assert (done.status, done.stdout) == (74, "")
    assert f"{part} in the pool {pool.path} is not the directory that cachedind made" in done.stderr


# ---- removing --------------------------------------------------------------------------------------------------------


def fill(pool: Pool, *keys: str) -> dict[str, str]:
    """A golden and a free slot for each key; the ids of the slots."""
    found = {}
    for key in keys:
        tenants.job(pool, tenants.slot_request(key), "one")
        found[key] = tenants.job(pool, tenants.slot_request(key), "two")
    return found


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
    assert os.listdir(f"{pool.tree}/trash") == []
    left = cachedind("ls", "--json", "--pool", pool.path).entries
    assert sorted({entry["key"] for entry in left}) == ["group", "keys/group", "project"]
    assert len(left) == 6


def test_a_held_slot_stays_and_everything_else_of_its_key_goes(pool: Pool, cachedind: Command) -> None:
    fill(pool, "k")
    held = tenants.take(pool, tenants.slot_request())
    tenants.job(pool, tenants.slot_request(), "three")
    for words in (("rm", "k"), ("rm", "--slot", held.slot.id), ("rm", "--all", "-f"), ("rm", "k")):
        done = cachedind(*words, "--pool", pool.path)
        assert done.status == 75
        [line] = done.stderr.splitlines()
        assert f"slot {held.slot.id} of key k is held by container c0ffee (host name pid-{os.getpid()}, since" in line
        assert cachedind("ls", "--json", "--pool", pool.path).states[f"slots/{held.slot.id}"] == "held"
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{held.slot.id}": "held"}
    assert tenants.names(held) == ["one", "two"]
    held.slot.close()
    assert cachedind("rm", "--slot", held.slot.id, "--pool", pool.path).status == 0
    assert cachedind("ls", "--json", "--pool", pool.path).entries == []
    assert not key_path(pool).exists()


def test_one_slot_of_many(pool: Pool, cachedind: Command) -> None:
    found = fill(pool, "a", "b")
    assert cachedind("rm", "--slot", found["a"], "--pool", pool.path).status == 0
    left = {(entry["key"], entry["name"]) for entry in cachedind("ls", "--json", "--pool", pool.path).entries}
    assert left == {("a", "golden"), ("b", "golden"), ("b", f"slots/{found['b']}")}


def test_what_was_set_aside_is_dropped_by_the_name_that_the_log_gave_it(pool: Pool, cachedind: Command) -> None:
    fill(pool, "k")
    key_fd = slots.open_key(pool, "k", create=False)
    assert key_fd is not None
    where = directory.set_aside(pool, key_fd, "golden", "a test", time.time())
    os.close(key_fd)
    done = cachedind("rm", where, "--pool", pool.path)
    assert (done.status, done.stdout.splitlines()[0]) == (0, f"removed {where}")
    assert os.listdir(f"{pool.tree}/aside") == []
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
    assert "Say --force" in cachedind("rm", "--all", "--pool", pool.path, stdin="y\n").stderr
    assert everything(Path(pool.path)) == before
    done = cachedind("rm", "--all", "--force", "--pool", pool.path)
    assert done.status == 0
    assert cachedind("ls", "--pool", pool.path).stdout == "The pool is empty.\n"


def test_space_is_free_when_the_command_ends(pool: Pool, cachedind: Command) -> None:
    taken = tenants.take(pool, tenants.slot_request())
    tenants.begin(taken)
    tenants.write(taken, "layer", os.urandom(10 * MIB).hex())
    taken.slot.close()
    linux.syncfs(pool.tree_fd)
    done = cachedind("rm", "k", "--pool", pool.path)
    assert done.stdout.splitlines()[-1].startswith(("20.", "19.")), done.stdout
    assert json.loads(cachedind("status", "--json", "--pool", pool.path).stdout)["filesystem"]["used_bytes"] < 8 * MIB


def test_a_start_beside_a_removal_is_never_robbed(pool: Pool, cachedind: Command) -> None:
    """Starts and removals side by side: who has a slot keeps it."""

    def remove_again_and_again() -> None:
        from cachedind.commands import removal
        from cachedind.pool import upkeep

        own = directory.open_existing(pool.path, pool.trace)
        while True:
            removal.remove_all(own)
            upkeep.empty_trash(own)

    with child(remove_again_and_again):
        for _ in range(60):
            taken = tenants.take(pool, tenants.slot_request())
            tenants.begin(taken)
            tenants.write(taken, "mine")
            tenants.come_up(taken)
            time.sleep(0.005)
            assert "mine" in tenants.names(taken)
            assert (key_path(pool) / "slots" / taken.slot.id / "data" / "mine").exists()
            taken.slot.close()


# ---- gc and promote --------------------------------------------------------------------------------------------------


def test_gc_says_what_went_and_why(pool: Pool, cachedind: Command) -> None:
    fill(pool, "k")
    slot_id = tenants.take(pool, tenants.slot_request(read_only=True))
    slot_id.slot.close()
    os.mkdir("old", dir_fd=pool.trash_fd)
    done = cachedind("gc", "--pool", pool.path)
    assert done.status == 0
    assert done.stdout.splitlines()[0] == f"removed slot {slot_id.slot.id} of key k: superseded by a newer golden"
    assert done.stdout.splitlines()[-1].endswith(" freed")
    assert os.listdir(f"{pool.tree}/trash") == []
    assert len(cachedind("ls", "--json", "--pool", pool.path).entries) == 3, "what is of use stays"


def test_gc_keeps_to_the_limits_of_its_own_environment_and_tells_what_it_lacks(pool: Pool, cachedind: Command) -> None:
    fill(pool, "a", "b")
    held = tenants.take(pool, tenants.slot_request("a"))
    tenants.write(held, "own", "y" * MIB)
    linux.syncfs(pool.tree_fd)
    report = json.loads(cachedind("gc", "--json", "--pool", pool.path, POOL_MAX_SIZE="1kB").stdout)
    assert {(entry["key"], entry["name"]) for entry in report["evicted"]} >= {("b", "golden")}
    assert report["lacking_bytes"] > MIB // 2
    assert cachedind("ls", "--json", "--pool", pool.path).states == {f"slots/{held.slot.id}": "held"}
    text = cachedind("gc", "--pool", pool.path, POOL_MAX_SIZE="1kB")
    assert "more should go by the limits, but the rest is in use" in text.stdout
    held.slot.close()


def test_promote_takes_the_newest_that_is_free_and_good(pool: Pool, cachedind: Command) -> None:
    first = tenants.take(pool, tenants.slot_request())
    second = tenants.take(pool, tenants.slot_request())
    third = tenants.take(pool, tenants.slot_request())
    for taken in (first, second, third):
        tenants.begin(taken)
        tenants.write(taken, taken.slot.id)
    for taken in (first, second):
        tenants.come_up(taken)
    first.slot.close()
    third.slot.close()  # the newest, but no daemon came up on it; the second is held

    done = cachedind("promote", "k", "--pool", pool.path)
    assert (done.status, done.stdout) == (0, f"key k: slot {first.slot.id}: its state is the golden of the key now\n")
    assert os.listdir(f"{pool.tree}/keys/k/golden/data") == [first.slot.id]
    done = cachedind("promote", "k", "--json", "--pool", pool.path)
    assert done.status == 1
    assert json.loads(done.stdout) == {
        "key": "k",
        "slot": None,
        "why": "what is newer than the golden is held by running instances",
    }
    second.slot.close()
    assert cachedind("promote", "k", "--pool", pool.path).status == 0
    assert os.listdir(f"{pool.tree}/keys/k/golden/data") == [second.slot.id]
    done = cachedind("promote", "k", "--pool", pool.path)
    assert (done.status, done.stdout) == (1, "key k: the golden is as new as the newest slot\n")
    done = cachedind("promote", "nope", "--pool", pool.path)
    assert (done.status, done.stdout) == (1, "key nope: the pool has nothing of this key\n")


def test_a_slot_that_somebody_had_since_is_not_promoted(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants.job(pool, tenants.slot_request(), "good")
    lease = slots.try_lease

    def after_a_bad_start(key_fd: int, name: str) -> Any:
        slot = lease(key_fd, name)
        assert slot is not None
        before = state.read_state(slot.directory_fd, slots.STATE_NAME)
        state.write_state(slot.directory_fd, slots.STATE_NAME, {"ready_at": None}, before)
        return slot

    monkeypatch.setattr(slots, "try_lease", after_a_bad_start)
    assert golden.promote_newest(pool, "k", procfs.read_boot_id())[0] is None
    assert not (key_path(pool) / "golden").exists()


def test_why_nothing_is_promoted(pool: Pool, filesystems: Filesystems, cachedind: Command) -> None:
    tenants.take(pool, tenants.slot_request("fresh")).slot.close()
    assert "no slot is in a state that can be trusted" in cachedind("promote", "fresh", "--pool", pool.path).stdout
    with contextlib.closing(tenants.open_pool(filesystems.make("ext4"), POOL_BACKING="directory")) as plain:
        tenants.job(plain, tenants.slot_request(), "one")
        done = cachedind("promote", "k", "--pool", plain.path)
        assert (done.status, done.stdout) == (1, "key k: a pool without clones has no goldens\n")


def test_a_promoted_copy_is_on_the_disk(filesystems: Filesystems, cachedind: Command) -> None:
    with contextlib.closing(tenants.open_pool(filesystems.make("xfs"))) as pool:
        tenants.job(pool, tenants.slot_request(), "one")
        assert cachedind("promote", "k", "--pool", pool.path).status == 0
        fd = slots.open_below(pool.keys_fd, "k/golden")
        assert (state.read_state(fd, slots.GOLDEN_NAME) or {})["durable"] is True
        os.close(fd)


def test_promotion_can_be_asked_for_while_starts_go_on(pool: Pool) -> None:
    def promote_again_and_again() -> None:
        own = directory.open_existing(pool.path, pool.trace)
        while True:
            golden.promote_newest(own, "k", procfs.read_boot_id())

    with child(promote_again_and_again):
        for number in range(60):
            taken = tenants.take(pool, tenants.slot_request())
            tenants.begin(taken)
            tenants.write(taken, str(number))
            tenants.come_up(taken)
            taken.slot.close()
    last = tenants.take(pool, tenants.slot_request())
    assert str(59) in tenants.names(last)
    last.slot.close()


# ---- images ----------------------------------------------------------------------------------------------------------


def attached(pool: Pool) -> list[str]:
    """The loop devices of a pool's image."""
    inode = os.stat(f"{pool.path}/pool.img").st_ino
    found = []
    for name in os.listdir("/sys/block"):
        with contextlib.suppress(OSError), open(f"/dev/{name}", "rb") as device:
            status = linux.loop_status(device.fileno()) if name.startswith("loop") else None
            if status is not None and status.inode == inode and status.device == os.stat(pool.path).st_dev:
                found.append(name)
    return found


@pytest.fixture
def image_home(filesystems: Filesystems, image_mount: Path) -> Iterator[Pool]:
    """A pool in an image on ext4 that is not mounted any more, with two keys."""
    pool = tenants.open_pool(filesystems.make("ext4", size_mib=2048))
    fill(pool, "a", "b")
    pool.close()
    linux.umount(str(image_mount))
    yield pool
    while os.path.ismount(image_mount):
        linux.umount(str(image_mount))


def test_an_image_is_mounted_for_the_command_alone(image_home: Pool, image_mount: Path, cachedind: Command) -> None:
    wait_until(lambda: not attached(image_home), what="the loop device to be gone")
    found = cachedind("ls", "--json", "--pool", image_home.path).entries
    assert sorted(entry["key"] for entry in found) == ["a", "a", "b", "b"]
    report = json.loads(cachedind("status", "--json", "--pool", image_home.path).stdout)
    assert report["pool"]["backing"] == "image"
    assert (report["filesystem"]["fstype"], report["image"]["fstype"]) == ("ext4", "btrfs")
    assert report["image"]["file_allocated_bytes"] < report["image"]["file_size_bytes"]
    assert cachedind("rm", "a", "--pool", image_home.path).status == 0
    assert cachedind("promote", "b", "--pool", image_home.path).status in (0, 1)
    assert cachedind("gc", "--pool", image_home.path).status == 0
    assert {entry["key"] for entry in cachedind("ls", "--json", "--pool", image_home.path).entries} == {"b"}
    assert not os.path.ismount(image_mount)
    wait_until(lambda: not attached(image_home), what="the loop device to be gone")


def test_beside_an_instance_the_image_has_one_device(image_home: Pool, cachedind: Command) -> None:
    running = tenants.open_pool(Path(image_home.path))
    held = tenants.take(running, tenants.slot_request("a"))
    [device] = attached(running)
    states = cachedind("ls", "a", "--json", "--pool", running.path).states
    assert states[f"slots/{held.slot.id}"] == "held"
    assert cachedind("rm", "--slot", held.slot.id, "--pool", running.path).status == 75
    assert attached(running) == [device]
    held.slot.close()
    running.close()


def test_space_in_an_image_goes_back_to_the_host(image_home: Pool, cachedind: Command) -> None:
    running = tenants.open_pool(Path(image_home.path))
    taken = tenants.take(running, tenants.slot_request("big"))
    tenants.write(taken, "layer", os.urandom(30 * MIB).hex())
    linux.syncfs(running.tree_fd)
    taken.slot.close()
    image = Path(running.path) / "pool.img"
    before = image.stat().st_blocks * 512
    assert cachedind("rm", "big", "--pool", running.path).status == 0
    assert image.stat().st_blocks * 512 < before - 50 * MIB
    running.close()


@pytest.mark.parametrize("break_it", ["missing", "empty", "garbage", "a directory", "a link"])
def test_an_image_that_is_none_is_left_for_the_next_start(
    image_home: Pool, cachedind: Command, tmp_path: Path, break_it: str
) -> None:
    image = Path(image_home.path) / "pool.img"
    wait_until(lambda: not attached(image_home), what="the loop device to be gone")
    if break_it == "garbage":
        with image.open("r+b") as file:
            file.seek(0x10000)
            file.write(b"x" * 4096)
    else:
        image.unlink()
    if break_it == "empty":
        image.touch()
    if break_it == "a directory":
        image.mkdir()
    if break_it == "a link":
        image.symlink_to(tmp_path / "elsewhere")
    names = sorted(os.listdir(image_home.path))
    for words in (("ls",), ("rm", "--all", "-f"), ("gc",)):
        done = cachedind(*words, "--pool", image_home.path)
        assert (done.status, done.stdout) == (74, ""), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "pool.img" in done.stderr
    assert sorted(os.listdir(image_home.path)) == names
