"""Damage in the layer store and beside it costs warmth at most, and nothing outside of the pool."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from cachedind.pool import layer_links, layer_list, layers, sweeping
from helpers import pool_starts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_request import TakenSlot
    from helpers.filesystems import Filesystems

NAMES = ["a", "b", "c"]


class Estate(NamedTuple):
    """A pool with a golden of three layers, a free slot that links to them, and a directory that nobody may touch."""

    pool: Pool
    slot: Path
    golden: Path
    victim: Path

    def layer(self) -> Path:
        """One that both have."""
        link = os.readlink(self.slot / "data/overlay2/b/diff")
        return Path(self.pool.path) / "layers" / Path(link).parts[-2]


@pytest.fixture
def estate(filesystems: Filesystems, tmp_path: Path) -> Iterator[Estate]:
    pool = pool_starts.open_pool(filesystems.make("ext4"))
    with contextlib.closing(pool):
        first = pool_starts.take(pool, pool_starts.slot_request())
        pool_starts.begin(first)
        pool_starts.build(first, *NAMES)
        pool_starts.come_up(first)
        first.close()
        second = pool_starts.take(pool, pool_starts.slot_request())
        assert second.promoted
        second.close()
        victim = tmp_path / "victim"
        (victim / "content").mkdir(parents=True)
        (victim / "content/precious").write_text("precious")
        key = Path(pool.path) / "keys/k"
        yield Estate(pool, key / "slots" / second.slot.id, key / "scopes/%/golden", victim)
        assert (victim / "content/precious").read_text() == "precious"
        assert sorted(path.name for path in victim.rglob("*")) == ["content", "precious"]


def spoil(path: Path, how: str, victim: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if how == "garbage":
        path.write_bytes(b"}{ garbage \xff")
    elif how == "empty":
        path.write_text("")
    elif how == "directory":
        path.mkdir()
    elif how == "link":
        path.symlink_to(victim)
    elif how == "link to a file":
        path.symlink_to(victim / "content/precious")
    elif how == "fifo":
        os.mkfifo(path)
    else:
        assert how == "gone"


def start(estate: Estate) -> TakenSlot:
    taken = pool_starts.take(estate.pool, pool_starts.slot_request())
    sweeping.sweep_stage(estate.pool)
    sweeping.empty_trash(estate.pool)
    return taken


@pytest.mark.parametrize("how", ["garbage", "empty", "directory", "link to a file", "fifo", "gone"])
@pytest.mark.parametrize("where", ["slot", "golden"])
@pytest.mark.parametrize("name", ["layers.list", "sharing.json", "begun.json"])
def test_what_lies_beside_an_owners_data(estate: Estate, name: str, where: str, how: str) -> None:
    owner = estate.slot if where == "slot" else estate.golden
    spoil(owner / name, how, estate.victim)
    with contextlib.closing(start(estate)) as one, contextlib.closing(start(estate)) as other:
        assert pool_starts.layers_of(one) == NAMES
        # A golden whose list cannot be written anew is set aside; the slot, which has all of it, is not free.
        lost = where == "golden" and (name, how) == ("layers.list", "directory")
        assert pool_starts.layers_of(other) == ([] if lost else NAMES)


def test_two_clones_at_once_of_a_golden_whose_list_was_cut_short(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both write it anew, and neither holds it alone: they go on together from just before each rename."""
    together, rename = threading.Barrier(2, timeout=20), os.rename

    def rename_together(source: Any, target: Any, **where: Any) -> None:
        if target == layer_list.LIST:
            together.wait()
        rename(source, target, **where)

    with contextlib.closing(pool_starts.take(estate.pool, pool_starts.slot_request())) as first:
        assert first.slot.id == estate.slot.name
        (estate.golden / layer_list.LIST).write_text("")
        monkeypatch.setattr(os, "rename", rename_together)
        with ThreadPoolExecutor(2) as threads:
            starts = [threads.submit(pool_starts.take, estate.pool, pool_starts.slot_request()) for _ in range(2)]
        monkeypatch.undo()
        for taken in (each.result() for each in starts):
            assert pool_starts.layers_of(taken) == NAMES
            taken.close()
    assert sorted(os.listdir(estate.golden)) == ["data", "golden.json", layer_list.LIST]


@pytest.mark.parametrize(
    ("part", "how"),
    [
        *((part, how) for part in ("", "content") for how in ("garbage", "link", "fifo", "gone")),
        ("", "directory"),
        *(("layer.json", how) for how in ("garbage", "directory", "link", "fifo", "gone")),
    ],
)
def test_a_layer(estate: Estate, part: str, how: str) -> None:
    spoil(estate.layer() / part, how, estate.victim)
    with contextlib.closing(start(estate)) as one:
        # Without its content neither the slot nor the golden can be used, and nobody gets a layer that is not there.
        whole = part == "layer.json"
        assert pool_starts.layers_of(one) == (NAMES if whole else [])


@pytest.mark.parametrize(
    "target",
    [
        "/etc",
        "../../../../../../../etc",
        "../../.cachedind/layers",
        "../../.cachedind/layers/../../../../..",
        f"../../.cachedind/layers/{'0' * 32}/content",
        f"../../../.cachedind/layers/{'0' * 32}/content",
        f"../../.cachedind/layers/{'0' * 32}/content/..",
        "diff",
    ],
)
def test_a_link_that_a_job_planted_in_a_layers_place_costs_its_slot_alone(estate: Estate, target: str) -> None:
    link = estate.slot / "data/overlay2/b/diff"
    link.unlink()
    link.symlink_to(target)
    with contextlib.closing(start(estate)) as one:
        assert one.slot.id != estate.slot.name
        assert pool_starts.layers_of(one) == NAMES
    assert not estate.slot.exists()
    assert len(os.listdir(f"{estate.pool.path}/aside")) == 1


def test_a_link_to_another_projects_layer_is_planted_too(estate: Estate) -> None:
    pool_starts.job(estate.pool, pool_starts.slot_request("other"), "x")
    other = pool_starts.take(estate.pool, pool_starts.slot_request("other"))
    pool_starts.begin(other)
    pool_starts.build(other, "secret")
    pool_starts.come_up(other)
    other.close()
    pool_starts.take(estate.pool, pool_starts.slot_request("other")).close()
    known = set(layers.names(estate.pool.layers_fd))
    slot_fd = os.open(estate.slot, os.O_RDONLY)
    (foreign,) = known - layer_list.read_list(slot_fd)
    os.close(slot_fd)
    link = estate.slot / "data/overlay2/b/diff"
    link.unlink()
    link.symlink_to(layer_links.target_of("overlay2/b/diff", foreign))
    with contextlib.closing(start(estate)) as one:
        assert one.slot.id != estate.slot.name
        assert pool_starts.layers_of(one) == NAMES


@pytest.mark.parametrize("scope", ["scopes", "scopes/%", "scopes/%/golden.other"])
@pytest.mark.parametrize("how", ["garbage", "link", "fifo", "gone"])
def test_a_scopes_directory(estate: Estate, scope: str, how: str) -> None:
    spoil(Path(estate.pool.path) / "keys/k" / scope, how, estate.victim)
    with contextlib.closing(start(estate)) as one:
        assert pool_starts.layers_of(one) == NAMES, "the slot has them"
        pool_starts.begin(one)
        pool_starts.build(one, "d")
        pool_starts.come_up(one)
    with contextlib.closing(start(estate)) as again:
        assert again.promoted
        assert pool_starts.layers_of(again) == [*NAMES, "d"]
