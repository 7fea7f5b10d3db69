"""Parsers of /proc, fed with what kernels and engines really wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.model import Mount
from cachedind.host.procfs import (
    find_mount,
    is_below,
    is_full_user_namespace,
    parse_cgroup_v2_path,
    parse_container_id,
    parse_effective_capabilities,
    parse_mountinfo,
    parse_rights,
    read_boot_id,
    read_mount_id,
    read_mounts,
)

DATA = Path(__file__).parents[2] / "data"


def capture(name: str) -> str:
    with (DATA / name).open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return file.read()


def mounts_of(name: str) -> list[Mount]:
    return parse_mountinfo(capture(f"mountinfo/{name}.txt"))


def test_a_container_with_a_named_volume() -> None:
    mount = find_mount(mounts_of("container-named-volume"), "/var/lib/docker")
    assert mount == Mount(
        mount_point="/var/lib/docker",
        root="/var/lib/docker/volumes/cdtu-vol/_data",
        fstype="ext4",
        source="/dev/vda",
        options=frozenset({"rw", "relatime"}),
        super_options=frozenset({"rw", "discard"}),
    )
    assert not mount.read_only


@pytest.mark.parametrize(
    ("path", "fstype", "mount_point"),
    [
        ("/var/lib/docker/overlay2/x", "ext4", "/var/lib/docker"),
        ("/var/lib/dockerx", "overlay", "/"),
        ("/var/lib", "overlay", "/"),
        ("/", "overlay", "/"),
        ("/dev/shm/x", "tmpfs", "/dev/shm"),
        ("/etc/hostname", "ext4", "/etc/hostname"),
    ],
)
def test_find_mount_takes_the_longest_mount_point(path: str, fstype: str, mount_point: str) -> None:
    mount = find_mount(mounts_of("container-named-volume"), path)
    assert mount is not None
    assert (mount.fstype, mount.mount_point) == (fstype, mount_point)


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "tab\there",
        "new\nline",
        "back\\slash",
        "hash#mark",
        "line\u2028sep",
        "carriage\rreturn",
        "ümlaut",
    ],
    ids=ascii,
)
def test_every_mount_point_is_read_as_it_is(name: str) -> None:
    found = [mount for mount in mounts_of("escapes") if mount.mount_point == f"/srv/{name}"]
    assert [mount.source for mount in found] == [f"src {name}"]


def test_every_line_of_a_capture_is_a_mount() -> None:
    for path in (DATA / "mountinfo").iterdir():
        text = capture(f"mountinfo/{path.name}")
        assert len(parse_mountinfo(text)) == text.count("\n")


def test_the_last_of_several_mounts_at_one_place_counts() -> None:
    mounts = mounts_of("escapes")
    assert [mount.fstype for mount in mounts if mount.mount_point == "/srv/over"] == ["tmpfs", "ramfs"]
    found = find_mount(mounts, "/srv/over/file")
    assert found is not None
    assert found.fstype == "ramfs"
    below = find_mount(mounts, "/srv/over/below/file")
    assert below is not None
    assert below.source == "src with space"


def test_read_only_is_seen_on_the_mount_and_on_the_filesystem() -> None:
    by_name = {mount.mount_point: mount for mount in mounts_of("escapes")}
    assert by_name["/srv/with space"].read_only
    assert not by_name["/srv/over"].read_only
    writable = by_name["/srv/over"]
    assert writable._replace(options=frozenset({"ro"})).read_only
    assert writable._replace(super_options=frozenset({"ro"})).read_only


@pytest.mark.parametrize(
    "line", ["", "x", "22 27 0:21 / /proc rw", "1 2 3 4 - proc proc rw", "22 27 0:21 / /proc rw - x"]
)
def test_what_is_no_mount_is_passed_over(line: str) -> None:
    assert parse_mountinfo(f"{line}\n22 27 0:21 / /proc rw - proc proc rw\n")[-1].mount_point == "/proc"
    assert len(parse_mountinfo(f"{line}\n22 27 0:21 / /proc rw - proc proc rw\n")) == 1


@given(st.text())
def test_any_text_is_parsed(text: str) -> None:
    find_mount(parse_mountinfo(text), "/var/lib/docker")


@given(st.lists(st.text(st.sampled_from("ab 1-/\\0,\n"), max_size=30)))
def test_any_text_that_resembles_mountinfo_is_parsed(lines: list[str]) -> None:
    assert len(parse_mountinfo("\n".join(lines))) <= "\n".join(lines).count("\n") + 1


def test_the_running_kernels_own_files() -> None:
    assert find_mount(read_mounts(), "/") is not None
    assert len(read_boot_id()) == 36


@pytest.mark.parametrize(
    ("path", "parent", "below"),
    [
        ("/a/b", "/a", True),
        ("/a", "/a", True),
        ("/ab", "/a", False),
        ("/a", "/", True),
        ("/a", "/a/b", False),
    ],
)
def test_is_below(path: str, parent: str, below: bool) -> None:
    assert is_below(path, parent) is below


@pytest.mark.parametrize(
    ("name", "container"),
    [
        ("container-named-volume", "31290d3d2b97c3e82480848552ca81b1984314b215724750bb090ad9b5f2a921"),
        ("container-anonymous-volume", "31a734579f0ce36e332f2cb4daea2e3b4c83ec3561d27cb696117715dc5ecf12"),
        ("escapes", None),
    ],
)
def test_parse_container_id(name: str, container: str | None) -> None:
    assert parse_container_id(mounts_of(name)) == container


@pytest.mark.parametrize(
    ("root", "container"),
    [
        (f"/var/lib/docker/containers/{'a' * 64}/hostname", "a" * 64),
        (f"/containers/storage/overlay-containers/{'b' * 64}/userdata/hostname", "b" * 64),
        ("/kubelet/pods/0b1c/etc-hosts", None),
        (f"/volumes/{'A' * 64}/hostname", None),
        (f"/x/{'c' * 65}/hostname", None),
    ],
    ids=["docker", "podman", "kubelet", "not hexadecimal", "too long"],
)
def test_container_ids_of_several_engines(root: str, container: str | None) -> None:
    mount = Mount("/etc/hostname", root, "ext4", "/dev/sda", frozenset(), frozenset())
    assert parse_container_id([mount]) == container
    assert parse_container_id([mount._replace(mount_point="/data")]) is None


def test_effective_capabilities_of_a_plain_container_have_no_sys_admin() -> None:
    mask = parse_effective_capabilities(capture("proc/status-unprivileged.txt"))
    assert mask == 0xA80425FB
    assert not mask >> 21 & 1
    assert parse_effective_capabilities("Name:\tx\n") == 0


@pytest.mark.parametrize(
    ("uid_map", "full"),
    [
        ("         0          0 4294967295\n", True),
        ("         0     100000      65536\n", False),
        ("         0       1000          1\n         1     100000      65536\n", False),
        ("", False),
    ],
)
def test_is_full_user_namespace(uid_map: str, full: bool) -> None:
    assert is_full_user_namespace(uid_map) is full


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/\n", "/"),
        ("12:pids:/docker/x\n0::/init\n", "/init"),
        ("12:pids:/docker/x\n", None),
        ("", None),
    ],
)
def test_parse_cgroup_v2_path(text: str, path: str | None) -> None:
    assert parse_cgroup_v2_path(text) == path


def test_cgroup_v2_path_of_a_container_with_the_hosts_cgroup_namespace() -> None:
    path = parse_cgroup_v2_path(capture("proc/cgroup-v1-and-v2.txt"))
    assert path == "/docker/8643c5f701478dd3af84e11c7eadb13d3ee8b2fcb1365793469f3f1bb1006319"


def test_the_mount_of_an_open_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file, open("/proc/self/stat") as proc, open("/proc/self/status") as other:
        assert read_mount_id(proc.fileno()) == read_mount_id(other.fileno())
        assert read_mount_id(proc.fileno()) != read_mount_id(file.fileno())


STATUS = "Name:\tpython3\nCapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\nNoNewPrivs:\t0\nSeccomp:\t0\n"
ALL_USERS = "         0          0 4294967295\n"


def test_rights_are_told_in_one_line() -> None:
    line = "CapEff 000001ffffffffff, CapBnd 000001ffffffffff, NoNewPrivs 0, users 0 0 4294967295"
    assert parse_rights(STATUS, ALL_USERS, "unconfined\n") == f"{line}, label unconfined"
    assert parse_rights(STATUS, ALL_USERS, "") == f"{line}, label -"


@pytest.mark.parametrize(
    ("status", "uid_map", "label"),
    [
        (STATUS.replace("CapEff:\t000001ff", "CapEff:\t000000ff"), ALL_USERS, ""),
        (STATUS.replace("CapBnd:\t000001ff", "CapBnd:\t000000ff"), ALL_USERS, ""),
        (STATUS.replace("NoNewPrivs:\t0", "NoNewPrivs:\t1"), ALL_USERS, ""),
        (STATUS, "0 100000 65536\n", ""),
        (STATUS, ALL_USERS, "docker-default (enforce)\n"),
    ],
)
def test_other_rights_are_another_line(status: str, uid_map: str, label: str) -> None:
    assert parse_rights(status, uid_map, label) not in (None, parse_rights(STATUS, ALL_USERS, ""))


def test_under_seccomp_nobody_can_tell() -> None:
    assert parse_rights(STATUS.replace("Seccomp:\t0", "Seccomp:\t2"), ALL_USERS, "") is None
