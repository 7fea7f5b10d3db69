"""Archives of another daemon's images: whole, and no larger than there is room for, or none at all."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from cachedind.seeds import fetching, host_daemon
from cachedind.seeds.fetching import fetch, fetch_each
from cachedind.seeds.host_daemon import PartError
from cachedind.seeds.model import SeedError
from helpers.fake_daemon import EARLY, GOES_ON, WANTS_TLS, Answer, Daemon, chunked, http, reset, serve_tls
from helpers.host_images import SMALL, TAR, get, seed
from helpers.spools import Spool

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


# ---- one archive -----------------------------------------------------------------------------------------------------


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
    with pytest.raises(PartError, match=r"it would take more than the 0\.0 GB that are free"):
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
        "it cannot send the image: open /x: no such file",
    ),
    "an error after a whole block": (chunked(HALF + moby_error("x" * 480)), "it cannot send the image: xxx"),
    "nothing but an error": (chunked(moby_error("unexpected EOF")), "it cannot send the image: unexpected EOF"),
    "an error after a good archive": (chunked(TAR + moby_error("too late")), "it cannot send the image: too late"),
    "an old error": (chunked(HALF + b'{"error": "old"}'), "it cannot send the image: old"),
    "an error with no words": (chunked(HALF + b'{"error": ""}'), "it cannot send the image: no reason is given"),
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
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "its answer is not valid HTTP (SSH-2.0-OpenSSH"),
    "a TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46\r\n", "its answer is not valid HTTP ("),
    "a head without an end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "its answer is not valid HTTP ("),
    "hung up": (b"", "its answer is not valid HTTP (Remote end closed connection without response)"),
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

    monkeypatch.setattr(fetching, "STALL_S", 0.1)
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

    monkeypatch.setattr(fetching, "STALL_S", 0.4)
    monkeypatch.setattr(host_daemon, "ANSWER_S", 0.1)
    daemon.answers[get("redis:7")] = slowly
    assert spool.fetch(daemon.host, "redis:7") == SMALL


def test_an_archive_may_take_longer_to_begin_than_to_go_on(
    daemon: Daemon, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(connection: socket.socket) -> None:
        daemon.over.wait(0.4)
        connection.sendall(chunked(SMALL))

    monkeypatch.setattr(host_daemon, "CONNECT_S", 0.2)
    monkeypatch.setattr(fetching, "STALL_S", 0.2)
    daemon.answers[get("redis:7")] = late
    assert spool.fetch(daemon.host, "redis:7") == SMALL
    monkeypatch.setattr(fetching, "BEGIN_S", 0.1)
    with pytest.raises(SeedError, match="it does not answer in time"):
        spool.fetch(daemon.host, "redis:7")


def test_nothing_is_fetched_from_ourselves(daemon: Daemon, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_daemon, "OWN_SOCKET", daemon.host.removeprefix("unix://"))
    with pytest.raises(SeedError, match="that is our own daemon's socket"):
        spool.fetch(daemon.host, "redis:7")
    assert daemon.lines == []


def test_a_disk_that_takes_no_more(daemon: Daemon, spool: Spool) -> None:
    daemon.answers[get("redis:7")] = chunked(TAR)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, limits[1]))
    try:
        with pytest.raises(SeedError, match=r"it cannot be written to disk \(File too large\)") as caught:
            spool.fetch(daemon.host, "redis:7")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not caught.value.lasting


def test_no_place_to_write_it_down(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    fd = os.open(tmp_path / "gone", os.O_RDONLY | os.O_DIRECTORY)
    (tmp_path / "gone").rmdir()
    try:
        with pytest.raises(SeedError, match=r"no temporary file can be made for it \(No such file or directory\)"):
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
    assert reasons(bad) == dict.fromkeys(
        NAMES, "its answer is not valid HTTP (Remote end closed connection without response)"
    )
    assert daemon.paths == [ALL]


def test_a_daemon_that_hangs_in_the_middle_is_not_waited_for_again(
    daemon: Daemon, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stall(connection: socket.socket) -> None:
        connection.sendall(chunked(TAR, end=False))
        daemon.over.wait()

    monkeypatch.setattr(fetching, "STALL_S", 0.1)
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
