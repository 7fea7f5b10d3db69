"""A pool's own record: of a new pool, of one that an older version made, and one that cannot be read."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from cachedind.base.errors import PoolUnusableError
from cachedind.base.trace import Trace
from cachedind.pool import directory
from cachedind.pool.slot_request import Warmth
from helpers import pool_starts
from helpers.filesystems import Filesystems
from helpers.pool_starts import Opener


def test_a_new_pool_says_what_it_is(open_on: Opener) -> None:
    pool = open_on("ext4")
    assert pool.is_new
    assert not open_on("ext4").is_new
    raw = json.loads((Path(pool.path) / "pool.json").read_text())
    assert (raw["version"], raw["min_reader"]) == (2, 2)
    assert (Path(pool.path) / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")


def older(path: Path) -> None:
    (path / "pool.json").write_text('{"version": 1, "min_reader": 1, "backing": "image", "clone": "subvolume"}')
    for name in ("keys/k/scopes/%/golden/data", "stage/x", "trash/x", "aside/earlier"):
        (path / name).mkdir(parents=True)
    (path / "pool.img").write_bytes(b"an image")


def test_a_pool_of_version_1_is_set_aside_in_one_piece(filesystems: Filesystems) -> None:
    path = filesystems.make("ext4")
    older(path)
    pool, [note] = directory.open_pool(str(path), pool_starts.settings(path), Trace())
    with contextlib.closing(pool):
        assert "was a pool of version 1" in str(note)
        taken = pool_starts.take(pool, pool_starts.slot_request())
        assert taken.warmth is Warmth.FRESH
        taken.close()
        [where] = set(directory.names_in(pool.aside_fd)) - {"earlier"}
        assert f"aside/{where}" in str(note)
        kept = path / "aside" / where / "slot"
        assert sorted(os.listdir(kept)) == ["keys", "pool.img", "pool.json", "stage", "trash"]
        assert (kept / "keys/k/scopes/%/golden/data").is_dir()


@pytest.mark.parametrize("left", ["pool.json", "pool.img", "trash"])
def test_setting_a_pool_aside_is_gone_on_with_after_a_kill(filesystems: Filesystems, left: str) -> None:
    path = filesystems.make("ext4")
    older(path)
    for name in ("pool.img", "keys", "stage", "trash"):
        if name != left:
            os.rename(path / name, path / f"moved-{name}")
    pool_starts.open_pool(path).close()
    assert not (path / "pool.img").exists()
    assert json.loads((path / "pool.json").read_text())["version"] == 2


@pytest.mark.parametrize("text", ["garbage", "", None])
def test_a_record_that_cannot_be_read_costs_nothing(open_on: Opener, text: str | None) -> None:
    pool = open_on("ext4")
    pool_starts.job(pool, pool_starts.slot_request(), "one")
    record = Path(pool.path) / "pool.json"
    record.unlink() if text is None else record.write_text(text)
    again = pool_starts.take(open_on("ext4"), pool_starts.slot_request())
    assert (again.warmth, pool_starts.names(again)) == (Warmth.LEASED, ["one"])
    assert json.loads(record.read_text())["version"] == 2
    again.close()


def test_strict_sets_no_pool_aside(filesystems: Filesystems) -> None:
    path = filesystems.make("ext4")
    older(path)
    with pytest.raises(PoolUnusableError, match="version 1"):
        pool_starts.open_pool(path, STRICT="1")
    assert (path / "pool.img").exists()
