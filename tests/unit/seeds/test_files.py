"""Which files are seeds, and what changes when one does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cachedind.seeds import files
from cachedind.seeds.files import parse_checksum
from cachedind.seeds.model import Seed, SeedKind

if TYPE_CHECKING:
    from pathlib import Path

SUM = "ab" * 32


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """A directory as people have it: archives, a layout, and what is none of both."""
    for name in ("b.tar", "a.tar.gz", "c.tzst", "notes.txt", ".hidden.tar", "a.tar.gz.sha256"):
        (tmp_path / name).write_text(f"{SUM}  {name.removesuffix('.sha256')}\n")
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout" / "index.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "d.tar").write_text("x")
    return tmp_path


def names(found: list[Seed], base: Path) -> list[str]:
    return [os.path.relpath(seed.name, base) for seed in found]


def test_a_directory_stands_for_the_archives_and_layouts_in_it(seeds: Path) -> None:
    found, bad = files.find([str(seeds)])
    assert names(found, seeds) == ["a.tar.gz", "b.tar", "c.tzst", "layout"]
    assert [seed.kind for seed in found] == [SeedKind.ARCHIVE] * 3 + [SeedKind.LAYOUT]
    assert [seed.checksum for seed in found] == [SUM, None, None, None]
    assert bad == []


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["notes.txt"], ["notes.txt"]),
        (["*.tar"], ["b.tar"]),
        (["**/*.tar"], ["b.tar", "other/d.tar"]),
        (["[ab].tar*"], ["a.tar.gz", "b.tar"]),
        (["layout"], ["layout"]),
        (["*"], ["a.tar.gz", "b.tar", "c.tzst", "layout", "notes.txt", "other/d.tar"]),
        (["b.tar", ".", "b.*"], ["b.tar", "a.tar.gz", "c.tzst", "layout"]),
    ],
)
def test_files_and_globs_are_taken_at_their_word(seeds: Path, patterns: list[str], wanted: list[str]) -> None:
    found, bad = files.find([f"{seeds}/{pattern}" for pattern in patterns])
    assert names(found, seeds) == wanted
    assert bad == []


def test_a_name_with_the_letters_of_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].tar").touch()
    assert names(files.find([f"{tmp_path}/a[1].tar"])[0], tmp_path) == ["a[1].tar"]


def test_an_empty_directory_has_no_seeds_and_that_is_no_fault(tmp_path: Path) -> None:
    assert files.find([str(tmp_path)]) == ([], [])


@pytest.mark.parametrize("pattern", ["nothing.tar", "*.nothing"])
def test_what_is_not_there_is_named(tmp_path: Path, pattern: str) -> None:
    found, [bad] = files.find([f"{tmp_path}/{pattern}"])
    assert found == []
    assert bad.name == f"{tmp_path}/{pattern}"
    assert "no such file" in bad.why


@pytest.mark.parametrize("kind", ["a dangling link", "a pipe", "a directory that cannot be an archive"])
def test_what_is_no_file_is_named_and_costs_the_others_nothing(seeds: Path, kind: str) -> None:
    if kind == "a dangling link":
        (seeds / "x.tar").symlink_to(seeds / "gone")
    elif kind == "a pipe":
        os.mkfifo(seeds / "x.tar")
    else:
        (seeds / "x.tar").mkdir()
    found, [bad] = files.find([str(seeds)])
    assert names(found, seeds) == ["a.tar.gz", "b.tar", "c.tzst", "layout"]
    assert bad.name == f"{seeds}/x.tar"


def test_a_link_to_a_file_is_that_file(seeds: Path) -> None:
    (seeds / "link.tar").symlink_to("b.tar")
    found, _ = files.find([f"{seeds}/b.tar", f"{seeds}/link.tar"])
    assert names(found, seeds) == ["b.tar"]


@pytest.mark.parametrize("change", ["content", "touch", "replace", "checksum", "layout"])
def test_the_identity_changes_with_the_seed(seeds: Path, change: str) -> None:
    path = seeds / ("layout" if change == "layout" else "b.tar")
    before = files.find([str(path)])[0][0].identity
    assert files.find([str(path)])[0][0].identity == before
    if change == "content":
        path.write_text("more than before")
    elif change == "touch":
        os.utime(path, (1, 1))
    elif change == "replace":
        status = path.stat()
        (seeds / "new").write_text(path.read_text())
        os.utime(seeds / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (seeds / "new").rename(path)
    elif change == "checksum":
        (seeds / "b.tar.sha256").write_text(SUM)
    else:
        (path / "index.json").write_text('{"other": 1}')
    assert files.find([str(path)])[0][0].identity != before


def test_the_identity_is_the_same_wherever_a_directory_is_mounted(seeds: Path, tmp_path: Path) -> None:
    before = files.find([f"{seeds}/b.tar"])[0][0].identity
    (seeds / "elsewhere").mkdir()
    os.link(seeds / "b.tar", seeds / "elsewhere" / "b.tar")
    after = files.find([f"{seeds}/elsewhere/b.tar"])[0][0].identity
    # A hard link changes ctime, which is in the identity, so it is taken at the first path again.
    assert after == files.find([f"{seeds}/b.tar"])[0][0].identity
    assert after.split(":")[1:4] == before.split(":")[1:4]


@pytest.mark.parametrize("content", ["", "no checksum", "ab" * 31, "é" * 64])
def test_a_checksum_that_is_none_is_not_taken_for_permission(seeds: Path, content: str) -> None:
    (seeds / "b.tar.sha256").write_text(content)
    found, [bad] = files.find([f"{seeds}/b.tar"])
    assert found == []
    assert "b.tar.sha256 has no SHA-256 for it" in bad.why


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{SUM}  b.tar\n", SUM),
        (f"{SUM} *b.tar\n", SUM),
        (f"{SUM.upper()}\n", SUM),
        (f"{SUM}  -\n", SUM),
        (f"{SUM}  /srv/seeds/b.tar\n", SUM),
        (f"{'cd' * 32}  a.tar\n{SUM}  b.tar\n", SUM),
        (f"{'cd' * 32}  a.tar\n{SUM}  c.tar\n", None),
        (f"{'cd' * 32}\n{SUM}\n", None),
        ("", None),
    ],
)
def test_parse_checksum(text: str, wanted: str | None) -> None:
    assert parse_checksum(text, "b.tar") == wanted
