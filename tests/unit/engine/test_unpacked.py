"""Files that a crash of the host has emptied in what the containerd store has unpacked are found by the blobs, and
written again; what is whole passes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from cachedind.engine import blobs, hollow, paths, unpacked
from cachedind.engine.containerd_store import ContainerdStore

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FILES = {"bin/tool": b"#!tool" * 999, "etc/empty": b"", "etc/a": b"a"}
PACKINGS: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gzip": gzip.compress, "zstd": zstd.compress}


Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Entry:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mtime = len(content), kind, link, 1_000_000
    return info, content


class Unpacked:
    """One layer, packed and unpacked, as an image would name it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = paths.snapshots("overlayfs") + "/7/fs"
        self.fs = root / self.home
        self.layers: dict[int, list[str]] = {}

    def lay(self, more: list[Entry], pack: Callable[[bytes], bytes] = bytes) -> None:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for info, content in [*(entry(f"./{name}", content) for name, content in FILES.items()), *more]:
                tar.addfile(info, io.BytesIO(content))
        blob = pack(raw.getvalue())
        digest = hashlib.sha256(blob).hexdigest()
        (self.root / paths.BLOBS).mkdir(parents=True)
        (self.root / paths.BLOBS / digest).write_bytes(blob)
        for name, content in FILES.items():
            (self.fs / name).parent.mkdir(parents=True, exist_ok=True)
            (self.fs / name).write_bytes(content)
        self.layers[7] = [f"sha256:{digest}"]

    def find(self, fd: int, time_s: float = 60.0) -> hollow.Found:
        return unpacked.compare(fd, "overlayfs", blobs.find(fd), until=time.monotonic() + time_s)


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unpacked:
    made = Unpacked(tmp_path)
    monkeypatch.setattr(ContainerdStore, "unpacked", lambda _: made.layers)
    return made


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_whole_layer_passes(layer: Unpacked, root_fd: int, packing: str) -> None:
    more = [
        entry("etc/.wh.gone"),
        entry("etc/hard", kind=tarfile.LNKTYPE, link="bin/tool"),
        entry("lib", kind=tarfile.SYMTYPE, link="bin"),
        # Behind a link: it is not there under that name.
        entry("lib/other", b"other"),
        # Twice in one archive: the last one counts, whatever it is.
        entry("etc/twice", b"longer"),
        entry("etc/twice", b"1"),
        entry("etc/none", b"longer"),
        entry("etc/.wh.none"),
        entry("etc/now-a-link", b"longer"),
        entry("etc/now-a-link", kind=tarfile.SYMTYPE, link="a"),
        entry(f"deep/{'long' * 60}", b"x"),
    ]
    layer.lay(more, PACKINGS[packing])
    (layer.fs / "lib").symlink_to("bin")
    for name, content in (("bin/other", b"other"), ("etc/twice", b"1"), ("etc/none", b"")):
        (layer.fs / name).write_bytes(content)
    (layer.fs / "etc/now-a-link").symlink_to("a")
    assert layer.find(root_fd)[:3] == ({}, {}, ())
    assert layer.find(root_fd).short == ()


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_shortened_file_is_written_again_and_stays_what_it_was(layer: Unpacked, root_fd: int, packing: str) -> None:
    layer.lay([], PACKINGS[packing])
    tool, other = layer.fs / "bin/tool", layer.fs / "bin/other-name"
    tool.chmod(0o4751)
    os.link(tool, other)
    os.truncate(tool, 17)
    os.truncate(layer.fs / "etc/a", 0)
    os.setxattr(layer.fs / "etc/a", "user.mark", b"m")
    number = tool.stat().st_ino
    [short] = layer.find(root_fd).short
    assert short.path == layer.home
    assert set(short.files) == {"bin/tool", "etc/a"}
    assert "bin/tool: it has 17 bytes instead of 5994 (and 1 more)" in short.why
    unpacked.write_again(root_fd, short)
    assert tool.read_bytes() == other.read_bytes() == FILES["bin/tool"]
    assert (tool.stat().st_ino, tool.stat().st_mode & 0o7777, tool.stat().st_mtime) == (number, 0o4751, 1_000_000)
    assert (layer.fs / "etc/a").read_bytes() == b"a"
    assert os.getxattr(layer.fs / "etc/a", "user.mark") == b"m"
    assert layer.find(root_fd).short == ()


def test_what_is_longer_or_gone_is_nothing_that_a_crash_leaves_here(layer: Unpacked, root_fd: int) -> None:
    layer.lay([])
    (layer.fs / "bin/tool").write_bytes(FILES["bin/tool"] + b"more")
    (layer.fs / "etc/a").unlink()
    assert layer.find(root_fd).short == ()


def test_a_blob_that_is_bad_itself_says_nothing(layer: Unpacked, root_fd: int) -> None:
    layer.lay([])
    (layer.fs / "etc/a").write_bytes(b"")
    [blob] = (layer.root / paths.BLOBS).iterdir()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    found = layer.find(root_fd)
    assert found.short == ()
    assert found.unchecked == ("1 of 1 unpacked layers (no image lists their files)",)


def test_without_time_nothing_is_bad(layer: Unpacked, root_fd: int) -> None:
    layer.lay([])
    (layer.fs / "etc/a").write_bytes(b"")
    found = layer.find(root_fd, time_s=0)
    assert found.short == ()
    assert found.unchecked == ("1 of 1 unpacked layers (no time left)",)
    assert (found.late, found.looked) == (True, found.whole)


def test_what_was_looked_at_before_is_not_looked_at_again(layer: Unpacked, root_fd: int) -> None:
    layer.lay([])
    looked = blobs.find(root_fd).whole | {"snapshot 7"}
    found = unpacked.compare(root_fd, "overlayfs", blobs.find(root_fd), until=0.0, looked=looked)
    assert (found.late, found.short, found.unchecked) == (False, (), ())


def test_time_for_layers_is_up_when_it_was_for_blobs(layer: Unpacked, root_fd: int) -> None:
    layer.lay([])
    late = blobs.find(root_fd, time_s=0)
    found = unpacked.compare(root_fd, "overlayfs", late, until=time.monotonic() + 60)
    assert (found.late, found.looked) == (True, frozenset())


@pytest.mark.parametrize(
    "raw", [b"no archive", gzip.compress(b"x" * 9)[:-4], b"\x28\xb5\x2f\xfdxxxx"], ids=["text", "cut", "zstd"]
)
def test_what_is_no_archive_says_nothing(layer: Unpacked, root_fd: int, raw: bytes) -> None:
    layer.lay([], lambda _: raw)
    assert layer.find(root_fd).short == ()


def test_links_that_a_job_has_planted_are_not_followed(
    layer: Unpacked, root_fd: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layer.lay([])
    victim = tmp_path_factory.mktemp("victim") / "a"
    victim.write_bytes(b"")
    (layer.fs / "etc/a").unlink()
    (layer.fs / "etc/a").symlink_to(victim)
    assert layer.find(root_fd).short == ()
    unpacked.write_again(root_fd, hollow.Short(layer.home, layer.layers[7][0], {}, ""))
    with pytest.raises(OSError, match="symbolic links"):
        unpacked.write_again(root_fd, hollow.Short(layer.home, layer.layers[7][0], {"etc/a": 2}, ""))
    assert victim.read_bytes() == b""
