"""What a start finds out about its place, as far as that is a matter of thinking."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from cachedind.base import sizes
from cachedind.base.errors import DataRootUnwritableError, NotPrivilegedError, ProgramMissingError, UnsafeLockError
from cachedind.base.model import EngineVersion, Mount, Verdict
from cachedind.dataroot import facts, trials
from cachedind.dataroot.facts import Place
from cachedind.host import procfs
from cachedind.host.processes import Result
from cachedind.host.procfs import parse_mountinfo
from helpers.daemon_settings import settings_of

DATA = Path(__file__).parents[2] / "data" / "mountinfo"
MIB = 1 << 20


def mount_of(fstype: str = "ext4", root: str = "/", **more: object) -> Mount:
    return Mount("/var/lib/docker", root, fstype, "/dev/sda", frozenset({"rw"}), frozenset({"rw"}))


def place_of(fstype: str = "ext4", *, free_mib: int = 1000, inodes: int = 100_000, free_inodes: int = 50_000) -> Place:
    return Place("/var/lib/docker", mount_of(fstype), 2000 * MIB, free_mib * MIB, inodes, free_inodes)


@pytest.mark.parametrize(
    ("fstype", "safe"),
    [
        *((name, True) for name in ("ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay", "f2fs", "bcachefs")),
        *((name, False) for name in ("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "lustre", "glusterfs")),
        *((name, False) for name in ("fuse", "fuse.sshfs", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.fuse-overlayfs")),
    ],
)
def test_which_filesystems_lock_for_this_kernel_alone(fstype: str, safe: bool) -> None:
    mount = mount_of(fstype)
    assert (facts.unsafe_lock_reason(fstype) is None) is safe
    if safe:
        assert facts.check_lock_filesystem(mount, "/d", allowed=False) is None
        return
    with pytest.raises(UnsafeLockError, match=f"/d is on {fstype}: locks on {fstype} may be invisible") as caught:
        facts.check_lock_filesystem(mount, "/d", allowed=False)
    assert caught.value.exit_code == 78
    assert "CACHEDIND_ALLOW_NETWORK_FS=1" in caught.value.hint
    degradation = facts.check_lock_filesystem(mount, "/d", allowed=True)
    assert degradation is not None
    assert degradation.what == "exclusive use is not certain"


@pytest.mark.parametrize(
    ("place", "full"),
    [
        pytest.param(place_of(), "", id="room"),
        pytest.param(place_of(free_mib=15), "15.0 MiB of 2.0 GiB are free", id="no bytes"),
        pytest.param(place_of(free_inodes=999), "999 of 100000 inodes are free", id="no inodes"),
        pytest.param(place_of("btrfs", inodes=0, free_inodes=0), "", id="btrfs counts no inodes"),
        pytest.param(place_of("ramfs")._replace(total_bytes=0, free_bytes=0), "", id="ramfs counts no blocks"),
        pytest.param(
            place_of(free_mib=0, free_inodes=0), "0 B of 2.0 GiB are free and 0 of 100000 inodes are free", id="neither"
        ),
    ],
)
def test_check_room(place: Place, full: str) -> None:
    degradation = facts.check_room(place, fresh=False)
    assert (degradation is not None) is bool(full)
    if not full:
        assert facts.check_room(place, fresh=True) is None
        return
    assert degradation is not None
    assert full in degradation.what
    with pytest.raises(DataRootUnwritableError) as caught:
        facts.check_room(place, fresh=True)
    assert full in caught.value.cause
    assert caught.value.exit_code == 74


@pytest.mark.parametrize(
    ("mount", "why"),
    [
        (mount_of("ext4", "/var/lib/docker/volumes/cache/_data"), ""),
        (mount_of("tmpfs"), "in memory (tmpfs)"),
        (mount_of("ramfs"), "in memory (ramfs)"),
        (mount_of("overlay"), "the container's own layer"),
        (mount_of("ext4", f"/var/lib/docker/volumes/{'a' * 64}/_data"), "an anonymous volume"),
        (mount_of("ext4", f"/volumes/{'a' * 64}/_data/docker"), "an anonymous volume"),
        (mount_of("ext4", f"/volumes/{'a' * 63}/_data"), ""),
    ],
    ids=["a named volume", "tmpfs", "ramfs", "no volume", "anonymous volume", "below one", "a name that resembles one"],
)
def test_whether_the_cache_outlives_the_container(mount: Mount, why: str) -> None:
    degradation = facts.persistence(place_of()._replace(mount=mount))
    assert (degradation.why if degradation else "").endswith(why)
    assert bool(degradation) is bool(why)


@pytest.mark.parametrize(
    ("capture", "why"), [("container-named-volume", ""), ("container-anonymous-volume", "an anonymous volume")]
)
def test_volumes_of_a_real_engine(capture: str, why: str) -> None:
    mounts = parse_mountinfo((DATA / f"{capture}.txt").read_text())
    mount = facts.read_mount("/var/lib/docker", mounts)
    degradation = facts.persistence(place_of()._replace(mount=mount))
    assert (degradation.why if degradation else "").endswith(why)
    assert bool(degradation) is bool(why)


def test_a_path_that_does_not_exist_yet_lies_on_its_parents_mount() -> None:
    mounts = [mount_of("xfs")._replace(mount_point="/"), mount_of("ext4")._replace(mount_point="/no-such")]
    assert facts.read_mount("/no-such/directory/docker", mounts).fstype == "ext4"
    assert facts.read_mount("/elsewhere", []).fstype == "unknown"


def test_links_are_resolved_before_the_mount_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    mounts = [mount_of("ext4")._replace(mount_point=os.path.realpath(tmp_path / "real"))]
    assert facts.read_mount(str(tmp_path / "link" / "docker"), mounts).fstype == "ext4"


def test_read_place_of_a_real_directory(tmp_path: Path) -> None:
    place = facts.read_place(str(tmp_path))
    assert place.path == str(tmp_path)
    assert 0 <= place.free_bytes <= place.total_bytes
    assert place.fstype == facts.read_mount(str(tmp_path)).fstype


@pytest.mark.parametrize(
    ("uid", "capabilities", "good"),
    [(0, 0x1FFFFFFFFFF, True), (0, 0xA80425FB, False), (1000, 0x1FFFFFFFFFF, False), (0, 1 << 21, True)],
    ids=["privileged", "root without --privileged", "a user", "CAP_SYS_ADMIN alone"],
)
def test_check_privileges(monkeypatch: pytest.MonkeyPatch, uid: int, capabilities: int, good: bool) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setattr(procfs, "read_effective_capabilities", lambda: capabilities)
    if good:
        facts.check_privileges()
        return
    with pytest.raises(NotPrivilegedError, match="CAP_SYS_ADMIN") as caught:
        facts.check_privileges()
    assert "docker run --privileged" in caught.value.hint


# ---- the engine's version ----


@pytest.fixture
def dockerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called dockerd, and a note about it that says 26.1.5."""
    program = tmp_path / "bin" / "dockerd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    note = tmp_path / "engine.json"
    monkeypatch.setattr(facts, "ENGINE_FILE", str(note))
    found = program.stat()
    content = {"path": os.path.realpath(program), "size": found.st_size, "mtime": int(found.st_mtime)}
    note.write_text(json.dumps({**content, "version": "26.1.5+dfsg1"}))
    return program


