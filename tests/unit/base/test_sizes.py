"""Sizes as people write them."""

from __future__ import annotations

import pytest

from cachedind.base.sizes import parse_size_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("4096", 4096),
        ("12b", 12),
        ("10GB", 10 * 10**9),
        ("10GiB", 10 * 2**30),
        ("10G", 10 * 10**9),
        ("10Gi", 10 * 2**30),
        ("10gb", 10 * 10**9),
        ("500M", 500 * 10**6),
        ("500MiB", 500 * 2**20),
        ("64k", 64_000),
        ("64KiB", 65536),
        ("2TB", 2 * 10**12),
        ("1PiB", 2**50),
        ("1.5GiB", 3 * 2**29),
        ("0.1GB", 10**8),
        ("1.25", 1),
        ("10 GB", 10 * 10**9),
        ("1152921504606846975", 2**60 - 1),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+1", "GB", "10EB", "10%", "1,5GB", "1.GB", ".5GB", "1e9", "10ib", "10GBit", "10  GB", "0x10"],
)
def test_what_is_no_size_is_told_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="a size such as 500MB, 10GB or 10GiB"):
        parse_size_bytes(text)


@pytest.mark.parametrize("text", ["1152921504606846976", "1024PiB", "99999999999999999999"])
def test_what_no_filesystem_can_hold_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"a size below 2\^60 bytes"):
        parse_size_bytes(text)
