"""The mounts of a nested daemon, made for real in a mount namespace that nobody else sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cachedind
from cachedind.base.log import Log
from cachedind.host import linux, mounts, procfs
from cachedind.host.mounts import apply_mounts, has_securityfs_directory, plan_mounts
from cachedind.start import container
from helpers.children import in_namespaces
from helpers.filesystems import mount_points


def propagation(where: str) -> str:
    """The optional fields of the topmost mount at a place: "shared:7", or nothing where it is private."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    fields = [line for line in lines if line[4] == where][-1]
    return " ".join(fields[6 : fields.index("-")])


def plan() -> list[str]:
    points = frozenset(mount.mount_point for mount in procfs.read_mounts())
    operations = plan_mounts(points, has_securityfs_directory=has_securityfs_directory())
    apply_mounts(operations)
    return [operation.target for operation in operations]


def test_what_is_missing_is_mounted_and_everything_is_shared() -> None:
    def work() -> None:
        assert "shared" not in propagation("/")
        targets = plan()
        assert targets[-1] == "/"
        by_place = dict(mount_points())
        assert by_place["/tmp"] == "tmpfs"
        assert os.access("/tmp", os.W_OK)
        assert os.stat("/tmp").st_mode & 0o1777 == 0o1777
        if has_securityfs_directory():
            assert by_place["/sys/kernel/security"] == "securityfs"
        for where in ("/", "/tmp"):
            assert "shared" in propagation(where)

    before = mount_points()
    in_namespaces(work)
    assert mount_points() == before


def test_a_second_time_only_propagation_is_left_to_do() -> None:
    def work() -> list[str]:
        plan()
        before = mount_points()
        targets = plan()
        assert mount_points() == before
        return targets

    assert in_namespaces(work) == ["/"]


def test_inner_mounts_reach_what_is_bound_out_of_the_container() -> None:
    """What shared propagation is for: a mount made below a directory shows up in a bind of that directory."""

    def work() -> bool:
        plan()
        for name in ("volume", "volume/inner", "bound"):
            os.mkdir(f"/tmp/{name}")
        linux.mount("/tmp/volume", "/tmp/bound", flags=linux.MS_BIND | linux.MS_REC)
        linux.mount("none", "/tmp/volume/inner", "tmpfs")
        return ("/tmp/bound/inner", "tmpfs") in mount_points()

    assert in_namespaces(work)


def test_what_is_bound_below_a_slot_stays_when_the_shared_pool_is_unmounted() -> None:
    """A pool is shared after an earlier start in the same container, or where somebody mounted it with propagation."""

    def work() -> tuple[bool, list[str], list[str]]:
        plan()
        for name in ("pool", "root"):
            os.mkdir(f"/tmp/{name}")
        linux.mount("none", "/tmp/pool", "tmpfs")
        assert "shared" in propagation("/tmp/pool")
        for name in ("slot", "layers", "layers/one"):
            os.mkdir(f"/tmp/pool/{name}")
        slot_fd, layers_fd = (os.open(f"/tmp/pool/{name}", os.O_RDONLY) for name in ("slot", "layers"))
        hides = mounts.bind(slot_fd, "/tmp/root")
        mounts.bind_read_only(layers_fd, slot_fd, "/tmp/root", ".cachedind/layers")
        leaked = [place for place, _ in mount_points() if place.startswith("/tmp/pool/")]
        linux.umount("/tmp/pool", linux.MNT_DETACH)
        return hides, leaked, os.listdir("/tmp/root/.cachedind/layers")

    assert in_namespaces(work) == (False, [], ["one"])


def test_boot_says_what_it_could_not_mount_and_goes_on(capfd: object) -> None:
    def work() -> dict[str, str]:
        container.nest(Log())
        return dict(mount_points())

    assert in_namespaces(work)["/tmp"] == "tmpfs"


def test_without_cap_sys_admin_it_is_an_error_that_names_the_remedy() -> None:
    script = (
        "from cachedind.host.mounts import *\n"
        "from cachedind.base.errors import HostPreparationError\n"
        "try:\n"
        "    apply_mounts(plan_mounts(frozenset(), has_securityfs_directory=True))\n"
        "except HostPreparationError as error:\n"
        "    print(error.exit_code, error.cause, error.hint, sep='|')"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", script],
        env={"PYTHONPATH": str(Path(cachedind.__file__).parents[1]), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    )
    code, cause, hint = done.stdout.strip().split("|")
    assert code == "71"
    assert cause == "mount tmpfs on /tmp (temporary files): Operation not permitted"
    assert "--privileged" in hint
