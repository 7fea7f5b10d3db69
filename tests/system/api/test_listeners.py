"""The API's sockets, bound by us and served by another program after a real exec (sd_listen_fds(3))."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.api.hosts import Host
from cachedind.api.listen_plan import ListenPlan
from cachedind.api.listeners import Api, hand_over
from cachedind.base.errors import ListenError
from cachedind.host import linux
from helpers.children import CLONE_NEWNET, Child, child, in_namespaces
from helpers.waiting import wait_until

# What dockerd does with fd://: LISTEN_FDS sockets from descriptor 3 on, if LISTEN_PID is its own.
DAEMON = """
import os, select, socket, sys
assert int(os.environ["LISTEN_PID"]) == os.getpid()
sockets = [socket.socket(fileno=3 + number) for number in range(int(os.environ["LISTEN_FDS"]))]
assert all(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for one in sockets)
others = sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) >= 3 + len(sockets))
with open(sys.argv[1], "w") as file:
    file.write(" ".join(os.readlink(f"/proc/self/fd/{fd}") for fd in others if os.path.exists(f"/proc/self/fd/{fd}")))
while True:
    for one in select.select(sockets, [], [])[0]:
        connection, _ = one.accept()
        connection.sendall(f"{sockets.index(one)}".encode())
        connection.close()
"""


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def plan(tmp_path: Path) -> ListenPlan:
    hosts = (Host(str(tmp_path / "run" / "docker.sock")), Host(name="0.0.0.0", port=free_port()))
    return ListenPlan(hosts, None, "docker")


def bind(plan: ListenPlan) -> list[socket.socket]:
    api = Api(plan)
    api.open_tcp()
    return api.sockets


def serve(plan: ListenPlan, tmp_path: Path) -> None:
    """Bind, wait to be let go on, and become the daemon."""
    bound = bind(plan)
    (tmp_path / "bound").touch()
    wait_until((tmp_path / "go").exists, what="the test lets it go on", every_s=0.01)
    hand_over(bound)
    environ = {"LISTEN_FDS": str(len(bound)), "LISTEN_PID": str(os.getpid())}
    os.execve(sys.executable, [sys.executable, "-c", DAEMON, str(tmp_path / "others")], environ)


@pytest.fixture
def server(plan: ListenPlan, tmp_path: Path) -> Iterator[Child]:
    with child(lambda: serve(plan, tmp_path)) as server:
        bound = (tmp_path / "bound").exists
        wait_until(bound, what="the sockets are bound", every_s=0.01, hopeless=server.has_ended)
        yield server


Address = tuple[socket.AddressFamily, str | tuple[str, int]]


def addresses(plan: ListenPlan) -> dict[str, Address]:
    return {
        "unix": (socket.AF_UNIX, plan.sockets[0]),
        "IPv4": (socket.AF_INET, ("127.0.0.1", plan.tcp[0].port)),
        "IPv6": (socket.AF_INET6, ("::1", plan.tcp[0].port)),
    }


def connect(address: Address) -> socket.socket:
    client = socket.socket(address[0])
    client.settimeout(10)
    client.connect(address[1])
    return client


def test_clients_of_every_kind_wait_for_the_daemon_and_are_answered(
    server: Child, plan: ListenPlan, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        early = {name: stack.enter_context(connect(address)) for name, address in addresses(plan).items()}
        for client in early.values():
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
            client.settimeout(10)
        (tmp_path / "go").touch()
        assert {name: client.recv(9) for name, client in early.items()} == {"unix": b"0", "IPv4": b"1", "IPv6": b"1"}
        for name, address in addresses(plan).items():
            assert stack.enter_context(connect(address)).recv(9) == served_by(name)


def served_by(name: str) -> bytes:
    """The number of the socket that clients of that kind reach."""
    return b"0" if name == "unix" else b"1"


def test_the_daemon_gets_these_descriptors_and_no_others(server: Child, plan: ListenPlan, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with connect(addresses(plan)["unix"]) as client:
        assert client.recv(9) == b"0"
    others = (tmp_path / "others").read_text().split()
    assert not [other for other in others if other.startswith("socket:")], "a socket is open twice"


def test_many_clients_fit_into_the_backlog(server: Child, plan: ListenPlan, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
    waiting = min(limit, 200)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(connect(addresses(plan)[kind])) for kind in ("unix", "IPv4") for _ in range(waiting)
        ]
        (tmp_path / "go").touch()
        answers = [client.recv(9) for client in clients]
    assert answers == [b"0"] * waiting + [b"1"] * waiting


@pytest.mark.parametrize("first", [3, 4, 30], ids=lambda first: f"from {first} on")
def test_sockets_get_to_their_places_wherever_they_are(tmp_path: Path, plan: ListenPlan, first: int) -> None:
    """They may have one another's numbers, or leave 3 and 4 free."""

    def swapped() -> None:
        # Descriptors up to `first` are taken when the sockets are made, and free again afterwards.
        os.closerange(3, 64)
        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(3, first)]
        bound = bind(plan)
        assert {one.fileno() for one in bound} == {first, first + 1}
        for fd in taken:
            os.close(fd)
        hand_over([bound[1], bound[0]])
        os.execve(
            sys.executable,
            [sys.executable, "-c", DAEMON, str(tmp_path / "others")],
            {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid())},
        )

    with child(swapped) as daemon:
        unix = addresses(plan)["unix"]
        wait_until(lambda: answer(unix) == b"1", what="the unix socket is second", hopeless=daemon.has_ended)
        assert answer(addresses(plan)["IPv4"]) == b"0"


def answer(address: Address) -> bytes | None:
    """What the daemon says, or None while there is none."""
    with socket.socket(address[0]) as client:
        client.settimeout(10)
        try:
            client.connect(address[1])
            return client.recv(9)
        except OSError:
            return None


def test_owner_group_and_mode(plan: ListenPlan) -> None:
    name = grp.getgrgid(os.getgroups()[0] if os.getgroups() else 0).gr_name
    for group, number in ((name, grp.getgrnam(name).gr_gid), ("4321", 4321), ("no-such-group", 0)):
        found = bind(plan._replace(group=group))
        status = os.stat(plan.sockets[0])
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, number, 0o660)
        for listener in found:
            listener.close()


def test_a_socket_that_is_mounted_from_the_host_is_left_alone(plan: ListenPlan, tmp_path: Path) -> None:
    def work() -> None:
        Path(plan.sockets[0]).parent.mkdir()
        Path(plan.sockets[0]).touch()
        (tmp_path / "host.sock").touch()
        linux.mount(str(tmp_path / "host.sock"), plan.sockets[0], flags=linux.MS_BIND)
        bind(plan)

    with pytest.raises(ListenError, match="Device or resource busy") as caught:
        in_namespaces(work)
    assert "something is mounted there" in caught.value.hint


@pytest.mark.parametrize("switch", ["", "all/disable_ipv6"], ids=["with IPv6", "IPv6 switched off"])
def test_ipv4_clients_are_served_with_and_without_ipv6(plan: ListenPlan, switch: str) -> None:
    def work() -> bytes:
        if switch:
            Path(f"/proc/sys/net/ipv6/conf/{switch}").write_text("1")
        _bring_loopback_up()
        bound = bind(plan)
        with connect(addresses(plan)["IPv4"]) as client:
            connection, _ = bound[1].accept()
            connection.sendall(b"hello")
            return client.recv(9)

    assert in_namespaces(work, more=CLONE_NEWNET) == b"hello"


def _bring_loopback_up() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
