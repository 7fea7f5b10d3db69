"""The unit lane's own promise: a test that would act fails instead."""

from __future__ import annotations

import os

import pytest

import cachedind.host.linux
import cachedind.host.processes


def test_programs_mounts_and_exec_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"processes\.run"):
        cachedind.host.processes.run(["true"])
    with pytest.raises(AssertionError, match=r"linux\.mount"):
        cachedind.host.linux.mount("none", "/", "tmpfs")
    with pytest.raises(AssertionError, match=r"os\.execve"):
        os.execvpe("true", ["true"], {"PATH": "/bin:/usr/bin"})
    with pytest.raises(AssertionError, match=r"os\.execv"):
        os.execlp("true", "true")
