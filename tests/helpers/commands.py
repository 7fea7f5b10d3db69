"""The commands for people on a pool of their own, without daemons."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cachedind.base.model import EngineVersion
from cachedind.pool.directory import Pool
from cachedind.pool.keys import directory_name
from helpers import pool_starts

OLD = EngineVersion(26, 1, 5)
MIB = 1 << 20


class Done(NamedTuple):
    status: int
    stdout: str
    stderr: str

    @property
    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.stdout)["entries"]
        return found

    @property
    def states(self) -> dict[str, str]:
        return {entry["name"]: entry["condition"] for entry in self.entries}


Command = Callable[..., Done]


def key_path(pool: Pool, key: str = "k") -> Path:
    return Path(pool.path) / "keys" / directory_name(key)


def everything(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that a change would show in."""
    found = {}
    for entry in sorted(path.rglob("*")):
        status = entry.lstat()
        content = entry.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(entry.relative_to(path))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def fill(pool: Pool, *keys: str) -> dict[str, str]:
    """A golden and a free slot for each key; the ids of the slots."""
    found = {}
    for key in keys:
        pool_starts.job(pool, pool_starts.slot_request(key), "one")
        found[key] = pool_starts.job(pool, pool_starts.slot_request(key), "two")
    return found
