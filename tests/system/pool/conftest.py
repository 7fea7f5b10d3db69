"""Pools on real filesystems, without daemons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.pool.directory import Pool
from helpers import pool_starts
from helpers.filesystems import Filesystems
from helpers.pool_starts import Opener


@pytest.fixture
def open_on(filesystems: Filesystems) -> Iterator[Opener]:
    """Opens the pool on a filesystem of a kind, anew with each call."""
    places: dict[str, Path] = {}
    opened: list[Pool] = []

    def open_on(kind: str, *, size_mib: int = 2048, **environ: str) -> Pool:
        if kind not in places:
            places[kind] = filesystems.make(kind, size_mib=size_mib)
        opened.append(pool_starts.open_pool(places[kind], **environ))
        return opened[-1]

    yield open_on
    for pool in opened:
        pool.close()
