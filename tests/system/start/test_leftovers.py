"""What a killed daemon left in /run is swept, and nothing else. In a mount namespace with a /run of its own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachedind.base.errors import DataRootBusyError
from cachedind.host import linux
from cachedind.start.leftovers import check_free, sweep
from helpers.children import in_namespaces

RUN = Path("/run")
EXEC_ROOT, PIDFILE = "/var/run/docker", "/var/run/docker.pid"
SYSTEM_CONTAINERD = RUN / "containerd" / "containerd.sock"


def with_own_run(work: Callable[[], Any]) -> Any:
    def start() -> Any:
        linux.mount("none", "/run", "tmpfs")
        return work()

    return in_namespaces(start)


def make(*names: str) -> None:
    for name in names:
        (RUN / name).parent.mkdir(parents=True, exist_ok=True)
        (RUN / name).write_text("1\n")


def bind(path: Path, *, listening: bool) -> socket.socket:
    """A unix socket; one that does not listen is as dead as one whose daemon was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    if listening:
        listener.listen()
    return listener


def files() -> list[str]:
    return sorted(str(path.relative_to(RUN)) for path in RUN.rglob("*") if not path.is_dir())


def test_stale_files_go_and_others_stay() -> None:
    def work() -> tuple[list[str], list[str]]:
        make("docker.pid", "docker/containerd/containerd.pid", "docker/containerd/containerd.toml", "sshd.pid")
        make("lock/docker-7.pid", "cachedind/daemon.json", "docker/runtime/state.json")
        with contextlib.ExitStack() as stack:
            for name in ("docker/containerd/containerd.sock", "docker/containerd/containerd.sock.ttrpc"):
                stack.enter_context(bind(RUN / name, listening=False))
            stack.enter_context(bind(RUN / "docker.sock", listening=True))
            stack.enter_context(bind(RUN / "other.sock", listening=True))
            return sweep(EXEC_ROOT, PIDFILE), files()

    removed, left = with_own_run(work)
    assert sorted(removed) == [
        "/run/docker.pid",
        "/run/docker/containerd/containerd.pid",
        "/run/docker/containerd/containerd.sock",
        "/run/docker/containerd/containerd.sock.ttrpc",
        "/run/lock/docker-7.pid",
    ]
    assert left == [
        "cachedind/daemon.json",
        "docker.sock",
        "docker/containerd/containerd.toml",
        "docker/runtime/state.json",
        "other.sock",
        "sshd.pid",
    ]


def test_nothing_to_sweep() -> None:
    assert with_own_run(lambda: sweep(EXEC_ROOT, PIDFILE)) == []


def test_what_is_answered_is_spared_even_in_the_exec_root() -> None:
    """A socket of ours that is bound already, and a volume plugin's, which another container may have put there."""

    def work() -> list[str]:
        with (
            bind(RUN / "docker" / "api.sock", listening=True),
            bind(RUN / "docker" / "plugins" / "volumes.sock", listening=True),
        ):
            return sweep(EXEC_ROOT, PIDFILE)

    assert with_own_run(work) == []


@pytest.mark.parametrize("listening", [True, False], ids=["of a daemon that runs", "of one that was killed"])
def test_a_daemon_that_works_in_the_exec_root_is_found(listening: bool) -> None:
    """Containers that share /run, with a data-root each."""

    def work() -> None:
        with bind(RUN / "docker" / "containerd" / "containerd.sock", listening=listening):
            check_free(EXEC_ROOT)

    with pytest.raises(DataRootBusyError, match="unharmed") if listening else contextlib.nullcontext():
        with_own_run(work)


def test_a_system_containerd_that_is_dead_is_removed() -> None:
    """dockerd would take the mere file for a containerd, and keep its images outside the data-root."""

    def work() -> tuple[list[str], bool]:
        bind(SYSTEM_CONTAINERD, listening=True).close()
        return sweep(EXEC_ROOT, PIDFILE), SYSTEM_CONTAINERD.exists()

    assert with_own_run(work) == ([str(SYSTEM_CONTAINERD)], False)


def test_a_system_containerd_that_answers_is_kept() -> None:
    def work() -> tuple[list[str], bool]:
        with bind(SYSTEM_CONTAINERD, listening=True):
            return sweep(EXEC_ROOT, PIDFILE), SYSTEM_CONTAINERD.exists()

    assert with_own_run(work) == ([], True)


def test_a_file_in_its_place_is_removed_as_well() -> None:
    """dockerd only looks whether something is there (lstat)."""

    def work() -> list[str]:
        make("containerd/containerd.sock")
        return sweep(EXEC_ROOT, PIDFILE)

    assert with_own_run(work) == [str(SYSTEM_CONTAINERD)]


def test_an_exec_root_and_a_pid_file_elsewhere(tmp_path: Path) -> None:
    def work() -> tuple[list[str], list[str]]:
        make("docker.pid")
        (tmp_path / "exec").mkdir()
        (tmp_path / "exec" / "containerd.pid").touch()
        (tmp_path / "exec" / "config").touch()
        (tmp_path / "my.pid").touch()
        return sweep(str(tmp_path / "exec"), str(tmp_path / "my.pid")), sorted(os.listdir(tmp_path))

    removed, left = with_own_run(work)
    assert sorted(removed) == sorted(
        [str(tmp_path / "exec" / "containerd.pid"), str(tmp_path / "my.pid"), "/run/docker.pid"]
    )
    assert left == ["exec"]


def test_what_is_mounted_below_is_not_walked() -> None:
    """The root filesystems of containers, and whatever the user mounted there."""

    def work() -> list[str]:
        for name in ("docker/runtime/rootfs", "secrets"):
            (RUN / name).mkdir(parents=True)
            linux.mount("none", str(RUN / name), "tmpfs")
            make(f"{name}/docker.pid", f"{name}/containerd.sock")
        return sweep(EXEC_ROOT, PIDFILE)

    assert with_own_run(work) == []


def test_what_cannot_be_removed_does_not_end_the_start(tmp_path: Path) -> None:
    """A file that is mounted there (EBUSY), a directory of that name (EISDIR), a read-only mount (EROFS)."""

    def work() -> list[str]:
        make("docker.pid", "docker/plugins/volume.sock")
        (tmp_path / "host.sock").touch()
        linux.mount(str(tmp_path / "host.sock"), str(RUN / "docker/plugins/volume.sock"), flags=linux.MS_BIND)
        (RUN / "my.pid").mkdir()
        return sweep(EXEC_ROOT, "/run/my.pid")

    removed = with_own_run(work)
    assert removed == ["/run/docker.pid"], "what was not removed is not said to be"
    assert (tmp_path / "host.sock").exists()
