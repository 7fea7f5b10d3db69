"""Files without a name, and where there can be none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachedind.seeds import spool
from cachedind.seeds.model import SeedError


def test_no_place_to_write(tmp_path: Path) -> None:
    with pytest.raises(SeedError, match="no temporary file can be made") as caught:
        spool.open_spool(str(tmp_path / "missing"))
    assert not caught.value.lasting


def test_a_filesystem_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without)
    fd = spool.open_spool(str(tmp_path))
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
