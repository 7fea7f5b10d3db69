"""Which addresses are bound, which of the user's they cover, and which are left to dockerd."""

from __future__ import annotations

import pytest

from cachedind.api.hosts import Host
from cachedind.api.listen_plan import OWN_SOCKET, ListenPlan, plan_explicit, plan_listen
from cachedind.api.way_in import DEFAULT_SOCKET
from cachedind.base.errors import DaemonConfigError


def at(path: str, *tcp: tuple[str, int], tls_dir: str | None = None, group: str = "docker") -> ListenPlan:
    return ListenPlan((Host(path), *(Host(name=name, port=port) for name, port in tcp)), tls_dir, group)


PLAIN, TLS = ("0.0.0.0", 2375), ("0.0.0.0", 2376)


@pytest.mark.parametrize(
    ("docker_host", "certdir", "group", "plan"),
    [
        ("", "", None, at(DEFAULT_SOCKET, PLAIN)),
        ("", "/certs", None, at(DEFAULT_SOCKET, TLS, tls_dir="/certs")),
        ("", "/certs/", "1000", at(DEFAULT_SOCKET, TLS, tls_dir="/certs", group="1000")),
        ("unix:///shared/docker.sock", "", None, at("/shared/docker.sock", PLAIN)),
        ("unix:///shared//x/../docker.sock", "", None, at("/shared/docker.sock", PLAIN)),
        ("tcp://docker:2376", "/certs", None, at(DEFAULT_SOCKET, TLS, tls_dir="/certs")),
        ("ssh://host", "", None, at(DEFAULT_SOCKET, PLAIN)),
    ],
    ids=["plain", "TLS", "trailing slash, group", "socket moved", "tidied up", "a client's tcp", "a client's ssh"],
)
def test_plan_listen(docker_host: str, certdir: str, group: str | None, plan: ListenPlan) -> None:
    assert plan_listen(docker_host, certdir, group) == plan


@pytest.mark.parametrize(
    ("listen", "plan"),
    [
        ((), at(DEFAULT_SOCKET)),
        ((("127.0.0.1", None),), at(DEFAULT_SOCKET, ("127.0.0.1", 2376), tls_dir="/certs")),
        ((("10.0.0.5", 2400), ("::1", None)), at(DEFAULT_SOCKET, ("10.0.0.5", 2400), ("::1", 2376), tls_dir="/certs")),
        ((("127.0.0.1", None), ("::", None)), at(DEFAULT_SOCKET, ("::", 2376), tls_dir="/certs")),
    ],
    ids=["none", "one", "two, a port", "a wildcard covers the other"],
)
def test_where_tcp_listens(listen: tuple[tuple[str, int | None], ...], plan: ListenPlan) -> None:
    assert plan_listen("", "/certs", None, listen) == plan


@pytest.mark.parametrize(
    ("hosts", "has_tls", "bound", "left"),
    [
        ([], False, f"unix://{DEFAULT_SOCKET}", ()),
        ([], True, f"unix://{OWN_SOCKET} tcp://localhost:2376", ()),
        (["unix:///var/run/docker.sock"], False, f"unix://{DEFAULT_SOCKET}", ()),
        (["0.0.0.0:2375", "unix://"], False, f"unix://{DEFAULT_SOCKET} tcp://0.0.0.0:2375", ()),
        (["tcp://0.0.0.0:2376"], True, f"unix://{OWN_SOCKET} tcp://0.0.0.0:2376", ()),
        (["fd://", "unix:///a.sock"], False, "unix:///a.sock", ()),
        (["fd://"], False, "", ("fd://",)),
        (["ssh://x", "unix://rel.sock"], False, f"unix://{OWN_SOCKET}", ("ssh://x", "unix://rel.sock")),
        (["tcp://any@:2375"], False, f"unix://{OWN_SOCKET}", ("tcp://any@:2375",)),
        (["ssh://x", ":1"], False, f"unix://{OWN_SOCKET} tcp://localhost:1", ("ssh://x",)),
    ],
)
def test_the_explicit_form(hosts: list[str], has_tls: bool, bound: str, left: tuple[str, ...]) -> None:
    plan = plan_explicit(hosts, "123", has_tls=has_tls)
    assert (" ".join(map(str, plan.bound)), plan.left, plan.group, plan.tls_dir) == (bound, left, "123", None)


@pytest.mark.parametrize("docker_host", ["unix://", "unix://docker.sock", "unix://./docker.sock"])
def test_a_socket_path_must_be_absolute(docker_host: str) -> None:
    with pytest.raises(DaemonConfigError, match="not an absolute path"):
        plan_listen(docker_host, "", None)


@pytest.mark.parametrize(
    ("host", "plain", "tls"),
    [
        ("", "", ""),
        ("fd://", "", ""),
        ("fd://3", "", ""),
        ("unix://", "", ""),
        ("unix:///var//run/docker.sock", "", ""),
        ("unix:///other.sock", "unix:///other.sock", "unix:///other.sock"),
        ("tcp://", "", "tcp://localhost:2375"),
        ("tcp://:2375", "", "tcp://localhost:2375"),
        ("tcp://0.0.0.0:2376", "tcp://0.0.0.0:2376", ""),
        ("tcp://[::]:2376", "tcp://[::]:2376", ""),
        ("tcp://0.0.0.0", "", "tcp://0.0.0.0:2375"),
        ("tcp://0.0.0.0:2375/", "", "tcp://0.0.0.0:2375"),
        ("tcp://127.0.0.1:2375", "", "tcp://127.0.0.1:2375"),
        ("tcp://:0", "tcp://localhost:0", "tcp://localhost:0"),
    ],
)
def test_which_hosts_of_the_users_are_bound_already(host: str, plain: str, tls: str) -> None:
    for certdir, more in (("", plain), ("/certs", tls)):
        own = plan_listen("", certdir, None)
        found = plan_listen("", certdir, None, more=[host])
        assert " ".join(str(one) for one in found.bound if one not in own.bound) == more
        assert found.left == ()
