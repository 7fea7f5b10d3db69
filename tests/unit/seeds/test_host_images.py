"""Images of another daemon: what its list says, which of them are meant, and which of them a store has."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings

from cachedind.engine.images import chain_ids
from cachedind.seeds import host_daemon, host_images
from cachedind.seeds.host_images import HostImage, choose, find_held, list_host, matches, parse_images
from cachedind.seeds.model import BadSeed, SeedError
from helpers.fake_daemon import Answer, Daemon, http, reset
from helpers.host_images import (
    FULL_RUN,
    HELD,
    ID,
    INSPECT,
    JSON,
    LAYERS,
    LIST,
    OTHER_ID,
    REDIS,
    REPO_DIGEST,
    Local,
    configuration_of,
    inspection_of,
    listed,
    seed,
)

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


# ---- its list --------------------------------------------------------------------------------------------------------


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


@settings(max_examples=50)
@given(JSON)
def test_any_answer_is_a_list_of_images_or_an_error(value: object) -> None:
    try:
        images = parse_images(json.dumps(value).encode())
    except SeedError:
        assert not isinstance(value, list)
        return
    for image in images:
        assert image.id == ID
        # Any short text may be a name: "a:1".
        assert all(":" in tag and tag in json.dumps(value) for tag in image.tags)
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


IMAGES = [HostImage(ID, ("redis:7", "bitnami/redis:7"), 9), HostImage(OTHER_ID, ("redis:6",), 8)]


def test_seeds_come_in_the_order_of_the_patterns_and_each_once() -> None:
    seeds, bad = choose(IMAGES, ["bitnami/*", "redis:*", "redis:7", "*"], "unix:///d")
    assert seeds == [
        seed("bitnami/redis:7", "docker.io/bitnami/redis:7"),
        seed("redis:6", "docker.io/library/redis:6", OTHER_ID, 8),
        seed("redis:7", "docker.io/library/redis:7"),
    ]
    assert bad == []
    assert [host_images.id_of(one) for one in seeds] == [ID, OTHER_ID, ID]


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
    assert "by tag" in bad.why


# ---- asking for it ---------------------------------------------------------------------------------------------------


def test_a_list_takes_one_request(any_daemon: Daemon) -> None:
    any_daemon.answers[LIST] = http([listed()])
    seeds, bad = list_host(any_daemon.host, ["redis:*", "nginx"])
    assert seeds == [seed("redis:7", "docker.io/library/redis:7", size_bytes=1234)]
    assert [one.name for one in bad] == ["nginx"]
    assert any_daemon.host in bad[0].why
    assert any_daemon.lines == ["GET /images/json HTTP/1.0"]


def test_a_password_is_not_shown_when_an_image_is_missing(tcp_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    address = urlsplit(tcp_daemon.host)
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *more, **rest: real("127.0.0.1", *more, **rest))
    tcp_daemon.answers[LIST] = http([])
    told = list_host(f"tcp://me:secret@127.0.0.1:{address.port}", ["redis"])
    assert told == (
        [],
        [
            BadSeed(
                "redis",
                f"{tcp_daemon.host} has no such image: pull or build it there, or remove it from CACHEDIND_SEED_IMAGES",
            )
        ],
    )


# ---- which of them a store has ---------------------------------------------------------------------------------------


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
    monkeypatch.setattr(host_daemon, "ANSWER_S", 0.1)
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
