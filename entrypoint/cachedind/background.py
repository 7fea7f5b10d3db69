"""Work beside the start: a forked child whose success or error is collected later."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

from cachedind.errors import CachedindError

if TYPE_CHECKING:
    from collections.abc import Callable


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
        if raw:
            # Written by our own child a moment ago, never from disk or network.
            raise pickle.loads(raw)
        if status != 0:
            raise CachedindError(f"a helper of the start died (wait status {status})", "this is a bug: report it")


def _run(work: Callable[[], object], write_fd: int) -> None:
    status = 1
    try:
        work()
        status = 0
    except CachedindError as error:
        os.write(write_fd, pickle.dumps(error))
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)
