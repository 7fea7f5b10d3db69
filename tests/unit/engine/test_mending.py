"""What is done about damage: nothing is deleted, and no link followed."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from cachedind.base.errors import DaemonEnd
from cachedind.base.model import EngineVersion, ImageStore, Loss, StoragePlan
from cachedind.base.trace import Trace
from cachedind.engine import aside, hollow, kept, looked, mending, paths, proof
from cachedind.engine.doubt import CRASHED, NEVER_READY, Doubt
from cachedind.engine.graph_view import GraphView
from cachedind.engine.proof import Proof, Subject
from cachedind.host import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

GRAPH = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
UP = Proof()
DIES = Proof("the private daemon ended with status 1: panic: page 3", DaemonEnd.BY_ITSELF)
FULL = Proof("the private daemon ended with status 1: write: no space left on device", DaemonEnd.BY_ITSELF)
KILLED = Proof("the private daemon was killed by signal 9", DaemonEnd.BY_A_SIGNAL)
SILENT = Proof("the private daemon did not answer in time", DaemonEnd.SILENT)
DOUBT = Doubt(NEVER_READY)
CRASH = Doubt(CRASHED, crashed=True)


class Daemons:
    """What private daemons say: `of_data` by what they see in the data-root, `elsewhere` on an empty directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.of_data: Callable[[set[str]], Proof] = lambda names: UP
        self.elsewhere = UP
        self.seen: list[set[str]] = []

    def prove(self, subject: Subject, environ: object) -> Proof:
        if subject.data_root != str(self.root):
            return self.elsewhere
        files = {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}
        self.seen.append({name for name in files if not name.startswith(".cachedind")})
        return self.of_data(self.seen[-1])


@pytest.fixture
def daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemons:
    found = Daemons(tmp_path)
    monkeypatch.setattr(proof, "prove", found.prove)
    return found


@pytest.fixture
def subject(tmp_path: Path, daemons: Daemons) -> Iterator[Subject]:
    """A data-root on which every private daemon comes up."""
    (tmp_path / "buildkit").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield Subject(str(tmp_path), fd, GRAPH, -1)
    os.close(fd)


def mend(subject: Subject, doubt: Doubt | None = None, **more: bool) -> mending.Mended:
    options = {"has_better": False, "in_pool": False, "strict": False, **more}
    return mending.mend(subject, doubt, environ={}, trace=Trace(), **options)


def damaged(root: Path, text: str = "garbage") -> Path:
    path = root / "buildkit" / "history.db"
    path.write_text(text)
    return path


def test_damage_on_which_a_daemon_comes_up_is_told_and_left(subject: Subject, tmp_path: Path) -> None:
    path = damaged(tmp_path)
    result = mend(subject)
    assert (result.fit, result.loss, result.moved) == (True, None, ())
    assert "history.db" in result.left
    assert path.read_text() == "garbage"
    assert not (tmp_path / ".cachedind").exists()


def test_damage_that_ends_a_daemon_lies_aside_under_its_path_with_the_reason(
    subject: Subject, daemons: Daemons, tmp_path: Path
) -> None:
    path = damaged(tmp_path)
    daemons.of_data = lambda names: DIES if "buildkit/history.db" in names else UP
    result = mend(subject)
    assert (result.fit, result.loss, result.left) == (True, Loss.RECORDS, "")
    [moved] = result.moved
    assert (tmp_path / moved.name / "buildkit" / "history.db").read_text() == "garbage"
    assert not path.exists()
    why = json.loads((tmp_path / moved.name / "why.json").read_text())
    assert why["paths"] == ["buildkit/history.db"]
    assert "panic: page 3" in why["why"], "the daemon's own words"
    assert why["told"] is False
    [found] = aside.read(subject.root_fd)
    assert (found.name, found.paths, found.told) == (moved.name, ("buildkit/history.db",), False)
    aside.note_told(subject.root_fd, [found.name])
    assert [one.told for one in aside.read(subject.root_fd)] == [True]


@pytest.mark.parametrize("proof", [SILENT, KILLED, FULL], ids=["silent", "killed", "full"])
@pytest.mark.parametrize("has_better", [False, True])
@pytest.mark.parametrize("is_damaged", [False, True], ids=["whole", "damaged"])
def test_what_is_no_evidence_moves_nothing(
    subject: Subject, daemons: Daemons, tmp_path: Path, proof: Proof, has_better: bool, is_damaged: bool
) -> None:
    (tmp_path / "image").mkdir()
    if is_damaged:
        damaged(tmp_path)
    daemons.of_data = lambda names: proof
    result = mend(subject, DOUBT, has_better=has_better)
    assert (result.fit, result.loss, result.moved, result.unproven) == (True, None, (), proof.problem)
    assert sorted(os.listdir(tmp_path)) == ["buildkit", "image"]


