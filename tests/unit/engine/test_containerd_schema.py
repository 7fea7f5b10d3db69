"""What containerd's database says of who wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.engine import containerd_schema, paths
from helpers.boltfiles import Tree, bolt_file


def put(root: Path, content: bytes) -> str:
    path = root / paths.META
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(root)


def varint(number: int) -> bytes:
    """As Go's binary.PutVarint."""
    value, raw = number << 1, b""
    while value >= 0x80:
        raw += bytes([value & 0x7F | 0x80])
        value >>= 7
    return raw + bytes([value])


@pytest.mark.parametrize("version", [3, 4, 63, 64, 1000])
def test_schema_and_version_are_read(tmp_path: Path, version: int) -> None:
    tree: Tree = {b"v1": {b"moby": {b"images": {}}, b"version": varint(version)}}
    assert containerd_schema.read(put(tmp_path, bolt_file(tree))) == (1, version)


def test_of_several_schemas_the_newest_counts(tmp_path: Path) -> None:
    tree: Tree = {b"v1": {b"version": varint(9)}, b"v2": {b"version": varint(1)}, b"other": {}}
    assert containerd_schema.read(put(tmp_path, bolt_file(tree))) == (2, 1)


def test_a_version_that_is_not_there_is_the_oldest(tmp_path: Path) -> None:
    assert containerd_schema.read(put(tmp_path, bolt_file({b"v1": {b"moby": {}}}))) == (1, 0)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, bolt_file({}), bolt_file({b"version": {}})])
def test_what_cannot_be_read_says_nothing(tmp_path: Path, content: bytes) -> None:
    assert containerd_schema.read(put(tmp_path, content)) is None


def test_without_a_database_nothing_is_said(tmp_path: Path) -> None:
    assert containerd_schema.read(str(tmp_path)) is None
    assert containerd_schema.read(str(tmp_path / "none")) is None


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(bolt_file({b"v1": {b"version": varint(9)}}))
    path = tmp_path / "root" / paths.META
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    assert containerd_schema.read(str(tmp_path / "root")) is None


@given(st.binary(max_size=20))
def test_any_number_is_a_number(raw: bytes) -> None:
    assert isinstance(containerd_schema._varint(raw), int)
