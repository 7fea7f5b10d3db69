"""A reader of bbolt files, the database in which engine, containerd and BuildKit keep their records. It writes nothing.

A file is a row of pages (go.etcd.io/bbolt, internal/common/page.go, meta.go, bucket.go and inode.go):

    page 0, 1   meta: page size, root bucket, high-water mark, transaction id, FNV-64a checksum; the valid one with
                the higher transaction id counts, the other is the state before
    page 2 …    branch and leaf pages of B+ trees, each with `overflow` more pages behind it, and the list of free pages
    a bucket    is a leaf element whose value names a root page; a small one has its only page in the value itself

Numbers are in the byte order of the machine that wrote the file. Whoever wrote it last may have been root in a job, so
no number is trusted: nothing here reads beyond a limit, follows a loop, or raises anything but ValueError (or the
OSError of a failing disk). Files are read with pread(2), not mapped: a file that shrinks must not be a SIGBUS.
"""

from __future__ import annotations

import os
import struct

from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Read = Callable[[int, int], bytes]
    """Size and offset to bytes, fewer at the end of the file."""

DEFAULT_LIMIT_BYTES = 64 << 20
"""How much of a file is read at most: no engine writes more."""

_MAGIC = 0xED0CDAED
_VERSION = 2
_PAGE = struct.Struct("=QHHI")
_META = struct.Struct("=IIIIQQQQQQ")
_LEAF = struct.Struct("=IIII")
_BRANCH = struct.Struct("=IIQ")
_BUCKET = struct.Struct("=QQ")
_BRANCH_PAGE = 0x01
_LEAF_PAGE = 0x02
_BUCKET_ELEMENT = 0x01
_MAX_DEPTH = 32
_PAGE_SIZES = tuple(1 << power for power in range(10, 17))
"""From 1 KiB, which bbolt itself starts guessing at, to the 64 KiB of large-page kernels."""


class Meta(NamedTuple):
    """What the meta page in force says.

    `number` is the page it stands on (0 or 1), `pages` the high-water mark: pages from there on are not in use.
    `size_bytes` is the file's real size.
    """

    number: int
    txid: int
    page_size: int
    root: int
    pages: int
    size_bytes: int
    other_valid: bool
    """Whether the other meta page can be read too: if not, somebody was killed or cut off while writing it."""

    @property
    def is_complete(self) -> bool:
        """Whether the file is as long as its meta page says. bbolt would die of SIGBUS on a shorter one."""
        return self.size_bytes >= self.pages * self.page_size


class Element(NamedTuple):
    """One entry of a bucket; the value of a nested bucket is its header."""

    key: bytes
    value: bytes
    is_bucket: bool


