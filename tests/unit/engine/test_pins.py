"""Pins of images that no job sees: what an engine reads of them, and what a kill, a crash or a job leaves there."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from cachedind.engine import pins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
TOP, OTHER = (f"sha256:{digit * 64}" for digit in "12")


class Root:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.mounts = path / "image/overlay2/layerdb/mounts"
        self.metadata = path / "image/overlay2/imagedb/metadata/sha256"
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def add_metadata(self, image: str, **files: str) -> Path:
        found = self.metadata / image[7:]
        found.mkdir(parents=True)
        for name, text in {"lastUpdated": "2026-01-01T00:00:00Z", **files}.items():
            (found / name).write_text(text)
        return found

    def add(self, tops: dict[str, str]) -> None:
        pins.add(self.fd, "overlay2", tops)

    def pin(self, image: str) -> Path:
        return self.mounts / f"cachedind-{image[7:]}"

    def read(self) -> dict[str, tuple[str, str]]:
        return {
            f"sha256:{pin.name.removeprefix('cachedind-')}": (
                (pin / "parent").read_text(),
                (pin / "mount-id").read_text(),
            )
            for pin in self.mounts.iterdir()
        }


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    found = Root(tmp_path)
    yield found
    os.close(found.fd)


def test_a_pin_is_what_an_engine_reads_of_a_container(root: Root) -> None:
    root.add_metadata(A)
    root.add({A: TOP, B: OTHER, C: TOP})
    nothing = "0" * 64
    assert root.read() == {A: (TOP, nothing), B: (OTHER, nothing), C: (TOP, nothing)}
    assert not list(root.metadata.iterdir()), "its record goes with the image"
    pins.remove(root.fd, "overlay2", [A, C])
    assert root.read() == {B: (OTHER, nothing)}


def test_the_image_below_is_not_the_layer_below(root: Root) -> None:
    """The classic builder notes an image's parent in a file of the same name."""
    outside = root.path / "outside"
    outside.write_text("theirs")
    root.add_metadata(A, parent=B)
    (root.add_metadata(B) / "parent").symlink_to(outside)
    (root.add_metadata(C) / "parent").mkdir()
    root.add({A: TOP, B: TOP, C: OTHER})
    assert {image: top for image, (top, _) in root.read().items()} == {A: TOP, B: TOP, C: OTHER}
    assert outside.read_text() == "theirs"


def test_a_link_in_place_of_the_record_leads_nowhere(root: Root) -> None:
    outside = root.path / "outside"
    outside.mkdir()
    root.metadata.mkdir(parents=True)
    (root.metadata / A[7:]).symlink_to(outside)
    root.add({A: TOP})
    assert root.read()[A][0] == TOP
    assert not list(outside.iterdir())


def test_where_directories_of_an_image_s_own_layer_are_not_renamed(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """On overlayfs."""
    root.add_metadata(A)
    rename = os.rename

    def refuse(source: str, target: str, **more: int) -> None:
        if not source.startswith("cachedind-"):
            raise OSError(errno.EXDEV, "refused")
        rename(source, target, **more)

    monkeypatch.setattr(os, "rename", refuse)
    root.add({A: TOP, B: OTHER})
    assert {image: top for image, (top, _) in root.read().items()} == {A: TOP, B: OTHER}


def test_no_file_gets_a_name_with_each_image(root: Root) -> None:
    """A clone has a link to each file of a pin, and a file has not any number of names."""
    root.add({A: TOP, B: TOP})
    assert {path.stat().st_nlink for image in (A, B) for path in root.pin(image).iterdir()} == {1}


def test_a_half_one_is_not_left(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.add_metadata(A)
    root.add_metadata(B)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pins, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            root.add({A: TOP})
    assert os.listdir(root.mounts) == ["cachedind-half"]
    root.add({A: TOP, B: OTHER})
    assert {image: top for image, (top, _) in root.read().items()} == {A: TOP, B: OTHER}


def test_what_is_pinned_stays(root: Root) -> None:
    root.add({A: TOP})
    before = (root.pin(A) / "parent").stat()
    root.add({A: TOP, B: OTHER})
    assert (root.pin(A) / "parent").stat() == before


def test_what_a_crash_emptied_is_found(root: Root) -> None:
    images = {f"sha256:{number:064x}": TOP for number in range(1, 7)}
    root.add({**images, A: TOP, B: OTHER})
    emptied = list(map(root.pin, images))
    (emptied[0] / "parent").unlink()
    (emptied[1] / "parent").write_text("")
    (emptied[2] / "parent").write_bytes(b"\0" * 71)
    (emptied[3] / "mount-id").unlink()
    (emptied[3] / "mount-id").write_text("")
    for path in emptied[4].iterdir():
        path.unlink()
    (emptied[5] / "parent").unlink()
    (emptied[5] / "parent").symlink_to("/etc/hostname")
    (root.mounts / "a-container").mkdir()
    (root.mounts / "cachedind-half").mkdir()
    assert sorted(pins.find_emptied(root.fd, "overlay2")) == sorted(images)
