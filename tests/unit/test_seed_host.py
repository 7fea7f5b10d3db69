"""Images of another daemon: what its list says, whether two stores have the same, and what may go wrong on the way.

The other daemon is a thread here, on a real socket, that says what each test lays into its mouth.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import resource
import shutil
import socket
import ssl
import struct
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedind import seed_host, tls
from cachedind.seed_host import (
    HostImage,
    PartError,
    choose,
    fetch,
    fetch_each,
    find_held,
    is_same_image,
    list_host,
    matches,
    parse_images,
    shares_digest,
    shown,
)
from cachedind.seeds import BadSeed, Record, Seed, SeedError, SeedKind, chain_ids

ID, OTHER_ID = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
LIST = "/images/json"


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Whatever a test does: no socket and no spool is left, once the daemon of the test is gone."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


# ---- the other daemon ------------------------------------------------------------------------------------------------


Answer = bytes | Callable[[socket.socket], None]
"""What is sent before the connection is closed, or what does that."""


class Daemon:
    """Answers GET requests by their path, each connection in a thread of its own. `lines` are the requests' first."""

    def __init__(self, listener: socket.socket, host: str, context: ssl.SSLContext | None = None) -> None:
        self.host = host
        self.answers: dict[str, Answer] = {}
        self.lines: list[str] = []
        self.over = threading.Event()
        self._listener = listener
        self._context = context
        self._threads = [threading.Thread(target=self._accept)]
        listener.listen()
        self._threads[0].start()

    @property
    def paths(self) -> list[str]:
        return [line.split(" ")[1] for line in self.lines]

    def hang(self, connection: socket.socket) -> None:
        """An answer that does not come."""
        self.over.wait()

    def stop_listening(self) -> None:
        """Who connects from now on is refused."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which also wakes who waits in accept()
        self._listener.close()

    def close(self) -> None:
        self.over.set()
        self.stop_listening()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=[connection]))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            connection.settimeout(5)
            if self._context is not None:
                connection = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                more = connection.recv(4096)
                if not more:
                    return
                head += more
            self.lines.append(head.partition(b"\r\n")[0].decode())
            answer = self.answers.get(self.paths[-1], http({"message": "page not found"}, "404 Not Found"))
            if isinstance(answer, bytes):
                connection.sendall(answer)
            else:
                answer(connection)


def listen_unix(path: Path) -> tuple[socket.socket, str]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener, f"unix://{path}"


def listen_tcp() -> tuple[socket.socket, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def serve_once(listener: socket.socket, act: Callable[[socket.socket], None]) -> Iterator[None]:
    """One connection, from its first byte on."""

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            act(connection)

    listener.listen()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@pytest.fixture
def daemon(tmp_path: Path, nothing_stays_open: None) -> Iterator[Daemon]:
    with contextlib.closing(Daemon(*listen_unix(tmp_path / "d.sock"))) as found:
        yield found


@pytest.fixture
def tcp_daemon(nothing_stays_open: None) -> Iterator[Daemon]:
    with contextlib.closing(Daemon(*listen_tcp())) as found:
        yield found


@pytest.fixture(params=["unix", "tcp"])
def any_daemon(request: pytest.FixtureRequest) -> Daemon:
    return request.getfixturevalue("daemon" if request.param == "unix" else "tcp_daemon")


@pytest.fixture
def no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


def http(body: object, status: str = "200 OK", length: int | None = None, version: str = "1.0") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/{version} {status}\r\nContent-Length: {len(raw) if length is None else length}\r\n\r\n".encode() + raw


def chunked(body: bytes, status: str = "200 OK", *, end: bool = True) -> bytes:
    """As Go's server sends what it does not know the length of."""
    pieces = [body[at : at + 300_000] for at in range(0, len(body), 300_000)]
    sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + sent + (b"0\r\n\r\n" if end else b"")


