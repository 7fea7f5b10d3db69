"""A private daemon: a dockerd, with its containerd (private_containerd.py), which nobody sees.

It starts no containers, whatever their restart policies, no swarm and no plugins, and collects no garbage.

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
import socket

from cachedind.base import releases
from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import networks, paths, remapping
from cachedind.engine.private_containerd import DIRECTORY, Private, private_containerd, whole_seconds_left
from cachedind.host import linux
from cachedind.host.processes import engine_environment, engine_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import docker

    from cachedind.base.model import StoragePlan

_ASK_AGAIN_S = 5

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

    With userns-remap it has the same remap as the job's daemon, and works in the same directory of the data-root. Its
    containerd answers at CONTAINERD meanwhile. Raises PrivateDaemonError with the last lines of its log when the daemon
    does not come up. Needs --privileged, and a single thread.
    """
    with private_containerd(
        data_root, storage.remap, lock_fd=lock_fd, environ=environ, deadline=deadline, directory=directory
    ) as private:
        engine = engine_program(private.env.get("PATH", os.defpath))
        private.env |= engine_environment(engine)
        _write_configuration(private, storage)
        hide = _hiding(remapping.make(data_root, storage.remap), keeps_networks=keeps_networks)
        private.start(engine, *_arguments(directory, data_root, storage), in_child=hide)
        # 0.1 s of imports, while dockerd is busy too.
        import docker

        private.wait(lambda: _answers(f"{directory}/docker.sock", private.deadline))
        timeout_s = whole_seconds_left(private.deadline)
        address = f"unix://{directory}/docker.sock"
        client = docker.DockerClient(address, version=releases.API_VERSION, timeout=timeout_s)
        private.answers = True
        with contextlib.closing(client):
            yield client


def _hiding(root: str, *, keeps_networks: bool) -> Callable[[], None]:
    """What the daemon's own mount namespace hides of the data-root from it."""
    hidden = [path for name in _HIDDEN if os.path.isdir(path := f"{root}/{name}")]
    raw = None if keeps_networks else networks.read(root)
    bridges = networks.own_bridges(root) if keeps_networks else frozenset()
    if not keeps_networks:
        os.makedirs(f"{root}/{paths.NETWORKS}", mode=0o750, exist_ok=True)

    def hide() -> None:
        for path in hidden:
            linux.mount("tmpfs", path, "tmpfs", data="mode=0700")
        for name in bridges:
            with contextlib.suppress(OSError):
                linux.add_bridge(name)
        if not keeps_networks:
            linux.mount("tmpfs", f"{root}/{paths.NETWORKS}", "tmpfs", data="mode=0750")
            if raw is not None:
                networks.write(root, raw)

    return hide


def _write_configuration(private: Private, storage: StoragePlan) -> None:
    features = {"containerd-snapshotter": storage.store is ImageStore.CONTAINERD}
    # The user's own limits are not known here, and the engine's may be below them.
    daemon = {"features": features, "builder": {"gc": {"enabled": False}}}
    with open(f"{private.directory}/daemon.json", "x", encoding="utf-8") as file:
        json.dump(daemon, file)


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
