"""What bbolt would never write is told, wherever it is; and what it writes is not."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachedind import bolt_check
from cachedind.bolt_check import Checked
from helpers.boltfiles import (
    BRANCH,
    FREELIST,
    LEAF,
    META,
    PAGE_SIZE,
    bolt_file,
    branch_page,
    bucket,
    checksum,
    freelist_page,
    inline_bucket,
    leaf_page,
    meta_page,
    whole_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachedind.bolt_check import Judge

LIMIT = 1 << 20
SMALL = inline_bucket([(0, b"k", b"v"), (1, b"n", inline_bucket([]))])
BIG = [(0, b"c", b"x" * 5000)]
PAGES = [
    leaf_page(
        3, [(1, b"big", bucket(4)), (1, b"small", inline_bucket([(0, b"k", b"v"), (1, b"n", inline_bucket([]))]))]
    ),
    branch_page(4, [5, 6], [b"a", b"c"]),
    leaf_page(5, [(0, b"a", b"1"), (1, b"b", bucket(8))]),
    leaf_page(6, BIG),  # two pages long
    leaf_page(8, [(0, b"deep", b"down"), (0, b"more", b"")]),
    bytes(PAGE_SIZE),
]
FREE = 9
GOOD = whole_file(PAGES, free=[FREE])


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., Checked]:
    def check(raw: bytes, limit_bytes: int = LIMIT, judge: Judge | None = None) -> Checked:
        path = tmp_path / "a.db"
        path.write_bytes(raw)
        fd = os.open(path, os.O_RDONLY)
        try:
            return bolt_check.check(fd, limit_bytes, judge)
        finally:
            os.close(fd)
            assert path.read_bytes() == raw

    return check


def test_what_bbolt_writes_is_whole(check: Callable[..., Checked]) -> None:
    assert check(GOOD) == Checked(frozenset({b"big", b"small"}), complete=True)
    assert check(whole_file([leaf_page(3, [])])) == Checked(frozenset(), complete=True)
    raw = bolt_file({b"a": {b"b": {b"c": b"d"}}, b"e": {}})
    assert check(raw) == Checked(frozenset({b"a", b"e"}), complete=True)


def test_an_empty_file_is_made_anew(check: Callable[..., Checked]) -> None:
    assert check(b"") == Checked(frozenset(), complete=True)


def test_every_value_is_shown_with_its_bucket(check: Callable[..., Checked]) -> None:
    seen: list[tuple[tuple[bytes, ...], bytes, bytes]] = []
    check(GOOD, judge=lambda path, key, value: seen.append((path, key, value)))
    assert sorted(seen) == [
        ((b"big",), b"a", b"1"),
        ((b"big",), b"c", b"x" * 5000),
        ((b"big", b"b"), b"deep", b"down"),
        ((b"big", b"b"), b"more", b""),
        ((b"small",), b"k", b"v"),
    ]


def test_what_the_owner_cannot_read_is_told(check: Callable[..., Checked]) -> None:
    def judge(_path: tuple[bytes, ...], key: bytes, _value: bytes) -> None:
        if key == b"deep":
            raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        check(GOOD, judge=judge)


@pytest.mark.parametrize("pages", range(7))
def test_no_more_is_read_than_allowed(check: Callable[..., Checked], pages: int) -> None:
    """The list of free ones, and six pages that are in use."""
    assert check(GOOD, limit_bytes=pages * PAGE_SIZE).complete is False
    assert check(GOOD, limit_bytes=7 * PAGE_SIZE).complete is True


def with_page(number: int, page: bytes) -> bytes:
    return GOOD[: number * PAGE_SIZE] + page.ljust(PAGE_SIZE, b"\0") + GOOD[(number + 1) * PAGE_SIZE :]


def leaf(number: int, *elements: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """With heads as they are given: flags, position, and the sizes of key and value."""
    heads = b"".join(struct.pack("=IIII", *element) for element in elements)
    return struct.pack("=QHHI", number, LEAF, len(elements), 0) + heads + data


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (GOOD[:-PAGE_SIZE], "cut short: 36864 bytes of 40960"),
        (with_page(8, leaf_page(7, [])), "page 8 calls itself 7"),
        (with_page(8, struct.pack("=QHHI", 8, META, 0, 0)), r"neither branch nor leaf \(flags 0x4\)"),
        (with_page(8, struct.pack("=QHHI", 8, LEAF | BRANCH, 0, 0)), r"neither branch nor leaf \(flags 0x3\)"),
        (with_page(4, struct.pack("=QHHI", 4, BRANCH, 0, 0)), "page 4 has nothing in it"),
        (with_page(5, leaf_page(5, [])), "page 5 has nothing in it"),
        (with_page(8, struct.pack("=QHHI", 8, LEAF, 0, 2)), "page 8 overflows the file"),
        (with_page(5, struct.pack("=QHHI", 5, LEAF, 0, 1)), "page [56] is free, or referred to twice"),
        (with_page(8, struct.pack("=QHHI", 8, LEAF, 0, 1)), "page 8 is free, or referred to twice"),
        (with_page(4, branch_page(4, [8, 6], [b"a", b"d"])), "not begin with its parent's key"),
        (with_page(3, leaf_page(3, [(1, b"a", bucket(8)), (1, b"b", bucket(8))])), "page 8 is free, or referred"),
        (with_page(4, branch_page(4, [5, FREE], [b"a", b"c"])), "page 9"),
        (with_page(4, branch_page(4, [5, 99], [b"a", b"c"])), "page 99 is not among the 10 pages"),
        (with_page(4, branch_page(4, [5, 6], [b"c", b"a"])), "keys that do not ascend"),
        (with_page(5, leaf_page(5, [(0, b"a", b""), (0, b"c", b"")])), "keys that another page should have"),
        (with_page(4, branch_page(4, [5, 6], [b"aa", b"c"])), "not begin with its parent's key"),
        (with_page(4, branch_page(4, [5, 6], [b"`", b"c"])), "not begin with its parent's key"),
        (with_page(4, branch_page(4, [5, 6], [b"a", b"d"])), "not begin with its parent's key"),
        (with_page(4, struct.pack("=QHHIIIQ", 4, BRANCH, 1, 0, 15, 1, 5)), "does not begin where the one before ends"),
        (with_page(4, struct.pack("=QHHIIIQ", 4, BRANCH, 1, 0, 16, 9999, 5)), "reaches beyond its page"),
        (with_page(4, struct.pack("=QHHI", 4, BRANCH, 999, 0)), "more elements than it has room for"),
        (with_page(8, struct.pack("=QHHI", 8, LEAF, 999, 0)), "more elements than it has room for"),
        (with_page(8, leaf(8, (0, 17, 1, 1), data=b"ab")), "does not begin where the one before ends"),
        (with_page(8, leaf(8, (0, 32, 1, 1), (0, 17, 1, 1), data=b"abcd")), "does not begin where the one before ends"),
        (with_page(8, leaf(8, (0, 16, 1, 2**31))), "reaches beyond its page"),
        (with_page(8, leaf(8, (2, 16, 1, 1), data=b"ab")), "neither a bucket nor none"),
        (with_page(8, leaf_page(8, [(0, b"b", b""), (0, b"a", b"")])), "keys that do not ascend"),
        (with_page(8, leaf_page(8, [(0, b"b", b""), (0, b"b", b"")])), "keys that do not ascend"),
        (with_page(8, leaf_page(8, [(1, b"a", b"short")])), "a bucket without a header"),
        (with_page(8, leaf_page(8, [(1, b"a", bucket(0))])), "an inline bucket without its page"),
        (with_page(8, leaf_page(8, [(1, b"a", bucket(0) + bytes(16))])), "an inline bucket without its page"),
        (with_page(8, leaf_page(8, [(1, b"a", bucket(5) + b"0")])), "a bucket with more than its header"),
        (with_page(8, leaf_page(8, [(1, b"a", SMALL + b"0")])), "an inline bucket with more than its page"),
        (with_page(2, freelist_page(2, [3])), "page 3 is free, or referred to twice"),
        (with_page(2, freelist_page(2, [2, 9])), "a list of free pages that lies on one of them"),
        (with_page(2, freelist_page(2, [9, 9])), "a list of free pages that is none"),
        (with_page(2, freelist_page(2, [9, 8])), "a list of free pages that is none"),
        (with_page(2, freelist_page(2, [1])), "a list of free pages that is none"),
        (with_page(2, freelist_page(2, [10])), "a list of free pages that is none"),
        (with_page(2, struct.pack("=QHHI", 2, LEAF, 0, 0)), r"page 2 is no list of free pages \(flags 0x2\)"),
        (with_page(2, struct.pack("=QHHI", 2, FREELIST, 999, 0)), "a list of free pages with more of them"),
        (with_page(2, struct.pack("=QHHIQ", 2, FREELIST, 0xFFFF, 0, 2**60)), "a list of free pages with more of them"),
    ],
)  # fmt: skip
def test_what_bbolt_would_not_write(check: Callable[..., Checked], raw: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check(raw)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("page", [bytes(PAGE_SIZE), b"\xff" * PAGE_SIZE, GOOD[4 * PAGE_SIZE : 5 * PAGE_SIZE]])
def test_what_bbolt_would_panic_of_at_once_is_told_before(
    check: Callable[..., Checked], number: int, page: bytes
) -> None:
    """A list of free pages that reads as zeros is what a full disk beneath an image leaves."""
    with pytest.raises(ValueError, match=f"page {number} calls itself"):
        check(with_page(number, page))


def test_a_long_list_of_free_pages_has_its_count_elsewhere(check: Callable[..., Checked]) -> None:
    page = struct.pack("=QHHIQQ", 2, FREELIST, 0xFFFF, 0, 1, FREE)
    assert check(with_page(2, page)).complete
    with pytest.raises(ValueError, match="page 3 is free"):
        check(with_page(2, struct.pack("=QHHIQQ", 2, FREELIST, 0xFFFF, 0, 1, 3)))


def test_a_file_without_a_list_of_free_pages(check: Callable[..., Checked]) -> None:
    raw = bytearray(meta_page(8, root=3, pages=4) + bytes(2 * PAGE_SIZE) + leaf_page(3, []))
    struct.pack_into("=Q", raw, 16 + 32, 2**64 - 1)
    struct.pack_into("=Q", raw, 16 + 56, checksum(bytes(raw[16 : 16 + 56])))
    assert check(bytes(raw)).complete


@pytest.mark.parametrize("inline", [False, True])
def test_buckets_in_each_other_have_an_end(check: Callable[..., Checked], inline: bool) -> None:
    header = inline_bucket([])
    for _ in range(40):
        header = inline_bucket([(1, b"b", header)])
    pages = [leaf_page(number, [(1, b"b", bucket(number + 1))]) for number in range(3, 50)]
    raw = whole_file([leaf_page(3, [(1, b"b", header)])] if inline else [*pages, leaf_page(50, [])])
    with pytest.raises(ValueError, match="deeper than 32 levels"):
        check(raw)


def test_a_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(GOOD)
    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(ValueError, match="shorter while it was read"):
            bolt_check.check(fd, LIMIT, lambda *_: os.ftruncate(fd, 4 * PAGE_SIZE))
    finally:
        os.close(fd)


HEADS = [
    *((number * PAGE_SIZE, number * PAGE_SIZE + 16) for number in (2, 3, 4, 5, 6, 8)),
    *((number * PAGE_SIZE + 16, number * PAGE_SIZE + 16 + 16 * 2) for number in (4, 5, 8)),
]
"""From where to where in the file: what describes pages and elements. All of it is in use."""
IS_BUCKET = {5 * PAGE_SIZE + 32, 3 * PAGE_SIZE + 16, 3 * PAGE_SIZE + 32}
"""An element's flag that says so. Without it a bucket is a value like any other."""
COUNTS = {number * PAGE_SIZE + 10 for number in (3, 8)}
"""A bucket with nothing in it may be meant so."""
LAST_SIZES = range(8 * PAGE_SIZE + 40, 8 * PAGE_SIZE + 48)
"""A last key or value that is longer by zeros may be meant so."""
COUNT_OF_FREE = 2 * PAGE_SIZE + 10
"""A list with fewer pages in it is one, too; what is not in it is never used again."""


@pytest.mark.parametrize("where", HEADS, ids=lambda where: f"{where[0]}-{where[1]}")
def test_any_flipped_bit_that_describes_something_is_seen(
    check: Callable[..., Checked], where: tuple[int, int]
) -> None:
    for at in range(*where):
        for bit in range(8):
            raw = bytearray(GOOD)
            raw[at] ^= 1 << bit
            unknowable = at in IS_BUCKET and bit == 0
            unknowable |= at in LAST_SIZES or at == COUNT_OF_FREE or (at in COUNTS and raw[at] == 0)
            if not unknowable:
                with pytest.raises(ValueError, match=r"page|element|key|bucket"):
                    check(bytes(raw))


@given(st.integers(2 * PAGE_SIZE, len(GOOD) - 300), st.binary(min_size=1, max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_never_more_than_a_value_error(check: Callable[..., Checked], at: int, noise: bytes) -> None:
    with contextlib.suppress(ValueError):
        check(GOOD[:at] + noise + GOOD[at + len(noise) :])