def reset(connection: socket.socket) -> None:
    """Hang up as who is killed does. On unix sockets what is left unread does it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# ---- its list --------------------------------------------------------------------------------------------------------


def listed(**more: object) -> dict[str, object]:
    """An image as moby 28 lists it."""
    return {
        "Containers": -1,
        "Created": 1714557600,
        "Id": ID,
        "Labels": None,
        "ParentId": "",
        "RepoDigests": [f"redis@{OTHER_ID}"],
        "RepoTags": ["redis:7", "registry.example:5000/team/tool:1.2"],
        "SharedSize": -1,
        "Size": 1234,
        **more,
    }


def test_the_images_of_a_list() -> None:
    raw = json.dumps([listed(), listed(Id=OTHER_ID, RepoTags=[], Size=7)]).encode()
    assert parse_images(raw) == [
        HostImage(ID, ("redis:7", "registry.example:5000/team/tool:1.2"), 1234),
        HostImage(OTHER_ID, (), 7),
    ]
    assert parse_images(b"[]") == []


NO_LISTS = {
    "nothing": b"",
    "no JSON": b"<html>",
    "cut short": b'[{"Id": "sha256:',
    "an object": b'{"message": "x"}',
    "null": b"null",
    "a number": b"7",
    "a string": b'"[]"',
    "no UTF-8": b'["\xff\xfe"]',
    "deep": b"[" * 100_000,
    "a number of too many digits": b"[" + b"9" * 5000 + b"]",
}


@pytest.mark.parametrize("raw", NO_LISTS.values(), ids=NO_LISTS.keys())
def test_what_is_no_list_is_told(raw: bytes) -> None:
    with pytest.raises(SeedError, match="is it a docker daemon") as caught:
        parse_images(raw)
    assert not caught.value.lasting


@pytest.mark.parametrize(
    "item",
    [
        None,
        7,
        "redis:7",
        [],
        {},
        listed(Id=None),
        listed(Id=7),
        listed(Id=[ID]),
        listed(Id="1" * 64),
        listed(Id=f"{ID}\n"),
        listed(Id=f"{ID}/../../x"),
        listed(Id="sha256:" + "A" * 64),
        listed(Id="sha512:" + "1" * 128),
        listed(RepoTags=None),
        listed(RepoTags="redis:7"),
        listed(RepoTags={"redis:7": 1}),
    ],
    ids=str,
)
def test_an_item_that_makes_no_sense_is_left_out(item: object) -> None:
    good = HostImage(OTHER_ID, ("good:1",), 1)
    raw = json.dumps([item, listed(Id=OTHER_ID, RepoTags=["good:1"], Size=1)]).encode()
    assert parse_images(raw) == [good]


@pytest.mark.parametrize(
    "tag",
    [
        None,
        7,
        ["redis:7"],
        "",
        "redis",
        "<none>:<none>",
        "redis:7\n",
        "redis:7\ncachedind: all is well",
        "redis:7 ",
        "re dis:7",
        "redis:\x1b[31m",
        "redís:7",
        "redis:\uff17",
        "\ud800:7",
        f"redis@{ID}",
        f"redis:7@{ID}",
        "../../etc/passwd:7",
        "-v:7",
        "redis:",
        ":7",
        "registry.example:5000/redis",
        "redis:" + "7" * 129,
        "r" * 513 + ":7",
    ],
    ids=repr,
)
def test_a_name_that_is_none_is_left_out(tag: object) -> None:
    assert parse_images(json.dumps([listed(RepoTags=["a:1", tag, "b:2"])]).encode())[0].tags == ("a:1", "b:2")


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [(0, 0), (-1, 0), ((1 << 63) - 1, (1 << 63) - 1), (10**400, 0), (1.5, 0), (None, 0), ("7", 0), ([7], 0)],
)
def test_a_size_that_makes_no_sense_counts_nothing(size: object, size_bytes: int) -> None:
    assert parse_images(json.dumps([listed(Size=size)]).encode())[0].size_bytes == size_bytes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([ID, "redis:7"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["Id", "RepoTags", "RepoDigests", "Size", "Os"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(JSON)
def test_any_answer_is_a_list_of_images_or_an_error(value: object) -> None:
    try:
        images = parse_images(json.dumps(value).encode())
    except SeedError:
        assert not isinstance(value, list)
        return
    for image in images:
        assert (image.id, set(image.tags) - {"redis:7"}) == (ID, set())
        assert image.size_bytes >= 0


# ---- which of them are meant -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "pattern", "meant"),
    [
        ("redis:7", "redis:7", True),
        ("redis:7", "docker.io/library/redis:7", True),
        ("redis:7", "docker.io/redis:7", True),
        ("redis:7", "library/redis:7", True),
        ("docker.io/library/redis:7", "redis:7", True),
        ("docker.io/library/redis:7", "redis:*", True),
        ("redis:latest", "redis", True),
        ("redis:7", "redis", False),
        ("redis:70", "redis:7", False),
        ("redis:7", "redi:7", False),
        ("redis:7", "REDIS:7", False),
        ("bitnami/redis:7", "redis:7", False),
        ("ghcr.io/library/redis:7", "redis:7", False),
        ("localhost:5000/redis:7", "localhost:5000/redis:7", True),
        ("localhost:5000/redis:latest", "localhost:5000/redis", True),
        ("redis:7", "*", True),
        ("redis:7", "redis*", True),
        ("redis:7", "redis:[67]", True),
        ("redis:7", "redis:[!67]", False),
        ("redis:7", "redis:?", True),
        ("redis:70", "redis:?", False),
        ("redis:7", "REDIS:*", False),
        ("redis:7", "docker.io/library/*", True),
        ("redis:7", "docker.io/*", True),
        ("redis:7", "library/*:7", True),
        ("redis:7", "ghcr.io/*", False),
        ("bitnami/redis:7", "bitnami/*", True),
        ("bitnami/redis:7", "redis*", False),
        ("bitnami/redis:7", "*/redis:*", True),
        ("ghcr.io/ci/a/b:1.2", "ghcr.io/ci/*", True),
        ("ghcr.io/ci/a/b:1.2", "ghcr.io/*:1.*", True),
        ("ghcr.io/ci/a/b:1.2", "ghcr.io/ci", False),
    ],
)
def test_which_names_a_pattern_means(tag: str, pattern: str, meant: bool) -> None:
    assert matches(tag, pattern) is meant


def seed(tag: str, full: str, image_id: str = ID, size_bytes: int = 9) -> Seed:
    return Seed(SeedKind.HOST, tag, f"host:{image_id} {full}", size_bytes)


IMAGES = [HostImage(ID, ("redis:7", "bitnami/redis:7"), 9), HostImage(OTHER_ID, ("redis:6",), 8)]


def test_seeds_come_in_the_order_of_the_patterns_and_each_once() -> None:
    seeds, bad = choose(IMAGES, ["bitnami/*", "redis:*", "redis:7", "*"], "unix:///d")
    assert seeds == [
        seed("bitnami/redis:7", "docker.io/bitnami/redis:7"),
        seed("redis:6", "docker.io/library/redis:6", OTHER_ID, 8),
        seed("redis:7", "docker.io/library/redis:7"),
    ]
    assert bad == []
    assert [seed_host.id_of(one) for one in seeds] == [ID, OTHER_ID, ID]


def test_two_spellings_of_a_name_are_one_seed() -> None:
    seeds, _ = choose([HostImage(ID, ("redis:7", "docker.io/library/redis:7"), 9)], ["redis:7"], "unix:///d")
    assert [one.identity for one in seeds] == [f"host:{ID} docker.io/library/redis:7"]


def test_an_image_that_changes_is_another_seed() -> None:
    both = [
        choose([HostImage(image_id, ("redis:7",), 9)], ["redis:7"], "unix:///d")[0][0] for image_id in (ID, OTHER_ID)
    ]
    assert both[0].identity != both[1].identity


def test_a_pattern_that_means_nothing_is_named() -> None:
    seeds, bad = choose(IMAGES, ["nginx", "redis:7", "ghcr.io/*"], "unix:///d")
    assert [one.name for one in seeds] == ["redis:7"]
    assert [one.name for one in bad] == ["nginx", "ghcr.io/*"]
    assert all("unix:///d has no such image" in one.why for one in bad)


@pytest.mark.parametrize("pattern", [f"redis@{ID}", f"redis:7@{ID}", "redis*@*"])
def test_a_digest_is_refused(pattern: str) -> None:
    seeds, [bad] = choose([HostImage(ID, ("redis:7",), 9)], [pattern], "unix:///d")
    assert seeds == []
    assert bad.name == pattern
    assert "by its tag" in bad.why


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
    assert shown(host) == said


# ---- asking for it ---------------------------------------------------------------------------------------------------


def the_fault(host: str, certs: str = "", **more: Any) -> str:
    """Why there is no list; the host is named with it. It comes soon."""
    started = time.monotonic()
    seeds, [bad] = list_host(host, ["*"], certs, **more)
    assert time.monotonic() - started < 4
    assert seeds == []
    assert bad.name == shown(host)
    assert "\n" not in str(bad)
    return bad.why


def test_a_list_takes_one_request(any_daemon: Daemon) -> None:
    any_daemon.answers[LIST] = http([listed()])
    seeds, bad = list_host(any_daemon.host, ["redis:*", "nginx"])
    assert seeds == [seed("redis:7", "docker.io/library/redis:7", size_bytes=1234)]
    assert [one.name for one in bad] == ["nginx"]
    assert any_daemon.host in bad[0].why
    assert any_daemon.lines == ["GET /images/json HTTP/1.0"]


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


WANTS_TLS = "it wants TLS: set CACHEDIND_SEED_HOST_CERT_PATH"
NONE = "its answer is none: is it a docker daemon"
EARLY = "its answer ended early"
GOES_ON = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
BAD_ANSWERS: dict[str, tuple[bytes, str]] = {
    "shorter than announced": (http([listed()], length=5000), EARLY),
    "longer than announced": (http([listed()], length=5), EARLY),
    "its length in other letters": (http([]).replace(b"Content-Length: 2", b"content-LENGTH:7"), EARLY),
    "cut in its head": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n", EARLY),
    "cut before its length": (b"HTTP/1.0 200 OK\r\nServer: x\r\nContent-Le", EARLY),
    "cut without a length": (b'HTTP/1.0 200 OK\r\n\r\n[{"Id": "', "its answer makes no sense"),
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
    "no JSON": (http(b"<html>"), "its answer makes no sense"),
    "no list": (http({"Id": ID}), "its list of images is none"),
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
    monkeypatch.setattr(seed_host, "ANSWER_S", 0.1)
    any_daemon.answers[LIST] = any_daemon.hang
    assert "it does not answer in time" in the_fault(any_daemon.host)


def test_who_answers_bit_by_bit_has_no_more_time(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n[")
        while not daemon.over.wait(0.02):
            connection.sendall(b" ")

    monkeypatch.setattr(seed_host, "ANSWER_S", 0.2)
    daemon.answers[LIST] = drip
    assert "it does not answer in time" in the_fault(daemon.host)


def test_an_answer_without_an_end_is_cut(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 65536)

    monkeypatch.setattr(seed_host, "_MAX_LIST_BYTES", 2 << 20)
    daemon.answers[LIST] = flood
    assert the_fault(daemon.host) == "its answer has more than 2 MiB"


def test_a_socket_that_nobody_accepts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_host, "CONNECT_S", 0.1)
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
        ("dead", "nobody listens there: start that daemon; a socket that was mounted before its restart is a dead one"),
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
    assert the_fault(host) == "nobody listens there: start that daemon, or mend the port"


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("ssh://host", "it is no docker host such as unix:///host/docker.sock"),
        ("npipe:////./pipe/docker_engine", "it is no docker host"),
        ("/var/run/d.sock", "it is no docker host"),
        ("", "it is no docker host"),
        ("tcp://host", "it has no name with a port"),
        ("tcp://:2375", "it has no name with a port"),
        ("tcp://host:", "it has no name with a port"),
        ("tcp://host:x", "it has no name with a port"),
        ("tcp://host:-1", "it has no name with a port"),
        ("tcp://host:65536", "it has no name with a port"),
        ("tcp://host:2375/x", "it has no name with a port"),
    ],
)
def test_an_address_that_is_none(host: str, said: str) -> None:
    assert said in the_fault(host)


@pytest.mark.parametrize("name", ["a..b", ".", "x" * 64, f"{'x' * 64}.example", "b\xfc..cher", "h\udcffst"], ids=ascii)
def test_a_name_that_cannot_be_resolved_by_anybody(name: str) -> None:
    assert the_fault(f"tcp://{name}:2375") == "its name is none that could be resolved"


@pytest.mark.usefixtures("no_resolver")
def test_a_name_that_is_not_known_and_its_password() -> None:
    assert "cannot be resolved (Name or service not known)" in the_fault("tcp://nowhere:2375")
    told = list_host("tcp://me:secret@nowhere:2375", ["*"])
    assert told[1][0].name == "tcp://nowhere:2375"
    assert "secret" not in str(told)


def test_a_password_is_not_shown_when_an_image_is_missing(tcp_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    address = urlsplit(tcp_daemon.host)
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *more, **rest: real("127.0.0.1", *more, **rest))
    tcp_daemon.answers[LIST] = http([])
    told = list_host(f"tcp://me:secret@127.0.0.1:{address.port}", ["redis"])
    assert told == (
        [],
        [BadSeed("redis", f"{tcp_daemon.host} has no such image: pull or build it there, or do not ask for it")],
    )


def test_a_socket_that_this_user_may_not_use() -> None:
    # Root, who may run these tests, may use every one.
    said = seed_host._reason(PermissionError(13, "Permission denied"), "unix:///d", "")
    assert said == "the socket may not be used by this user"


# ---- with TLS --------------------------------------------------------------------------------------------------------


NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return issue(tmp_path_factory.mktemp("certs"), "IP:127.0.0.1")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, whose server has another name."""
    return issue(tmp_path_factory.mktemp("certs"), "DNS:elsewhere")


