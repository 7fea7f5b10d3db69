"""Trials of storage drivers on real filesystems: the right verdict, for the right reason, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cachedind
from cachedind.base.errors import DataRootUnwritableError
from cachedind.base.model import Verdict
from cachedind.dataroot import facts, overlay_trial, stale_trials, trials
from cachedind.dataroot.trials import probe_fuse_overlayfs, probe_overlay
from cachedind.host import linux, procfs
from helpers.children import child, children_of, in_child, in_namespaces, wait_for_no_children
from helpers.filesystems import Filesystems, mount_points

Probe = Callable[[str], Verdict]
GOOD = ["ext4", "xfs", "btrfs", "tmpfs"]


def observed(probe: Probe, directory: Path) -> Verdict:
    """The verdict, after checking that nothing is left behind. Prints how long it took."""
    mounts, descriptors = mount_points(), os.listdir("/proc/self/fd")
    started = time.monotonic()
    verdict = probe(str(directory))
    took_ms = (time.monotonic() - started) * 1000
    print(f"{verdict.driver} on {facts.read_mount(str(directory)).fstype}: {took_ms:.0f} ms: {verdict.why}")
    assert took_ms < 1000
    assert list(directory.iterdir()) == []
    assert mount_points() == mounts
    assert os.listdir("/proc/self/fd") == descriptors
    wait_for_no_children()
    return verdict


@pytest.mark.parametrize("directory", GOOD, indirect=True)
def test_overlay2_works(directory: Path) -> None:
    verdict = observed(probe_overlay, directory)
    assert verdict.works, verdict.why


@pytest.mark.parametrize("directory", [*GOOD, "overlay"], indirect=True)
def test_fuse_overlayfs_works(directory: Path) -> None:
    verdict = observed(probe_fuse_overlayfs, directory)
    assert verdict.works, verdict.why


@pytest.mark.parametrize("directory", ["overlay"], indirect=True)
def test_overlay2_does_not_work_on_an_overlay_and_that_is_the_filesystems_fault(directory: Path) -> None:
    verdict = observed(probe_overlay, directory)
    assert not verdict.works
    assert not verdict.privilege, verdict.why
    assert verdict.why == "the backing filesystem is unfit (merged: Invalid argument)"


@pytest.mark.parametrize("directory", ["ramfs"], indirect=True)
def test_overlay2_does_not_work_on_ramfs_though_the_mount_succeeds(directory: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (directory / name).mkdir()
    options = f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/work"
    linux.mount("overlay", str(directory / "merged"), "overlay", data=options)
    linux.umount(str(directory / "merged"))
    for path in directory.iterdir():
        shutil.rmtree(path)

    verdict = observed(probe_overlay, directory)
    assert not verdict.works
    assert not verdict.privilege, verdict.why
    # It is the rename of a lower file, which needs a whiteout in its old place.
    assert verdict.why == "the backing filesystem is unfit (merged/other to merged/renamed: Invalid argument)"


@pytest.mark.parametrize("directory", GOOD, indirect=True)
def test_a_trial_in_the_middle_of_data_touches_none_of_it(directory: Path) -> None:
    (directory / "overlay2" / "layer").mkdir(parents=True)
    (directory / "file").write_text("content")
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in directory.rglob("*"))
    assert probe_overlay(str(directory)).works
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in directory.rglob("*")) == before


# ---- where nothing can be tried ----


@pytest.mark.parametrize("driver", ["overlay2", "fuse-overlayfs"])
def test_a_read_only_filesystem_is_a_documented_error(filesystems: Filesystems, small: Path, driver: str) -> None:
    filesystems.make_read_only(small)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        (probe_overlay if driver == "overlay2" else probe_fuse_overlayfs)(str(small))
    assert caught.value.errno == errno.EROFS
    with pytest.raises(DataRootUnwritableError, match=f"{small} cannot be written: Read-only file system") as told:
        facts.probe_driver(str(small), driver, has_data=True)
    assert told.value.exit_code == 74


@pytest.mark.parametrize("driver", ["overlay2", "fuse-overlayfs"])
def test_a_full_filesystem_is_an_error_for_a_fresh_data_root_alone(
    filesystems: Filesystems, small: Path, driver: str
) -> None:
    filesystems.fill(small)
    before = os.listdir(small)
    with pytest.raises(DataRootUnwritableError, match="No space left on device") as told:
        facts.probe_driver(str(small), driver, has_data=False)
    assert told.value.exit_code == 74
    assert facts.probe_driver(str(small), driver, has_data=True).works
    assert os.listdir(small) == before


@pytest.mark.parametrize("directory", ["tmpfs"], indirect=True)
def test_without_cap_sys_admin_it_is_the_privileges(directory: Path) -> None:
    script = (
        "import json, sys; from cachedind.dataroot import trials\n"
        "print(json.dumps([getattr(trials, name)(sys.argv[1]) for name in sys.argv[2:]]))"
    )
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"),
            *(sys.executable, "-c", script, str(directory), "probe_overlay", "probe_fuse_overlayfs"),
        ],
        env={"PYTHONPATH": str(Path(cachedind.__file__).parents[1]), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    )
    for driver, works, why, privilege in json.loads(done.stdout):
        assert not works
        assert privilege, f"{driver}: {why}"
        assert "the container lacks privileges" in why
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("directory", ["tmpfs"], indirect=True)
def test_without_dev_fuse(directory: Path) -> None:
    def without() -> Verdict:
        linux.mount("none", "/dev", "tmpfs")
        return probe_fuse_overlayfs(str(directory))

    verdict = in_namespaces(without)
    assert not verdict.works
    assert not verdict.privilege
    assert verdict.why.startswith("/dev/fuse is missing: run the container with --privileged")


@pytest.mark.parametrize("directory", ["tmpfs"], indirect=True)
def test_without_the_program(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_trial, "_PROGRAM_PATH", "/no-such-directory")
    verdict = observed(probe_fuse_overlayfs, directory)
    assert verdict.why == "the program fuse-overlayfs is not installed"


@pytest.mark.parametrize("directory", ["tmpfs"], indirect=True)
def test_where_mounts_are_shared_the_trials_are_not(directory: Path) -> None:
    """hack/dind makes / shared: a trial's mounts must not show up in the container even for a moment."""

    def shared() -> list[str]:
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SHARED)
        before = mount_points()
        seen: list[str] = []
        with child(lambda: [probe_overlay(str(directory)).works for _ in range(20)]) as probing:
            while children_of(os.getpid()) and not _is_zombie(probing.pid):
                seen += [
                    mount.mount_point
                    for mount in procfs.read_mounts()
                    if stale_trials.PROBE_PREFIX in mount.mount_point
                ]
            assert probing.result() == [True] * 20
        assert mount_points() == before
        return seen

    assert in_namespaces(shared) == []


