"""Compressed seeds come out whole or not at all, and never larger than there is room for."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import random
from typing import TYPE_CHECKING

import pytest

from cachedind.seeds import compression, seed_file
from cachedind.seeds.compression import Packing
from cachedind.seeds.model import SeedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROOM = 1 << 30
PIECE = 1 << 16
# Several pieces before and after, some of it easy to compress.
RAW = random.Random(1).randbytes(150_000) + b"abc" * 70_000


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_file, "CHUNK_BYTES", PIECE)


def zstd(raw: bytes) -> bytes:
    from backports.zstd import CompressionParameter, compress

    return compress(raw, options={CompressionParameter.checksum_flag: 1})


PACK: dict[Packing, Callable[[bytes], bytes]] = {
    Packing.GZIP: gzip.compress,
    Packing.XZ: lzma.compress,
    Packing.ZSTD: zstd,
}


def unpack(
    path: Path, raw: bytes, *, room_bytes: int = ROOM, checksum: str | None = None, told: list[int] | None = None
) -> bytes:
    """What comes out of a file with these bytes. Nothing may be left behind in its directory."""
    file = path / "seed.tar.packed"
    file.write_bytes(raw)
    before = set(os.listdir("/proc/self/fd"))
    fd = seed_file.open_file(str(file))
    try:
        packing = compression.sniff(raw[:6])
        assert packing is not None
        spool_fd = compression.decompress(
            fd,
            packing,
            name=str(file),
            checksum=checksum,
            spool_directory=str(path),
            room_bytes=room_bytes,
            on_read=(told if told is not None else []).append,
        )
        with os.fdopen(spool_fd, "rb") as plain:
            plain.seek(0)
            return plain.read()
    finally:
        os.close(fd)
        assert set(os.listdir("/proc/self/fd")) == before
        assert os.listdir(path) == ["seed.tar.packed"]


@pytest.mark.parametrize("packing", Packing)
def test_what_was_compressed_comes_out(tmp_path: Path, packing: Packing) -> None:
    told: list[int] = []
    packed = PACK[packing](RAW)
    assert unpack(tmp_path, packed, told=told) == RAW
    assert sum(told) == len(packed)


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("padding", [0, 1, 512, 300_000])
def test_several_streams_and_zeros_after_them(tmp_path: Path, packing: Packing, padding: int) -> None:
    pack = PACK[packing]
    assert unpack(tmp_path, pack(RAW) + pack(b"") + pack(b"the end") + bytes(padding)) == RAW + b"the end"


@pytest.mark.parametrize("packing", Packing)
def test_streams_that_end_where_a_piece_does(tmp_path: Path, packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_file, "CHUNK_BYTES", 1)
    pack = PACK[packing]
    assert unpack(tmp_path, pack(b"one ") + pack(b"two") + bytes(3)) == b"one two"


def test_zstd_frames_that_are_to_be_skipped(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    assert unpack(tmp_path, skipped + zstd(RAW) + skipped) == RAW


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("cut", [1, 5, 5000])
def test_a_stream_that_is_cut_short_is_bad_for_good(tmp_path: Path, packing: Packing, cut: int) -> None:
    with pytest.raises(SeedError, match="cut short") as caught:
        unpack(tmp_path, PACK[packing](RAW)[:-cut])
    assert caught.value.lasting


@pytest.mark.parametrize("packing", Packing)
def test_a_second_stream_that_is_cut_short(tmp_path: Path, packing: Packing) -> None:
    with pytest.raises(SeedError, match="cut short"):
        unpack(tmp_path, PACK[packing](b"first") + PACK[packing](RAW)[:-2])


@pytest.mark.parametrize("packing", Packing)
def test_a_flipped_byte_is_noticed(tmp_path: Path, packing: Packing) -> None:
    packed = bytearray(PACK[packing](RAW))
    packed[len(packed) // 2] ^= 0x40
    with pytest.raises(SeedError, match=r"damaged|cut short|something else") as caught:
        unpack(tmp_path, bytes(packed))
    assert caught.value.lasting


@pytest.mark.parametrize("packing", Packing)
def test_something_else_after_it(tmp_path: Path, packing: Packing) -> None:
    with pytest.raises(SeedError, match="something else after its") as caught:
        unpack(tmp_path, PACK[packing](RAW) + bytes(700) + b"<html>")
    assert caught.value.lasting


@pytest.mark.parametrize("packing", Packing)
def test_more_than_there_is_room_for_stops_at_once(
    tmp_path: Path, packing: Packing, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = os.write

    def note(fd: int, data: bytes) -> int:
        written.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", note)
    bomb = PACK[packing](bytes(8 << 20))
    with pytest.raises(SeedError, match=r"needs more than the 0\.0 GB that are free") as caught:
        unpack(tmp_path, bomb, room_bytes=1 << 20)
    assert not caught.value.lasting
    assert sum(written) <= 1 << 20
    assert max(written) <= PIECE


def test_exactly_what_there_is_room_for(tmp_path: Path) -> None:
    assert unpack(tmp_path, gzip.compress(RAW), room_bytes=len(RAW)) == RAW
    with pytest.raises(SeedError):
        unpack(tmp_path, gzip.compress(RAW), room_bytes=len(RAW) - 1)


@pytest.mark.parametrize("raw", [RAW, b"one piece"], ids=["first", "last"])
def test_a_full_disk_passes(tmp_path: Path, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SeedError, match="needs more than") as caught:
        unpack(tmp_path, gzip.compress(raw))
    assert not caught.value.lasting


@pytest.mark.parametrize("packing", Packing)
def test_the_checksum_is_that_of_the_whole_file_as_it_lies_there(tmp_path: Path, packing: Packing) -> None:
    packed = PACK[packing](RAW) + bytes(200_000)
    assert unpack(tmp_path, packed, checksum=hashlib.sha256(packed).hexdigest().upper()) == RAW
    with pytest.raises(
        SeedError, match=r"SHA-256 is [0-9a-f]{16}…, but seed\.tar\.packed\.sha256 says 0{16}…"
    ) as caught:
        unpack(tmp_path, packed, checksum="0" * 64)
    assert caught.value.lasting


def test_a_wrong_checksum_says_more_than_a_damaged_stream(tmp_path: Path) -> None:
    packed = gzip.compress(RAW)
    with pytest.raises(SeedError, match="SHA-256"):
        unpack(tmp_path, packed[: len(packed) // 2], checksum=hashlib.sha256(packed).hexdigest())
    half = packed[: len(packed) // 2]
    with pytest.raises(SeedError, match="cut short"):
        unpack(tmp_path, half, checksum=hashlib.sha256(half).hexdigest())


@pytest.mark.parametrize(
    ("head", "packing"),
    [
        (gzip.compress(b"", mtime=0)[:6], Packing.GZIP),
        (lzma.compress(b"")[:6], Packing.XZ),
        (b"\x28\xb5\x2f\xfd\x00\x00", Packing.ZSTD),
        (b"\x5f\x2a\x4d\x18\x00\x00", Packing.ZSTD),
        (b"\x60\x2a\x4d\x18\x00\x00", None),
        (b"BZh91A", None),
        (b"", None),
        (b"blobs/", None),
    ],
)
def test_sniff(head: bytes, packing: Packing | None) -> None:
    assert compression.sniff(head) is packing