def issue(directory: Path, name: str) -> Path:
    """client/ and server/ with a set each, as this project's own daemons have them."""
    ca_key, certificate = tls._issue_clients(str(directory), NOW)
    tls._issue_server(str(directory), ca_key, certificate, tls.Names((name,)), NOW)
    return directory


def serve_tls(server: Path, clients: Path) -> contextlib.closing[Daemon]:
    """A daemon with the certificate of one authority that lets the clients of one in, as dockerd --tlsverify does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server/cert.pem", server / "server/key.pem")
    context.load_verify_locations(clients / "ca/cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    daemon = Daemon(*listen_tcp(), context)
    daemon.answers[LIST] = http([listed()])
    daemon.answers[INSPECT] = http(inspection_of(FULL_RUN))
    daemon.answers[get("redis:7")] = chunked(TAR)
    return contextlib.closing(daemon)


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
        assert f"its certificate is not good for {certs}/ca.pem (" in the_fault(daemon.host, certs)
        assert daemon.lines == []


def test_a_certificate_for_another_name(authority: Path, stranger: Path) -> None:
    with serve_tls(stranger, stranger) as daemon:
        assert "not good for" in (said := the_fault(daemon.host, f"{stranger}/client"))
        assert "IP address mismatch" in said
        assert daemon.lines == []


def test_a_client_that_it_does_not_let_in(authority: Path, stranger: Path, tmp_path: Path) -> None:
    shutil.copytree(stranger / "client", tmp_path / "mixed")
    shutil.copy(authority / "client/ca.pem", tmp_path / "mixed")
    with serve_tls(authority, authority) as daemon:
        assert "no TLS with it (" in the_fault(daemon.host, f"{tmp_path}/mixed")
        assert daemon.lines == []


def test_a_daemon_without_tls(authority: Path) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(http({}, "400 Bad Request"))

    listener, host = listen_tcp()
    with serve_once(listener, refuse):
        assert "no TLS with it (" in the_fault(host, f"{authority}/client")


def test_a_client_without_tls(authority: Path) -> None:
    with serve_tls(authority, authority) as daemon:
        assert "is it a docker daemon" in (said := the_fault(daemon.host)) or "does it want TLS" in said
        assert daemon.lines == []


def test_who_begins_no_tls_is_not_waited_for(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_host, "CONNECT_S", 0.1)
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
    context = seed_host._tls_context(f"{authority}/client")
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_unix_socket_needs_no_certificates(daemon: Daemon, tmp_path: Path) -> None:
    daemon.answers[LIST] = http([listed()])
    assert len(list_host(daemon.host, ["redis:7"], f"{tmp_path}/none")[0]) == 1


# ---- whether two images are the same ---------------------------------------------------------------------------------


Values = Mapping[str, Any]
FULL_RUN: Values = {
    "Env": ["PATH=/usr/bin:/bin", "A=1"],
    "Cmd": ["redis-server"],
    "Entrypoint": ["docker-entrypoint.sh"],
    "WorkingDir": "/data",
    "User": "redis",
    "Labels": {"org.example.a": "", "org.example.b": "2"},
    "StopSignal": "SIGINT",
    "OnBuild": ["RUN x"],
    "Shell": ["/bin/bash", "-c"],
    "ExposedPorts": {"6379/tcp": {}, "80/tcp": {}},
    "Volumes": {"/data": {}},
    "Healthcheck": {"Test": ["CMD", "ping"], "Interval": 30_000_000_000, "Retries": 3},
}
EMPTY: Values = {
    **{field: [] for field in ("Env", "Cmd", "Entrypoint", "OnBuild", "Shell")},
    **dict.fromkeys(("WorkingDir", "User", "StopSignal"), ""),
    **{field: {} for field in ("Labels", "ExposedPorts", "Volumes")},
    "Healthcheck": {"Test": [], "Interval": 0, "Retries": 0},
}
OF_CONTAINERS: Values = {
    "Hostname": "",
    "Domainname": "",
    "Image": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
}
STYLES = ("left out", "null", "empty")
LAYERS = [f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"]
MOMENT = "2024-05-01T10:00:00.123456789Z"


def spell(run: Values, style: str) -> dict[str, Any]:
    """What containers get from an image as one engine or another writes it down."""
    if style == "left out":
        return dict(run)
    empty = dict.fromkeys(EMPTY) if style == "null" else EMPTY
    return {**OF_CONTAINERS, **empty, **run}


def configuration_of(run: Values, style: str = "left out", **more: Any) -> dict[str, Any]:
    """OCI image specification, config.md."""
    found = {
        "architecture": "arm64",
        "variant": "v8",
        "os": "linux",
        "created": MOMENT,
        "author": "",
        "config": spell(run, style),
        "rootfs": {"type": "layers", "diff_ids": LAYERS},
        "history": [{"created": MOMENT, "created_by": "RUN x"}],
        **more,
    }
    return {field: value for field, value in found.items() if value is not ...}


def inspection_of(run: Values, style: str = "left out", **more: Any) -> dict[str, Any]:
    """As GET /images/…/json shows the same image."""
    found = {
        "Id": OTHER_ID,
        "RepoTags": ["redis:7"],
        "RepoDigests": [f"redis@{OTHER_ID}"],
        "Parent": "",
        "Comment": "buildkit.dockerfile.v0",
        "Created": MOMENT,
        "DockerVersion": "",
        "Config": spell(run, style),
        "Architecture": "arm64",
        "Variant": "v8",
        "Os": "linux",
        "Size": 100,
        "GraphDriver": {"Data": None, "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": LAYERS},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
        **more,
    }
    return {field: value for field, value in found.items() if value is not ...}


@pytest.mark.parametrize("theirs", STYLES)
@pytest.mark.parametrize("ours", STYLES)
@pytest.mark.parametrize("run", [FULL_RUN, {}, {"Cmd": ["sh"]}], ids=["full", "empty", "a command"])
def test_an_image_is_the_same_however_engines_show_it(run: Values, ours: str, theirs: str) -> None:
    assert is_same_image(inspection_of(run, theirs), configuration_of(run, ours))


@pytest.mark.parametrize("theirs", [None, ..., {}], ids=["null", "left out", "empty"])
@pytest.mark.parametrize("ours", [None, ..., {}], ids=["null", "left out", "empty"])
def test_an_image_without_any_configuration(theirs: object, ours: object) -> None:
    assert is_same_image(inspection_of({}, Config=theirs), configuration_of({}, config=ours))
    assert not is_same_image(inspection_of({}, Config=theirs), configuration_of({"User": "x"}))
    assert not is_same_image(inspection_of({"User": "x"}), configuration_of({}, config=ours))


OTHER_RUNS: list[Values] = [
    *[{field: ...} for field in FULL_RUN],
    {"Env": ["PATH=/usr/bin:/bin", "A=2"]},
    {"Env": ["A=1", "PATH=/usr/bin:/bin"]},
    {"Env": ["PATH=/usr/bin:/bin", "A=1", "B="]},
    {"Cmd": ["redis-server", ""]},
    {"Cmd": "redis-server"},
    {"Cmd": ["redis-server "]},
    {"Entrypoint": [""]},
    {"WorkingDir": "/"},
    {"User": "0"},
    {"Labels": {"org.example.b": "2"}},
    {"Labels": {"org.example.a": " ", "org.example.b": "2"}},
    {"StopSignal": "SIGTERM"},
    {"OnBuild": ["RUN y"]},
    {"Shell": ["/bin/sh", "-c"]},
    {"ExposedPorts": {"6379/tcp": {}}},
    {"ExposedPorts": {"6379/udp": {}, "80/tcp": {}}},
    {"Volumes": {"/data": {}, "/logs": {}}},
    {"Healthcheck": {"Test": ["NONE"]}},
    {"Healthcheck": {"Test": ["CMD", "pong"], "Interval": 30_000_000_000, "Retries": 3}},
    {"Healthcheck": {"Test": ["CMD", "ping"], "Interval": 10_000_000_000, "Retries": 3}},
    {"Healthcheck": {"Test": ["CMD", "ping"], "Interval": 30_000_000_000}},
    {"Healthcheck": {"Test": ["CMD", "ping"], "Interval": 30_000_000_000, "Retries": 3, "StartInterval": 1}},
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("change", OTHER_RUNS, ids=str)
def test_images_that_run_differently_are_not_the_same(change: Values, style: str) -> None:
    other = {field: value for field, value in {**FULL_RUN, **change}.items() if value is not ...}
    assert is_same_image(inspection_of(other, style), configuration_of(other))
    assert not is_same_image(inspection_of(other, style), configuration_of(FULL_RUN))
    assert not is_same_image(inspection_of(FULL_RUN, style), configuration_of(other))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"architecture": "amd64"}, {"Architecture": "amd64"}),
        ({"os": "windows"}, {"Os": "windows"}),
        ({"variant": "v9"}, {"Variant": "v9"}),
        ({"variant": ...}, {"Variant": ""}),
        ({"created": "2024-05-01T10:00:00.123456788Z"}, {"Created": "2024-05-01T10:00:00.123456788Z"}),
        ({"created": "2025-05-01T10:00:00.123456789Z"}, {"Created": "2025-05-01T10:00:00.123456789Z"}),
        ({"created": ...}, {"Created": ""}),
        ({"rootfs": {"diff_ids": LAYERS[:1]}}, {"RootFS": {"Layers": LAYERS[:1]}}),
        ({"rootfs": {"diff_ids": LAYERS[::-1]}}, {"RootFS": {"Layers": LAYERS[::-1]}}),
        ({"rootfs": ...}, {"RootFS": {"Type": "layers"}}),
        ({"rootfs": {"diff_ids": None}}, {"RootFS": {"Layers": []}}),
    ],
    ids=str,
)
def test_images_that_differ_in_something_else_are_not_the_same(ours: Values, theirs: Values) -> None:
    assert is_same_image(inspection_of(FULL_RUN, **theirs), configuration_of(FULL_RUN, **ours))
    assert not is_same_image(inspection_of(FULL_RUN, **theirs), configuration_of(FULL_RUN))
    assert not is_same_image(inspection_of(FULL_RUN), configuration_of(FULL_RUN, **ours))


def test_what_no_container_sees_does_not_matter() -> None:
    configuration = configuration_of(FULL_RUN, author="x", history=[], container="y", docker_version="1")
    assert is_same_image(inspection_of(FULL_RUN, Author="z", Comment="", Size=1, RepoTags=[]), configuration)


@pytest.mark.parametrize("missing", ["Os", "Architecture"])
@pytest.mark.parametrize("value", [..., None, ""], ids=repr)
def test_an_image_whose_platform_is_not_told_is_not_the_same(missing: str, value: Any) -> None:
    ours = configuration_of(FULL_RUN, **{missing.lower(): value})
    assert not is_same_image(inspection_of(FULL_RUN, **{missing: value}), ours)


SECOND = "2024-05-01T10:00:00"


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        (f"{SECOND}Z", f"{SECOND}Z", True),
        (f"{SECOND}Z", f"{SECOND}.000000000Z", True),
        (f"{SECOND}.1Z", f"{SECOND}.100Z", True),
        (f"{SECOND}Z", "2024-05-01t12:00:00+02:00", True),
        (f"{SECOND}.5z", "2024-05-01T04:30:00.50-05:30", True),
        (f"{SECOND}Z", f"{SECOND}+02:00", False),
        (f"{SECOND}.100000001Z", f"{SECOND}.1Z", False),
        (f"{SECOND}.1Z", f"{SECOND}.01Z", False),
        (f"{SECOND}Z", "2024-05-01T10:00:01Z", False),
        (f"{SECOND}Z", None, False),
        ("0001-01-01T00:00:00Z", None, True),
        ("0001-01-01T00:00:00Z", "", True),
        ("", None, True),
        (..., "0001-01-01T00:00:00.000Z", True),
        ("0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", False),
        ("1970-01-01T00:00:00Z", None, False),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", True),
        ("yesterday", "yesterday", True),
        ("yesterday", "today", False),
        ("yesterday", None, False),
        ("2024-02-30T10:00:00Z", "2024-02-30T10:00:00Z", True),
        ("2024-02-30T10:00:00Z", "2024-02-31T10:00:00Z", False),
        (SECOND, f"{SECOND}Z", False),
        (7, 7, True),
        ([], None, True),
        (0, f"{SECOND}Z", False),
    ],
    ids=repr,
)
def test_times_that_are_the_same(theirs: object, ours: object, same: bool) -> None:
    assert is_same_image(inspection_of({}, Created=theirs), configuration_of({}, created=ours)) is same


WORDS = st.text("ab", min_size=1, max_size=2)
TEXTS = st.lists(st.text("ab", max_size=2), min_size=1, max_size=2)
SETS: st.SearchStrategy[dict[str, dict[str, str]]] = st.dictionaries(WORDS, st.just({}), min_size=1, max_size=2)
NUMBERS = st.integers(1, 3)
HEALTHCHECKS = st.fixed_dictionaries(
    {"Test": TEXTS}, optional={"Interval": NUMBERS, "Timeout": NUMBERS, "Retries": NUMBERS}
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("Env", "Cmd", "Entrypoint", "OnBuild", "Shell"), TEXTS),
    **dict.fromkeys(("WorkingDir", "User", "StopSignal"), WORDS),
    **dict.fromkeys(("ExposedPorts", "Volumes"), SETS),
    "Labels": st.dictionaries(WORDS, st.text("ab", max_size=2), min_size=1, max_size=2),
    "Healthcheck": HEALTHCHECKS,
}
RUNS = st.fixed_dictionaries({}, optional=FIELDS)


@settings(max_examples=50)
@given(RUNS, st.sampled_from(STYLES), st.sampled_from(STYLES))
def test_any_image_is_the_same_as_itself(run: Values, theirs: str, ours: str) -> None:
    assert is_same_image(inspection_of(run, theirs), configuration_of(run, ours))


@settings(max_examples=50)
@given(RUNS, RUNS, st.sampled_from(STYLES), st.sampled_from(STYLES))
def test_any_two_images_are_the_same_only_if_all_of_it_is(one: Values, other: Values, theirs: str, ours: str) -> None:
    assert is_same_image(inspection_of(one, theirs), configuration_of(other, ours)) is (one == other)


@settings(max_examples=50)
@given(RUNS, RUNS, st.sampled_from(sorted(FIELDS)), st.sampled_from(STYLES))
def test_any_one_field_makes_the_difference(run: Values, source: Values, field: str, style: str) -> None:
    other = {name: value for name, value in {**run, field: source.get(field)}.items() if value is not None}
    same = run.get(field) == source.get(field)
    assert is_same_image(inspection_of(run, style), configuration_of(other)) is same
    assert is_same_image(inspection_of(other), configuration_of(run, style)) is same


@settings(max_examples=50)
@given(JSON, JSON)
def test_any_answer_can_be_compared(theirs: object, ours: object) -> None:
    configuration = configuration_of({}, config=ours, rootfs=ours, created=ours)
    inspected = inspection_of({}, Config=theirs, RootFS=theirs, Created=theirs, RepoDigests=theirs)
    assert is_same_image(inspected, configuration) in (True, False)
    assert shares_digest(inspected, [f"redis@{ID}"], configuration) in (True, False)


def test_an_answer_without_a_floor() -> None:
    def deep() -> list[object]:
        found: list[object] = []
        for _ in range(20_000):
            found = [found]
        return found

    assert not is_same_image(inspection_of({"Env": deep()}), configuration_of({"Env": deep()}))


REPO_DIGEST = f"docker.io/library/redis@{ID}"


@pytest.mark.parametrize(
    ("theirs", "ours", "shared"),
    [
        ([f"redis@{ID}"], [REPO_DIGEST], True),
        ([f"mirror.example/redis@{ID}"], [REPO_DIGEST], True),
        ([f"redis@{OTHER_ID}", f"redis@{ID}"], [f"x@{LAYERS[0]}", REPO_DIGEST], True),
        ([f"redis@{OTHER_ID}"], [REPO_DIGEST], False),
        ([], [REPO_DIGEST], False),
        ([f"redis@{ID}"], [], False),
        (None, [REPO_DIGEST], False),
        (..., [REPO_DIGEST], False),
        (f"redis@{ID}", [REPO_DIGEST], False),
        ([None, 7, [ID], {}], [REPO_DIGEST], False),
        (["<none>@<none>"], [REPO_DIGEST], False),
        (["redis"], [REPO_DIGEST], False),
    ],
)
def test_images_of_one_manifest(theirs: object, ours: list[str], shared: bool) -> None:
    # By their configurations they are not the same.
    inspected = inspection_of({"User": "x"}, RepoDigests=theirs)
    assert shares_digest(inspected, ours, configuration_of({})) is shared


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        (("linux", "arm64", "v8"), ("linux", "arm64", "v8"), True),
        (("linux", "arm64", ""), ("linux", "arm64", "v8"), True),
        (("linux", "arm64", "v8"), ("linux", "arm64", ...), True),
        (("linux", "amd64", ...), ("linux", "amd64", ""), True),
        (("linux", "arm", "v6"), ("linux", "arm", "v7"), False),
        (("linux", "amd64", ""), ("linux", "arm64", ""), False),
        (("windows", "amd64", ""), ("linux", "amd64", ""), False),
        (("linux", ..., ...), ("linux", "amd64", ...), False),
        ((..., "amd64", ...), ("linux", "amd64", ...), False),
    ],
)
def test_an_index_has_images_for_several_platforms(theirs: tuple[Any, ...], ours: tuple[Any, ...], same: bool) -> None:
    fields = dict(zip(("Os", "Architecture", "Variant"), theirs, strict=True))
    inspected = inspection_of({}, RepoDigests=[f"redis@{ID}"], **fields)
    configuration = configuration_of({}, **dict(zip(("os", "architecture", "variant"), ours, strict=True)))
    assert shares_digest(inspected, [REPO_DIGEST], configuration) is same


# ---- which of them a store has ---------------------------------------------------------------------------------------


class Local(NamedTuple):
    names: tuple[str, ...] = ("docker.io/library/redis:7",)
    target: str = f"sha256:{'8' * 64}"
    config_digest: str = f"sha256:{'9' * 64}"
    config: bytes = json.dumps(configuration_of(FULL_RUN)).encode()
    repo_digests: tuple[str, ...] = ()


REDIS = seed("redis:7", "docker.io/library/redis:7")
INSPECT = f"/images/{ID}/json"
HELD = {REDIS.identity: Record(("docker.io/library/redis:7",), f"sha256:{'9' * 64}", chain_ids(LAYERS)[-1])}


@pytest.mark.parametrize("field", ["target", "config_digest"])
def test_an_image_that_is_known_by_its_id_needs_no_question(daemon: Daemon, field: str) -> None:
    local = Local(target=ID) if field == "target" else Local(config_digest=ID)
    [(identity, record)] = find_held(daemon.host, [REDIS], [local]).items()
    assert (identity, record.names) == (REDIS.identity, local.names)
    assert (record.config_digest, record.top_chain) == (local.config_digest, chain_ids(LAYERS)[-1])
    assert daemon.lines == []


def test_an_image_that_is_told_apart_by_nothing_is_held(any_daemon: Daemon) -> None:
    any_daemon.answers[INSPECT] = http(inspection_of(FULL_RUN, "null"))
    assert find_held(any_daemon.host, [REDIS], [Local()]) == HELD
    assert any_daemon.lines == [f"GET {INSPECT} HTTP/1.0"]


def test_an_image_of_the_same_manifest_is_held(daemon: Daemon) -> None:
    daemon.answers[INSPECT] = http(inspection_of({}, RepoDigests=[f"redis@{ID}"]))
    assert find_held(daemon.host, [REDIS], [Local(repo_digests=(REPO_DIGEST,))]) == HELD


def test_an_image_without_layers_is_held_as_it_is(daemon: Daemon) -> None:
    daemon.answers[INSPECT] = http(inspection_of({}, RootFS={"Type": "layers"}))
    local = Local(config=json.dumps(configuration_of({}, rootfs=...)).encode())
    assert find_held(daemon.host, [REDIS], [local])[REDIS.identity].top_chain == ""


def test_only_what_has_the_name_is_looked_at(daemon: Daemon) -> None:
    daemon.answers[INSPECT] = http(inspection_of(FULL_RUN))
    for names in ((), ("docker.io/library/redis:6",), ("ghcr.io/library/redis:7",)):
        assert find_held(daemon.host, [REDIS], [Local(names=names)]) == {}
    assert daemon.lines == []
    assert find_held(daemon.host, [REDIS], [Local(names=("ghcr.io/x:1", *Local().names))]) == HELD


def test_each_seed_is_compared_with_its_own(daemon: Daemon) -> None:
    nginx = seed("nginx", "docker.io/library/nginx:latest", OTHER_ID)
    tool = seed("ghcr.io/x/tool:1", "ghcr.io/x/tool:1", LAYERS[0])
    daemon.answers[INSPECT] = http(inspection_of(FULL_RUN))
    daemon.answers[f"/images/{OTHER_ID}/json"] = http(inspection_of({"User": "x"}))
    local = [
        Local(),
        Local(names=("docker.io/library/nginx:latest",)),
        Local(names=("ghcr.io/x/tool:1", "ghcr.io/x/tool:2"), target=LAYERS[0]),
    ]
    found = find_held(daemon.host, [REDIS, nginx, tool], local)
    assert {identity: record.names for identity, record in found.items()} == {
        REDIS.identity: Local().names,
        tool.identity: ("ghcr.io/x/tool:1",),
    }
    assert daemon.paths == [INSPECT, f"/images/{OTHER_ID}/json"]


NOT_TOLD: dict[str, Answer] = {
    "another image": http(inspection_of({**FULL_RUN, "User": "other"})),
    "not there": http({"message": "No such image"}, "404 Not Found"),
    "no JSON": http(b"<html>"),
    "no object": http([inspection_of(FULL_RUN)]),
    "an empty object": http({}),
    "cut short": http(inspection_of(FULL_RUN), length=99_999),
    "too large": http(inspection_of({**FULL_RUN, "Env": ["x" * (5 << 20)]})),
    "nothing": b"",
    "hung up": reset,
}


@pytest.mark.parametrize("answer", NOT_TOLD.values(), ids=NOT_TOLD.keys())
def test_an_image_that_is_not_told_about_is_not_held(tcp_daemon: Daemon, answer: Answer) -> None:
    tcp_daemon.answers[INSPECT] = answer
    assert find_held(tcp_daemon.host, [REDIS], [Local()]) == {}
    assert tcp_daemon.paths == [INSPECT]


def test_a_daemon_that_is_gone_or_hangs_tells_of_nothing(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_host, "ANSWER_S", 0.1)
    daemon.answers[INSPECT] = daemon.hang
    assert find_held(daemon.host, [REDIS], [Local()]) == {}
    daemon.stop_listening()
    assert find_held(daemon.host, [REDIS], [Local()]) == {}


@pytest.mark.parametrize(
    "config", [b"", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"rootfs": {"diff_ids": "x"}}'], ids=str
)
def test_a_configuration_that_makes_no_sense_is_nobodys(daemon: Daemon, config: bytes) -> None:
    daemon.answers[INSPECT] = http(inspection_of({}, RepoDigests=[f"redis@{ID}"]))
    assert find_held(daemon.host, [REDIS], [Local(config=config, repo_digests=(REPO_DIGEST,))]) == {}


def test_what_the_store_raises_is_passed_on(daemon: Daemon) -> None:
    def images() -> Iterator[Local]:
        yield Local(names=())
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        find_held(daemon.host, [REDIS], images())


# ---- the transfer ----------------------------------------------------------------------------------------------------


def archive(**files: int) -> bytes:
    """A tar with so many bytes in each."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, size in files.items():
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(os.urandom(size)))
    return out.getvalue()


