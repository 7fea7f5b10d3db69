"""A daemon that takes no lock of ours is seen by the locks that it has on its databases."""

from __future__ import annotations

import fcntl
import os
import threading
from typing import TYPE_CHECKING

import pytest

from cachedind.engine import in_use, paths

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "path",
    [
        "volumes/metadata.db",
        "network/files/local-kv.db",
        "buildkit/history_c8d.db",
        paths.META,
        "100000.100000/volumes/metadata.db",
        "100000.100000/buildkit/cache.db",
    ],
)
def test_a_database_that_is_locked_is_found_and_one_that_is_not_is_free(tmp_path: Path, path: str) -> None:
    database = tmp_path / path
    database.parent.mkdir(parents=True)
    database.touch()
    told: list[str] = []
    assert in_use.wait(str(tmp_path), 0.0, told.append) is None
    with database.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert in_use.wait(str(tmp_path), 0.01, told.append) == path
        assert told == [path]
        ended = threading.Timer(0.1, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        ended.start()
        assert in_use.wait(str(tmp_path), 10.0, told.append) is None
        ended.join()


def test_links_and_other_things_are_nobodys_lock(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    victim = tmp_path_factory.mktemp("victim") / "locked"
    victim.touch()
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "metadata.db").symlink_to(victim)
    (tmp_path / "buildkit").mkdir()
    os.mkfifo(tmp_path / "buildkit" / "cache.db")
    with victim.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert in_use.wait(str(tmp_path), 0.0, lambda locked: None) is None
