"""What may go wrong on the way to another daemon: its address, its socket, its answers, TLS."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from cachedind.seeds import host_daemon, host_images
from cachedind.seeds.host_daemon import without_password
from cachedind.seeds.host_images import find_held, list_host
from helpers.fake_daemon import (
    EARLY,
    GOES_ON,
    WANTS_TLS,
    Daemon,
    http,
    issue,
    listen_tcp,
    listen_unix,
    reset,
    serve_once,
    serve_tls,
)
from helpers.host_images import HELD, ID, INSPECT, LIST, REDIS, TAR, Local, listed
from helpers.spools import Spool

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


@pytest.fixture
def no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("unix:///host/docker.sock", "unix:///host/docker.sock"),
        ("unix:///run/a@b.sock", "unix:///run/a@b.sock"),
        ("tcp://host:2376", "tcp://host:2376"),
        ("tcp://me:secret@host:2376", "tcp://host:2376"),
        ("tcp://me:se@cret@host:2376/", "tcp://host:2376/"),
    ],
)
def test_a_password_is_not_shown(host: str, said: str) -> None:
    assert without_password(host) == said


# ---- reaching it -----------------------------------------------------------------------------------------------------


def the_fault(host: str, certs: str = "", **more: Any) -> str:
    """Why there is no list; the host is named with it. It comes soon."""
    started = time.monotonic()
    seeds, [bad] = list_host(host, ["*"], certs, **more)
    assert time.monotonic() - started < 4
    assert seeds == []
    assert bad.name == without_password(host)
    assert "\n" not in str(bad)
    return bad.why


def test_a_list_may_come_in_pieces_and_without_its_length(any_daemon: Daemon) -> None:
    def slowly(connection: socket.socket) -> None:
        for piece in (b"HT", b"TP/1.1 200 OK\r\nServer: x\r", b"\n\r", b"\n[", json.dumps(listed()).encode(), b"]"):
            connection.sendall(piece)
            time.sleep(0.005)

    any_daemon.answers[LIST] = slowly
    assert [one.name for one in list_host(any_daemon.host, ["redis:7"])[0]] == ["redis:7"]


def test_a_slash_at_the_end_of_an_address_does_not_matter(tcp_daemon: Daemon) -> None:
    tcp_daemon.answers[LIST] = http([listed()])
    assert len(list_host(f"{tcp_daemon.host}/", ["redis:7"])[0]) == 1


NONE = "its answer is not HTTP: is it a docker daemon"


BAD_ANSWERS: dict[str, tuple[bytes, str]] = {
    "shorter than announced": (http([listed()], length=5000), EARLY),
    "longer than announced": (http([listed()], length=5), EARLY),
    "its length in other letters": (http([]).replace(b"Content-Length: 2", b"content-LENGTH:7"), EARLY),
    "cut in its head": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n", EARLY),
    "cut before its length": (b"HTTP/1.0 200 OK\r\nServer: x\r\nContent-Le", EARLY),
    "cut without a length": (b'HTTP/1.0 200 OK\r\n\r\n[{"Id": "', "its answer is not JSON"),
    "refused": (http({"message": "page\nnot \x1bfound"}, "404 Not Found"), "it refuses (404): page not found"),
    "failed": (http({"message": "no space left"}, "500 Internal"), "it refuses (500): no space left"),
    "failed without a reason": (http(b"", "500 Internal"), "it refuses (500): no reason is given"),
    "failed with an odd reason": (http([7], "503 x"), "it refuses (503): no reason is given"),
    "a proxy": (http(b"<html>Bad\r\nGateway</html>", "502 x"), "it refuses (502): <html>Bad Gateway</html>"),
    "sent elsewhere": (http(b"", "301 Moved"), "it refuses (301)"),
    "nothing at all": (b"", NONE),
    "half a line": (b"HTTP/1.0 200 OK", NONE),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", NONE),
    "HTTP/2": (b"HTTP/2 200\r\n\r\n[]", NONE),
    "a TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46", WANTS_TLS),
    "Go with TLS": (GOES_ON, WANTS_TLS),
    "another 400": (http({"message": "client is too old"}, "400 Bad Request"), "it refuses (400): client is too old"),
    "no JSON": (http(b"<html>"), "its answer is not JSON"),
    "no list": (http({"Id": ID}), "its answer is not a list of images"),
}


@pytest.mark.parametrize(("answer", "said"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_an_answer_that_is_none_is_told(tcp_daemon: Daemon, answer: bytes, said: str) -> None:
    tcp_daemon.answers[LIST] = answer
    assert said in the_fault(tcp_daemon.host)


def test_reasons_are_not_longer_than_a_line(daemon: Daemon) -> None:
    daemon.answers[LIST] = http({"message": "no " * 1000}, "500 x")
    assert len(the_fault(daemon.host)) < 400


def test_who_hangs_up_may_want_tls(tcp_daemon: Daemon) -> None:
    tcp_daemon.answers[LIST] = reset
    assert the_fault(tcp_daemon.host) == "it hangs up: does it want TLS, with certificates?"


def test_who_hangs_up_on_a_unix_socket(tmp_path: Path) -> None:
    def hang_up(connection: socket.socket) -> None:
        connection.recv(1)  # and leaves the rest unread

    listener, host = listen_unix(tmp_path / "d.sock")
    with serve_once(listener, hang_up):
        assert the_fault(host) == "it hangs up"


def test_who_does_not_answer_is_not_waited_for(any_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_daemon, "ANSWER_S", 0.1)
    any_daemon.answers[LIST] = any_daemon.hang
    assert "it does not answer in time" in the_fault(any_daemon.host)


def test_who_answers_bit_by_bit_has_no_more_time(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n[")
        while not daemon.over.wait(0.02):
            connection.sendall(b" ")

    monkeypatch.setattr(host_daemon, "ANSWER_S", 0.2)
    daemon.answers[LIST] = drip
    assert "it does not answer in time" in the_fault(daemon.host)


def test_an_answer_without_an_end_is_cut(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 65536)

    monkeypatch.setattr(host_images, "_MAX_LIST_BYTES", 2 << 20)
    daemon.answers[LIST] = flood
    assert the_fault(daemon.host) == "its answer has more than 2 MiB"


def test_a_socket_that_nobody_accepts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_daemon, "CONNECT_S", 0.1)
    listener, host = listen_unix(tmp_path / "d.sock")
    with listener, socket.socket(socket.AF_UNIX) as first:
        listener.listen(0)
        first.connect(listener.getsockname())
        assert "it does not answer in time" in the_fault(host)


def test_a_socket_whose_queue_is_full_for_a_while(tmp_path: Path) -> None:
    listener, host = listen_unix(tmp_path / "d.sock")
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        listener.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(listener.getsockname())

        def serve() -> None:
            time.sleep(0.05)
            listener.accept()[0].close()
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(http([listed()]))

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        assert len(list_host(host, ["redis:7"])[0]) == 1


def test_our_own_socket_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    own = daemon.host.removeprefix("unix://")
    (tmp_path / "link").symlink_to(own)
    os.link(own, tmp_path / "other")
    for path in (own, tmp_path / "link", tmp_path / "other", f"{tmp_path}/./d.sock"):
        assert "that is our own daemon's socket" in the_fault(f"unix://{path}", own_sockets=["/none", own])
    assert daemon.lines == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", "there is no such socket"),
        (
            "dead",
            "nobody listens there: start that daemon; a socket that was mounted before its daemon's restart is dead",
        ),
        ("file", "nobody listens there"),
        (".", "nobody listens there"),
        ("loop", "it cannot be reached (Too many levels of symbolic links)"),
        ("file/d.sock", "it cannot be reached (Not a directory)"),
        ("x" * 110, "the socket's path is too long (108 bytes are the limit)"),
        ("x" * 5000, "the socket's path is too long (108 bytes are the limit)"),
    ],
    ids=lambda value: value[:12],
)
def test_places_where_no_socket_answers(tmp_path: Path, name: str, said: str) -> None:
    listen_unix(tmp_path / "dead")[0].close()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert said in the_fault(f"unix://{tmp_path}/{name}")


def test_a_port_where_nobody_listens() -> None:
    listener, host = listen_tcp()
    listener.close()
    assert the_fault(host) == "nobody listens there: start that daemon, or correct the port"


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("ssh://host", "it is not a docker host such as unix:///host/docker.sock"),
        ("npipe:////./pipe/docker_engine", "it is not a docker host"),
        ("/var/run/d.sock", "it is not a docker host"),
        ("", "it is not a docker host"),
        ("tcp://host", "it needs a name and a port"),
        ("tcp://:2375", "it needs a name and a port"),
        ("tcp://host:", "it needs a name and a port"),
        ("tcp://host:x", "it needs a name and a port"),
        ("tcp://host:-1", "it needs a name and a port"),
        ("tcp://host:65536", "it needs a name and a port"),
        ("tcp://host:2375/x", "it needs a name and a port"),
    ],
)
def test_an_address_that_is_none(host: str, said: str) -> None:
    assert said in the_fault(host)


@pytest.mark.parametrize("name", ["a..b", ".", "x" * 64, f"{'x' * 64}.example", "b\xfc..cher", "h\udcffst"], ids=ascii)
def test_a_name_that_cannot_be_resolved_by_anybody(name: str) -> None:
    assert the_fault(f"tcp://{name}:2375") == "its name is not a valid host name"


@pytest.mark.usefixtures("no_resolver")
def test_a_name_that_is_not_known_and_its_password() -> None:
    assert "cannot be resolved (Name or service not known)" in the_fault("tcp://nowhere:2375")
    told = list_host("tcp://me:secret@nowhere:2375", ["*"])
    assert told[1][0].name == "tcp://nowhere:2375"
    assert "secret" not in str(told)


def test_a_socket_that_this_user_may_not_use() -> None:
    # Root, who may run these tests, may use every one.
    said = host_daemon.reason(PermissionError(13, "Permission denied"), "unix:///d", "")
    assert said == "this user may not use the socket"


# ---- with TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, whose server has another name."""
    return issue(tmp_path_factory.mktemp("certs"), "DNS:elsewhere")