def open(fd: int, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Database:
    """The database in a file that is open for reading; the descriptor stays the caller's.

    Raises ValueError when it is not a whole bbolt file, OSError when it cannot be read.
    """
    return Database(lambda size, offset: os.pread(fd, size, offset), os.fstat(fd).st_size, limit_bytes)


def find_meta(read: Read, size_bytes: int) -> Meta:
    """The meta page in force, chosen as bbolt does. Pure but for `read`. Raises ValueError when there is none."""
    first = _read_meta(read, 0, 0)
    if first is not None:
        second = _read_meta(read, 1, first[2])
    else:
        # Page 1 lies where page 0 would say: every size is tried (bbolt, db.go, getPageSize).
        found = (_read_meta(read, 1, page_size) for page_size in _PAGE_SIZES)
        second = next((meta for meta in found if meta is not None), None)
    valid = [meta for meta in (first, second) if meta is not None]
    if not valid:
        raise ValueError("neither meta page is valid")
    number, txid, page_size, root, pages = max(valid, key=lambda meta: meta[1])
    return Meta(number, txid, page_size, root, pages, size_bytes, len(valid) == 2)


def _read_meta(read: Read, number: int, page_size: int) -> tuple[int, int, int, int, int] | None:
    """Page number, transaction id, page size, root page and high-water mark of a meta page; None for an invalid one."""
    raw = read(_META.size, number * page_size + _PAGE.size)
    if len(raw) < _META.size:
        return None
    magic, version, found_size, _, root, _, _, pages, txid, checksum = _META.unpack(raw)
    if (magic, version, checksum) != (_MAGIC, _VERSION, _fnv64a(raw[:-8])):
        return None
    if found_size not in _PAGE_SIZES or (number and found_size != page_size):
        return None
    return number, txid, found_size, root, pages


def _fnv64a(raw: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in raw:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


class Database:
    """A whole bbolt file as its last finished transaction left it."""

    def __init__(self, read: Read, size_bytes: int, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._read = read
        self._limit_bytes = limit_bytes
        self.meta = find_meta(read, size_bytes)
        if not self.meta.is_complete:
            wanted = self.meta.pages * self.meta.page_size
            raise ValueError(f"cut short: {size_bytes} bytes of {wanted}")

    def buckets(self, path: Sequence[bytes] = ()) -> list[bytes]:
        """The names of the buckets directly below the one at `path`. Raises ValueError, also for no such bucket."""
        return [element.key for element in self._elements(path) if element.is_bucket]

    def items(self, path: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of the bucket at `path`. Raises ValueError (perhaps only amid the items), also for no such
        bucket.
        """
        return ((element.key, element.value) for element in self._elements(path) if not element.is_bucket)

    def nested(
        self, path: Sequence[bytes] = (), below: Sequence[bytes] = ()
    ) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
        """The names of the buckets directly below the one at `path`, each with its own keys and values, or those of the
        bucket `below` it (none without such a one), in one passage: what `items` would cost for each of thousands.
        Raises ValueError, perhaps only amid them."""
        walk = _Walk(self._read, self.meta, self._limit_bytes)
        for element in self._below(walk, path):
            if element.is_bucket:
                inside = walk.bucket(element.value)
                for name in below:
                    inside = iter(()) if (one := _find(inside, name)) is None else walk.bucket(one.value)
                yield element.key, {one.key: one.value for one in inside if not one.is_bucket}

    def sequence(self, path: Sequence[bytes]) -> int:
        """The number that the bucket at `path` has given out last. Raises ValueError, also for no such bucket."""
        *above, name = path
        for element in self._elements(above):
            if element.is_bucket and element.key == name and len(element.value) >= _BUCKET.size:
                number: int = _BUCKET.unpack_from(element.value)[1]
                return number
        raise ValueError(f"no bucket {name!r}")

    def _elements(self, path: Sequence[bytes]) -> Iterator[Element]:
        # The budget is one for the whole way to the bucket, so that no path costs more than another.
        return self._below(_Walk(self._read, self.meta, self._limit_bytes), path)

    def _below(self, walk: _Walk, path: Sequence[bytes]) -> Iterator[Element]:
        elements = walk.tree(self.meta.root)
        for name in path:
            header = _find(elements, name)
            if header is None:
                raise ValueError(f"no bucket {name!r}")
            elements = walk.bucket(header.value)
        return elements


class _Walk:
    """One passage through trees: no page twice, no more bytes than allowed."""

    def __init__(self, read: Read, meta: Meta, limit_bytes: int) -> None:
        self._read = read
        self._meta = meta
        self._left_bytes = limit_bytes
        self._seen: set[int] = set()

    def bucket(self, header: bytes) -> Iterator[Element]:
        """The elements of the bucket whose header that is."""
        if len(header) < _BUCKET.size:
            raise ValueError("a bucket without a header")
        root, _ = _BUCKET.unpack_from(header)
        if root:
            return self.tree(root)
        page = header[_BUCKET.size :]
        if len(page) < _PAGE.size or _PAGE.unpack_from(page)[1] != _LEAF_PAGE:
            raise ValueError("an inline bucket without its page")
        return _leaf_elements(page)

    def tree(self, root: int) -> Iterator[Element]:
        """The elements below a page, in their order."""
        waiting = [(root, 1)]
        while waiting:
            number, depth = waiting.pop()
            if depth > _MAX_DEPTH:
                raise ValueError(f"page {number} lies deeper than {_MAX_DEPTH} levels")
            page = self._page(number)
            kind = _PAGE.unpack_from(page)[1]
            if kind == _LEAF_PAGE:
                yield from _leaf_elements(page)
            elif kind == _BRANCH_PAGE:
                waiting.extend((child, depth + 1) for child in reversed(_branch_children(page)))
            else:
                raise ValueError(f"page {number} is neither branch nor leaf (flags {kind:#x})")

    def _page(self, number: int) -> bytes:
        """A page with its overflow."""
        if not 2 <= number < self._meta.pages:
            raise ValueError(f"page {number} is not among the {self._meta.pages} pages")
        if number in self._seen:
            raise ValueError(f"page {number} is referred to twice")
        self._seen.add(number)
        offset = number * self._meta.page_size
        page = self._take(self._meta.page_size, offset)
        own_number, _, _, overflow = _PAGE.unpack_from(page)
        if own_number != number:
            raise ValueError(f"page {number} calls itself {own_number}")
        if overflow:
            if number + overflow >= self._meta.pages:
                raise ValueError(f"page {number} overflows the file")
            page += self._take(overflow * self._meta.page_size, offset + self._meta.page_size)
        return page

    def _take(self, size: int, offset: int) -> bytes:
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise ValueError("the file is larger than what is read of it")
        raw = self._read(size, offset)
        if len(raw) != size:
            raise ValueError("the file has become shorter while it was read")
        return raw


def _find(elements: Iterator[Element], name: bytes) -> Element | None:
    return next((element for element in elements if element.is_bucket and element.key == name), None)


def _leaf_elements(page: bytes) -> Iterator[Element]:
    room = len(page)
    for index in range(_count(page, _LEAF)):
        at = _PAGE.size + index * _LEAF.size
        flags, position, key_size, value_size = _LEAF.unpack_from(page, at)
        start = at + position
        middle, end = start + key_size, start + key_size + value_size
        if end > len(page):
            raise ValueError("an element reaches beyond its page")
        # Elements that overlap could have a page copied 65535 times.
        room -= key_size + value_size
        if room < 0:
            raise ValueError("elements that overlap")
        yield Element(page[start:middle], page[middle:end], bool(flags & _BUCKET_ELEMENT))


def _branch_children(page: bytes) -> list[int]:
    return [_BRANCH.unpack_from(page, _PAGE.size + index * _BRANCH.size)[2] for index in range(_count(page, _BRANCH))]


def _count(page: bytes, element: struct.Struct) -> int:
    count: int = _PAGE.unpack_from(page)[2]
    if _PAGE.size + count * element.size > len(page):
        raise ValueError("a page with more elements than it has room for")
    return count
