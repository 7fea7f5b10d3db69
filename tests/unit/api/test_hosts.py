"""Addresses as dockerd reads them (moby, opts/hosts.go)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.api.hosts import Host, covers, parse_host


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", "unix:///var/run/docker.sock"),
        ("  ", "unix:///var/run/docker.sock"),
        ("unix://", "unix:///var/run/docker.sock"),
        ("unix:///a//b.sock", "unix:///a/b.sock"),
        ("0.0.0.0:2375", "tcp://0.0.0.0:2375"),
        (":2375", "tcp://localhost:2375"),
        ("box", "tcp://box:2375"),
        ("tcp://", "tcp://localhost:2375"),
        ("tcp://:0", "tcp://localhost:0"),
        ("tcp://0.0.0.0", "tcp://0.0.0.0:2375"),
        ("tcp://0.0.0.0:2376/", "tcp://0.0.0.0:2376"),
        ("[::]:2375", "tcp://[::]:2375"),
        ("tcp://[::1]", "tcp://[::1]:2375"),
        ("[::1]:", "tcp://[::1]:2375"),
    ],
)
def test_what_a_host_means(text: str, meant: str) -> None:
    assert str(parse_host(text, has_tls=False)) == meant


def test_no_host_at_all_with_tls() -> None:
    assert str(parse_host("", has_tls=True)) == "tcp://localhost:2376"


@pytest.mark.parametrize(
    "text",
    ["fd://", "ssh://box", "npipe://", "http://box:1", "unix://rel.sock", "unix://@abstract", "tcp://x:y", "tcp://x:70000",
     "tcp://a/b", "::1:2375", "unix:/x"],
)  # fmt: skip
def test_what_is_left_to_dockerd(text: str) -> None:
    assert parse_host(text, has_tls=False) is None


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_none(text: str) -> None:
    host = parse_host(text, has_tls=False)
    assert host is None or parse_host(str(host), has_tls=False) == host


@pytest.mark.parametrize(
    ("bound", "other", "covered"),
    [
        ("tcp://0.0.0.0:1", "tcp://127.0.0.1:1", True),
        ("tcp://[::]:1", "tcp://box:1", True),
        ("tcp://127.0.0.1:1", "tcp://0.0.0.0:1", False),
        ("tcp://0.0.0.0:1", "tcp://0.0.0.0:2", False),
        ("tcp://0.0.0.0:0", "tcp://0.0.0.0:0", False),
        ("unix:///a", "unix:///a", True),
        ("unix:///a", "tcp://0.0.0.0:1", False),
    ],
)
def test_covers(bound: str, other: str, covered: bool) -> None:
    one, two = parse_host(bound, has_tls=False), parse_host(other, has_tls=False)
    assert isinstance(one, Host)
    assert isinstance(two, Host)
    assert covers(one, two) is covered
