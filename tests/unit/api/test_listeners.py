"""Sockets that are bound before dockerd is up: who may connect when, and what stands in the way."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.api import listeners
from cachedind.api.hosts import Host
from cachedind.api.listen_plan import ListenPlan
from cachedind.api.listeners import Api, open_port
from cachedind.base.errors import ListenError


def bind(plan: ListenPlan) -> list[socket.socket]:
    api = Api(plan)
    api.open_tcp()
    return api.sockets


def path_of(plan: ListenPlan) -> str:
    return plan.sockets[0]


def port_of(plan: ListenPlan) -> int:
    return plan.tcp[0].port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ListenPlan:
    # Giving the socket to root is what only root can do; tests/system does it.
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: None)
    path = str(tmp_path / "run" / "docker.sock")
    return ListenPlan((Host(path), Host(name="0.0.0.0", port=free_port())), None, "docker")


@pytest.fixture
def bound(plan: ListenPlan) -> Iterator[list[socket.socket]]:
    found = bind(plan)
    yield found
    for listener in found:
        listener.close()


def test_both_addresses_take_connections_at_once(plan: ListenPlan, bound: list[socket.socket]) -> None:
    for address, family in ((path_of(plan), socket.AF_UNIX), (("127.0.0.1", port_of(plan)), socket.AF_INET)):
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
    seen = []

    def chown(path: str, uid: int, gid: int) -> None:
        top = path.removeprefix(os.path.dirname(path_of(plan))).split("/")[1]
        seen.append(stat.S_IMODE(os.stat(f"{os.path.dirname(path_of(plan))}/{top}").st_mode))

    monkeypatch.setattr(os, "chown", chown)
    found = bind(plan)
    assert seen == [0o700], "anybody could connect before owner and mode were right"
    assert os.stat(path_of(plan)).st_mode & 0o777 == 0o660
    for listener in found:
        listener.close()


@pytest.mark.parametrize("kind", ["a dead socket", "a file", "a link"])
def test_what_is_stale_is_replaced(plan: ListenPlan, tmp_path: Path, kind: str) -> None:
    path = Path(path_of(plan))
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
    Path(path_of(plan)).mkdir(parents=True)
    with pytest.raises(ListenError, match="a directory is in its place") as caught:
        Api(plan)
    assert caught.value.exit_code == 71
    assert "bind source is missing" in caught.value.hint


def test_a_path_that_is_too_long_for_a_socket_says_so(plan: ListenPlan, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="too long"):
        Api(ListenPlan((Host(str(tmp_path / ("x" * 120))),), None, "docker"))


def test_a_port_is_taken_but_refuses_until_it_is_opened(plan: ListenPlan) -> None:
    api = Api(plan)
    with contextlib.closing(api.tcp[0]) as listener:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port_of(plan)))
        # As the child that writes the certificates does it: one socket, shared by two processes.
        if os.fork() == 0:
            open_port(listener)
            os._exit(0)
        assert os.wait()[1] == 0
        socket.create_connection(("127.0.0.1", port_of(plan))).close()
    api.withdraw()


def test_a_port_that_somebody_has(plan: ListenPlan, bound: list[socket.socket]) -> None:
    with pytest.raises(ListenError, match=f"TCP port {port_of(plan)} cannot be bound at 0.0.0.0: Address already"):
        Api(plan)


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
