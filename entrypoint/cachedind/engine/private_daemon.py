"""A private daemon: a dockerd on a data-root whose lease we hold, before the job's own daemon, which nobody sees.

It has one unix socket that only root reaches, no TCP, and mount and network namespaces of its own, so none of its
mounts and bridges is ever seen or left behind. The kernel kills it when this process dies. It starts no containers,
whatever their restart policies, no swarm and no plugins, and collects no garbage.

It works on a copy of the records of networks, and what it writes there is dropped. In a namespace without the user's
own bridge (--bridge=dind1) a daemon cannot delete the default network's record in the bridge driver, and the next
daemon that has that bridge ends with "networks have same bridge name" (decisions/0024).

containerd is started here, before dockerd and not by it. dockerd would dial containerd before it listens, and wait for
the next attempt; and at its end dockerd checks only once a second whether containerd has ended. Measured from start to
end on an empty data-root: 0.11 s instead of 2.1 s with engine 26.1, 0.09 s instead of 1.1 s with 28.5.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from cachedind.base.errors import DaemonEnd, PrivateDaemonError
from cachedind.base.model import ImageStore
from cachedind.engine import networks, paths, remapping
from cachedind.host import linux
from cachedind.host.processes import Program, engine_environment, engine_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import docker

    from cachedind.base.model import StoragePlan

DIRECTORY = "/run/cachedind/private"
DEADLINE_S = 60.0

_STOP_S = 15.0
_STOP_UNANSWERED_S = 5.0
_POLL_S = 0.002
_ASK_AGAIN_S = 5
_QUOTED_LINES = 3
_PASSED_ON = frozenset(
    spelled
    for name in ("PATH", "HOME", "TZ", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
    for spelled in (name, name.lower())
)
"""The variables that it gets. The others are meant for the job and its daemon: DOCKER_DRIVER would choose another
storage driver, DOCKER_HOST another daemon for the client.
"""

_HIDDEN = ("swarm", "plugins")
"""A swarm and plugins would start by themselves and listen: this daemon sees empty directories instead."""


@contextlib.contextmanager
def private_daemon(
    data_root: str,
    storage: StoragePlan,
    *,
    lock_fd: int,
    environ: Mapping[str, str],
    deadline: float | None = None,
    directory: str = DIRECTORY,
    keeps_networks: bool = False,
) -> Iterator[docker.DockerClient]:
    """Run a daemon on `data_root` for the length of a block; the value is its client, whose requests time out at
    `deadline` (of time.monotonic(); None: DEADLINE_S seconds from now).

    With userns-remap it has the same remap as the job's daemon, and works in the same directory of the data-root. The
    lock's descriptor is inherited: the lease lasts as long as anything that may touch the data-root. `directory` is for
    sockets, configuration and log; it is emptied before and removed afterwards. Raises PrivateDaemonError with the last
    lines of its log when the daemon does not come up. Needs --privileged, and a single thread.
    """
    deadline = time.monotonic() + DEADLINE_S if deadline is None else deadline
    _remove(directory)
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    os.mkdir(directory, 0o700)
    env = {name: value for name, value in environ.items() if name in _PASSED_ON} | {"container": "docker"}
    engine = engine_program(env.get("PATH", os.defpath))
    env |= engine_environment(engine)
    root = remapping.make(data_root, storage.remap)
    seclude = _seclusion(os.getpid(), root, keeps_networks=keeps_networks)
    programs: list[Program] = []
    stop_s = _STOP_UNANSWERED_S

    def start(*argv: str) -> None:
        log_path = f"{directory}/log"
        programs.append(Program(argv, env=env, log_path=log_path, pass_fds=[lock_fd], in_child=seclude))

    try:
        _write_configuration(directory, root, storage)
        start("containerd", "--config", f"{directory}/containerd.toml")
        _wait(programs, directory, deadline, lambda: _accepts(f"{directory}/containerd.sock"))
        start(engine, *_arguments(directory, data_root, storage))
        # 0.1 s of imports, while dockerd is busy too.
        import docker

        _wait(programs, directory, deadline, lambda: _answers(f"{directory}/docker.sock", deadline))
        try:
            client = docker.DockerClient(f"unix://{directory}/docker.sock", timeout=whole_seconds_left(deadline))
        except docker.errors.DockerException as error:
            raise _failure(f"does not answer with its version ({error})", directory, DaemonEnd.SILENT) from error
        stop_s = _STOP_S
        with contextlib.closing(client):
            yield client
    finally:
        # containerd last. Each gets its time even after the deadline, as a kill could cost the build cache; one that
        # has not answered gets less.
        for program in reversed(programs):
            program.stop(stop_s)
        _remove(directory)


def _remove(directory: str) -> None:
    """Nothing can be mounted there: the daemon's mounts were in a namespace of its own."""
    from shutil import rmtree

    if os.path.lexists(directory):
        rmtree(directory)