def test_a_daemon_with_tls(authority: Path, spool: Spool) -> None:
    certs = f"{authority}/client"
    with serve_tls(authority, authority) as daemon:
        seeds, bad = list_host(daemon.host, ["redis:7"], certs)
        assert ([one.name for one in seeds], bad) == (["redis:7"], [])
        assert find_held(daemon.host, [REDIS], [Local()], certs) == HELD
        assert spool.fetch(daemon.host, "redis:7", certs=certs) == TAR
        assert daemon.lines == [
            "GET /images/json HTTP/1.0",
            f"GET {INSPECT} HTTP/1.0",
            "GET /images/get?names=redis%3A7 HTTP/1.1",
        ]


def test_an_authority_that_did_not_issue_its_certificate(authority: Path, stranger: Path) -> None:
    with serve_tls(authority, stranger) as daemon:
        certs = f"{stranger}/client"
        assert f"its certificate is not valid with {certs}/ca.pem (" in the_fault(daemon.host, certs)
        assert daemon.lines == []


def test_a_certificate_for_another_name(authority: Path, stranger: Path) -> None:
    with serve_tls(stranger, stranger) as daemon:
        assert "not valid with" in (said := the_fault(daemon.host, f"{stranger}/client"))
        assert "IP address mismatch" in said
        assert daemon.lines == []


