"""The image store of containerd: its databases, its snapshots, and its indexes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.base.errors import CleaningError
from cachedind.engine.containerd_store import ContainerdStore
from cachedind.engine.containerd_view import ContainerdView
from cachedind.engine.fresh_images import View
from cachedind.engine.images import Record
from helpers.boltfiles import PAGE_SIZE, bolt_file
from helpers.stores import REDIS, Containerd, answers, remove, sha, uvarint, write


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[Containerd]:
    estate = Containerd(tmp_path / "root")
    yield estate
    os.close(estate.fd)


MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def descriptor(digest: str, architecture: str | None = None, **more: object) -> dict[str, object]:
    if architecture is None:
        return {"digest": digest, **more}
    return {"digest": digest, "platform": {"os": "linux", "architecture": architecture}, **more}


def here() -> str:
    return MACHINES.get(os.uname().machine, os.uname().machine)


def test_an_index_stands_for_this_machines_image(containerd: Containerd) -> None:
    image = containerd.add((), "base", "top")
    other = containerd.add((), "base", "else")
    index = containerd.add_index(
        descriptor(containerd.target(other), "vax"),
        descriptor(sha("an attestation"), "unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        descriptor(containerd.target(image), here()),
    )
    containerd.names[REDIS] = index
    containerd.write()
    record = image.record._replace(names=(REDIS,))
    assert answers(containerd, record) == (True, True)
    store = containerd.open()
    assert store.config_of(index) == store.config_of(containerd.target(image)) == image.record.config_digest
    (stored,) = store.images()
    assert (stored.names, stored.target) == ((REDIS,), index)
    assert stored.repo_digests == (f"docker.io/library/redis@{index}",)


def test_an_index_for_other_machines_is_another_image(containerd: Containerd) -> None:
    image = containerd.add((REDIS,), "base")
    index = containerd.add_index(descriptor(containerd.target(image), "vax"))
    containerd.rename(redis=index)
    assert answers(containerd, image.record) == (False, True)
    assert containerd.open().config_of(index) is None
    assert list(containerd.open().images()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"config": {}}', b'{"config": {"digest": 1}}', b'{"config": {"digest": "sha256:.."}}',
        b'{"manifests": 1, "config"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff",
    ],
    ids=range(10),
)  # fmt: skip
def test_a_target_that_makes_no_sense_may_be_this_image_in_pieces(containerd: Containerd, content: bytes) -> None:
    image = containerd.add((REDIS,), "base")
    containerd.rename(redis=containerd.add_blob(content))
    assert answers(containerd, image.record) == (False, False)
    assert containerd.open().config_of(sha(content)) is None
    assert list(containerd.open().images()) == []


def test_indexes_in_indexes_come_to_an_end(containerd: Containerd) -> None:
    image = containerd.add((REDIS,), "base")
    once = containerd.add_index(descriptor(containerd.target(image)))
    twice = containerd.add_index(descriptor(once))
    thrice = containerd.add_index(descriptor(twice))
    found = [containerd.open().config_of(digest) for digest in (once, twice, thrice)]
    assert found == [image.record.config_digest] * 2 + [None]


@pytest.mark.parametrize("how", ["gone", "other", "link", "pipe", "huge"])
def test_an_image_needs_its_manifest(containerd: Containerd, how: str) -> None:
    image = containerd.add((REDIS,), "base")
    path = containerd.blob_path(containerd.target(image))
    whole = path.read_bytes()
    if how == "other":
        path.write_bytes(whole + b" ")
    elif how == "huge":
        os.truncate(path, 1 << 40)
    else:
        path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    if how == "link":
        write(path.with_name("copy"), whole)
        path.symlink_to("copy")
    assert answers(containerd, image.record) == (False, False)


def test_content_is_looked_for_each_time(containerd: Containerd) -> None:
    digest = containerd.add_blob("a packed layer")
    store = containerd.open()
    assert store.has_blob(digest)
    containerd.blob_path(digest).unlink()
    assert not store.has_blob(digest)
    os.mkfifo(containerd.blob_path(digest))
    assert not store.has_blob(digest)
    containerd.blob_path(digest).unlink()
    write(containerd.path / "copy", "a packed layer")
    containerd.blob_path(digest).symlink_to(containerd.path / "copy")
    assert not store.has_blob(digest)


@pytest.mark.parametrize("driver", ["overlayfs", "native", "btrfs", "erofs", "zfs", "devmapper", "blockfile"])
def test_each_snapshotter_has_its_own_directories(tmp_path: Path, driver: str) -> None:
    estate = Containerd(tmp_path / "root", driver)
    image = estate.add((REDIS,), "base", "top")
    assert answers(estate, image.record) == (True, True)
    remove(estate.snapshotter / "snapshots")
    missing = driver in ("overlayfs", "native", "btrfs", "erofs")
    assert answers(estate, image.record) == (not missing, not missing)
    os.close(estate.fd)


@pytest.mark.parametrize("layers", [("base",), ("base", "top")], ids=["lowest", "upper"])
def test_a_layer_has_to_be_known_to_both_databases(containerd: Containerd, layers: tuple[str, ...]) -> None:
    image = containerd.add((REDIS,), *layers)
    written = {path: path.read_bytes() for path in (containerd.meta, containerd.snapshotter / "metadata.db")}
    del containerd.committed[image.record.top_chain]
    containerd.write()
    without = {path: path.read_bytes() for path in written}
    for path in written:
        for each, content in written.items():
            each.write_bytes(without[each] if each == path else content)
        assert not containerd.open().has_chain(image.record.top_chain)
        assert answers(containerd, image.record) == (False, False)


@pytest.mark.parametrize("layers", [("base",), ("base", "top")], ids=["lowest", "upper"])
def test_the_newest_of_two_snapshots_counts(containerd: Containerd, layers: tuple[str, ...]) -> None:
    image = containerd.add((REDIS,), *layers)
    containerd.stale[image.record.top_chain] = 77
    containerd.write()
    assert answers(containerd, image.record) == (True, True)
    (containerd.snapshotter / "snapshots/77/fs").mkdir(parents=True)
    remove(containerd.layer_path(image.record.top_chain))
    assert answers(containerd, image.record) == (False, False)


@pytest.mark.parametrize("how", ["gone", "empty", "zeros", "cut", "link", "pipe", "directory"])
@pytest.mark.parametrize("which", ["meta", "metadata"])
def test_a_database_that_cannot_be_read_is_empty(containerd: Containerd, which: str, how: str) -> None:
    image = containerd.add((REDIS,), "base", "top")
    path = containerd.meta if which == "meta" else containerd.snapshotter / "metadata.db"
    whole = path.read_bytes()
    if how in ("zeros", "cut", "empty"):
        path.write_bytes({"zeros": bytes(len(whole)), "cut": whole[:-PAGE_SIZE], "empty": b""}[how])
    else:
        path.unlink()
    if how == "link":
        write(path.with_name("copy"), whole)
        path.symlink_to("copy")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    assert answers(containerd, image.record) == (False, False)
    assert not containerd.open().has_chain(image.chains[1])
    assert len(list(containerd.open().images())) == (0 if which == "meta" else 1)


def test_links_between_snapshots_that_make_no_sense_end_somewhere(containerd: Containerd) -> None:
    image = containerd.add((REDIS,), "base", "top")
    base, top = (containerd.committed[chain_id] for chain_id in image.chains)
    key = f"moby/{top + 20}/{image.chains[1]}".encode()
    for links in (
        {uvarint(base) + b"\0" + uvarint(top): key, uvarint(top) + b"\0" + uvarint(base): b"x"},
        {b"\xff" * 30: key},
        {b"": key},
        {uvarint(base): key},
    ):
        write(containerd.snapshotter / "metadata.db", bolt_file({b"v1": {b"parents": links, b"snapshots": {}}}))
        assert answers(containerd, image.record) == (False, False)


def test_a_database_is_read_up_to_a_limit(containerd: Containerd, monkeypatch: pytest.MonkeyPatch) -> None:
    image = containerd.add((REDIS,), "base")
    monkeypatch.setattr("cachedind.engine.bolt_file._MAX_BYTES", 24 * PAGE_SIZE)
    store = containerd.open()
    names = [store.keeps(Record((f"docker.io/library/none:{number}",), "", "")) for number in range(20)]
    assert not any(names)
    assert store.keeps(image.record), "however many names were asked for"
    monkeypatch.setattr("cachedind.engine.bolt_file._MAX_BYTES", 8 * PAGE_SIZE)
    assert not containerd.open().keeps(image.record)


def test_records_that_cannot_be_read_are_not_taken_for_none(
    containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next job would see the images of the last one."""
    containerd.add((REDIS,), "base")
    assert ContainerdView(containerd.fd, containerd.driver).plan(View({}), frozenset()).names == (REDIS,)
    monkeypatch.setattr("cachedind.engine.bolt_file._MAX_BYTES", 8 * PAGE_SIZE)
    with pytest.raises(CleaningError, match="the records of the last job's images cannot be read"):
        ContainerdView(containerd.fd, containerd.driver).plan(View({}), frozenset())