def _seclusion(parent: int, root: str, *, keeps_networks: bool) -> Callable[[], None]:
    """What a new process does before it becomes a daemon."""
    hidden = [path for name in _HIDDEN if os.path.isdir(path := f"{root}/{name}")]
    raw = None if keeps_networks else networks.read(root)
    bridges = networks.own_bridges(root) if keeps_networks else frozenset()
    if not keeps_networks:
        os.makedirs(f"{root}/{paths.NETWORKS}", mode=0o750, exist_ok=True)

    def seclude() -> None:
        linux.die_with_parent()
        if os.getppid() != parent:
            # It died just before die_with_parent, whose signal would never come.
            os.kill(os.getpid(), signal.SIGKILL)
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET)
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
        for path in hidden:
            linux.mount("tmpfs", path, "tmpfs", data="mode=0700")
        for name in bridges:
            with contextlib.suppress(OSError):
                linux.add_bridge(name)
        if not keeps_networks:
            linux.mount("tmpfs", f"{root}/{paths.NETWORKS}", "tmpfs", data="mode=0750")
            if raw is not None:
                networks.write(root, raw)

    return seclude


def _write_configuration(directory: str, root: str, storage: StoragePlan) -> None:
    features = {"containerd-snapshotter": storage.store is ImageStore.CONTAINERD}
    # The user's own limits are not known here, and the engine's may be below them.
    daemon = {"features": features, "builder": {"gc": {"enabled": False}}}
    # What dockerd writes for a containerd of its own (moby, libcontainerd/supervisor). A JSON string is a TOML string.
    containerd = [
        "version = 2",
        f"root = {json.dumps(f'{root}/{paths.CONTAINERD}')}",
        f"state = {json.dumps(f'{directory}/containerd')}",
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]',
        "[grpc]",
        f"address = {json.dumps(f'{directory}/containerd.sock')}",
        "max_recv_message_size = 16777216",
        "max_send_message_size = 16777216",
        "[debug]",
        'level = "warn"',
    ]
    for name, text in (("daemon.json", json.dumps(daemon)), ("containerd.toml", "\n".join(containerd))):
        with open(f"{directory}/{name}", "x", encoding="utf-8") as file:
            file.write(text)


def _arguments(directory: str, data_root: str, storage: StoragePlan) -> list[str]:
    remap = [] if storage.remap is None else [f"--userns-remap={storage.remap.setting}"]
    return [
        *remap,
        f"--config-file={directory}/daemon.json",
        f"--host=unix://{directory}/docker.sock",
        f"--pidfile={directory}/docker.pid",
        f"--exec-root={directory}/docker",
        f"--containerd={directory}/containerd.sock",
        f"--data-root={data_root}",
        f"--storage-driver={storage.driver}",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        # Deprecated since there are restart policies, and still what overrules them (moby, daemon/daemon.go, restore).
        "--restart=false",
    ]


# ---- waiting --------------------------------------------------------------------------------------------------------


def _wait(programs: list[Program], directory: str, deadline: float, is_ready: Callable[[], bool]) -> None:
    """Raises PrivateDaemonError when a program ends, or the deadline passes."""
    while not is_ready():
        statuses = [status for program in programs if (status := program.status) is not None]
        if statuses:
            by_signal = min(statuses) < 0
            end = DaemonEnd.BY_A_SIGNAL if by_signal else DaemonEnd.BY_ITSELF
            what = f"was killed by signal {-min(statuses)}" if by_signal else f"ended with status {statuses[0]}"
            raise _failure(what, directory, end)
        if time.monotonic() >= deadline:
            raise _failure("did not answer in time", directory, DaemonEnd.SILENT)
        time.sleep(_POLL_S)


def _failure(what: str, directory: str, end: DaemonEnd) -> PrivateDaemonError:
    error = PrivateDaemonError(
        f"the private daemon {what}: {_last_lines(f'{directory}/log')}",
        "its last log lines say what is wrong; cachedind doctor tells more",
    )
    error.end = end
    return error


def whole_seconds_left(deadline: float) -> int:
    """For a timeout in whole seconds; at least 1, as 0 would mean no timeout."""
    return max(1, int(deadline - time.monotonic()))


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def _answers(path: str, deadline: float) -> bool:
    """Whether the API has answered a request, which may take as long as dockerd takes to come up."""
    with socket.socket(socket.AF_UNIX) as client:
        # Not for ever: the daemon or its containerd may end meanwhile, and asking again costs nothing.
        client.settimeout(min(whole_seconds_left(deadline), _ASK_AGAIN_S))
        try:
            client.connect(path)
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in client.recv(64)
        except OSError:
            return False


def _last_lines(path: str) -> str:
    """The end of the log, on one line."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return " / ".join(line.strip() for line in lines[-_QUOTED_LINES:]) or "its log is empty"
