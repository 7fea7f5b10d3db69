"""Nesting in a real cgroup v2 hierarchy: in a group and a cgroup namespace of its own, as a container has them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cachedind.base.errors import HostPreparationError
from cachedind.host import cgroups, linux, procfs
from helpers.children import CLONE_NEWCGROUP, Child, child, forever, in_child
from helpers.waiting import wait_until


def hierarchy() -> Path:
    """/sys/fs/cgroup where the machine has cgroup v2 alone, else where v2 is beside v1."""
    found = [Path(mount.mount_point) for mount in procfs.read_mounts() if mount.fstype == "cgroup2"]
    assert found, "this lane needs a cgroup v2 hierarchy"
    return found[0]


@pytest.fixture
def group() -> Iterator[Path]:
    """A new group that has controllers to pass on; gone afterwards, with all that is in it."""
    top = hierarchy()
    available = (top / "cgroup.controllers").read_text().split()
    assert available, f"{top} has no controllers"
    enabled = (top / "cgroup.subtree_control").read_text().split()
    if not enabled:
        (top / "cgroup.subtree_control").write_text(f"+{available[0]}")
    path = top / f"cachedind-test-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        _remove(path)
        if not enabled:
            # Somebody else's group may have begun to use it.
            with contextlib.suppress(OSError):
                (top / "cgroup.subtree_control").write_text(f"-{available[0]}")


def _remove(path: Path) -> None:
    def emptied() -> bool:
        for group in (*path.glob("*/"), path):
            if not (group / "cgroup.procs").exists():
                continue
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            for group in (*path.glob("*/"), path):
                group.rmdir()
        except OSError:
            return False
        return True

    wait_until(emptied, what=f"{path} can be removed", timeout_s=10)


class Nest(NamedTuple):
    """What a container's first process finds."""

    root: Path
    others: list[Child]


def in_container(group: Path, work: Callable[[Nest], Any], *, read_only: bool = False, others: int = 3) -> Any:
    """Run `work` as the first process of a container whose cgroup namespace begins at `group`, beside `others`."""

    def start() -> Any:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        linux.unshare(linux.CLONE_NEWNS | CLONE_NEWCGROUP)
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
        root = Path("/mnt")
        linux.mount("none", str(root), "cgroup2", flags=int(read_only))
        siblings = [Child(forever) for _ in range(others)]
        try:
            return work(Nest(root, siblings))
        finally:
            for sibling in siblings:
                sibling.end()

    return in_child(start)


def words(path: Path) -> list[str]:
    return path.read_text().split()


def test_all_processes_move_to_init_and_the_controllers_are_delegated(group: Path) -> None:
    def work(nest: Nest) -> None:
        available = words(nest.root / "cgroup.controllers")
        assert available
        assert words(nest.root / "cgroup.subtree_control") == []
        assert cgroups.prepare(str(nest.root)) is None
        assert words(nest.root / "cgroup.subtree_control") == available
        assert words(nest.root / "cgroup.procs") == []
        pids = {str(pid) for pid in (os.getpid(), *(other.pid for other in nest.others))}
        assert set(words(nest.root / "init" / "cgroup.procs")) == pids
        # What it is all for: a group of an inner container can be given limits.
        (nest.root / "inner").mkdir()
        assert words(nest.root / "inner" / "cgroup.controllers") == available
        (nest.root / "inner").rmdir()

    in_container(group, work)


def test_a_second_time_there_is_nothing_to_do(group: Path) -> None:
    def work(nest: Nest) -> None:
        cgroups.prepare(str(nest.root))
        before = words(nest.root / "init" / "cgroup.procs")
        started = time.monotonic()
        cgroups.prepare(str(nest.root))
        cgroups._delegate(str(nest.root))
        assert time.monotonic() - started < 0.5
        assert words(nest.root / "init" / "cgroup.procs") == before
        assert [path.name for path in nest.root.glob("*/")] == ["init"]

    in_container(group, work)


def test_a_kept_container_starts_again_with_the_group_of_last_time(group: Path) -> None:
    """The first process of the second start is in the root group again, beside an empty init with delegation on."""
    in_container(group, lambda nest: cgroups.prepare(str(nest.root)))
    (group / "init").rmdir()
    (group / "cgroup.subtree_control").write_text(
        " ".join(f"-{name}" for name in words(group / "cgroup.subtree_control"))
    )
    (group / "init").mkdir()
    assert in_container(group, lambda nest: cgroups.prepare(str(nest.root))) is None