def test_a_client_that_it_does_not_let_in(authority: Path, stranger: Path, tmp_path: Path) -> None:
    shutil.copytree(stranger / "client", tmp_path / "mixed")
    shutil.copy(authority / "client/ca.pem", tmp_path / "mixed")
    with serve_tls(authority, authority) as daemon:
        assert "TLS with it fails (" in the_fault(daemon.host, f"{tmp_path}/mixed")
        assert daemon.lines == []


def test_a_daemon_without_tls(authority: Path) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(http({}, "400 Bad Request"))

    listener, host = listen_tcp()
    with serve_once(listener, refuse):
        assert "TLS with it fails (" in the_fault(host, f"{authority}/client")


def test_a_client_without_tls(authority: Path) -> None:
    with serve_tls(authority, authority) as daemon:
        assert "is it a docker daemon" in (said := the_fault(daemon.host)) or "does it want TLS" in said
        assert daemon.lines == []


def test_who_begins_no_tls_is_not_waited_for(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_daemon, "CONNECT_S", 0.1)
    listener, host = listen_tcp()
    with listener:
        listener.listen()
        assert "it does not answer in time" in the_fault(host, f"{authority}/client")


def spoil(certs: Path, name: str, how: str) -> None:
    path = certs / name
    match how:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "garbage":
            path.write_bytes(b"-----BEGIN CERTIFICATE-----\nx\n")
        case "a directory":
            path.unlink()
            path.mkdir()
        case "another's":
            shutil.copy(certs / "others.pem", path)
        case "with a password":
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            secret = serialization.BestAvailableEncryption(b"secret")
            layout = serialization.PrivateFormat.PKCS8
            path.write_bytes(key.private_bytes(serialization.Encoding.PEM, layout, secret))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *[
            (name, how)
            for name in ("ca.pem", "cert.pem", "key.pem")
            for how in ("gone", "empty", "garbage", "a directory")
        ],
        ("key.pem", "another's"),
        ("key.pem", "with a password"),
    ],
)
def test_certificates_that_cannot_be_used(
    authority: Path, stranger: Path, tcp_daemon: Daemon, tmp_path: Path, name: str, how: str
) -> None:
    certs = tmp_path / "certs"
    shutil.copytree(authority / "client", certs)
    shutil.copy(stranger / "client/key.pem", certs / "others.pem")
    spoil(certs, name, how)
    said = the_fault(tcp_daemon.host, str(certs))
    assert said.startswith(f"ca.pem, cert.pem and key.pem in {certs} cannot be used (")
    if how == "gone":
        assert said.endswith("(No such file or directory)")


def test_old_certificates_are_good_enough(authority: Path) -> None:
    context = host_daemon._tls_context(f"{authority}/client")
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_unix_socket_needs_no_certificates(daemon: Daemon, tmp_path: Path) -> None:
    daemon.answers[LIST] = http([listed()])
    assert len(list_host(daemon.host, ["redis:7"], f"{tmp_path}/none")[0]) == 1