def test_one_job_may_have_thousands_of_images(containerd: Containerd) -> None:
    names = {f"docker.io/library/app:{number}": sha(str(number)) for number in range(2500)}
    containerd.names.update(names)
    containerd.write()
    assert ContainerdStore(containerd.fd, containerd.driver).targets() == names


def test_names_that_are_none_are_left_out(containerd: Containerd) -> None:
    image = containerd.add((), "base")
    target = containerd.target(image)
    digest = f"docker.io/library/redis@{target}"
    for name in (REDIS, digest, f"moby-dangling@{target}", "Bad Name\n:1", "docker.io/library/nginx"):
        containerd.names[name] = target
    containerd.names["docker.io/library/lost:1"] = "sha256:../../x"
    containerd.write()
    (stored,) = containerd.open().images()
    assert stored.names == (REDIS,)
    assert sorted(stored.repo_digests) == sorted({digest, f"docker.io/library/nginx@{target}"})


def test_a_dangling_image_has_no_names(containerd: Containerd) -> None:
    image = containerd.add((), "base")
    containerd.names[f"moby-dangling@{containerd.target(image)}"] = containerd.target(image)
    containerd.write()
    (stored,) = containerd.open().images()
    assert (stored.names, stored.repo_digests, stored.config) == ((), (), image.config)
