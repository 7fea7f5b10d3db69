"""scripts/: what can be told of them without an engine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "scripts/engine"


def test_the_engines_shell_enters_the_namespaces_of_its_init(tmp_path: Path) -> None:
    """By a PID as nsenter takes it, which says that it cannot parse one with a blank behind it (util-linux 2.38)."""
    nsenter = tmp_path / "nsenter"
    nsenter.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    nsenter.chmod(0o755)
    with subprocess.Popen(
        ["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        init = holder.stdout.readline().strip()
        try:
            start = Path(f"/proc/{holder.pid}/stat").read_text().rpartition(") ")[2].split()[19]
            (tmp_path / "engine.pid").write_text(f"{holder.pid} {start}\n")
            env = {**os.environ, "ENGINE_HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
            command = [str(ENGINE), "shell", "ps", "-e"]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        finally:
            os.killpg(holder.pid, 9)
    assert done.stdout == f"<--target><{init}><--mount><--pid><--ipc><--uts><--><ps><-e>"
