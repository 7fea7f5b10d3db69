"""What both image stores answer: about images as engines leave them, and as a crash or a job that was root there may
have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cachedind.engine.images import Record
from helpers.stores import REDIS, TOOL, Containerd, Estate, Graph, Image, answers, make_image, remove, sha, write


class World(NamedTuple):
    """A data-root with an image that is asked for, and another one that shares its lowest layer."""

    estate: Estate
    image: Image
    other: Image


@pytest.fixture(params=[Graph, Containerd], ids=["graphdriver", "containerd"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    estate: Estate = request.param(tmp_path / "root")
    yield World(estate, estate.add((REDIS, TOOL), "base", "middle", "top"), estate.add((), "base", "else"))
    os.close(estate.fd)


# ---- what is there ---------------------------------------------------------------------------------------------------


def test_a_whole_image_is_there(world: World) -> None:
    estate, image, other = world
    for record in (
        image.record,
        image.record._replace(names=(REDIS,)),
        image.record._replace(names=()),
        other.record,
        other.record._replace(names=()),
    ):
        assert answers(estate, record) == (True, True)
    assert all(estate.open().has_chain(chain_id) for chain_id in (*image.chains, *other.chains))
    assert not estate.open().has_chain(sha("no layer"))


def test_an_image_of_a_single_layer_and_one_of_none_are_there(world: World) -> None:
    assert answers(world.estate, world.estate.add((REDIS,), "alone").record) == (True, True)
    assert answers(world.estate, world.estate.add((REDIS,)).record) == (True, True)


def test_images_are_listed_with_their_names_and_configurations(world: World) -> None:
    estate, image, other = world
    found = {stored.config_digest: stored for stored in estate.open().images()}
    mine = found[image.record.config_digest]
    assert sorted(mine.names) == [REDIS, TOOL]
    assert (mine.target, mine.config) == (estate.target(image), image.config)
    if isinstance(estate, Graph):
        assert found[other.record.config_digest].names == ()


def test_an_empty_data_root_has_nothing(tmp_path: Path) -> None:
    for estate in (Graph(tmp_path / "a"), Containerd(tmp_path / "b")):
        image = make_image((REDIS,), "base")
        store = estate.open()
        assert answers(estate, image.record) == (False, False)
        assert answers(estate, image.record._replace(names=())) == (False, False)
        assert not store.has_chain(image.chains[0])
        assert not store.has_blob(image.chains[0])
        assert list(store.images()) == []
        os.close(estate.fd)


# ---- what a job does with names --------------------------------------------------------------------------------------


def test_a_name_that_a_job_removed_is_missing(world: World) -> None:
    world.estate.rename(tool=None)
    assert answers(world.estate, world.image.record) == (False, False)


def test_a_name_that_a_job_gave_to_another_image_is_kept_there(world: World) -> None:
    estate, image, other = world
    estate.rename(tool=estate.target(other))
    assert answers(estate, image.record) == (False, True)


def test_an_image_without_any_of_its_names_may_be_in_pieces(world: World) -> None:
    estate, image, other = world
    estate.rename(tool=estate.target(other), redis=estate.target(other))
    remove(estate.layer_path(image.record.top_chain))
    assert answers(estate, image.record) == (False, True)


def test_a_name_that_is_left_demands_the_whole_image(world: World) -> None:
    estate, image, other = world
    estate.rename(tool=estate.target(other))
    remove(estate.layer_path(image.record.top_chain))
    assert answers(estate, image.record) == (False, False)


def test_names_are_read_once(world: World) -> None:
    estate, image, _ = world
    store = estate.open()
    assert store.keeps(image.record)
    estate.rename(tool=None)
    assert store.keeps(image.record)


# ---- damage ----------------------------------------------------------------------------------------------------------


def config_gone(world: World) -> None:
    remove(world.estate.config_path(world.image))


def config_empty(world: World) -> None:
    write(world.estate.config_path(world.image), b"")


def config_other(world: World) -> None:
    write(world.estate.config_path(world.image), world.other.config)


def config_link(world: World) -> None:
    path = world.estate.config_path(world.image)
    write(path.with_name("copy"), world.image.config)
    remove(path)
    path.symlink_to("copy")


def config_pipe(world: World) -> None:
    remove(world.estate.config_path(world.image))
    os.mkfifo(world.estate.config_path(world.image))


def config_huge(world: World) -> None:
    os.truncate(world.estate.config_path(world.image), 1 << 40)


def top_gone(world: World) -> None:
    remove(world.estate.layer_path(world.image.chains[2]))


def base_gone(world: World) -> None:
    remove(world.estate.layer_path(world.image.chains[0]))


def middle_gone(world: World) -> None:
    remove(world.estate.layer_path(world.image.chains[1]))


def top_link(world: World) -> None:
    path = world.estate.layer_path(world.image.chains[2])
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def data_path(world: World) -> Path:
    return world.estate.layer_path(world.image.chains[2]) / ("diff" if isinstance(world.estate, Graph) else "fs")


def data_gone(world: World) -> None:
    remove(data_path(world))


def data_link(world: World) -> None:
    path = data_path(world)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def first_link(world: World) -> None:
    path = world.estate.root / ("image" if isinstance(world.estate, Graph) else "containerd")
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def ancestor_link(world: World) -> None:
    path = world.estate.layer_path(world.image.chains[2]).parent
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE = [
    config_gone, config_empty, config_other, config_link, config_pipe, config_huge,
    top_gone, middle_gone, base_gone, top_link, data_gone, data_link,
    first_link, ancestor_link,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_an_image_with_damage_is_missing(world: World, damage: Callable[[World], None]) -> None:
    damage(world)
    for names in (world.image.record.names, (REDIS,), ()):
        assert answers(world.estate, world.image.record._replace(names=names)) == (False, False)


@pytest.mark.parametrize("damage", DAMAGE[:6], ids=lambda damage: damage.__name__)
def test_an_image_without_its_configuration_is_not_listed(world: World, damage: Callable[[World], None]) -> None:
    damage(world)
    assert world.image.record.config_digest not in {image.config_digest for image in world.estate.open().images()}


def test_a_layer_is_looked_for_each_time(world: World) -> None:
    estate, image, _ = world
    store = estate.open()
    assert store.has_chain(image.chains[2])
    assert store.has_image(image.record)
    top_gone(world)
    assert not store.has_chain(image.chains[2])
    assert not store.has_image(image.record)
    assert store.has_chain(image.chains[1])


HOSTILE = [
    "", "sha256:", "sha256:..", "sha256:../../../../../etc/passwd", "../../x", "sha512:" + "a" * 128, "a" * 64,
    "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "a" * 64 + "\n", "sha256:" + "/" * 64,
    "sha256:" + "\0" * 64, "sha256:" + "é" * 64, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("digest", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_digest_is_not_there(world: World, digest: str) -> None:
    store = world.estate.open()
    assert not store.has_chain(digest)
    assert not store.has_blob(digest)
    assert store.config_of(digest) is None
    assert not store.keeps(Record((), digest, ""))
    assert not store.has_image(Record((digest,), digest, digest))
    if digest:
        assert not store.keeps(world.image.record._replace(top_chain=digest))


# ---- nothing stays open ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [None, *DAMAGE], ids=lambda damage: damage.__name__ if damage else "none")
def test_nothing_stays_open(world: World, damage: Callable[[World], None] | None) -> None:
    if damage is not None:
        damage(world)
    before = len(os.listdir("/proc/self/fd"))
    answers(world.estate, world.image.record)
    store = world.estate.open()
    list(store.images())
    store.has_blob(world.image.record.config_digest)
    store.has_chain(world.image.chains[2])
    assert len(os.listdir("/proc/self/fd")) == before
