"""The lease: one holder at a time, whatever is killed, replaced or full."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cachedind.base.errors import DataRootBusyError, DataRootInvalidError, DataRootUnwritableError
from cachedind.base.model import Holder
from cachedind.dataroot import lease
from cachedind.dataroot.lease import Lease, acquire, look, share_with_daemon
from cachedind.host import flock
from helpers.children import Child, child, forever, in_child
from helpers.filesystems import Filesystems
from helpers.waiting import wait_until

ME = Holder("0123456789ab", "box", 1e9)
OTHER = Holder("ba9876543210", "other", 2e9)


def take(data_root: Path, timeout_s: float = 0.0, holder: Holder = ME) -> Lease:
    return acquire(str(data_root), holder, timeout_s, lambda holder: None)


def give_up(held: Lease) -> None:
    os.close(held.fd)
    os.close(held.directory_fd)


def is_held(data_root: Path) -> bool:
    return look(str(data_root))[0]


def holding(data_root: Path, holder: Holder = ME) -> Callable[[], None]:
    """What a child does that takes the lease and keeps it."""

    def hold() -> None:
        take(data_root, 5.0, holder)  # who looks holds the lock for a moment
        forever()

    return hold


def wait_held(data_root: Path) -> None:
    """And its holder named: that comes a moment after the lock."""
    wait_until(lambda: look(str(data_root))[1] and is_held(data_root), what="the lease is held", every_s=0.005)


@pytest.mark.parametrize("directory", ["ext4", "xfs", "btrfs", "tmpfs", "overlay"], indirect=True)
def test_two_processes_exclude_each_other(directory: Path) -> None:
    with child(holding(directory)) as holder:
        wait_held(directory)
        waited_for: list[Holder | None] = []
        with pytest.raises(DataRootBusyError) as caught:
            acquire(str(directory), OTHER, 0.2, waited_for.append)
        assert caught.value.exit_code == 75
        assert "in use by container 0123456789ab (host name box, since 2001-09-09 01:46:40 UTC)" in caught.value.cause
        assert "CACHEDIND_LOCK_TIMEOUT" in caught.value.hint
        assert waited_for == [ME], "whom it waits for is told once"
        holder.kill()
        took = take(directory, 5.0, OTHER)
    assert took.previous == ME
    give_up(took)


def test_a_waiter_takes_over_at_once_when_the_holder_is_killed(tmp_path: Path) -> None:
    with child(holding(tmp_path)) as holder:
        wait_held(tmp_path)
        with child(lambda: (take(tmp_path, 10.0).waited_s, time.monotonic())) as waiter:
            time.sleep(0.3)
            killed_at = time.monotonic()
            holder.kill()
            waited_s, took_at = waiter.result()
    assert waited_s >= 0.2
    assert took_at - killed_at < 1.0


def test_no_time_to_wait_means_not_waiting(tmp_path: Path) -> None:
    with child(holding(tmp_path)):
        wait_held(tmp_path)
        started = time.monotonic()
        with pytest.raises(DataRootBusyError):
            take(tmp_path, 0.0)
        assert time.monotonic() - started < 1.0


class Hold(NamedTuple):
    process: int
    first: float
    last: float


def test_thirty_processes_never_hold_at_once_though_some_are_killed(tmp_path: Path) -> None:
    data_root = tmp_path / "data"
    go = time.monotonic() + 0.5

    def hold(number: int) -> Callable[[], None]:
        def work() -> None:
            rng = random.Random(number)
            time.sleep(max(0.0, go - time.monotonic()))
            held = take(data_root, 40.0, Holder(f"{number}", "box", 1.0))
            first = time.monotonic()
            time.sleep(rng.uniform(0.002, 0.02))
            # The end is noted before the lease can end, so that what is noted lies within the true interval.
            (tmp_path / f"hold-{number}").write_text(f"{first} {time.monotonic()}")
            if rng.random() < 0.4:
                os.kill(os.getpid(), signal.SIGKILL)
            give_up(held)

        return work

    started = [Child(hold(number)) for number in range(30)]
    statuses = [process.wait() for process in started]
    for process in started:
        process.end()
    holds = sorted(
        (Hold(number, *map(float, (tmp_path / f"hold-{number}").read_text().split())) for number in range(30)),
        key=lambda hold: hold.first,
    )
    killed = sum(status == signal.SIGKILL for status in statuses)
    print(f"30 leases within {holds[-1].last - holds[0].first:.2f} s, {killed} holders were killed")
    assert 0 < killed < 30
    assert not [(one, two) for one, two in itertools.pairwise(holds) if two.first <= one.last]


# ---- exec ----


def test_the_lease_survives_exec_and_ends_with_the_daemon(tmp_path: Path) -> None:
    def become_daemon() -> None:
        share_with_daemon(take(tmp_path))
        os.execvp("sleep", ["sleep", "60"])

    with child(become_daemon) as daemon:
        wait_until(lambda: Path(f"/proc/{daemon.pid}/comm").read_text() == "sleep\n", what="exec")
        assert look(str(tmp_path)) == (True, ME)
        with pytest.raises(DataRootBusyError):
            take(tmp_path)
        daemon.kill()
        give_up(take(tmp_path, 5.0))


def test_without_sharing_exec_ends_it(tmp_path: Path) -> None:
    def become_daemon() -> None:
        take(tmp_path)
        os.execvp("sleep", ["sleep", "60"])

    with child(become_daemon) as daemon:
        wait_until(lambda: Path(f"/proc/{daemon.pid}/comm").read_text() == "sleep\n", what="exec")
        assert not is_held(tmp_path)


def test_the_lease_lasts_as_long_as_any_process_that_inherited_it(tmp_path: Path) -> None:
    """docker-init, dockerd and containerd have it: the last one that is gone ends it."""

    def become_daemons() -> None:
        share_with_daemon(take(tmp_path))
        os.execvp("sh", ["sh", "-c", "sleep 60 & exec sleep 61"])

    with child(become_daemons) as daemon:
        wait_held(tmp_path)
        wait_until(lambda: Path(f"/proc/{daemon.pid}/cmdline").read_text() == "sleep\00061\0", what="exec")
        daemon.end()
        assert is_held(tmp_path), "the grandchild still runs"
        subprocess.run(["pkill", "-P", str(os.getpid()), "-x", "sleep"], check=True)
        wait_until(lambda: not is_held(tmp_path), what="the lease has ended")


def test_programs_that_are_run_beside_do_not_extend_it(tmp_path: Path) -> None:
    held = take(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as program:
        give_up(held)
        assert not is_held(tmp_path)
        program.kill()


def test_its_descriptor_is_above_those_of_socket_activation(tmp_path: Path) -> None:
    held = take(tmp_path)
    assert held.fd >= 20
    assert not os.get_inheritable(held.fd)
    give_up(held)


# ---- replaced under a waiter ----


@pytest.mark.parametrize("what", [".cachedind/lock", ".cachedind"], ids=["the file", "the directory"])
def test_a_lock_that_was_replaced_in_the_meantime_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between opening and locking, somebody moves the old one away and somebody else makes and locks a new one."""
    give_up(take(tmp_path))
    real = flock.lock_exclusive
    others: list[Lease] = []

    def replaced_just_before(fd: int) -> bool:
        if not others:
            monkeypatch.setattr(flock, "lock_exclusive", real)
            (tmp_path / what).rename(tmp_path / f"{what}.old")
            others.append(take(tmp_path, holder=OTHER))
            monkeypatch.setattr(flock, "lock_exclusive", replaced_just_before)
        return real(fd)

    monkeypatch.setattr(flock, "lock_exclusive", replaced_just_before)
    with pytest.raises(DataRootBusyError, match="container ba9876543210"):
        take(tmp_path, 0.1)
    give_up(others[0])
    mine = take(tmp_path)
    assert os.path.samestat(os.fstat(mine.fd), (tmp_path / ".cachedind/lock").stat())
    assert mine.previous == OTHER
    give_up(mine)


