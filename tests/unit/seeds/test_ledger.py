"""The ledger: what was written is read, and what a hostile job wrote counts as nothing."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.engine.images import Record
from cachedind.seeds import ledger
from cachedind.seeds.model import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIGEST = f"sha256:{'0' * 64}"
ENTRIES = {
    "file:1": Entry("/seeds/a.tar", 2.5, (Record(("docker.io/library/a:1",), DIGEST, DIGEST),)),
    "file:2": Entry("/seeds/b.tar", 1.0, (Record((), DIGEST, ""),), (("b", "it is bad"),)),
    "file:3": Entry("/seeds/c.tar", 0.0, ()),
}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_what_was_written_is_read(root: int) -> None:
    assert ledger.read(root) == ({}, None)
    ledger.write(root, ENTRIES)
    assert ledger.read(root) == (ENTRIES, None)


def test_only_the_newest_are_kept(root: int) -> None:
    many = {f"file:{number}": Entry("x", float(number), ()) for number in range(ledger.MAX_ENTRIES + 5)}
    ledger.write(root, many)
    entries, _ = ledger.read(root)
    assert len(entries) == ledger.MAX_ENTRIES
    assert "file:4" not in entries
    assert "file:5" in entries


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"min_reader": 1}',
        '{"min_reader": 99, "seeds": {}}',
        '{"min_reader": 1, "seeds": []}',
        '{"min_reader": 1, "seeds": {"a": 1}}',
        '{"min_reader": 1, "seeds": {"a": {"name": "a", "at": "x", "images": [], "bad": []}}}',
        '{"min_reader": 1, "seeds": {"a": {"name": "a", "at": 1, "images": [{}], "bad": []}}}',
        '{"min_reader": 1, "seeds": {"a": {"name": "a", "at": 1, "images": [], "bad": [["a"]]}}}',
        json.dumps(
            {
                "min_reader": 1,
                "seeds": {
                    "a": {
                        "name": "a",
                        "at": 1,
                        "images": [{"names": [], "config": "sha256:../../../etc/passwd", "chain": ""}],
                        "bad": [],
                    }
                },
            }
        ),
    ],
)
def test_what_makes_no_sense_counts_as_nothing(root: int, tmp_path: Path, content: str) -> None:
    (tmp_path / ".cachedind").mkdir()
    (tmp_path / ".cachedind" / "seeds.json").write_text(content)
    entries, problem = ledger.read(root)
    assert entries == {}
    assert problem is not None
    ledger.write(root, ENTRIES)
    assert ledger.read(root) == (ENTRIES, None)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_no_link_is_followed(root: int, tmp_path: Path, what: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "seeds.json").write_text("precious")
    if what == "directory":
        (tmp_path / ".cachedind").symlink_to(victim)
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            ledger.write(root, ENTRIES)
    else:
        (tmp_path / ".cachedind").mkdir()
        (tmp_path / ".cachedind" / "seeds.json").symlink_to(victim / "seeds.json")
        assert ledger.read(root)[0] == {}
        ledger.write(root, ENTRIES)
    assert (victim / "seeds.json").read_text() == "precious"
    assert os.listdir(victim) == ["seeds.json"]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.just(DIGEST),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["name", "at", "images", "bad", "x"]), inner),
)


@given(JSON)
def test_anything_is_an_entry_or_a_value_error(value: object) -> None:
    try:
        [entry] = ledger.parse({"seeds": {"a": value}}).values()
    except ValueError:
        return
    assert isinstance(entry, Entry)
