"""Whether a bbolt file is as bbolt writes it. Its checksums are those of its meta pages alone: a byte of another page
that changes on the disk is found by nobody before an engine dies of it, perhaps amid a build, and in each from then on.

What bbolt's own writing implies is looked at (cachedind.bolt has the format):

    a page        has its own number and a kind, nothing else refers to it, and it is not in the list of free ones
    an element    has its key and its value where the one before ends (internal/common/inode.go, WriteInodeToPage)
    keys          ascend, and those of a page begin with its parent's key for it and end before the next one (node.go,
                  spill: with another key, a page is given away twice one day). Only a bucket's first page may have none
                  (rebalance)
    free pages    ascend in their list (internal/freelist)

What is in the values is the business of whoever wrote them: `judge` may know.
"""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from cachedind import bolt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Judge = Callable[[tuple[bytes, ...], bytes, bytes], None]
    """A bucket's path, a key in it and its value; raises ValueError for one that its owner could not read."""

_COUNT_ELSEWHERE = 0xFFFF
"""Of a list of free pages that is too long for its header's count: the first number is the count."""


class _Tree(NamedTuple):
    """What is still to be looked at: a page of the bucket at `path`, the first key that it may have, the first that it
    may not (None: it has the last ones), how deep it lies, and whether below another page of the same bucket."""

    path: tuple[bytes, ...]
    page: int
    first: bytes
    end: bytes | None
    depth: int
    is_child: bool = False


class Checked(NamedTuple):
    """What a database is that was looked at: the names of its buckets, and whether all pages in use were seen."""

    buckets: frozenset[bytes]
    complete: bool


def check(fd: int, limit_bytes: int, judge: Judge | None = None) -> Checked:
    """Look at all pages in use of the database in an open file, as far as they have no more than so many bytes. An
    empty file is one that bbolt was about to make, and makes then.

    Raises ValueError for what bbolt would not write, OSError when the file cannot be read.
    """
    size_bytes = os.fstat(fd).st_size
    if size_bytes == 0:
        return Checked(frozenset(), True)
    meta = bolt.find_meta(lambda size, offset: os.pread(fd, size, offset), size_bytes)
    if not meta.is_complete:
        raise ValueError(f"cut short: {meta.size_bytes} bytes of {meta.pages * meta.page_size}")
    pages = _Pages(fd, meta, limit_bytes)
    walk = _Walk(pages, judge)
    try:
        pages.take_free_list()
        walk.go(meta.root)
    except _TooLargeError:
        return Checked(frozenset(walk.buckets), False)
    return Checked(frozenset(walk.buckets), True)


class _TooLargeError(Exception):
    pass


class _Pages:
    """The pages of one file, each of which may be taken once."""

    def __init__(self, fd: int, meta: bolt.Meta, limit_bytes: int) -> None:
        self._fd = fd
        self._meta = meta
        self._left_bytes = limit_bytes
        self._taken: set[int] = set()

    def take_free_list(self) -> None:
        """None of the pages in it may be taken any more."""
        if self._meta.free_list is None:
            return
        number = self._meta.free_list
        page, kind, count = self.take(number)
        if kind != bolt.FREE_LIST_PAGE:
            raise ValueError(f"page {number} is no list of free pages (flags {kind:#x})")
        start = bolt.PAGE.size
        if count == _COUNT_ELSEWHERE:
            count = struct.unpack_from("=Q", page, start)[0]
            start += 8
        if start + 8 * count > len(page):
            raise ValueError("a list of free pages with more of them than it has room for")
        free = struct.unpack_from(f"={count}Q", page, start)
        if any(one >= other for one, other in pairwise(free)) or (
            free and not 2 <= free[0] <= free[-1] < self._meta.pages
        ):
            raise ValueError("a list of free pages that is none")
        if self._taken.intersection(free):
            raise ValueError("a list of free pages that lies on one of them")
        self._taken.update(free)

    def take(self, number: int) -> tuple[bytes, int, int]:
        """A page with its overflow, its kind, and how many elements it has."""
        size = self._meta.page_size
        if not 2 <= number < self._meta.pages:
            raise ValueError(f"page {number} is not among the {self._meta.pages} pages")
        page = self._read(size, number * size)
        own_number, kind, count, overflow = bolt.PAGE.unpack_from(page)
        if own_number != number:
            raise ValueError(f"page {number} calls itself {own_number}")
        if number + overflow >= self._meta.pages:
            raise ValueError(f"page {number} overflows the file")
        mine = range(number, number + overflow + 1)
        if not self._taken.isdisjoint(mine):
            raise ValueError(f"page {number} is free, or referred to twice")
        self._taken.update(mine)
        if overflow:
            page += self._read(overflow * size, (number + 1) * size)
        return page, kind, count

    def _read(self, size: int, offset: int) -> bytes:
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise _TooLargeError
        raw = os.pread(self._fd, size, offset)
        if len(raw) != size:
            raise ValueError("the file has become shorter while it was read")
        return raw


