"""Layers that a crash of the host has emptied are found by their lists; what is whole passes, whatever its age."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

from cachedind.engine import hollow

if TYPE_CHECKING:
    from pathlib import Path

HOME = "image/overlay2/layerdb/sha256"


class Layers:
    """Layers of a graph driver, as far as anybody looks."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self, name: str, files: dict[str, bytes], parent: str = "", more: list[dict[str, object]] | None = None
    ) -> str:
        chain = hashlib.sha256(name.encode()).hexdigest()
        record, diff = self.root / HOME / chain, self.root / "overlay2" / name / "diff"
        record.mkdir(parents=True)
        diff.mkdir(parents=True)
        (record / "cache-id").write_text(name)
        if parent:
            (record / "parent").write_text(f"sha256:{parent}")
        lines: list[dict[str, object]] = [{"type": 2, "payload": "AAAA", "position": 0}]
        for path, content in files.items():
            (diff / path).parent.mkdir(parents=True, exist_ok=True)
            (diff / path).write_bytes(content)
            lines.append({"type": 1, "name": f"./{path}", "size": len(content), "payload": "crc", "position": 1})
        lines += more or []
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        (record / "tar-split.json.gz").write_bytes(gzip.compress(text.encode()))
        return chain

    def find(self, time_s: float = hollow.TIME_S, looked: frozenset[str] = frozenset()) -> hollow.Found:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return hollow.find_layers(fd, "overlay2", time_s=time_s, looked=looked)
        finally:
            os.close(fd)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def test_whole_layers_pass(layers: Layers) -> None:
    raw_name = base64.b64encode(b"calf\xe9").decode()
    more: list[dict[str, object]] = [
        {"type": 1, "name": "etc/", "position": 2},
        {"type": 1, "name": "hard-link", "position": 3},
        {"type": 1, "name": ".wh.gone", "position": 4},
        {"type": 1, "name_raw": raw_name, "size": 3, "position": 5},
        # Twice in one archive: the last one counts.
        {"type": 1, "name": "bin/tool", "size": 99, "position": 6},
        {"type": 1, "name": "bin/tool", "size": 4, "position": 7},
    ]
    base = layers.add("base", {"bin/tool": b"tool", "etc/empty": b""}, more=more)
    (layers.root / "overlay2" / "base" / "diff" / os.fsdecode(b"calf\xe9")).write_bytes(b"abc")
    layers.add("top", {"x": b"y"}, parent=base)
    assert layers.find() == hollow.Found()


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "0 bytes instead of 4"), (b"to", "2 bytes"), (None, "it is gone")], ids=str
)
def test_an_emptied_file_costs_its_layer_and_what_lies_on_it_alone(
    layers: Layers, content: bytes | None, says: str
) -> None:
    base = layers.add("base", {"bin/tool": b"tool"})
    top = layers.add("top", {"x": b"y"}, parent=base)
    layers.add("other", {"z": b"z"})
    path = layers.root / "overlay2" / "base" / "diff" / "bin" / "tool"
    path.unlink() if content is None else path.write_bytes(content)
    found = layers.find()
    assert sorted(found.bad) == sorted([f"{HOME}/{base}", f"{HOME}/{top}"])
    assert says in found.bad[f"{HOME}/{base}"]
    assert not found.cached
    (layers.root / "buildkit").mkdir()
    (layers.root / "buildkit" / "snapshots.db").write_text(f"… sha256:{top} …")
    assert layers.find().cached


@pytest.mark.parametrize("raw", [b"", b"garbage", gzip.compress(b'{"type":1')[:-4]], ids=["empty", "garbage", "cut"])
def test_a_list_that_cannot_be_read_is_what_a_crash_leaves(layers: Layers, raw: bytes) -> None:
    chain = layers.add("base", {"a": b"a"})
    (layers.root / HOME / chain / "tar-split.json.gz").write_bytes(raw)
    assert list(layers.find().bad) == [f"{HOME}/{chain}"]


def test_what_a_container_lies_on_stays_and_is_told(layers: Layers) -> None:
    base = layers.add("base", {"a": b"a"})
    top = layers.add("top", {"b": b"b"}, parent=base)
    mount = layers.root / "image/overlay2/layerdb/mounts/c0ffee"
    mount.mkdir(parents=True)
    (mount / "parent").write_text(f"sha256:{top}")
    (layers.root / "overlay2" / "base" / "diff" / "a").write_bytes(b"")
    found = layers.find()
    assert found.bad == {}
    assert sorted(found.held) == sorted([f"{HOME}/{base}", f"{HOME}/{top}"])


def test_what_has_no_list_is_counted_and_not_bad(layers: Layers) -> None:
    chain = layers.add("base", {"a": b"a"})
    (layers.root / HOME / chain / "tar-split.json.gz").unlink()
    (layers.root / "overlay2" / "l").mkdir()
    (layers.root / "overlay2" / "of-the-build-cache" / "diff").mkdir(parents=True)
    found = layers.find()
    assert (found.bad, found.held) == ({}, {})
    assert found.unchecked == ("1 layers of the build cache alone, which have no list of their files",)


def test_without_time_nothing_is_bad(layers: Layers) -> None:
    layers.add("base", {"a": b"a"})
    (layers.root / "overlay2" / "base" / "diff" / "a").write_bytes(b"")
    found = layers.find(time_s=0)
    assert found.bad == {}
    assert found.unchecked == ("1 of 1 layers (no time left)",)


@pytest.mark.parametrize("link", [True, False], ids=["behind a link", "behind a link of a layer below"])
def test_what_is_there_under_another_name_is_not_gone(layers: Layers, link: bool) -> None:
    chain = layers.add("base", {"usr/lib/a": b"a"}, more=[{"type": 1, "name": "lib/b", "size": 1, "position": 2}])
    diff = layers.root / "overlay2" / "base" / "diff"
    (diff / "usr/lib/b").write_bytes(b"b")
    if link:
        (diff / "lib").symlink_to("usr/lib")
    assert layers.find().bad == {}, chain


def test_links_that_a_job_has_planted_are_not_followed(
    layers: Layers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    victim = tmp_path_factory.mktemp("victim")
    (victim / "a").write_bytes(b"")
    layers.add("base", {"d/a": b"long"})
    directory = layers.root / "overlay2" / "base" / "diff" / "d"
    (directory / "a").unlink()
    directory.rmdir()
    directory.symlink_to(victim)
    assert "instead of" not in str(layers.find().bad)


def test_what_was_looked_at_before_is_not_looked_at_again(layers: Layers) -> None:
    names = [layers.add(name, {"a": b"a"}) for name in ("one", "two")]
    late = layers.find(0, frozenset(names[:1]))
    assert (late.late, late.looked) == (True, frozenset(names[:1]))
    assert late.unchecked == ("1 of 2 layers (no time left)",)
    assert layers.find(0, frozenset(names)) == layers.find() == hollow.Found()


def test_what_has_no_list_is_no_matter_of_time(layers: Layers) -> None:
    chain = layers.add("base", {"a": b"a"})
    (layers.root / HOME / chain / "tar-split.json.gz").unlink()
    (layers.root / "overlay2" / "cached").mkdir()
    found = layers.find()
    assert found.unchecked
    assert not found.late
