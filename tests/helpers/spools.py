"""A place for the archives that come from another daemon."""

from __future__ import annotations

import os
from pathlib import Path

from cachedind.seeds.fetching import fetch, fetch_each
from cachedind.seeds.model import Seed, SeedError


class Spool:
    """A directory for spools that is empty whenever it is looked at, and what was told of the bytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir()
        self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.told: list[int] = []
        self.room_bytes = 1 << 30

    def on_read(self, count: int) -> None:
        assert os.listdir(self.directory) == []
        self.told.append(count)

    def take(self, fd: int) -> bytes:
        """What is in a spool, from where it stands, which is then closed."""
        with open(fd, "rb") as file:
            assert os.fstat(fd).st_nlink == 0
            assert os.listdir(self.directory) == []
            return file.read()

    def fetch(self, host: str, *names: str, certs: str = "") -> bytes:
        return self.take(fetch(host, names, self.fd, self.room_bytes, self.on_read, certs))

    def fetch_each(self, host: str, *seeds: Seed) -> tuple[list[tuple[bytes, list[str]]], dict[str, SeedError]]:
        """Archives with the names of their seeds, and what is wrong by name."""
        found, bad = fetch_each(host, seeds, self.fd, self.room_bytes, self.on_read)
        archives = []
        for one in found:
            raw = self.take(one.fd)
            assert one.size_bytes == len(raw)
            archives.append((raw, [each.name for each in one.seeds]))
        names = {each.identity: each.name for each in seeds}
        return archives, {names[identity]: error for identity, error in bad.items()}
