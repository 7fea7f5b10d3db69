"""The door to other programs: everything cachedind runs and waits for is run here."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

from cachedind.errors import ProgramMissingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Result(NamedTuple):
    """How a program ended. `status` is negative for a signal; both streams are text."""

    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 30.0) -> Result:
    """Run a program to its end without a shell and without input. A non-zero status is a result, not an error.

    Raises ProgramMissingError when it cannot be started at all or does not end in `timeout_s` seconds.
    """
    try:
        done = subprocess.run(
            list(argv),
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramMissingError(
            f"{argv[0]} did not end within {timeout_s:g} s", f"run it by hand in the container: {' '.join(argv)}"
        ) from error
    except OSError as error:
        raise ProgramMissingError(
            f"{argv[0]} cannot be run: {error.strerror}", "use an image built from image/Dockerfile"
        ) from error
    return Result(done.returncode, done.stdout, done.stderr)
