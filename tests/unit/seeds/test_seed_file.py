"""What file may be a seed, and its checksum."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cachedind.seeds import seed_file
from cachedind.seeds.model import SeedError

RAW = b"abc" * 500_000


def test_verify_reads_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(RAW)
    told: list[int] = []
    fd = seed_file.open_file(str(file))
    seed_file.verify(fd, hashlib.sha256(RAW).hexdigest(), str(file), told.append)
    assert sum(told) == len(RAW)
    with pytest.raises(SeedError, match=r"but a\.tar\.sha256 says"):
        seed_file.verify(fd, hashlib.sha256(RAW[1:]).hexdigest(), str(file), told.append)
    os.close(fd)


def test_what_is_no_file_with_something_in_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    for name, why in (("fifo", "not a regular file"), ("empty", "it is empty"), (".", "it is a directory")):
        with pytest.raises(SeedError, match=why) as caught:
            seed_file.open_file(str(tmp_path / name))
        assert caught.value.lasting
    with pytest.raises(SeedError, match="not there any longer") as caught:
        seed_file.open_file(str(tmp_path / "gone"))
    assert not caught.value.lasting


def test_a_disk_that_fails_passes(tmp_path: Path) -> None:
    with pytest.raises(SeedError, match="cannot be read") as caught:
        seed_file.pread(-1, 1, 0)
    assert not caught.value.lasting