def _is_zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(") ")[2].startswith("Z")


# ---- killed ----


@pytest.mark.parametrize("directory", ["ext4", "tmpfs"], indirect=True)
@pytest.mark.parametrize("probe", [probe_overlay, probe_fuse_overlayfs])
def test_a_trial_that_is_killed_proves_nothing_and_leaves_nothing(
    directory: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(20)
    longest_s = _duration_s(probe, directory)
    # The first one is too early for any trial to have ended.
    delays_s = [0.0002, *(rng.uniform(0.001, longest_s) for _ in range(29))]
    real = trials._run_child

    def run_child(trial: Callable[[str], None], work: str, write_fd: int) -> None:
        # The kernel's alarm kills as SIGKILL does: no code of the child runs any more.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, delays_s[0])
        real(trial, work, write_fd)

    monkeypatch.setattr(trials, "_run_child", run_child)
    killed = 0
    while delays_s:
        verdict = probe(str(directory))
        assert verdict.works or verdict.why == "the trial was killed"
        killed += not verdict.works
        assert list(directory.iterdir()) == []
        wait_for_no_children()
        del delays_s[0]
    print(f"30 trials, {killed} killed in time")
    assert killed


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
@pytest.mark.parametrize("end", ["killed", "unfit"])
def test_fuse_overlayfs_does_not_outlive_a_trial_that_ends_while_it_is_mounted(
    directory: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Its process lives in the trial's mount namespace, and would keep that and the mount for ever."""

    def use(work: str) -> None:
        assert os.path.ismount(f"{work}/merged")
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise overlay_trial.Unfit("it is unfit")

    monkeypatch.setattr(overlay_trial, "_use_as_root_filesystem", use)
    verdict = observed(probe_fuse_overlayfs, directory)
    assert verdict.why == {"killed": "the trial was killed", "unfit": "it is unfit"}[end]


def _duration_s(probe: Probe, directory: Path) -> float:
    started = time.monotonic()
    in_child(lambda: probe(str(directory)))
    return time.monotonic() - started


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
@pytest.mark.parametrize("probe", [probe_overlay, probe_fuse_overlayfs])
def test_what_a_killed_start_leaves_is_swept_by_the_next(directory: Path, probe: Probe) -> None:
    rng = random.Random(21)
    longest_s = _duration_s(probe, directory)
    for _ in range(20):
        with child(lambda: probe(str(directory))) as probing:
            time.sleep(rng.uniform(0, longest_s))
            probing.kill()
        wait_for_no_children(timeout_s=15)
        left = os.listdir(directory)
        assert all(name.startswith(stale_trials.PROBE_PREFIX) for name in left)
        assert sorted(stale_trials.sweep(str(directory))) == sorted(left)
        assert os.listdir(directory) == []


def test_a_driver_with_a_mount_of_its_own_is_tried_there(filesystem: Callable[[str], Path], tmp_path: Path) -> None:
    data_root = tmp_path / "data"
    (data_root / "overlay2").mkdir(parents=True)
    linux.mount(str(filesystem("ramfs")), str(data_root / "overlay2"), flags=linux.MS_BIND)
    try:
        assert not facts.probe_driver(str(data_root), "overlay2", has_data=False).works
    finally:
        linux.umount(str(data_root / "overlay2"))
    assert os.listdir(filesystem("ramfs")) == []
    assert (
        facts.probe_driver(str(data_root), "overlay2", has_data=False).works
        == facts.probe_driver(str(tmp_path), "overlay2", has_data=False).works
    )
