"""Whether this container's daemon answers: what the image's HEALTHCHECK asks, for as long as a container lives.

So it imports next to nothing, and waits by itself: while a start goes on its socket takes the question, and the answer
comes the moment there is one.
"""

from __future__ import annotations

import os
import sys
import time

from cachedind.api import way_in
from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ASK_AGAIN_S = 0.2
_PATIENCE_S = 1.0
"""How long each question may take, however little time is left: a busy daemon is none that is dead."""

_LAUNCHERS = frozenset({"docker-init", "tini", "--", "dockerd-entrypoint.sh", "docker-entrypoint.sh"})
_CLIENTS = frozenset({"docker", "docker-compose", "sleep", "tail"})
"""Programs that start no daemon here: clients, and what keeps a container up for `docker exec`."""
_STARTS = frozenset({"boot.py", "dockerd-entrypoint.sh"})


def parse_timeout(words: Sequence[str]) -> int | None:
    """The seconds of the form that HEALTHCHECK has, --timeout=N; None for all others, which click understands."""
    option, _, number = "".join(words).partition("=")
    return int(number) if len(words) == 1 and option == "--timeout" and number.isdecimal() else None


def run(environ: Mapping[str, str], timeout_s: float) -> int:
    """The command: wait for an answer, say why there is none. Returns 0 or 1, as an engine wants it (2 is reserved)."""
    why = wait_for_answer(environ.get("DOCKER_HOST", ""), timeout_s)
    if why is not None:
        sys.stderr.write(f"cachedind: error: {why}\n")
    return int(why is not None)


def wait_for_answer(docker_host: str, timeout_s: float) -> str | None:
    """None as soon as the daemon answers; else, after `timeout_s` seconds, why it does not.

    None also in a container that is a client: where there is neither a daemon nor a socket, nothing is wrong.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        why = _ask(docker_host, max(deadline - time.monotonic(), _PATIENCE_S))
        if why is None or time.monotonic() >= deadline:
            return why
        time.sleep(_ASK_AGAIN_S)


def _ask(docker_host: str, patience_s: float) -> str | None:
    path = way_in.read()
    if path is None:
        from cachedind.host import procfs

        program = procfs.read_argv(1)
        path = docker_host.removeprefix("unix://") if docker_host.startswith("unix://") else way_in.DEFAULT_SOCKET
        if is_client(program) and not os.path.exists(path):
            return None
        if is_start(program):  # whoever answers there by now is another container's
            return "the daemon is not started yet"
    try:
        if way_in.answers(path, patience_s):
            return None
        why = "whoever listens there hangs up"
    except OSError as error:
        why = error.strerror or str(error)
    return f"the daemon behind {path} does not answer: {why}"


def is_client(argv: Sequence[str]) -> bool:
    """Whether a container with this command line for its first process never has a daemon of its own accord."""
    return next((name for name in _names(argv) if name not in _LAUNCHERS), "") in _CLIENTS


def is_start(argv: Sequence[str]) -> bool:
    """Whether a container's first process, by its command line, is a start, or becomes one."""
    return not is_client(argv) and not _STARTS.isdisjoint(_names(argv))


def _names(argv: Sequence[str]) -> list[str]:
    return [os.path.basename(word) for word in argv]
