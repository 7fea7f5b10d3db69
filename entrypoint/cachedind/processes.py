"""The door to other processes: programs that are run to their end, and work that a forked child does beside the
start.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cachedind.errors import CachedindError, ProgramMissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


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
    import subprocess  # 5 ms, which a start has to spare once its sockets are bound

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


def find_program(name: str, path: str) -> str | None:
    """The first executable file of that name in the directories of `path`. shutil.which would cost 4 ms of imports."""
    for directory in path.split(os.pathsep):
        candidate = f"{directory or '.'}/{name}"
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


class Background:
    """A function running in a child process. Fork it while this process has a single thread."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._read_fd, write_fd = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._read_fd)
            _run(work, write_fd)
        os.close(write_fd)

    def join(self) -> None:
        """Wait for the end. Raises the CachedindError that ended the work, or one that says that it died."""
        with os.fdopen(self._read_fd, "rb") as pipe:
            raw = pipe.read()
        _, status = os.waitpid(self._pid, 0)
        if raw == _DONE and status == 0:
            return
        if raw and raw != _DONE:
            import pickle

            # Written by our own child a moment ago, never from disk or network.
            raise pickle.loads(raw)
        raise CachedindError(f"a helper of the start died (wait status {status})", "this is a bug: report it")


_DONE = b"done"


def _run(work: Callable[[], object], write_fd: int) -> None:
    status = 1
    try:
        work()
        os.write(write_fd, _DONE)
        status = 0
    except CachedindError as error:
        import pickle

        os.write(write_fd, pickle.dumps(error))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)