class _Walk:
    """One passage through all trees of a file."""

    def __init__(self, pages: _Pages, judge: Judge | None) -> None:
        self._pages = pages
        self._judge = judge
        self._waiting: list[_Tree] = []
        self.buckets: set[bytes] = set()

    def go(self, root: int) -> None:
        self._waiting.append(_Tree((), root, b"", None, 1))
        while self._waiting:
            self._check(self._waiting.pop())

    def _check(self, tree: _Tree) -> None:
        number, depth = tree.page, tree.depth
        if depth > bolt.MAX_DEPTH:
            raise ValueError(f"page {number} lies deeper than {bolt.MAX_DEPTH} levels")
        page, kind, count = self._pages.take(number)
        if kind == bolt.LEAF_PAGE and (count or not tree.is_child):
            self._check_leaf(tree, page, count)
        elif kind == bolt.BRANCH_PAGE and count:
            keys, children = _read_branch(page, count)
            _check_order(keys, tree)
            for child, first, end in zip(children, keys, [*keys[1:], tree.end], strict=True):
                self._waiting.append(_Tree(tree.path, child, first, end, depth + 1, is_child=True))
        elif kind in (bolt.LEAF_PAGE, bolt.BRANCH_PAGE):
            raise ValueError(f"page {number} has nothing in it")
        else:
            raise ValueError(f"page {number} is neither branch nor leaf (flags {kind:#x})")

    def _check_leaf(self, tree: _Tree, page: bytes, count: int) -> int:
        """Where the last element ends."""
        keys, path, judge = [], tree.path, self._judge
        at = bolt.PAGE.size + count * bolt.LEAF.size
        start = bolt.PAGE.size
        for flags, position, key_size, value_size in _heads(page, count, bolt.LEAF):
            if start + position != at:
                raise ValueError("an element that does not begin where the one before ends")
            middle = at + key_size
            end = middle + value_size
            if end > len(page):
                raise ValueError("an element reaches beyond its page")
            key, value = page[at:middle], page[middle:end]
            start, at = start + bolt.LEAF.size, end
            keys.append(key)
            if flags == bolt.BUCKET_ELEMENT:
                self._enter(tree, key, value)
            elif flags:
                raise ValueError(f"an element that is neither a bucket nor none (flags {flags:#x})")
            elif judge is not None:
                judge(path, key, value)
        _check_order(keys, tree)
        return at

    def _enter(self, tree: _Tree, name: bytes, header: bytes) -> None:
        if len(header) < bolt.BUCKET.size:
            raise ValueError("a bucket without a header")
        if not tree.path:
            self.buckets.add(name)
        root, _ = bolt.BUCKET.unpack_from(header)
        inside = _Tree((*tree.path, name), root, b"", None, tree.depth + 1)
        if root:
            if len(header) > bolt.BUCKET.size:
                raise ValueError("a bucket with more than its header")
            self._waiting.append(inside)
            return
        page = header[bolt.BUCKET.size :]
        _, kind, count, _ = bolt.PAGE.unpack_from(page) if len(page) >= bolt.PAGE.size else (0, 0, 0, 0)
        if kind != bolt.LEAF_PAGE:
            raise ValueError("an inline bucket without its page")
        if inside.depth > bolt.MAX_DEPTH:
            raise ValueError(f"a bucket lies deeper than {bolt.MAX_DEPTH} levels")
        if self._check_leaf(inside, page, count) != len(page):
            raise ValueError("an inline bucket with more than its page")


def _heads(page: bytes, count: int, element: struct.Struct) -> Iterator[tuple[int, ...]]:
    heads = page[bolt.PAGE.size : bolt.PAGE.size + count * element.size]
    if len(heads) != count * element.size:
        raise ValueError("a page with more elements than it has room for")
    return element.iter_unpack(heads)


def _read_branch(page: bytes, count: int) -> tuple[list[bytes], list[int]]:
    """Keys and pages."""
    keys: list[bytes] = []
    children: list[int] = []
    at = bolt.PAGE.size + count * bolt.BRANCH.size
    start = bolt.PAGE.size
    for position, key_size, child in _heads(page, count, bolt.BRANCH):
        if start + position != at:
            raise ValueError("an element that does not begin where the one before ends")
        if at + key_size > len(page):
            raise ValueError("an element reaches beyond its page")
        keys.append(page[at : at + key_size])
        children.append(child)
        start, at = start + bolt.BRANCH.size, at + key_size
    return keys, children


def _check_order(keys: list[bytes], tree: _Tree) -> None:
    if any(one >= other for one, other in pairwise(keys)):
        raise ValueError("keys that do not ascend")
    if tree.is_child and keys[0] != tree.first:
        raise ValueError("a page that does not begin with its parent's key for it")
    if keys and tree.end is not None and keys[-1] >= tree.end:
        raise ValueError("keys that another page should have")
