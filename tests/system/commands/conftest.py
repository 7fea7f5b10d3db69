"""A pool, and the commands for people on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.__main__ import main
from cachedind.pool.directory import Pool
from helpers import pool_starts
from helpers.children import in_child
from helpers.commands import Command, Done
from helpers.filesystems import Filesystems


@pytest.fixture
def cachedind(tmp_path: Path) -> Command:
    """`cachedind …` in a process of its own, which may go to another mount namespace."""

    def cachedind(*words: str | Path, stdin: str = "", **environ: str) -> Done:
        out, err, given = (tmp_path / name for name in ("stdout", "stderr", "stdin"))
        given.write_text(stdin)

        def work() -> int:
            for number, path in enumerate((given, out, err)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC * (number > 0)), number)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
            for name in [name for name in os.environ if name.startswith(("CACHEDIND_", "CI_"))]:
                del os.environ[name]
            os.environ |= {f"CACHEDIND_{name}": value for name, value in environ.items()}
            sys.argv = ["cachedind", *map(str, words)]
            try:
                return main()
            except SystemExit as end:
                return end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()

        status = in_child(work)
        done = Done(status, out.read_text(), err.read_text())
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return cachedind


@pytest.fixture
def pool(filesystems: Filesystems) -> Iterator[Pool]:
    """A pool on btrfs."""
    pool = pool_starts.open_pool(filesystems.make("btrfs"))
    yield pool
    pool.close()
