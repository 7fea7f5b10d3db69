"""What is told about a lease's holder. The lock itself is proven in tests/system."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.model import Holder
from cachedind.dataroot.lease import describe_holder, read_holder

GOOD = b'{"container": "0123456789abcdef", "hostname": "runner-1", "since": 1000.5}\n'


def read_from(content: bytes) -> Holder | None:
    fd = os.memfd_create("lock")
    try:
        os.write(fd, content)
        return read_holder(fd)
    finally:
        os.close(fd)


def test_a_holder_introduces_itself() -> None:
    assert read_from(GOOD) == Holder("0123456789ab", "runner-1", 1000.5)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        GOOD[:20],
        b"\xff\xff",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"{}",
        b'{"container": "c", "hostname": "h"}',
        b'{"container": "c", "hostname": "h", "since": null}',
        b'{"container": "c", "hostname": "h", "since": "soon"}',
        b'{"container": "c", "hostname": "h", "since": NaN}',
        b'{"container": "c", "hostname": "h", "since": Infinity}',
        b'{"container": "c", "hostname": "h", "since": 1e300}',
        b'{"container": "c", "hostname": "h", "since": -1e300}',
        b'{"container": "c", "hostname": "h", "since": 1' + b"0" * 400 + b"}",
        b"[" * 4096,
        b"\0" * 4096,
    ],
    ids=lambda content: ascii(content[:60]),
)
def test_garbage_is_nobody(content: bytes) -> None:
    assert read_from(content) is None
    assert describe_holder(read_from(content)) == "another daemon"


def test_a_closed_descriptor_is_nobody(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert read_holder(fd) is None
    os.close(fd)


def test_names_are_cut_to_what_fits_a_line() -> None:
    holder = read_from(b'{"container": "%s", "hostname": "%s", "since": 0}' % (b"c" * 500, b"h" * 500))
    assert holder == Holder("c" * 12, "h" * 64, 0)


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (None, "another daemon"),
        (
            Holder("0123456789ab", "runner-1", 0),
            "container 0123456789ab (host name runner-1, since 1970-01-01 00:00:00 UTC)",
        ),
        (Holder("", "box", 1e9), "a daemon (host name box, since 2001-09-09 01:46:40 UTC)"),
    ],
    ids=["unknown", "a container", "not in a container"],
)
def test_describe_holder(holder: Holder | None, text: str) -> None:
    assert describe_holder(holder) == text


json_text = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
)


@given(
    st.binary()
    | st.fixed_dictionaries({"container": json_text, "hostname": json_text, "since": json_text}).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_whatever_stands_there_somebody_or_nobody_is_described(content: bytes) -> None:
    assert describe_holder(read_from(content))
