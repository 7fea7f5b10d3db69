"""bbolt files as engines write them, and as a job that was root here may have left them."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachedind.engine import bolt
from helpers.boltfiles import (
    BRANCH,
    FREELIST,
    LEAF,
    PAGE_SIZE,
    Tree,
    bolt_file,
    branch_page,
    bucket,
    freelist_page,
    inline_bucket,
    leaf_page,
    meta_page,
    whole_file,
)

GOOD = whole_file(
    [
        leaf_page(
            3, [(1, b"big", bucket(4)), (1, b"small", inline_bucket([(0, b"k", b"v"), (1, b"in", inline_bucket([]))]))]
        ),
        branch_page(4, [5, 6]),
        leaf_page(5, [(0, b"a", b"1"), (1, b"b", bucket(8))]),
        # Two pages long.
        leaf_page(6, [(0, b"c", b"x" * 5000)]),
        leaf_page(8, [(0, b"deep", b"down")]),
    ]
)


def parse(raw: bytes, limit_bytes: int = bolt.DEFAULT_LIMIT_BYTES) -> bolt.Database:
    return bolt.Database(lambda size, offset: raw[offset : offset + size], len(raw), limit_bytes)


def read_everything(database: bolt.Database, path: tuple[bytes, ...] = ()) -> dict[bytes, object]:
    found: dict[bytes, object] = dict(database.items(path))
    # More than any file here has, against buckets that lie in themselves.
    if len(path) < 6:
        found.update({name: read_everything(database, (*path, name)) for name in database.buckets(path)})
    return found


def test_buckets_items_branches_overflow_and_inline_buckets_are_read() -> None:
    assert read_everything(parse(GOOD)) == {
        b"big": {b"a": b"1", b"b": {b"deep": b"down"}, b"c": b"x" * 5000},
        b"small": {b"k": b"v", b"in": {}},
    }


def test_buckets_below_many_are_read_in_one_passage() -> None:
    tree: Tree = {b"all": {b"one": {b"in": {b"k": b"1"}, b"x": b"y"}, b"two": {b"other": {b"k": b"2"}}, b"three": b"4"}}
    database = parse(bolt_file(tree))
    assert dict(database.nested([b"all"])) == {b"one": {b"x": b"y"}, b"two": {}}
    assert dict(database.nested([b"all"], [b"in"])) == {b"one": {b"k": b"1"}, b"two": {}}
    assert dict(database.nested([b"all"], [b"in", b"deeper"])) == {b"one": {}, b"two": {}}


def test_items_come_in_the_order_of_the_tree() -> None:
    assert [key for key, _ in parse(GOOD).items([b"big"])] == [b"a", b"c"]


def test_a_file_is_read_where_it_lies_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(GOOD)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert bolt.open(fd).buckets() == [b"big", b"small"]
        assert bolt.open(fd).meta == bolt.Meta(0, 8, PAGE_SIZE, 3, 9, len(GOOD), True)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    finally:
        os.close(fd)
    assert path.read_bytes() == GOOD


@pytest.mark.parametrize("path", [[b"none"], [b"big", b"a"], [b"big", b"b", b"deep"]])
def test_a_bucket_that_is_not_there_is_a_value_error(path: list[bytes]) -> None:
    with pytest.raises(ValueError, match="no bucket"):
        parse(GOOD).buckets(path)


# ---- which meta page ----------------------------------------------------------------------------------------------


def find(raw: bytes) -> bolt.Meta:
    return parse(raw).meta


def test_the_later_transaction_counts() -> None:
    raw = meta_page(4, root=3, pages=2) + meta_page(5, root=2, pages=2, index=1)
    assert (find(raw).number, find(raw).txid, find(raw).root) == (1, 5, 2)


def test_a_torn_meta_page_leaves_the_one_before() -> None:
    torn = bytearray(meta_page(9, root=3, pages=2))
    torn[16 + 50] ^= 1
    meta = find(bytes(torn) + meta_page(8, root=2, pages=2, index=1))
    assert (meta.number, meta.txid, meta.other_valid) == (1, 8, False)
    assert find(meta_page(9, root=3, pages=2) + bytes(PAGE_SIZE)).other_valid is False


@pytest.mark.parametrize("page_size", [1024, 4096, 16384, 65536])
def test_page_one_is_found_without_page_zero(page_size: int) -> None:
    raw = bytes(page_size) + meta_page(3, root=2, pages=2, page_size=page_size, index=1)
    assert find(raw).page_size == page_size


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 10000,
        b"{}",
        meta_page(1, root=3, pages=2, version=1) * 2,
        meta_page(1, root=3, pages=2, page_size=100) * 2,
        meta_page(1, root=3, pages=2)[:70],
    ],
    ids=["empty", "zeros", "text", "version", "page size", "cut"],
)
def test_what_has_no_meta_page_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match="neither meta page is valid"):
        parse(raw)


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cut.db"
    path.write_bytes(GOOD[: -PAGE_SIZE // 2])
    fd = os.open(path, os.O_RDONLY)
    try:
        size_bytes = path.stat().st_size
        assert not bolt.find_meta(lambda size, offset: os.pread(fd, size, offset), size_bytes).is_complete
        with pytest.raises(ValueError, match="cut short: 34816 bytes of 36864"):
            bolt.open(fd)
    finally:
        os.close(fd)
    assert bolt.Meta(0, 1, 4096, 3, 4, 4 * 4096, True).is_complete


# ---- garbage ------------------------------------------------------------------------------------------------------

TWICE = "page 4 is referred to twice"
HUGE = struct.pack("=QHHI", 4, LEAF, 1, 0) + struct.pack("=IIII", 0, 16, 2**32 - 1, 2**32 - 1)
OVERLAP = struct.pack("=QHHI", 4, LEAF, 200, 0) + b"".join(struct.pack("=IIII", 0, 0, 0, 500) for _ in range(200))


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        ([branch_page(4, [4])], TWICE),
        ([branch_page(4, [5]), branch_page(5, [4])], TWICE),
        ([branch_page(4, [5, 5]), leaf_page(5, [])], "page 5 is referred to twice"),
        ([branch_page(number, [number + 1]) for number in range(4, 60)], "deeper than 32 levels"),
        ([branch_page(4, [0])], "page 0 is not among"),
        ([branch_page(4, [2**63])], "is not among the 5 pages"),
        ([freelist_page(4)], r"neither branch nor leaf \(flags 0x10\)"),
        ([leaf_page(5, [])], "page 4 calls itself 5"),
        ([struct.pack("=QHHI", 4, LEAF, 0, 2**32 - 1)], "page 4 overflows the file"),
        ([struct.pack("=QHHI", 4, LEAF, 0xFFFF, 0)], "more elements than it has room for"),
        ([struct.pack("=QHHI", 4, BRANCH, 0xFFFF, 0)], "more elements than it has room for"),
        ([HUGE], "reaches beyond its page"),
        ([OVERLAP], "overlap"),
    ],
)
def test_garbage_in_a_bucket_is_a_value_error(pages: list[bytes], why: str) -> None:
    pages = [page.ljust(PAGE_SIZE, b"\0") for page in pages]
    database = parse(whole_file([leaf_page(3, [(1, b"bad", bucket(4))]), *pages]))
    with pytest.raises(ValueError, match=why):
        list(database.items([b"bad"]))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"short", "without a header"),
        (bucket(0), "without its page"),
        (bucket(0) + struct.pack("=QHHI", 0, BRANCH, 1, 0), "without its page"),
        (bucket(0) + struct.pack("=QHHI", 0, LEAF, 9, 0), "more elements than it has room for"),
    ],
)
def test_garbage_for_a_bucket_is_a_value_error(header: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        list(parse(whole_file([leaf_page(3, [(1, b"bad", header)])])).items([b"bad"]))


def test_no_more_is_read_than_allowed() -> None:
    with pytest.raises(ValueError, match="larger than what is read"):
        list(parse(GOOD, limit_bytes=3 * PAGE_SIZE).items([b"big"]))


def test_a_file_that_shrinks_meanwhile_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "shrinks.db"
    path.write_bytes(GOOD)
    fd = os.open(path, os.O_RDWR)
    try:
        database = bolt.open(fd)
        os.ftruncate(fd, 3 * PAGE_SIZE)
        with pytest.raises(ValueError, match="shorter while it was read"):
            database.buckets()
    finally:
        os.close(fd)


@given(st.binary(max_size=300), st.integers(0, len(GOOD) // 8))
@example(b"", 0)
def test_noise_in_a_file_is_never_more_than_a_value_error(noise: bytes, at: int) -> None:
    """The meta pages stay good, or else hardly anything would be read at all."""
    start = 2 * PAGE_SIZE + at % (len(GOOD) - 2 * PAGE_SIZE - 300)
    with contextlib.suppress(ValueError):
        read_everything(parse(GOOD[:start] + noise + GOOD[start + len(noise) :]))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12), st.sampled_from([BRANCH, LEAF, FREELIST, 0]), st.integers(0, 9), st.integers(0, 3),
            st.lists(st.integers(0, 40), max_size=40),
        ),
        min_size=6,
        max_size=6,
    )
)  # fmt: skip
def test_pages_of_plausible_numbers_are_never_more_than_a_value_error(
    pages: list[tuple[int, int, int, int, list[int]]],
) -> None:
    made = [
        (struct.pack("=QHHI", number, kind, count, overflow) + struct.pack(f"={len(words)}I", *words)).ljust(
            PAGE_SIZE, b"\1"
        )
        for number, kind, count, overflow, words in pages
    ]
    for root in range(3, 9):
        with contextlib.suppress(ValueError):
            read_everything(parse(whole_file(made, root=root)))


@given(st.binary(max_size=200))
def test_noise_for_a_file_is_never_more_than_a_value_error(noise: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(noise + GOOD[len(noise) :]).buckets()