def test_processes_that_keep_being_added_do_not_make_it_hang(group: Path) -> None:
    """docker exec adds a process to the container's root group whenever it likes (moby#48850)."""
    stop_at = time.monotonic() + 5

    def keep_adding() -> int:
        added = 0
        while time.monotonic() < stop_at:
            joining = Child(forever)
            try:
                (group / "cgroup.procs").write_text(str(joining.pid))
                added += 1
                time.sleep(0.001)
            except OSError:
                # Controllers are delegated: the root group takes no more processes. docker exec goes elsewhere then.
                return added
            finally:
                joining.end()
        return added

    def work(nest: Nest) -> float:
        wait_until(lambda: len(words(nest.root / "cgroup.procs")) > 4, what="processes are being added", every_s=0.001)
        started = time.monotonic()
        assert cgroups.prepare(str(nest.root), deadline_s=4.0) is None
        return time.monotonic() - started

    with child(keep_adding) as one, child(keep_adding) as another:
        took_s = in_container(group, work)
        added = one.result() + another.result()
    print(f"prepared within {took_s * 1000:.0f} ms while {added} processes were added")
    assert took_s < 4.5
    assert added > 0


def test_a_process_that_is_added_between_the_move_and_the_delegation_is_moved_too(group: Path) -> None:
    def work(nest: Nest) -> tuple[int, int]:
        original = cgroups._write
        late: list[Child] = []

        def write(path: str, text: str) -> None:
            if path.endswith("subtree_control") and len(late) < 5:
                late.append(Child(forever))
                original(f"{nest.root}/cgroup.procs", str(late[-1].pid))
            original(path, text)

        cgroups._write = write  # in this child alone
        cgroups.prepare(str(nest.root))
        moved = set(words(nest.root / "init" / "cgroup.procs"))
        for process in late:
            process.end()
        return len(late), len(moved & {str(process.pid) for process in late})

    assert in_container(group, work) == (5, 5)


def test_a_read_only_hierarchy_is_an_error_that_names_the_file(group: Path) -> None:
    started = time.monotonic()
    with pytest.raises(HostPreparationError, match=r"cgroup v2 nesting: /mnt/init: Read-only file system") as caught:
        in_container(group, lambda nest: cgroups.prepare(str(nest.root)), read_only=True)
    assert time.monotonic() - started < cgroups.DEADLINE_S
    assert caught.value.exit_code == 71


def test_a_group_that_stays_busy_is_an_error_within_the_deadline(group: Path) -> None:
    """A process that cannot be seen from in here, and so cannot be moved, keeps the root group busy."""

    def work(nest: Nest) -> tuple[str, float]:
        original = cgroups._write

        def only_controllers(path: str, text: str) -> None:
            if path.endswith("subtree_control"):
                original(path, text)

        cgroups._write = only_controllers  # in this child alone
        started = time.monotonic()
        try:
            cgroups.prepare(str(nest.root), deadline_s=0.3)
        except HostPreparationError as error:
            return error.cause, time.monotonic() - started
        return "", 0.0

    cause, took_s = in_container(group, work)
    assert cause == "cgroup v2 nesting: /mnt/cgroup.subtree_control: Device or resource busy"
    assert 0.3 <= took_s < 2


def test_with_the_hosts_cgroup_namespace_nothing_is_touched(group: Path) -> None:
    def work() -> str | None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        return cgroups.prepare(str(hierarchy()))

    reason = in_child(work)
    assert reason is not None
    assert "--cgroupns=host" in reason
    assert [path.name for path in group.glob("*/")] == []


def test_a_process_that_ends_meanwhile_is_passed_over(group: Path) -> None:
    def work(nest: Nest) -> str | None:
        original = cgroups._read

        def read(path: str) -> str:
            text = original(path)
            if path.endswith("cgroup.procs"):
                nest.others[0].end()
            return text

        cgroups._read = read  # in this child alone
        return cgroups.prepare(str(nest.root))

    assert in_container(group, work) is None
