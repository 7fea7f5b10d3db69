"""Sharing layers on real filesystems: whatever step is the last of a process, the next one goes on from there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cachedind.base.trace import Trace
from cachedind.pool import layer_links, layer_list, layers, sharing
from cachedind.pool.layer_list import BadListError
from cachedind.pool.layers import Owner
from helpers.children import Child

FSTYPES = ["ext4", "xfs", "btrfs", "tmpfs", "overlay"]
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
STEPS = ["share.listed", "share.planned", "share.linked", "share.exchanged", "share.moved", "share.done"]


class Place(NamedTuple):
    path: Path
    store_fd: int
    owner: Owner

    @property
    def layers(self) -> list[Path]:
        """The directories in the slot that are to be shared."""
        return sorted(path / "diff" for path in (self.path / "slot/data/overlay2").iterdir())

    @property
    def names(self) -> list[str]:
        return [str(path.relative_to(self.path / "slot/data")) for path in self.layers]

    def content(self) -> list[str]:
        """What a daemon would find in each layer, with the store where it is at run time."""
        found = []
        for path in self.layers:
            real = path
            if path.is_symlink():
                layer_id = layer_links.id_in("overlay2/x/diff", os.readlink(path))
                assert layer_id is not None, os.readlink(path)
                assert layer_id in layer_list.read_list(self.owner.directory_fd)
                real = self.path / "layers" / layer_id / "content"
            found.append((real / "file").read_text())
        return found

    def share(self, kill_at: str = "") -> list[str]:
        return sharing.share(self.store_fd, self.owner, self.names, "committed", Trace(kill_at))

    def finish(self) -> bool:
        return sharing.finish(self.store_fd, self.owner)

    def swept(self) -> int:
        """As upkeep does, with nothing but this slot."""
        listed = lambda: layer_list.read_list(self.owner.directory_fd)  # noqa: E731

        def throw_away(layer_id: str) -> None:
            subprocess.run(["rm", "-r", str(self.path / "layers" / layer_id)], check=True)

        return layers.sweep(self.store_fd, listed, throw_away, grace_s=-60.0)


@pytest.fixture
def place(directory: Path) -> Place:
    (directory / "layers").mkdir()
    for name in "abc":
        (directory / "slot/data/overlay2" / name / "diff/below").mkdir(parents=True)
        (directory / "slot/data/overlay2" / name / "diff/file").write_text(name)
    slot = directory / "slot"
    owner = Owner(os.open(slot, DIRECTORY), os.open(slot / "data", DIRECTORY))
    layer_list.write_list(owner.directory_fd, ())
    return Place(directory, os.open(directory / "layers", DIRECTORY), owner)


@pytest.fixture(autouse=True)
def closed(place: Place) -> Iterator[None]:
    yield
    for fd in (place.store_fd, *place.owner):
        os.close(fd)


@pytest.mark.parametrize("directory", FSTYPES, indirect=True)
def test_layers_move_and_links_stay(place: Place) -> None:
    ids = place.share()
    assert len(ids) == len(set(ids)) == 3
    assert place.content() == ["a", "b", "c"]
    assert all(path.is_symlink() for path in place.layers)
    assert all((path.parent / "committed").read_bytes() == b"" for path in place.layers)
    assert layer_list.read_list(place.owner.directory_fd) == set(ids)
    assert sorted(layers.names(place.store_fd)) == sorted(ids)
    assert not place.finish()
    assert sorted(os.listdir(place.path / "slot")) == ["data", "layers.list"]
    assert place.swept() == 0


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("directory", FSTYPES, indirect=True)
def test_killed_at_a_step_and_finished(place: Place, step: str) -> None:
    killed = Child(lambda: place.share(step))
    assert killed.wait() == 9
    killed.end()
    place.swept()  # somebody else's, amid that
    finished = place.finish()
    assert finished is (step not in ("share.listed", "share.done"))
    assert place.content() == ["a", "b", "c"]
    place.share()
    assert place.content() == ["a", "b", "c"]
    assert all(path.is_symlink() for path in place.layers)
    assert list(place.path.glob("slot/data/overlay2/*/.*")) == []


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_what_an_engine_has_removed_since_is_no_matter(place: Place) -> None:
    killed = Child(lambda: place.share("share.exchanged"))
    assert killed.wait() == 9
    killed.end()
    subprocess.run(["rm", "-r", *(str(path.parent) for path in place.layers[1:])], check=True)
    assert place.finish()
    assert place.content() == ["a"]


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_what_nobody_lists_is_swept_and_the_rest_stays(place: Place) -> None:
    ids = place.share()
    layer_list.write_list(place.owner.directory_fd, ids[1:])
    assert place.swept() == 1
    assert set(layers.names(place.store_fd)) == set(ids[1:])


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_a_list_that_cannot_be_read_stops_a_sweep(place: Place) -> None:
    ids = place.share()
    (place.path / "slot/layers.list").write_text("")
    with pytest.raises(BadListError):
        place.swept()
    assert set(layers.names(place.store_fd)) == set(ids)


@pytest.mark.parametrize("directory", ["ext4"], indirect=True)
def test_what_is_mounted_in_a_layers_place_stays_where_it_is(place: Place) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place.layers[1])], check=True)
    try:
        (place.layers[1] / "file").write_text("mounted")
        with pytest.raises(OSError, match="busy"):
            place.share()
        assert place.content() == ["a", "mounted", "c"]
    finally:
        subprocess.run(["umount", str(place.path / "slot/data/overlay2/b/diff")], check=True)
    place.finish()
    assert place.content() == ["a", "b", "c"]
    place.share()
    assert place.content() == ["a", "b", "c"]