TAR = archive(layer=2_500_000, manifest=1000)
SMALL = archive(manifest=1000)


def get(*names: str) -> str:
    return "/images/get?" + "&".join(f"names={name.replace('/', '%2F').replace(':', '%3A')}" for name in names)


class Spool:
    """A directory for spools that is empty whenever it is looked at, and what was told of the bytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir()
        self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.told: list[int] = []
        self.room_bytes = 1 << 30

    def on_read(self, count: int) -> None:
        assert os.listdir(self.directory) == []
        self.told.append(count)

    def take(self, fd: int) -> bytes:
        """What is in a spool, from where it stands, which is then closed."""
        with open(fd, "rb") as file:
            assert os.fstat(fd).st_nlink == 0
            assert os.listdir(self.directory) == []
            return file.read()

    def fetch(self, host: str, *names: str, certs: str = "") -> bytes:
        return self.take(fetch(host, names, self.fd, self.room_bytes, self.on_read, certs))

    def fetch_each(self, host: str, *seeds: Seed) -> tuple[list[tuple[bytes, list[str]]], dict[str, SeedError]]:
        """Archives with the names of their seeds, and what is wrong by name."""
        found, bad = fetch_each(host, seeds, self.fd, self.room_bytes, self.on_read)
        archives = []
        for one in found:
            raw = self.take(one.fd)
            assert one.size_bytes == len(raw)
            archives.append((raw, [each.name for each in one.seeds]))
        names = {each.identity: each.name for each in seeds}
        return archives, {names[identity]: error for identity, error in bad.items()}


@pytest.fixture
def spool(tmp_path: Path, nothing_stays_open: None) -> Iterator[Spool]:
    found = Spool(tmp_path / "spool")
    yield found
    os.close(found.fd)
    assert os.listdir(found.directory) == []


GOOD: dict[str, Callable[[bytes], bytes]] = {
    "chunks": chunked,
    "a length": lambda raw: http(raw, version="1.1"),
    "HTTP/1.0": http,
    "neither": lambda raw: b"HTTP/1.0 200 OK\r\n\r\n" + raw,
}


@pytest.mark.parametrize("send", GOOD.values(), ids=GOOD.keys())
def test_an_archive_is_written_down(any_daemon: Daemon, spool: Spool, send: Callable[[bytes], bytes]) -> None:
    any_daemon.answers[get("redis:7")] = send(TAR)
    assert spool.fetch(any_daemon.host, "redis:7") == TAR
    assert sum(spool.told) == len(TAR)
    assert len(spool.told) >= 3
    assert any_daemon.lines == ["GET /images/get?names=redis%3A7 HTTP/1.1"]


def test_several_images_come_in_one_archive(daemon: Daemon, spool: Spool) -> None:
    names = ["redis:7", "registry.example:5000/team/tool:1.2", "a&names=b:1"]
    path = "/images/get?names=redis%3A7&names=registry.example%3A5000%2Fteam%2Ftool%3A1.2&names=a%26names%3Db%3A1"
    daemon.answers[path] = chunked(SMALL)
    assert spool.fetch(daemon.host, *names) == SMALL
    assert parse_qsl(urlsplit(daemon.paths[0]).query) == [("names", name) for name in names]


def test_exactly_what_fits_is_taken(daemon: Daemon, spool: Spool) -> None:
    daemon.answers[get("redis:7")] = chunked(TAR)
    spool.room_bytes = len(TAR)
    assert spool.fetch(daemon.host, "redis:7") == TAR
    spool.room_bytes -= 1
    with pytest.raises(PartError, match=r"would take more than the 0\.0 GB that are free"):
        spool.fetch(daemon.host, "redis:7")


def test_what_does_not_fit_is_not_read_to_its_end(daemon: Daemon, spool: Spool) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    daemon.answers[get("redis:7")] = flood
    spool.room_bytes = 3 << 20
    with pytest.raises(PartError, match="would take more than"):
        spool.fetch(daemon.host, "redis:7")
    assert sum(spool.told) <= spool.room_bytes


def moby_error(message: str) -> bytes:
    """What moby appends to an archive in which something went wrong (pkg/streamformatter, FormatError)."""
    return json.dumps({"errorDetail": {"message": message}, "error": message}).encode() + b"\r\n"


HALF = TAR[: len(TAR) // 1024 * 512]
MISSING = {"message": "reference does not exist"}
PARTS: dict[str, tuple[bytes, str]] = {
    "an error amid it": (
        chunked(TAR[:700_001] + moby_error("open /x:\nno such file")),
        "it cannot give it: open /x: no such file",
    ),
    "an error after a whole block": (chunked(HALF + moby_error("x" * 480)), "it cannot give it: xxx"),
    "nothing but an error": (chunked(moby_error("unexpected EOF")), "it cannot give it: unexpected EOF"),
    "an error after a good archive": (chunked(TAR + moby_error("too late")), "it cannot give it: too late"),
    "an old error": (chunked(HALF + b'{"error": "old"}'), "it cannot give it: old"),
    "an error with no words": (chunked(HALF + b'{"error": ""}'), "it cannot give it: no reason is given"),
    "an error that is cut": (chunked(HALF + moby_error("x")[:-9]), "its archive ends early"),
    "an error that is too long": (chunked(HALF + moby_error("x" * 5000)), "its archive ends early"),
    "a block missing": (chunked(HALF), "its archive ends early"),
    "cut where nobody says so": (b"HTTP/1.0 200 OK\r\n\r\n" + TAR[:-9000], "its archive ends early"),
    "something appended": (chunked(TAR + b"x"), "its archive ends early"),
    "part of a block appended": (chunked(TAR + bytes(100)), "its archive ends early"),
    "no archive": (chunked(b"x" * 1024), "its archive ends early"),
    "nothing in it": (chunked(b""), "its archive ends early"),
    "too little": (chunked(bytes(512)), "its archive ends early"),
    "not there": (http(MISSING, "404 Not Found"), "it refuses (404): reference does not exist"),
    "not there, in chunks": (chunked(b'{"message": "no"}', "404 Not Found"), "it refuses (404): no"),
    "failed": (http({"message": "no space"}, "500 x", version="1.1"), "it refuses (500): no space"),
    "failed at length": (http(b"x" * 10_000, "500 x"), "it refuses (500): xxx"),
    "failed silently": (http(b"", "500 x"), "it refuses (500): no reason is given"),
}


@pytest.mark.parametrize(("answer", "said"), PARTS.values(), ids=PARTS.keys())
def test_what_may_be_the_fault_of_one_image(daemon: Daemon, spool: Spool, answer: bytes, said: str) -> None:
    daemon.answers[get("redis:7")] = answer
    with pytest.raises(PartError) as caught:
        spool.fetch(daemon.host, "redis:7")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not caught.value.lasting


WHOLES: dict[str, tuple[Answer, str]] = {
    "shorter than announced": (http(TAR[:-1], length=len(TAR)), EARLY),
    "hardly begun": (http(b"", length=len(TAR)), EARLY),
    "chunks without an end": (chunked(TAR, end=False), EARLY),
    "a chunk that is cut": (chunked(TAR)[:-1000], EARLY),
    "a chunk of no length": (chunked(TAR).replace(b"\r\n0\r\n\r\n", b"\r\nxyz\r\n"), EARLY),
    "an error that is cut": (http({"message": "x"}, "500 x", length=5), "it refuses (500): "),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "its answer is none (SSH-2.0-OpenSSH"),
    "a TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46\r\n", "its answer is none ("),
    "a head without an end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "its answer is none ("),
    "hung up": (b"", "its answer is none (Remote end closed connection without response)"),
    "killed": (reset, "it hangs up: does it want TLS, with certificates?"),
    "Go with TLS": (GOES_ON, WANTS_TLS),
}


@pytest.mark.parametrize(("answer", "said"), WHOLES.values(), ids=WHOLES.keys())
def test_what_no_other_image_would_do_better_with(tcp_daemon: Daemon, spool: Spool, answer: Answer, said: str) -> None:
    tcp_daemon.answers[get("redis:7")] = answer
    with pytest.raises(SeedError) as caught:
        spool.fetch(tcp_daemon.host, "redis:7")
    assert str(caught.value).startswith(said)
    assert isinstance(caught.value, PartError) is said.startswith("it refuses")
    assert not caught.value.lasting


def test_a_daemon_that_is_killed_amid_an_archive(tcp_daemon: Daemon, spool: Spool) -> None:
    def die(connection: socket.socket) -> None:
        connection.sendall(http(TAR[:1_500_000], length=len(TAR)))
        time.sleep(0.05)
        reset(connection)

    tcp_daemon.answers[get("redis:7")] = die
    with pytest.raises(SeedError, match=EARLY) as caught:
        spool.fetch(tcp_daemon.host, "redis:7")
    assert not isinstance(caught.value, PartError)


def test_an_archive_that_stalls_is_given_up(any_daemon: Daemon, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def stall(connection: socket.socket) -> None:
        connection.sendall(chunked(TAR, end=False))
        any_daemon.over.wait()

    monkeypatch.setattr(seed_host, "STALL_S", 0.1)
    any_daemon.answers[get("redis:7")] = stall
    started = time.monotonic()
    with pytest.raises(SeedError, match=r"not a byte came for 0\.1 s") as caught:
        spool.fetch(any_daemon.host, "redis:7")
    assert time.monotonic() - started < 4
    assert not isinstance(caught.value, PartError)


def test_an_archive_may_take_its_time_as_long_as_it_comes(
    daemon: Daemon, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(connection: socket.socket) -> None:
        raw = chunked(SMALL)
        for at in range(0, len(raw), len(raw) // 8):
            connection.sendall(raw[at : at + len(raw) // 8])
            time.sleep(0.06)

    monkeypatch.setattr(seed_host, "STALL_S", 0.4)
    monkeypatch.setattr(seed_host, "ANSWER_S", 0.1)
    daemon.answers[get("redis:7")] = slowly
    assert spool.fetch(daemon.host, "redis:7") == SMALL


def test_an_archive_may_take_longer_to_begin_than_to_go_on(
    daemon: Daemon, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(connection: socket.socket) -> None:
        daemon.over.wait(0.4)
        connection.sendall(chunked(SMALL))

    monkeypatch.setattr(seed_host, "CONNECT_S", 0.2)
    monkeypatch.setattr(seed_host, "STALL_S", 0.2)
    daemon.answers[get("redis:7")] = late
    assert spool.fetch(daemon.host, "redis:7") == SMALL
    monkeypatch.setattr(seed_host, "BEGIN_S", 0.1)
    with pytest.raises(SeedError, match="it does not answer in time"):
        spool.fetch(daemon.host, "redis:7")


def test_nothing_is_fetched_from_ourselves(daemon: Daemon, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_host, "OWN_SOCKET", daemon.host.removeprefix("unix://"))
    with pytest.raises(SeedError, match="that is our own daemon's socket"):
        spool.fetch(daemon.host, "redis:7")
    assert daemon.lines == []


def test_a_disk_that_takes_no_more(daemon: Daemon, spool: Spool) -> None:
    daemon.answers[get("redis:7")] = chunked(TAR)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, limits[1]))
    try:
        with pytest.raises(SeedError, match=r"it cannot be written down \(File too large\)") as caught:
            spool.fetch(daemon.host, "redis:7")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not caught.value.lasting


def test_no_place_to_write_it_down(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    fd = os.open(tmp_path / "gone", os.O_RDONLY | os.O_DIRECTORY)
    (tmp_path / "gone").rmdir()
    try:
        with pytest.raises(SeedError, match=r"there is no place to write it down \(No such file or directory\)"):
            fetch(daemon.host, ["redis:7"], fd, 1 << 30, lambda _: None)
    finally:
        os.close(fd)
    assert daemon.lines == []


def test_who_is_told_may_end_it(daemon: Daemon, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spool, "on_read", end)
    daemon.answers[get("redis:7")] = chunked(TAR)
    with pytest.raises(KeyboardInterrupt):
        spool.fetch(daemon.host, "redis:7")


# ---- several at once, or one after another ---------------------------------------------------------------------------


SEEDS = [seed(name, f"docker.io/library/{name}") for name in ("a:1", "b:1", "c:1")]
NAMES = ("a:1", "b:1", "c:1")
ALL = get(*NAMES)


def reasons(bad: Mapping[str, SeedError]) -> dict[str, str]:
    return {name: str(error) for name, error in bad.items()}


def lay_out(daemon: Daemon, together: Answer, *each: Answer) -> None:
    daemon.answers[ALL] = together
    daemon.answers.update(zip(map(get, NAMES), each, strict=False))


def test_all_come_in_one_archive(daemon: Daemon, spool: Spool) -> None:
    lay_out(daemon, chunked(TAR))
    assert spool.fetch_each(daemon.host, *SEEDS) == ([(TAR, list(NAMES))], {})
    assert daemon.paths == [ALL]


REFUSED = http(MISSING, "404 Not Found")


@pytest.mark.parametrize(
    "together",
    [REFUSED, chunked(HALF + moby_error("x")), chunked(HALF), http(b"", "500 x")],
    ids=["refused", "an error amid it", "cut", "failed"],
)
def test_what_fails_together_is_tried_one_by_one(daemon: Daemon, spool: Spool, together: bytes) -> None:
    lay_out(daemon, together, chunked(SMALL), REFUSED, chunked(TAR))
    archives, bad = spool.fetch_each(daemon.host, *SEEDS)
    assert archives == [(SMALL, ["a:1"]), (TAR, ["c:1"])]
    assert reasons(bad) == {"b:1": "it refuses (404): reference does not exist"}
    assert daemon.paths == [ALL, *map(get, NAMES)]


def test_one_by_one_they_come_with_tls_too(authority: Path, spool: Spool) -> None:
    with serve_tls(authority, authority) as daemon:
        lay_out(daemon, REFUSED, *[chunked(SMALL)] * 3)
        found, bad = fetch_each(daemon.host, SEEDS, spool.fd, 1 << 30, spool.on_read, f"{authority}/client")
        assert [spool.take(one.fd) for one in found] == [SMALL] * 3
        assert bad == {}


def test_all_of_them_may_be_bad(daemon: Daemon, spool: Spool) -> None:
    archives, bad = spool.fetch_each(daemon.host, *SEEDS)
    assert archives == []
    assert list(bad) == list(NAMES)
    assert daemon.paths == [ALL, *map(get, NAMES)]


def test_one_alone_is_asked_for_once(daemon: Daemon, spool: Spool) -> None:
    archives, bad = spool.fetch_each(daemon.host, SEEDS[0])
    assert (archives, reasons(bad)) == ([], {"a:1": "it refuses (404): page not found"})
    assert daemon.paths == [get("a:1")]


def test_what_is_too_large_together_is_taken_as_far_as_it_fits(daemon: Daemon, spool: Spool) -> None:
    lay_out(daemon, chunked(TAR + TAR), chunked(SMALL), chunked(TAR), chunked(SMALL))
    spool.room_bytes = len(SMALL) + len(TAR) + len(SMALL) - 1
    archives, bad = spool.fetch_each(daemon.host, *SEEDS)
    assert archives == [(SMALL, ["a:1"]), (TAR, ["b:1"])]
    assert list(bad) == ["c:1"]
    assert "would take more than" in str(bad["c:1"])


def test_one_that_is_too_large_is_no_reason_against_the_next(daemon: Daemon, spool: Spool) -> None:
    lay_out(daemon, chunked(TAR), chunked(SMALL), chunked(TAR), chunked(SMALL))
    spool.room_bytes = len(SMALL) * 2
    archives, bad = spool.fetch_each(daemon.host, *SEEDS)
    assert archives == [(SMALL, ["a:1"]), (SMALL, ["c:1"])]
    assert list(bad) == ["b:1"]


def test_a_daemon_that_is_gone_is_asked_once(daemon: Daemon, spool: Spool) -> None:
    lay_out(daemon, b"")
    archives, bad = spool.fetch_each(daemon.host, *SEEDS)
    assert archives == []
    assert reasons(bad) == dict.fromkeys(NAMES, "its answer is none (Remote end closed connection without response)")
    assert daemon.paths == [ALL]


def test_a_daemon_that_hangs_in_the_middle_is_not_waited_for_again(
    daemon: Daemon, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stall(connection: socket.socket) -> None:
        connection.sendall(chunked(TAR, end=False))
        daemon.over.wait()

    monkeypatch.setattr(seed_host, "STALL_S", 0.1)
    lay_out(daemon, REFUSED, chunked(SMALL), stall, chunked(SMALL))
    archives, bad = spool.fetch_each(daemon.host, *SEEDS)
    assert archives == [(SMALL, ["a:1"])]
    assert reasons(bad) == dict.fromkeys(NAMES[1:], "not a byte came for 0.1 s")
    assert daemon.paths == [ALL, get("a:1"), get("b:1")]


def test_what_came_before_a_daemon_went_stays(daemon: Daemon, spool: Spool) -> None:
    def last_words(connection: socket.socket) -> None:
        daemon.stop_listening()
        connection.sendall(chunked(SMALL))

    lay_out(daemon, REFUSED, REFUSED, last_words, chunked(SMALL))
    archives, bad = spool.fetch_each(daemon.host, *SEEDS)
    assert archives == [(SMALL, ["b:1"])]
    assert list(bad) == ["a:1", "c:1"]
    assert "it refuses (404)" in str(bad["a:1"])
    assert "nobody listens there" in str(bad["c:1"])


def test_no_seeds_are_none(daemon: Daemon, spool: Spool) -> None:
    assert spool.fetch_each(daemon.host) == ([], {})
