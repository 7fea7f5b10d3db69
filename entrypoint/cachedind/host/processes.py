"""The door to other processes: programs that are run to their end, and those that run beside this process."""

from __future__ import annotations

import os
import time

# The C module: `signal` around it is a millisecond.
from _signal import SIGKILL, SIGPIPE, SIGXFSZ  # type: ignore[import-not-found]
from select import select

from cachedind.base.errors import ProgramMissingError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple

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


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    timeout_s: float = 30.0,
    stdin: bytes = b"",
) -> Result:
    """Run a program to its end without a shell, with `stdin` as its input. A non-zero status is a result, not an error.

    It has the descriptors `pass_fds` under the same numbers, and so /proc/self/fd/N for each.

    Raises ProgramMissingError when it cannot be started at all or does not end in `timeout_s` seconds.
    """
    import subprocess  # 5 ms, which a start has to spare once its sockets are bound

    try:
        done = subprocess.run(
            list(argv),
            env=None if env is None else dict(env),
            stdin=None if stdin else subprocess.DEVNULL,
            input=stdin or None,
            pass_fds=pass_fds,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _does_not_end(argv, timeout_s) from error
    except OSError as error:
        raise _cannot_be_run(argv, error) from error
    return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


class Question:
    """A short program that runs beside this process, without input, until it is asked for its `answer`. It waits where
    it says more than two pipes hold (64 KiB each)."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Raises ProgramMissingError when it cannot be started."""
        self._argv = list(argv)
        self._streams, ends = zip(*(os.pipe() for _ in range(2)), strict=True)
        actions = (
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            *((os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(ends, start=1)),
        )
        try:
            # Python ignores these; a program's own default is to end by them.
            self._pid = os.posix_spawnp(
                self._argv[0], self._argv, os.environ, file_actions=actions, setsigdef=[SIGPIPE, SIGXFSZ]
            )
        except OSError as error:
            for fd in self._streams:
                os.close(fd)
            raise _cannot_be_run(self._argv, error) from error
        finally:
            for fd in ends:
                os.close(fd)

    def answer(self, timeout_s: float = 30.0) -> Result:
        """Wait for its end. Raises ProgramMissingError when it does not come within so many seconds."""
        deadline = time.monotonic() + timeout_s
        try:
            texts = _read_all(self._streams, deadline)
        except TimeoutError:
            os.kill(self._pid, SIGKILL)
            os.waitpid(self._pid, 0)
            raise _does_not_end(self._argv, timeout_s) from None
        finally:
            for fd in self._streams:
                os.close(fd)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return Result(status, *(text.decode(errors="replace") for text in texts))


def _read_all(streams: Sequence[int], deadline: float) -> list[bytes]:
    """All that comes of each before its other end is closed. Raises TimeoutError."""
    found = dict.fromkeys(streams, b"")
    still_open = set(streams)
    while still_open:
        ready, _, _ = select(still_open, [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        for fd in ready:
            part = os.read(fd, 1 << 16)
            found[fd] += part
            if not part:
                still_open.remove(fd)
    return list(found.values())


def _cannot_be_run(argv: Sequence[str], error: OSError) -> ProgramMissingError:
    return ProgramMissingError(f"{argv[0]} cannot be run: {error.strerror}", "use an image built from image/Dockerfile")


def _does_not_end(argv: Sequence[str], timeout_s: float) -> ProgramMissingError:
    return ProgramMissingError(
        f"{argv[0]} did not end within {timeout_s:g} s", f"run it by hand in the container: {' '.join(argv)}"
    )


def find_program(name: str, path: str) -> str | None:
    """The first executable file of that name in the directories of `path`. shutil.which would cost 4 ms of imports."""
    for directory in path.split(os.pathsep):
        candidate = f"{directory or '.'}/{name}"
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


ENGINE = "/usr/local/libexec/cachedind/dockerd"
"""Where the image keeps the real dockerd: that name on PATH, and Debian's own place, are scripts that enter boot."""
_INSIDE = "CACHEDIND_INSIDE"
_ENTRANCE = b"# cachedind: enters boot"


def engine_program(path: str) -> str:
    """The dockerd that is no entrance to boot: the first on `path`, which may be one of the user's own, else the
    image's. Raises ProgramMissingError.
    """
    for directory in (*path.split(os.pathsep), os.path.dirname(ENGINE)):
        program = find_program("dockerd", directory)
        if program is not None and _ENTRANCE not in _head(program):
            return program
    raise ProgramMissingError("there is no dockerd", "use an image built from image/Dockerfile")


def engine_environment(program: str) -> dict[str, str]:
    """What `program`, an engine_program, needs in its environment. A script of the user's around dockerd may call it by
    its name; it must not enter boot again then.
    """
    return {_INSIDE: "1"} if _head(program).startswith(b"#!") else {}


def _head(program: str) -> bytes:
    with open(program, "rb") as file:
        return file.read(200)


class Program:
    """A program that runs beside this process until `stop`, without input; both its streams are added to a file."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: str,
        pass_fds: Sequence[int] = (),
        in_child: Callable[[], None] | None = None,
    ) -> None:
        """`in_child` is called in the new process before the program takes it over.

        Raises ProgramMissingError when the program cannot be started.
        """
        import subprocess

        try:
            with open(log_path, "ab") as log:
                self._child = subprocess.Popen(
                    list(argv),
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=pass_fds,
                    preexec_fn=in_child,
                )
        except (OSError, subprocess.SubprocessError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ProgramMissingError(
                f"{argv[0]} cannot be run: {why}", "use an image built from image/Dockerfile, privileged"
            ) from error

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def status(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return self._child.poll()

    def stop(self, grace_s: float) -> int:
        """SIGTERM, and SIGKILL after `grace_s` seconds; returns the status. One that has ended is only waited for."""
        import subprocess

        self._child.terminate()
        try:
            return self._child.wait(max(0.0, grace_s))
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()
