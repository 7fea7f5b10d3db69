"""Private programs on a data-root whose lease we hold, before the job's own daemon: containerd, and what needs it.

They have one unix socket each that only root reaches, no TCP, and mount and network namespaces of their own, so none of
their mounts and bridges is ever seen or left behind. The kernel kills them when this process dies. The lock's
descriptor is inherited: the lease lasts as long as anything that may touch the data-root.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time

from cachedind.base.errors import DaemonEnd, PrivateDaemonError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import paths, remapping
from cachedind.host import linux
from cachedind.host.processes import Program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cachedind.base.model import Remap

DIRECTORY = "/run/cachedind/private"
DEADLINE_S = 60.0

_STOP_S = 15.0
_STOP_UNANSWERED_S = 5.0
_POLL_S = 0.002
_QUOTED_LINES = 3
_PASSED_ON = frozenset(
    spelled
    for name in ("PATH", "HOME", "TZ", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
    for spelled in (name, name.lower())
)
"""The variables that they get. The others are meant for the job and its daemon: DOCKER_DRIVER would choose another
storage driver, DOCKER_HOST another daemon for the client.
"""


class Private:
    """What runs in `directory`, until `deadline` (of time.monotonic()). `env` is the environment of all of it."""

    def __init__(self, directory: str, environ: Mapping[str, str], *, lock_fd: int, deadline: float | None) -> None:
        self.directory = directory
        self.deadline = time.monotonic() + DEADLINE_S if deadline is None else deadline
        self.env = {name: value for name, value in environ.items() if name in _PASSED_ON} | {"container": "docker"}
        self.answers = False
        """Whether it has come up: then it gets more time to end."""
        self._lock_fd = lock_fd
        self._programs: list[Program] = []

    @property
    def containerd(self) -> str:
        """The path of containerd's socket."""
        return f"{self.directory}/containerd.sock"

    def start(self, *argv: str, in_child: Callable[[], None] = lambda: None) -> None:
        """`in_child` is called in the new process, in its namespaces. Raises ProgramMissingError."""
        program = Program(
            argv,
            env=self.env,
            log_path=f"{self.directory}/log",
            pass_fds=[self._lock_fd],
            in_child=_seclusion(os.getpid(), in_child),
        )
        self._programs.append(program)

    def wait(self, is_ready: Callable[[], bool]) -> None:
        """Raises PrivateDaemonError when a program ends, or the deadline passes."""
        while not is_ready():
            statuses = [status for program in self._programs if (status := program.status) is not None]
            if statuses:
                by_signal = min(statuses) < 0
                end = DaemonEnd.BY_A_SIGNAL if by_signal else DaemonEnd.BY_ITSELF
                what = f"was killed by signal {-min(statuses)}" if by_signal else f"ended with status {statuses[0]}"
                raise self.failure(what, end)
            if time.monotonic() >= self.deadline:
                raise self.failure("did not answer in time", DaemonEnd.SILENT)
            time.sleep(_POLL_S)

    def failure(self, what: str, end: DaemonEnd) -> PrivateDaemonError:
        """An error with the last lines of the log."""
        error = PrivateDaemonError(
            f"the private daemon {what}: {_last_lines(f'{self.directory}/log')}",
            "its last log lines say what is wrong; cachedind doctor tells more",
        )
        error.end = end
        return error

    def stop(self) -> None:
        """Last started, first ended. Each gets its time even after the deadline, as a kill could cost the build cache;
        one that has not answered gets less."""
        for program in reversed(self._programs):
            program.stop(_STOP_S if self.answers else _STOP_UNANSWERED_S)


@contextlib.contextmanager
def private_containerd(
    data_root: str,
    remap: Remap | None,
    *,
    lock_fd: int,
    environ: Mapping[str, str],
    deadline: float | None = None,
    directory: str = DIRECTORY,
) -> Iterator[Private]:
    """Run the data-root's containerd for the length of a block, and what is started beside it.

    `directory` is for sockets, configuration and log; it is emptied before and removed afterwards. Raises
    PrivateDaemonError with the last lines of its log when it does not come up. Needs --privileged, and a single thread.
    """
    _remove(directory)
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    os.mkdir(directory, 0o700)
    private = Private(directory, environ, lock_fd=lock_fd, deadline=deadline)
    try:
        _write_configuration(private, remapping.make(data_root, remap))
        private.start("containerd", "--config", f"{directory}/containerd.toml")
        private.wait(lambda: _accepts(private.containerd))
        yield private
    finally:
        private.stop()
        _remove(directory)


def _remove(directory: str) -> None:
    """Nothing can be mounted there: the mounts were in namespaces that are gone."""
    from shutil import rmtree

    if os.path.lexists(directory):
        rmtree(directory)


def _seclusion(parent: int, more: Callable[[], None]) -> Callable[[], None]:
    """What a new process does before it becomes a daemon."""

    def seclude() -> None:
        linux.die_with_parent()
        if os.getppid() != parent:
            # It died just before die_with_parent, whose signal would never come.
            os.kill(os.getpid(), signal.SIGKILL)
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET)
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
        more()

    return seclude


def _write_configuration(private: Private, root: str) -> None:
    """What dockerd writes for a containerd of its own (moby, libcontainerd/supervisor). A JSON string is a TOML
    string."""
    lines = [
        "version = 2",
        f"root = {json.dumps(f'{root}/{paths.CONTAINERD}')}",
        f"state = {json.dumps(f'{private.directory}/containerd')}",
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]',
        "[grpc]",
        f"address = {json.dumps(private.containerd)}",
        "max_recv_message_size = 16777216",
        "max_send_message_size = 16777216",
        "[debug]",
        'level = "warn"',
    ]
    with open(f"{private.directory}/containerd.toml", "x", encoding="utf-8") as file:
        file.write("\n".join(lines))


def whole_seconds_left(deadline: float) -> int:
    """For a timeout in whole seconds; at least 1, as 0 would mean no timeout."""
    return max(1, int(deadline - time.monotonic()))


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def _last_lines(path: str) -> str:
    """The end of the log, on one line."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return " / ".join(line.strip() for line in lines[-_QUOTED_LINES:]) or "its log is empty"