@pytest.mark.parametrize("what", [".cachedind/lock", ".cachedind"], ids=["the file", "the directory"])
def test_a_waiter_ends_up_with_the_lock_that_has_the_name(tmp_path: Path, what: str) -> None:
    with child(holding(tmp_path)):
        wait_held(tmp_path)

        def wait_and_hold() -> None:
            take(tmp_path, 10.0, OTHER)
            forever()

        with child(wait_and_hold):
            time.sleep(0.2)
            (tmp_path / what).rename(tmp_path / f"{what}.old")
            wait_held(tmp_path)
            assert look(str(tmp_path)) == (True, OTHER)
            with pytest.raises(DataRootBusyError, match="container ba9876543210"):
                take(tmp_path)


# ---- things in its place ----


@pytest.mark.parametrize("name", [".cachedind", ".cachedind/lock"])
@pytest.mark.parametrize("kind", ["link to a directory", "link to a file", "dangling link", "file", "pipe", "socket"])
def test_what_a_job_left_in_its_place_is_refused_and_not_followed(tmp_path: Path, name: str, kind: str) -> None:
    if (name, kind) == (".cachedind/lock", "file"):
        return  # that is what it is
    data_root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("precious")
    path = data_root / name
    path.parent.mkdir(parents=True)
    if kind.startswith(("link", "dangling")):
        path.symlink_to(elsewhere / {"link to a directory": ".", "link to a file": "file"}.get(kind, "none"))
    elif kind == "file":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    with pytest.raises(DataRootInvalidError, match="is not as cachedind made it") as caught:
        take(data_root)
    assert caught.value.exit_code == 65
    assert f"mv {data_root}/.cachedind" in caught.value.hint
    assert os.listdir(elsewhere) == ["file"]
    assert (elsewhere / "file").read_text() == "precious"
    assert look(str(data_root)) == (False, None)