def test_the_version_is_noted_for_the_very_file(dockerd: Path) -> None:
    assert facts.read_engine_version(str(dockerd.parent)) == EngineVersion(26, 1, 5)


@pytest.mark.parametrize("spoil", ["another program", "no note", "garbage", "a list"])
def test_a_note_that_does_not_fit_is_not_believed(dockerd: Path, monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    note = Path(facts.ENGINE_FILE)
    if spoil == "another program":
        dockerd.write_text("#!/bin/sh\n# newer\n")
    elif spoil == "no note":
        note.unlink()
    else:
        note.write_text({"garbage": "{", "a list": "[]"}[spoil])
    answer = Result(0, "Docker version 28.5.2+dfsg1, build 1234567\n", "")
    monkeypatch.setattr("cachedind.host.processes.run", lambda argv: answer)
    assert facts.read_engine_version(str(dockerd.parent)) == EngineVersion(28, 5, 2)


def test_the_containerd_that_comes_with_it_is_noted_too(dockerd: Path) -> None:
    note = Path(facts.ENGINE_FILE)
    assert facts.read_containerd_version(str(dockerd.parent), settings_of()) == "", "an image without that note"
    note.write_text(json.dumps({**json.loads(note.read_text()), "containerd": "1.7.24"}))
    assert facts.read_containerd_version(str(dockerd.parent), settings_of()) == "1.7.24"
    running = settings_of("--containerd=/run/containerd/containerd.sock")
    assert facts.read_containerd_version(str(dockerd.parent), running) == "", "another one is used"
    dockerd.write_text("#!/bin/sh\n# another program\n")
    assert facts.read_containerd_version(str(dockerd.parent), settings_of()) == ""


def test_another_dockerd_is_asked_once_for_its_version(dockerd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(facts.ENGINE_FILE).unlink()
    asked = []

    def run(argv: list[str]) -> Result:
        asked.append(argv)
        return Result(0, f"Docker version 28.5.{len(asked)}, build 1234567\n", "")

    monkeypatch.setattr("cachedind.host.processes.run", run)
    for _ in range(3):
        assert facts.read_engine_version(str(dockerd.parent)) == EngineVersion(28, 5, 1)
    os.utime(dockerd, (1, 1))
    assert facts.read_engine_version(str(dockerd.parent)) == EngineVersion(28, 5, 2)


def test_no_dockerd(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissingError, match="no dockerd"):
        facts.read_engine_version(str(tmp_path))


def test_a_dockerd_that_says_nothing_of_use(dockerd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(facts.ENGINE_FILE).unlink()
    monkeypatch.setattr("cachedind.host.processes.run", lambda argv: Result(0, "hello\n", ""))
    with pytest.raises(ProgramMissingError, match="says 'hello'"):
        facts.read_engine_version(str(dockerd.parent))


# ---- where and when a driver is tried ----


def test_a_driver_is_tried_in_its_own_directory_only_where_that_is_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts.probe_directory("/d", "overlay2") == "/d"
    monkeypatch.setattr(os.path, "ismount", lambda path: path == "/d/overlay2")
    assert facts.probe_directory("/d", "overlay2") == "/d/overlay2"
    assert facts.probe_directory("/d", "fuse-overlayfs") == "/d"


@pytest.mark.parametrize(
    ("number", "has_data", "outcome"),
    [
        (errno.ENOSPC, True, "works"),
        (errno.EDQUOT, True, "works"),
        (errno.ENOSPC, False, "error"),
        (errno.EROFS, True, "error"),
        (errno.EIO, True, "error"),
    ],
    ids=["full, with data", "quota, with data", "full, fresh", "read-only", "failing"],
)
def test_a_disk_on_which_nothing_can_be_tried(
    monkeypatch: pytest.MonkeyPatch, number: int, has_data: bool, outcome: str
) -> None:
    def fail(directory: str) -> Verdict:
        raise OSError(number, os.strerror(number), directory)

    monkeypatch.setattr(trials, "probe_overlay", fail)
    if outcome == "works":
        verdict = facts.probe_driver("/d", "overlay2", has_data=has_data)
        assert verdict.works
        assert "not tried" in verdict.why
        return
    with pytest.raises(DataRootUnwritableError, match=os.strerror(number)) as caught:
        facts.probe_driver("/d", "overlay2", has_data=has_data)
    assert caught.value.exit_code == 74


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (MIB, "1.0 MiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_format_bytes(count: int, text: str) -> None:
    assert sizes.format_bytes(count) == text


def test_a_holder_introduces_itself_by_container_and_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = parse_mountinfo((DATA / "container-named-volume.txt").read_text())
    monkeypatch.setattr(procfs, "read_mounts", lambda: mounts)
    holder = facts.read_holder_of_now(7.0)
    assert (holder.container, holder.hostname, holder.since) == ("31290d3d2b97", os.uname().nodename, 7.0)
    monkeypatch.setattr(procfs, "read_mounts", list)
    assert facts.read_holder_of_now(7.0).container == ""
