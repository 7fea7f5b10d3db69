"""What several steps of a start are tested with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.dataroot.lease import Lease
from cachedind.host import processes


class Executed(Exception):
    """What os.execvpe was called with, instead of replacing this process."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    def execvpe(program: str, argv: list[str], environ: dict[str, str]) -> None:
        assert program == ("/real/dockerd" if argv[0] == "dockerd" else argv[0])
        raise Executed(argv, environ)

    monkeypatch.setattr(os, "execvpe", execvpe)
    monkeypatch.setattr(processes, "engine_program", lambda path: "/real/dockerd")
    monkeypatch.setattr(processes, "engine_environment", lambda program: {})
    return Executed


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    """As of a data-root whose lease is held, though nothing is locked here."""
    directory = tmp_path / "data" / ".cachedind"
    directory.mkdir(parents=True)
    (directory / "lock").touch()
    fd, directory_fd = os.open(directory / "lock", os.O_RDWR), os.open(directory, os.O_RDONLY)
    yield Lease(fd, directory_fd, str(tmp_path / "data"), None, 0.0)
    os.close(fd)
    os.close(directory_fd)
