"""bbolt files made by hand, page by page; the format is described in cachedind.engine.bolt."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping

PAGE_SIZE = 4096
BRANCH, LEAF, FREELIST = 1, 2, 16
META = 4

Elements = list[tuple[int, bytes, bytes]]
"""Flags (1: a bucket), key and value."""
Tree = Mapping[bytes, "bytes | Tree"]
"""A bucket: values are bytes, or buckets again."""


def checksum(raw: bytes) -> int:
    """FNV-1a of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in raw:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def meta_page(
    txid: int, *, root: int, pages: int, page_size: int = PAGE_SIZE, index: int = 0, version: int = 2
) -> bytes:
    header = struct.pack("=QHHI", index, META, 0, 0)
    body = struct.pack("=IIIIQQQQQ", 0xED0CDAED, version, page_size, 0, root, 0, 2, pages, txid)
    return (header + body + struct.pack("=Q", checksum(body))).ljust(page_size, b"\0")


def leaf_page(number: int, elements: Elements) -> bytes:
    """As many pages as it takes."""
    heads, data = b"", b""
    for index, (flags, key, value) in enumerate(elements):
        position = 16 * (len(elements) - index) + len(data)
        heads += struct.pack("=IIII", flags, position, len(key), len(value))
        data += key + value
    pages = -(-(16 + len(heads) + len(data)) // PAGE_SIZE)
    page = struct.pack("=QHHI", number, LEAF, len(elements), pages - 1) + heads + data
    return page.ljust(pages * PAGE_SIZE, b"\0")


def branch_page(number: int, children: list[int], keys: list[bytes] | None = None) -> bytes:
    """Without keys all have the same, which bbolt itself would never write."""
    names = keys or [b""] * len(children)
    heads, data = b"", b""
    for index, (key, child) in enumerate(zip(names, children, strict=True)):
        heads += struct.pack("=IIQ", 16 * (len(children) - index) + len(data), len(key), child)
        data += key
    return (struct.pack("=QHHI", number, BRANCH, len(children), 0) + heads + data).ljust(PAGE_SIZE, b"\0")


def freelist_page(number: int, free: Iterable[int] = ()) -> bytes:
    pages = list(free)
    head = struct.pack("=QHHI", number, FREELIST, len(pages), 0)
    return (head + struct.pack(f"={len(pages)}Q", *pages)).ljust(PAGE_SIZE, b"\0")


def bucket(root: int) -> bytes:
    """A bucket's value that names its root page."""
    return struct.pack("=QQ", root, 7)


def inline_bucket(elements: Elements) -> bytes:
    """A bucket's value with its only page in it."""
    used = 16 + sum(16 + len(key) + len(value) for _, key, value in elements)
    return struct.pack("=QQ", 0, 0) + leaf_page(0, elements)[:used]


def whole_file(pages: list[bytes], root: int = 3, free: Iterable[int] = ()) -> bytes:
    """Two meta pages, a list of free pages, and these from page 3 on."""
    count = 3 + sum(map(len, pages)) // PAGE_SIZE
    metas = meta_page(8, root=root, pages=count) + meta_page(7, root=99, pages=count, index=1)
    return metas + freelist_page(2, free) + b"".join(pages)


def bolt_file(tree: Tree) -> bytes:
    """As bbolt lays it out: a bucket that has buckets in it gets a page, another one is part of its parent's."""
    pages: list[bytes] = []

    def place(node: Tree) -> tuple[int, Elements]:
        elements: Elements = []
        for key, value in sorted(node.items()):
            if isinstance(value, bytes):
                elements.append((0, key, value))
                continue
            nested = any(not isinstance(each, bytes) for each in value.values())
            elements.append((1, key, bucket(place(value)[0]) if nested else inline_bucket(place(value)[1])))
        if any(flags for flags, _, _ in elements) or node is tree:
            number = 3 + sum(map(len, pages)) // PAGE_SIZE
            pages.append(leaf_page(number, elements))
            return number, elements
        return 0, elements

    return whole_file(pages, place(tree)[0])


def local_kv(networks: Iterable[tuple[str, str]]) -> bytes:
    """libnetwork's local-kv.db with these networks (id and name) among others, as engines 26.1 and 28.5 write it."""
    elements: Elements = [(0, b"docker/network/v1.0/endpoint_count/0123/", struct.pack("=Q", 1) + b'{"Count":0}')]
    for index, (identity, name) in enumerate(networks):
        record = json.dumps({"addrSpace": "LocalDefault", "id": identity, "name": name}).encode()
        elements.append((0, f"docker/network/v1.0/network/{identity}/".encode(), struct.pack("=Q", index) + record))
    return whole_file([leaf_page(3, [(1, b"libnetwork", bucket(4))]), leaf_page(4, elements)])