def test_a_directory_in_the_place_of_the_lock(tmp_path: Path) -> None:
    (tmp_path / ".cachedind" / "lock").mkdir(parents=True)
    with pytest.raises(DataRootInvalidError):
        take(tmp_path)


# ---- disks ----


@pytest.mark.parametrize("existing", [False, True], ids=["fresh", "used before"])
def test_a_read_only_data_root(filesystems: Filesystems, small: Path, existing: bool) -> None:
    if existing:
        give_up(take(small))
    filesystems.make_read_only(small)
    with pytest.raises(DataRootUnwritableError, match="is on a read-only filesystem") as caught:
        take(small)
    assert caught.value.exit_code == 74
    assert "fsck" in caught.value.hint


def test_a_full_data_root_without_room_for_the_lock(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=1", "none", str(tmp_path)], check=True)
    try:
        with pytest.raises(DataRootUnwritableError, match="is full") as caught:
            take(tmp_path)
        assert caught.value.exit_code == 74
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_costs_the_holders_name_and_not_the_lease(filesystems: Filesystems, small: Path) -> None:
    (small / ".cachedind").mkdir()
    (small / ".cachedind" / "lock").touch()
    filesystems.fill(small)
    held = take(small)
    assert look(str(small)) == (True, None)
    with pytest.raises(DataRootBusyError, match="in use by another daemon"):
        take(small)
    give_up(held)


def test_a_data_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataRootInvalidError):
        take(tmp_path / "file" / "data")


def test_what_is_made_is_for_root(tmp_path: Path) -> None:
    data_root = tmp_path / "var" / "docker"
    give_up(take(data_root))
    modes = [
        path.stat().st_mode & 0o777 for path in (data_root, data_root / ".cachedind", data_root / ".cachedind/lock")
    ]
    assert modes == [0o710, 0o700, 0o600]


def test_looking_changes_nothing(tmp_path: Path) -> None:
    assert look(str(tmp_path)) == (False, None)
    assert os.listdir(tmp_path) == []
    give_up(take(tmp_path))
    before = (tmp_path / ".cachedind" / "lock").stat()
    assert look(str(tmp_path)) == (False, ME)
    after = (tmp_path / ".cachedind" / "lock").stat()
    assert (before.st_mtime_ns, before.st_ino, before.st_size) == (after.st_mtime_ns, after.st_ino, after.st_size)


def test_nothing_leaks(tmp_path: Path) -> None:
    def count() -> tuple[int, int]:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(DataRootBusyError):
                take(tmp_path, 0.1)
        return before, len(os.listdir("/proc/self/fd"))

    with child(holding(tmp_path)):
        wait_held(tmp_path)
        before, after = in_child(count)
    assert after == before
    assert lease.POLL_S * 3 < 0.1, "the waiting above did poll"
