"""How large the slots and goldens of a pool are, for people."""

from __future__ import annotations

import contextlib
import os

from cachedind.base.model import ImageStore, StoragePlan
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import remapping, unused_sizes
from cachedind.host import beneath
from cachedind.pool import directory, survey, sweeping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.commands.inventory import Row
    from cachedind.pool.directory import Pool


def measured(pool: Pool, rows: list[Row]) -> Iterator[Row]:
    """The rows with their sizes, one by one: of its own, which takes a system call or two for each file of that, and of
    the layers that it lists."""
    sizes = survey.read_layer_sizes(pool)
    owners = sweeping.count_owners(pool)
    for row in rows:
        found = None
        if row.name:
            with contextlib.suppress(OSError):
                found = _measure(pool, row)
        if found is None:
            yield row
            continue
        known = [layer_id for layer_id in found.layers if layer_id in sizes]
        own = [found.own, *(sizes[layer_id] for layer_id in known if owners[layer_id] == 1)]
        shared = sum(sizes[layer_id].bytes for layer_id in known if owners[layer_id] != 1)
        shared += sum(size.bytes for size in found.linked.values())
        yield _count_unused(pool, row)._replace(
            unique_bytes=sum(size.bytes for size in own),
            unique_inodes=sum(size.inodes for size in own),
            shared_bytes=shared,
        )


def _measure(pool: Pool, row: Row) -> survey.Measured | None:
    key_fd = directory.open_directory(pool.keys_fd, row.directory)
    if key_fd is None:
        return None
    try:
        return survey.measure(key_fd, row.name)
    finally:
        os.close(key_fd)


def _count_unused(pool: Pool, row: Row) -> Row:
    if row.store is None or row.driver is None:
        return row
    with contextlib.suppress(OSError):
        fd = beneath.open_path(pool.keys_fd, f"{row.directory}/{row.name}/data", os.O_RDONLY | os.O_DIRECTORY)
        try:
            root_fd = remapping.open_in(fd, row.remap)
        finally:
            os.close(fd)
        try:
            found = unused_sizes.measure(root_fd, StoragePlan(ImageStore(row.store), row.driver, ""))
        finally:
            os.close(root_fd)
        return row._replace(unused_images=found.images, unused_bytes=found.bytes)
    return row
