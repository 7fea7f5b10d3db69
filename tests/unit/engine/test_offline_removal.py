"""What cleaning removes without a daemon: no link is followed, whatever a job has planted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachedind.base.errors import CleaningError
from cachedind.engine.leftovers import Leftovers
from cachedind.engine.offline_removal import empty_directory, remove_unknown_containers, settle

A = "a" * 64


def write(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("containers", "swarm"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is none of a data-root's business."""
    path = tmp_path_factory.mktemp("outside")
    write(path / "precious" / "file", "kept")
    return path


def test_a_swarm_is_ended_without_following_links(root: Path, outside: Path) -> None:
    write(root / "swarm/docker-state.json", "{}")
    write(root / "swarm/raft/wal/0", "x")
    (root / "swarm/link").symlink_to(outside)
    (root / "swarm/raft/link").symlink_to(outside / "precious")
    empty_directory(str(root), "swarm")
    assert list((root / "swarm").iterdir()) == []
    assert (outside / "precious/file").read_text() == "kept"


@pytest.mark.parametrize(("keep", "left"), [("volumes", {"cache.db"}), ("images", {"cache.db", "history_c8d.db"})])
def test_the_history_of_builds_goes_with_images(root: Path, keep: str, left: set[str]) -> None:
    for name in ("cache.db", "history_c8d.db"):
        write(root / "buildkit" / name)
    settle(str(root), Leftovers(), frozenset({keep}))
    assert set(os.listdir(root / "buildkit")) == left


def test_a_link_for_the_swarm_is_not_emptied(root: Path, outside: Path) -> None:
    (root / "swarm").rmdir()
    (root / "swarm").symlink_to(outside)
    with pytest.raises(CleaningError, match="swarm: Not a directory"):
        empty_directory(str(root), "swarm")
    assert (outside / "precious/file").read_text() == "kept"


def test_what_is_no_container_is_removed_by_name_without_following_links(root: Path, outside: Path) -> None:
    write(root / "containers" / A / "config.v2.json", "{")
    (root / "containers" / A / "link").symlink_to(outside)
    (root / "containers/link").symlink_to(outside)
    write(root / "containers/stray")
    write(root / "containers/other/file")
    told = remove_unknown_containers(str(root), [A, "link", "stray"])
    assert [line.partition(" ")[0] for line in told] == [f"containers/{name}" for name in (A, "link", "stray")]
    assert os.listdir(root / "containers") == ["other"]
    assert (outside / "precious/file").read_text() == "kept"