def test_where_no_daemon_comes_up_anywhere_the_data_is_not_to_blame(
    subject: Subject, daemons: Daemons, tmp_path: Path
) -> None:
    (tmp_path / "image").mkdir()
    daemons.of_data, daemons.elsewhere = (lambda names: DIES), DIES
    for has_better in (False, True):
        result = mend(subject, DOUBT, has_better=has_better)
        assert (result.fit, result.loss, result.moved) == (True, None, ())
        assert "not even on an empty directory" in result.unproven
        assert sorted(os.listdir(tmp_path)) == [".cachedind", "buildkit", "image"]
        assert os.listdir(tmp_path / ".cachedind") == []


def test_the_rungs_come_one_after_another(subject: Subject, daemons: Daemons, tmp_path: Path) -> None:
    """Nothing is found, and no daemon comes up until even the images are gone."""
    for name in ("buildkit/x", "image/y", "volumes/data/z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    daemons.of_data = lambda names: DIES if "image/y" in names else UP
    result = mend(subject, DOUBT)
    assert daemons.seen == [
        {"buildkit/x", "image/y", "volumes/data/z"},
        {"image/y", "volumes/data/z"},
        {"volumes/data/z"},
    ]
    assert (result.fit, result.loss) == (True, Loss.IMAGES)
    assert "panic" in result.why
    assert {path for moved in result.moved for path in moved.paths} == {"buildkit", "image"}


def test_where_a_pool_has_better_nothing_more_is_tried(subject: Subject, daemons: Daemons) -> None:
    daemons.of_data = lambda names: DIES
    result = mend(subject, DOUBT, has_better=True, in_pool=True)
    assert (result.fit, result.refused, result.moved) == (False, False, ())
    assert result.why == f"{NEVER_READY}; {DIES.problem}"


@pytest.mark.parametrize("is_damaged", [False, True], ids=["whole", "damaged"])
def test_strict_changes_nothing(subject: Subject, daemons: Daemons, tmp_path: Path, is_damaged: bool) -> None:
    if is_damaged:
        damaged(tmp_path)
    (tmp_path / "image").mkdir()
    daemons.of_data = lambda names: DIES
    before = sorted(path for path in tmp_path.rglob("*") if ".cachedind" not in path.parts)
    for _ in range(2):
        result = mend(subject, DOUBT, strict=True)
        assert (result.fit, result.refused, result.moved) == (False, True, ())
        assert sorted(path for path in tmp_path.rglob("*") if ".cachedind" not in path.parts) == before


def test_everything_stays_in_direct_mode_and_the_last_few_in_a_pool(
    subject: Subject, daemons: Daemons, tmp_path: Path
) -> None:
    daemons.of_data = lambda names: DIES if "buildkit/history.db" in names else UP
    for number in range(5):
        damaged(tmp_path, f"garbage {number}")
        mend(subject)
    assert len(aside.read(subject.root_fd)) == 5
    damaged(tmp_path)
    mend(subject, in_pool=True)
    assert len(aside.read(subject.root_fd)) == aside.MAX_IN_POOL


def test_the_record_of_a_move_is_on_disk_before_it(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged(tmp_path)
    (tmp_path / "busy").mkdir()
    real = os.rename

    def rename(source: str, target: str, **fds: int) -> None:
        if source == "busy":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if source == "history.db":
            [found] = aside.read(subject.root_fd)
            assert (found.paths, found.told) == (("buildkit/history.db", "busy"), False)
        real(source, target, **fds)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="busy"):
        aside.move(subject.root_fd, ["busy", "buildkit/history.db"], "why", in_pool=False)
    [found] = aside.read(subject.root_fd)
    assert not found.told
    assert (tmp_path / found.name / "buildkit" / "history.db").exists()
    assert (tmp_path / "busy").exists()


def test_the_engines_name_is_put_back_and_the_other_one_kept_aside(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "engine-id").write_text("the-engines-own-name")
    kept.keep_copies(subject.root_fd, GRAPH)
    (tmp_path / "buildkit" / "cache.db").touch()
    (tmp_path / "engine-id").write_text("another-name")
    result = mend(subject)
    assert (result.fit, result.loss, result.left) == (True, Loss.NOTHING, "")
    assert (tmp_path / "engine-id").read_text() == "the-engines-own-name"
    assert (tmp_path / result.moved[0].name / "engine-id").read_text() == "another-name"
    (tmp_path / "engine-id").unlink()
    assert mend(subject).loss is Loss.NOTHING
    assert (tmp_path / "engine-id").read_text() == "the-engines-own-name"


def test_without_build_cache_the_engine_may_have_any_name(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "engine-id").write_text("the-engines-own-name")
    kept.keep_copies(subject.root_fd, GRAPH)
    (tmp_path / "engine-id").unlink()
    assert mend(subject) == mending.Mended(True)


@pytest.mark.parametrize("where", [".cachedind", ".cachedind/aside", "buildkit"])
def test_no_link_that_a_job_has_planted_is_followed(
    subject: Subject, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, where: str
) -> None:
    victim = tmp_path_factory.mktemp("victim")
    (victim / "history.db").write_text("precious")
    if where == "buildkit":
        (tmp_path / "buildkit").rmdir()
    else:
        damaged(tmp_path)
        (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).symlink_to(victim)
    if where == "buildkit":
        [moved] = aside.move(subject.root_fd, ["buildkit/history.db"], "why", in_pool=False)
        assert (tmp_path / moved.name / "buildkit").is_symlink(), "the link itself is what is damaged"
    else:
        with pytest.raises(NotADirectoryError):
            aside.move(subject.root_fd, ["buildkit/history.db"], "why", in_pool=False)
    assert os.listdir(victim) == ["history.db"]
    assert (victim / "history.db").read_text() == "precious"


def test_what_lies_in_something_that_is_moved_goes_with_it(subject: Subject, tmp_path: Path) -> None:
    inside = tmp_path / "containerd" / "snapshots" / "9"
    inside.mkdir(parents=True)
    [moved] = aside.move(subject.root_fd, ["containerd/snapshots/9", "containerd"], "why", in_pool=False)
    assert moved.paths == ("containerd",)
    assert (tmp_path / moved.name / "containerd" / "snapshots" / "9").is_dir()
    assert not (tmp_path / "containerd").exists()


# ---- a crash of the host ---------------------------------------------------------------------------------------------


def layers(root: Path, *names: str) -> None:
    for name in names:
        record = root / "image/overlay2/layerdb/sha256" / hashlib.sha256(name.encode()).hexdigest()
        record.mkdir(parents=True)
        (record / "cache-id").write_text(name)
        (record / "size").write_text("0")
        (record / "diff").write_text(f"sha256:{'0' * 64}")
        (record / "tar-split.json.gz").write_bytes(gzip.compress(b""))
        (root / "overlay2" / name / "diff").mkdir(parents=True)


def test_a_look_without_time_goes_on_at_the_next_start(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers(tmp_path, "one", "two", "three")
    clock = iter(range(1000))
    with monkeypatch.context() as patch:
        # Each look at the clock is a second: one for the beginning, one for each layer.
        patch.setattr(time, "monotonic", lambda: next(clock))
        patch.setattr(hollow, "TIME_S", 2.0)
        first = mend(subject, CRASH)
        assert (first.fit, first.late, first.unchecked) == (True, True, ("2 of 3 layers (no time left)",))
        second = mend(subject, CRASH)
        assert (second.late, second.unchecked) == (True, ("1 of 3 layers (no time left)",))
        third = mend(subject, CRASH)
        assert (third.late, third.unchecked) == (False, ())
    assert os.listdir(tmp_path / ".cachedind") == []


def test_what_two_starts_in_a_row_have_no_time_for_is_a_remark(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers(tmp_path, "one")
    monkeypatch.setattr(hollow, "TIME_S", 0.0)
    results = [mend(subject, CRASH) for _ in range(2)]
    assert [result.late for result in results] == [True, False]
    assert all("no time left" in result.unchecked[0] for result in results)


def test_after_the_next_crash_all_is_looked_at_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers(tmp_path, "one")
    names = frozenset(os.listdir(tmp_path / "image/overlay2/layerdb/sha256"))
    looked.note(subject.root_fd, names)
    assert looked.read(subject.root_fd) == names
    monkeypatch.setattr(procfs, "read_boot_id", lambda: "another")
    assert looked.read(subject.root_fd) is None
    looked.note(subject.root_fd, None)
    assert os.listdir(tmp_path / ".cachedind") == []


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"boot_id": 3, "names": 4}'])
def test_a_note_that_cannot_be_read_is_none(subject: Subject, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / ".cachedind").mkdir()
    (tmp_path / ".cachedind/looked.json").write_bytes(raw)
    assert looked.read(subject.root_fd) is None


def test_an_engine_that_nobody_knows_is_a_remark(subject: Subject, tmp_path: Path) -> None:
    """Its snapshots can never be compared with anything: that is no reason to doubt them for ever."""
    (tmp_path / paths.BLOBS).mkdir(parents=True)
    later = EngineVersion(99, 0, 0)
    unknown = subject._replace(storage=StoragePlan(ImageStore.CONTAINERD, "overlayfs", ""), engines=(later, later))
    result = mend(unknown, CRASH)
    assert (result.fit, result.late) == (True, False)
    assert "does not know" in result.unchecked[0]


# ---- pins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_better", [False, True])
def test_pins_speak_against_no_data(
    daemons: Daemons, subject: Subject, monkeypatch: pytest.MonkeyPatch, has_better: bool
) -> None:
    """A full disk, say: the slot is taken all the same, and what that costs is told."""
    pin = daemons.root / f"image/overlay2/layerdb/mounts/cachedind-{'a' * 64}"
    pin.mkdir(parents=True)
    (pin / "parent").write_text("")
    assert mend(subject, CRASH, in_pool=True, has_better=has_better).unpinned == ""
    assert not pin.exists()

    def refuse(self: GraphView) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GraphView, "mend_pins", refuse)
    result = mend(subject, CRASH, in_pool=True, has_better=has_better)
    assert (result.fit, result.moved) == (True, ())
    assert (result.unpinned, result.left) == ("No space left on device", "")
