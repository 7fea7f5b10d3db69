"""Hiding images, whatever the store: what stays in sight, when a job had what, and what is too old."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import pytest

from cachedind.base.model import ImageStore, StoragePlan
from cachedind.base.trace import NOWHERE
from cachedind.engine import fresh_images, hiding, image_uses
from cachedind.engine.containerd_view import Client
from cachedind.engine.fresh_images import Unused, View
from cachedind.engine.hiding import Wish

A, B, C, D = (f"sha256:{letter * 64}" for letter in "abcd")
STORAGE = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
NOW, AGE = 1_000_000.0, 1000.0
NAMES = "image/overlay2/repositories.json"
NOTHING = View({})
CONTAINERD = cast("Client", None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "image/overlay2").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def root_fd(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def put(root: Path, directory: str, image: str) -> None:
    (root / directory).mkdir(parents=True, exist_ok=True)
    (root / directory / image[7:]).write_text("{}")


def seen(root: Path, **names: str) -> None:
    """Images that the last job saw, by name."""
    for image in names.values():
        put(root, "image/overlay2/imagedb/content/sha256", image)
    repositories = {name: {f"{name}:1": image} for name, image in names.items()}
    (root / NAMES).write_text(json.dumps({"Repositories": repositories}))


def unused(root: Path, root_fd: int, **known: float) -> None:
    """Images that no job sees (the words are letters of digests), and when one had them."""
    images = {f"sha256:{letter * 64}": Unused(at, ()) for letter, at in known.items()}
    for image in images:
        put(root, ".cachedind/unused", image)
    fresh_images.add_unused(root_fd, images, keep=frozenset())


def wish(view: View | None = NOTHING, used_at: float = NOW, **uses: float) -> Wish:
    return Wish(view, {f"sha256:{letter * 64}": at for letter, at in uses.items()}, used_at, NOW, AGE)


def begin(root_fd: int, wanted: Wish) -> hiding.Hiding:
    found = hiding.begin(root_fd, STORAGE, wanted, NOWHERE)
    assert found is not None
    return found


def run(found: hiding.Hiding, remove: Callable[[Iterable[str]], frozenset[str]] = frozenset) -> None:
    """All of it, with an engine that removes what it is asked to."""
    if found.needs_daemon:
        found.prepare(everything=False)
        found.amid(remove, CONTAINERD)
    found.finish(NotImplemented)


def left(root: Path, directory: str = ".cachedind/unused") -> set[str]:
    return {f"sha256:{name}" for name in os.listdir(root / directory)}


def test_a_use_that_any_job_of_the_key_has_noted_counts(root: Path, root_fd: int) -> None:
    unused(root, root_fd, a=NOW - 3 * AGE, b=NOW - 3 * AGE, c=NOW - 3 * AGE, d=NOW - AGE / 2)
    image_uses.note(root_fd, [C], NOW - AGE / 4)
    found = begin(root_fd, wish(b=NOW - AGE / 2))
    assert found.expired == {A}
    run(found)
    assert left(root) == {B, C, D}


def test_what_the_last_job_had_is_not_old(root: Path, root_fd: int) -> None:
    """It had A again, which jobs before that had long ago, and has B no more."""
    unused(root, root_fd, a=NOW - 3 * AGE, b=NOW - 3 * AGE)
    seen(root, app=A)
    found = begin(root_fd, wish(used_at=NOW - 5))
    assert found.seen == {A}
    assert found.expired == {B}
    run(found)
    assert left(root) == {A}
    assert fresh_images.read_unused(root_fd)[A] == Unused(NOW - 5, ("app:1",))


def test_what_an_engine_could_not_remove_is_hidden_again(root: Path, root_fd: int) -> None:
    unused(root, root_fd, a=NOW - 3 * AGE)
    for _ in range(2):
        found = begin(root_fd, wish())
        assert found.needs_daemon
        run(found, lambda images: frozenset())
        assert left(root) == {A}
        assert left(root, "image/overlay2/imagedb/content/sha256") == set()


def test_an_engine_that_does_not_come_up_leaves_all_as_it_was(root: Path, root_fd: int) -> None:
    unused(root, root_fd, a=NOW - 3 * AGE, b=NOW)
    seen(root, app=C)
    found = begin(root_fd, wish())
    found.prepare(everything=True)
    found.finish(NotImplemented)
    assert left(root) == {A, B, C}
    assert fresh_images.read_unused(root_fd)[A].used_at == NOW - 3 * AGE


def test_where_images_are_kept_those_that_are_hidden_stay_so_and_get_old(root: Path, root_fd: int) -> None:
    seen(root, app=C, base=D)
    before = (root / NAMES).read_text()
    assert hiding.begin(root_fd, STORAGE, wish(None), NOWHERE) is None, "nothing was ever hidden"

    unused(root, root_fd, a=NOW - 3 * AGE, b=NOW)
    found = begin(root_fd, wish(None))
    assert found.seen == frozenset()
    assert found.expired == {A}
    run(found)
    assert left(root) == {B}
    assert left(root, "image/overlay2/imagedb/content/sha256") == {C, D}
    assert json.loads((root / NAMES).read_text()) == json.loads(before)


@pytest.mark.parametrize(
    ("store", "path"),
    [
        (ImageStore.GRAPHDRIVER, NAMES),
        (ImageStore.CONTAINERD, "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db"),
    ],
)
def test_when_the_records_changed_last(root: Path, root_fd: int, store: ImageStore, path: str) -> None:
    storage = StoragePlan(store, "overlay2" if store is ImageStore.GRAPHDRIVER else "overlayfs", "")
    assert hiding.read_last_change(root_fd, storage) == 0.0
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b"records")
    os.utime(root / path, (NOW, NOW))
    assert hiding.read_last_change(root_fd, storage) == NOW
    (root / path).unlink()
    (root / path).symlink_to("/etc/passwd")
    assert hiding.read_last_change(root_fd, storage) == 0.0
