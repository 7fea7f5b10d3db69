"""What the kernel's answers about nf_tables mean. It is asked in tests/system."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.host.netfilter import is_end_of_nothing, is_generation

DONE, ERROR, NEW_TABLE = 3, 2, 0xA00


def message(kind: int, number: int, more: bytes = b"") -> bytes:
    payload = struct.pack("=i", number) + more
    return struct.pack("=IHHII", 16 + len(payload), kind, 2, 1, 4711) + payload


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(message(DONE, 0), True, id="the end at once"),
        pytest.param(message(DONE, -1), False, id="the end with an error"),
        pytest.param(message(ERROR, -22), False, id="no such subsystem"),
        pytest.param(message(ERROR, 0), False, id="an acknowledgement"),
        pytest.param(message(NEW_TABLE, 2, b"table") + message(DONE, 0), False, id="a table"),
        pytest.param(message(DONE, 0)[:18], False, id="cut off"),
        pytest.param(b"", False, id="nothing"),
    ],
)
def test_only_an_end_without_a_table_is_none(answer: bytes, expected: bool) -> None:
    assert is_end_of_nothing(answer) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(message(0xA0F, 0, bytes(12)), True), (message(ERROR, -22), False), (b"", False)],
    ids=["a generation", "a kernel without", "nothing"],
)
def test_a_generation_is_no_error(answer: bytes, expected: bool) -> None:
    assert is_generation(answer) is expected


@given(st.binary(max_size=64))
def test_any_bytes(answer: bytes) -> None:
    assert not is_end_of_nothing(answer) or answer[4:6] == struct.pack("=H", DONE)
