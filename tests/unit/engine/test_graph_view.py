"""The fresh view with graph drivers: which names and records stay, go and come back."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.engine import fresh_images, graph_view, pins
from cachedind.engine.fresh_images import Unused, View
from cachedind.engine.graph_view import GraphView, plan_view

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
NOTHING = View({})
REDIS = "docker.io/library/redis:7"


def test_all_goes_that_nobody_names() -> None:
    before = {"app": {"app:1": A, "app:2": A, "app@sha256:1": A}, "base": {"base:latest": B}}
    plan = plan_view(before, frozenset({A, B, C}), frozenset(), NOTHING)
    assert plan.repositories == {}
    assert plan.hidden == {A: ("app:1", "app:2", "app@sha256:1"), B: ("base:latest",), C: ()}
    assert plan.shown == frozenset()


@pytest.mark.parametrize(
    ("before", "there", "unused"),
    [
        ({"redis": {"redis:7": A}}, {A}, set()),  # as it was
        ({}, {A}, set()),  # its name was removed
        ({"redis": {"redis:7": B}}, {A, B}, set()),  # its name was given to another image
        ({"redis": {"redis:7": A}, "mine": {"mine:1": A}}, {A}, set()),  # it was given another name
        ({"redis": {"redis:7": B}}, {B}, {A}),  # a job without seeds was before this one
    ],
    ids=["untouched", "untagged", "retagged", "tagged", "hidden"],
)
def test_seeds_are_there_by_their_names_alone(
    before: graph_view.Repositories, there: set[str], unused: set[str]
) -> None:
    plan = plan_view(before, frozenset(there), frozenset(unused), View({REDIS: A}))
    assert plan.repositories == {"redis": {"redis:7": A}}
    assert plan.hidden.keys() == there - {A}
    assert plan.shown == unused


def test_a_seed_that_is_gone_is_for_seeding_to_put_in() -> None:
    plan = plan_view({"redis": {"redis:7": B}}, frozenset({B}), frozenset(), View({REDIS: A}))
    assert (plan.repositories, plan.hidden, plan.shown) == ({}, {B: ("redis:7",)}, frozenset())


def test_images_of_kept_containers_keep_their_names() -> None:
    before = {"app": {"app:1": A, "app:2": B}, "registry.example.com:5000/x": {"registry.example.com:5000/x:1": A}}
    plan = plan_view(before, frozenset({A, B}), frozenset(), View({}, frozenset({A})))
    assert plan.repositories == {
        "app": {"app:1": A},
        "registry.example.com:5000/x": {"registry.example.com:5000/x:1": A},
    }
    assert plan.hidden == {B: ("app:2",)}


# ---- on disk ---------------------------------------------------------------------------------------------------------


class Disk:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.view = GraphView(self.fd, "overlay2")

    def add(self, image: str, *names: str) -> None:
        for place in (f"content/sha256/{image[7:]}", f"metadata/sha256/{image[7:]}/lastUpdated"):
            path = self.path / "image/overlay2/imagedb" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(image)
        for name in names:
            self.write({**self.read(), name.partition(":")[0]: {name: image}})

    def pins(self) -> dict[str, str]:
        """By image what is below its pin."""
        mounts = self.path / "image/overlay2/layerdb/mounts"
        found = sorted(mounts.iterdir()) if mounts.exists() else []
        assert all(re.fullmatch("[0-9a-f]{64}", (pin / "mount-id").read_text()) for pin in found)
        return {f"sha256:{pin.name.removeprefix('cachedind-')}": (pin / "parent").read_text() for pin in found}

    def show(self, view: View) -> None:
        plan = self.view.plan(view)
        self.view.apply(plan, dict.fromkeys(plan.hidden, 5.0))

    @property
    def names_file(self) -> Path:
        return self.path / "image/overlay2/repositories.json"

    def read(self) -> graph_view.Repositories:
        found: graph_view.Repositories = (
            json.loads(self.names_file.read_text())["Repositories"] if self.names_file.exists() else {}
        )
        return found

    def write(self, repositories: graph_view.Repositories) -> None:
        self.names_file.write_text(json.dumps({"Repositories": repositories}))

    def records(self) -> dict[str, set[str]]:
        below = {
            "content": "image/overlay2/imagedb/content/sha256",
            "metadata": "image/overlay2/imagedb/metadata/sha256",
            "unused": graph_view.UNUSED,
        }
        return {
            name: {f"sha256:{entry}" for entry in os.listdir(self.path / path)}
            if (self.path / path).exists()
            else set()
            for name, path in below.items()
        }


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path)
    yield found
    os.close(found.fd)


def test_records_go_and_come_back(disk: Disk) -> None:
    disk.add(A, "redis:7")
    disk.add(B, "app:1")
    disk.show(NOTHING)
    assert disk.read() == {}
    assert disk.records() == {"content": set(), "metadata": set(), "unused": {A, B}}
    assert disk.view.unused() == {A, B}
    assert fresh_images.read_unused(disk.fd) == {A: Unused(5.0, ("redis:7",)), B: Unused(5.0, ("app:1",))}

    disk.show(View({REDIS: A}))
    assert disk.read() == {"redis": {"redis:7": A}}
    assert disk.records()["content"] == {A}
    assert (disk.path / "image/overlay2/imagedb/content/sha256" / A[7:]).read_text() == A
    assert disk.view.unused() == {B}


def test_what_a_job_got_again_goes_again(disk: Disk) -> None:
    disk.add(A, "app:1")
    disk.show(NOTHING)
    disk.add(A, "app:2")
    assert disk.view.unused() == frozenset()
    disk.show(NOTHING)
    assert disk.view.unused() == {A}
    assert fresh_images.read_unused(disk.fd) == {A: Unused(5.0, ("app:2",))}


def test_nothing_is_written_where_nothing_changes(disk: Disk) -> None:
    disk.add(A, "redis:7")
    before = disk.names_file.stat()
    disk.show(View({REDIS: A}))
    after = disk.names_file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert not (disk.path / ".cachedind").exists()


def test_an_engine_gets_records_back_and_some_are_forgotten(disk: Disk) -> None:
    disk.add(A, "app:1")
    disk.add(B, "app:2")
    disk.show(NOTHING)
    disk.view.bring_back(frozenset({A}))
    assert disk.records() == {"content": {A}, "metadata": set(), "unused": {B}}
    (disk.path / "image/overlay2/imagedb/content/sha256" / A[7:]).unlink()  # the engine has removed it
    disk.show(NOTHING)
    disk.view.forget(frozenset({A, B}))
    assert disk.records() == {"content": set(), "metadata": set(), "unused": set()}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"Repositories": []}', '{"Repositories": {"a": 1}}'])
def test_names_that_cannot_be_read_are_none(disk: Disk, text: str) -> None:
    disk.add(A)
    disk.names_file.write_text(text)
    disk.show(NOTHING)
    assert disk.view.unused() == {A}


def test_layers_of_what_is_hidden_have_one_more_user(disk: Disk) -> None:
    layers = {"rootfs": {"diff_ids": [B, C]}}
    disk.add(A, "app:1")
    disk.add(B, "scratch:1")
    (disk.path / "image/overlay2/imagedb/content/sha256" / A[7:]).write_text(json.dumps(layers))
    half = disk.path / "image/overlay2/layerdb/mounts/cachedind-half"  # of a start that was killed
    half.mkdir(parents=True)
    (half / "mount-id").write_text("a")
    disk.show(NOTHING)
    top = f"sha256:{hashlib.sha256(f'{B} {C}'.encode()).hexdigest()}"
    assert disk.pins() == {A: top}, "the other one has no layer"
    disk.show(View({REDIS: A}))
    assert disk.pins() == {}
    disk.show(NOTHING)
    assert disk.pins() == {A: top}
    disk.view.bring_back(frozenset({A}))
    assert disk.pins() == {}, "an engine would keep the layers"


def test_a_pin_that_a_crash_emptied_is_made_anew(disk: Disk) -> None:
    """And nothing else: its files may be names of one file, in a clone, too."""
    for image, layer in ((A, B), (B, C), (C, A)):
        disk.add(image)
        config = disk.path / "image/overlay2/imagedb/content/sha256" / image[7:]
        config.write_text(json.dumps({"rootfs": {"diff_ids": [layer]}}))
    disk.show(NOTHING)
    assert disk.pins() == {A: B, B: C, C: A}
    files = {image: disk.path / f"image/overlay2/layerdb/mounts/cachedind-{image[7:]}/parent" for image in (A, B, C)}
    clone = disk.path / "clone"
    os.link(files[A], clone)
    healthy = files[B].stat()
    files[A].unlink()
    files[A].write_text("")
    files[C].write_text("")
    (disk.path / graph_view.UNUSED / C[7:]).write_text("")  # of an image that cannot be read any more
    for _ in range(2):
        disk.view.mend_pins()
        assert disk.pins() == {A: B, B: C}
        assert files[B].stat() == healthy
        assert clone.read_text() == B


def test_a_start_that_is_killed_amid_that_leaves_the_rest_to_the_next(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.add(A)
    (disk.path / "image/overlay2/imagedb/content/sha256" / A[7:]).write_text(json.dumps({"rootfs": {"diff_ids": [B]}}))
    disk.show(NOTHING)
    (disk.path / f"image/overlay2/layerdb/mounts/cachedind-{A[7:]}/parent").write_text("")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pins, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            disk.view.mend_pins()
    assert disk.pins() == {}
    disk.view.mend_pins()
    assert disk.pins() == {A: B}


def test_an_emptied_pin_of_what_was_never_put_away_goes(disk: Disk) -> None:
    """Of a start that was killed before, the first one to hide anything: the image has its own record."""
    pin = disk.path / f"image/overlay2/layerdb/mounts/cachedind-{A[7:]}"
    pin.mkdir(parents=True)
    (pin / "parent").write_text("")
    disk.view.mend_pins()
    assert disk.pins() == {}


def test_manifests_go_by_which_a_pull_asks_no_registry(disk: Disk) -> None:
    blob = disk.path / "containerd/daemon/io.containerd.content.v1.content/blobs/sha256" / A[7:]
    records = disk.path / "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db"
    for path in (blob, records):
        path.parent.mkdir(parents=True)
        path.write_text("x")
    disk.show(NOTHING)
    assert blob.exists(), "no image was there"
    disk.add(A, "app:1")
    snapshot = disk.path / "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots/1"
    snapshot.mkdir(parents=True)
    disk.show(NOTHING)
    assert blob.exists(), "the other store's"
    snapshot.rmdir()
    disk.add(B, "app:2")
    disk.show(NOTHING)
    assert not blob.exists()
    assert not records.exists()


def test_links_lead_nowhere(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / A[7:]).write_text("theirs")
    above = disk.path / "image/overlay2/imagedb/content"
    above.mkdir(parents=True)
    (above / "sha256").symlink_to(outside)
    (disk.path / ".cachedind").mkdir()
    (disk.path / ".cachedind/unused").symlink_to(outside)
    disk.show(NOTHING)
    assert (outside / A[7:]).read_text() == "theirs"
    assert disk.view.unused() == frozenset()
