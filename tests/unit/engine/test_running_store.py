"""What a daemon says it runs with, in answers as engines 26.1, 28.5 and 29 give them."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.model import ImageStore
from cachedind.engine import running_store

GRAPH_STATUS = [["Backing Filesystem", "extfs"], ["Supports d_type", "true"], ["Using metacopy", "false"]]
CONTAINERD_STATUS = [["driver-type", "io.containerd.snapshotter.v1"]]


def answer(info: object, status: str = "200 OK") -> bytes:
    return f"HTTP/1.0 {status}\r\nApi-Version: 1.51\r\n\r\n{json.dumps(info)}\n".encode()


@pytest.mark.parametrize(
    ("driver", "status", "store"),
    [
        ("overlay2", GRAPH_STATUS, ImageStore.GRAPHDRIVER),
        ("vfs", None, ImageStore.GRAPHDRIVER),
        ("btrfs", [["Btrfs", ""]], ImageStore.GRAPHDRIVER),
        ("overlayfs", CONTAINERD_STATUS, ImageStore.CONTAINERD),
        ("btrfs", CONTAINERD_STATUS, ImageStore.CONTAINERD),
    ],
)
def test_the_store_is_told_by_the_status_and_not_by_the_name(driver: str, status: object, store: ImageStore) -> None:
    assert running_store.parse(answer({"Driver": driver, "DriverStatus": status})) == (store, driver)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        answer({}),
        answer({"Driver": "../overlay2"}),
        answer({"Driver": 3}),
        answer({"message": "client version 1.44 is too old"}, "400 Bad Request"),
    ],
)
def test_an_answer_that_does_not_say_it_is_an_error(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        running_store.parse(raw)


@given(st.binary())
def test_any_bytes_are_a_store_or_an_error(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        running_store.parse(raw)
