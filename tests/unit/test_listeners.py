"""Which addresses are bound, which of the user's they cover, and what stands in the way."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind import listeners
from cachedind.errors import DaemonConfigError, ListenError
from cachedind.listeners import ListenPlan, bind_tcp, bind_unix, open_port, plan_listen

DEFAULT = "/var/run/docker.sock"


def bind(plan: ListenPlan) -> list[socket.socket]:
    found = [bind_unix(plan), bind_tcp(plan)]
    open_port(found[1], plan)
    return found


@pytest.mark.parametrize(
    ("docker_host", "certdir", "group", "plan"),
    [
        ("", "", None, ListenPlan(DEFAULT, 2375, None, "docker")),
        ("", "/certs", None, ListenPlan(DEFAULT, 2376, "/certs", "docker")),
        ("", "/certs/", "1000", ListenPlan(DEFAULT, 2376, "/certs", "1000")),
        ("unix:///shared/docker.sock", "", None, ListenPlan("/shared/docker.sock", 2375, None, "docker")),
        ("unix:///shared//x/../docker.sock", "", None, ListenPlan("/shared/docker.sock", 2375, None, "docker")),
        ("tcp://docker:2376", "/certs", None, ListenPlan(DEFAULT, 2376, "/certs", "docker")),
        ("ssh://host", "", None, ListenPlan(DEFAULT, 2375, None, "docker")),
    ],
    ids=["plain", "TLS", "trailing slash, group", "socket moved", "tidied up", "a client's tcp", "a client's ssh"],
)
def test_plan_listen(docker_host: str, certdir: str, group: str | None, plan: ListenPlan) -> None:
    assert plan_listen(docker_host, certdir, group) == plan


@pytest.mark.parametrize("docker_host", ["unix://", "unix://docker.sock", "unix://./docker.sock"])
def test_a_socket_path_must_be_absolute(docker_host: str) -> None:
    with pytest.raises(DaemonConfigError, match="no absolute path"):
        plan_listen(docker_host, "", None)


@pytest.mark.parametrize(
    ("host", "plain", "tls"),
    [
        ("", True, True),
        ("fd://", True, True),
        ("fd://3", True, True),
        ("unix://", True, True),
        ("unix:///var/run/docker.sock", True, True),
        ("unix:///var//run/docker.sock", True, True),
        ("unix:///other.sock", False, False),
        ("tcp://", True, True),
        ("tcp://:2375", True, False),
        ("tcp://0.0.0.0:2375", True, False),
        ("tcp://0.0.0.0:2376", False, True),
        ("tcp://[::]:2376", False, True),
        ("tcp://0.0.0.0", True, True),
        ("tcp://0.0.0.0:2375/", True, False),
        ("tcp://127.0.0.1:2375", False, False),
        ("tcp://0.0.0.0:9999", False, False),
        ("tcp://docker:2375", False, False),
    ],
)
def test_which_hosts_of_the_users_are_bound_already(host: str, plain: bool, tls: bool) -> None:
    assert plan_listen("", "", None).covers(host) is plain
    assert plan_listen("", "/certs", None).covers(host) is tls


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ListenPlan:
    # Giving the socket to root is what only root can do; tests/system does it.
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: None)
    return ListenPlan(str(tmp_path / "run" / "docker.sock"), free_port(), None, "docker")


@pytest.fixture
def bound(plan: ListenPlan) -> Iterator[list[socket.socket]]:
    found = bind(plan)
    yield found
    for listener in found:
        listener.close()


def test_both_addresses_take_connections_at_once(plan: ListenPlan, bound: list[socket.socket]) -> None:
    for address, family in ((plan.socket_path, socket.AF_UNIX), (("127.0.0.1", plan.tcp_port), socket.AF_INET)):
        with socket.socket(family) as client:
            client.settimeout(1)
            client.connect(address)
    assert [listener.family for listener in bound] in (
        [socket.AF_UNIX, socket.AF_INET6],
        [socket.AF_UNIX, socket.AF_INET],
    )


def test_the_socket_is_for_its_group_and_never_for_anybody_else(
    plan: ListenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: modes.append(os.stat(path).st_mode & 0o777))
    before = os.umask(0)
    try:
        found = bind(plan)
        assert os.umask(0) == 0, "the umask was left changed"
    finally:
        os.umask(before)
    assert modes == [0], "anybody could connect before owner and mode were right"
    assert os.stat(plan.socket_path).st_mode & 0o777 == 0o660
    for listener in found:
        listener.close()


@pytest.mark.parametrize("kind", ["a dead socket", "a file", "a link"])
def test_what_is_stale_is_replaced(plan: ListenPlan, tmp_path: Path, kind: str) -> None:
    path = Path(plan.socket_path)
    path.parent.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if kind == "a dead socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    elif kind == "a file":
        path.touch()
    else:
        path.symlink_to(precious)
    found = bind(plan)
    assert path.is_socket()
    assert precious.read_text() == "precious"
    for listener in found:
        listener.close()


def test_a_directory_in_its_place_is_left_alone_and_told(plan: ListenPlan) -> None:
    Path(plan.socket_path).mkdir(parents=True)
    with pytest.raises(ListenError, match="a directory is in its place") as caught:
        bind_unix(plan)
    assert caught.value.exit_code == 71
    assert "missing bind source" in caught.value.hint


def test_a_path_that_is_too_long_for_a_socket_says_so(plan: ListenPlan, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="too long"):
        bind_unix(plan._replace(socket_path=str(tmp_path / ("x" * 120))))


def test_a_port_is_taken_but_refuses_until_it_is_opened(plan: ListenPlan) -> None:
    with bind_tcp(plan) as listener:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", plan.tcp_port))
        # As the child that writes the certificates does it: one socket, shared by two processes.
        if os.fork() == 0:
            open_port(listener, plan)
            os._exit(0)
        assert os.wait()[1] == 0
        socket.create_connection(("127.0.0.1", plan.tcp_port)).close()


def test_a_port_that_somebody_has(plan: ListenPlan, bound: list[socket.socket]) -> None:
    with pytest.raises(ListenError, match=f"TCP port {plan.tcp_port} cannot be bound: Address already in use"):
        bind_tcp(plan)


@pytest.mark.parametrize("error", [97, 99], ids=["no IPv6 in the kernel", "IPv6 switched off"])
def test_without_ipv6_there_is_ipv4(plan: ListenPlan, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    real = listeners._tcp_listener

    def listener(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(error, os.strerror(error))
        return real(family, address, port)

    monkeypatch.setattr(listeners, "_tcp_listener", listener)
    found = bind(plan)
    assert found[1].family == socket.AF_INET
    for one in found:
        one.close()


def test_groups_by_name_by_number_and_unknown_ones() -> None:
    assert listeners._group_id("root") == 0
    assert listeners._group_id("1234") == 1234
    assert listeners._group_id("no-such-group") == 0
