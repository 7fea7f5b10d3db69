"""Work that a forked child does beside the start; its errors arrive where it is waited for."""

from __future__ import annotations

import contextlib
import os

from cachedind.base.errors import CachedindError
from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MAX_WORK_BYTES = 1 << 16
_MAX_DESCRIPTORS = 64
_DONE = b"done"


class Background:
    """A function running in a child process. Fork it while this process has a single thread."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._read_fd, write_fd = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._read_fd)
            _run(work, write_fd, parent)
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
        raise CachedindError(f"a child process of the start died (wait status {status})", "this is a bug: report it")


def _run(work: Callable[[], object], write_fd: int, parent: int) -> None:
    status = 1
    try:
        answer = _DONE
        try:
            work()
            status = 0
        except CachedindError as error:
            import pickle

            answer = pickle.dumps(error)
        # A parent that was told to end meanwhile, or is another program by now, does not read it.
        with contextlib.suppress(BrokenPipeError):
            os.write(write_fd, answer)
    except BaseException:
        import traceback

        if os.getppid() == parent:
            traceback.print_exc()
    finally:
        os._exit(status)


class Ahead:
    """A child process that is forked before its work is known, and gets ready for it meanwhile. Fork it while this
    process has a single thread. It ends quietly when this process ends, or becomes another program, without a word."""

    def __init__(self, get_ready: Callable[[], object], work: Callable[[dict[str, object], list[int]], object]) -> None:
        """`work` is called with what `begin` passes on: JSON, and descriptors that are the child's own."""
        import socket

        self._socket, theirs = socket.socketpair()

        def listen() -> None:
            import json

            self._socket.close()
            get_ready()
            raw, descriptors, _, _ = socket.recv_fds(theirs, _MAX_WORK_BYTES, _MAX_DESCRIPTORS)
            if raw:
                work(json.loads(raw), descriptors)

        self._background = Background(listen)
        theirs.close()

    def begin(self, wanted: dict[str, object], descriptors: Sequence[int]) -> None:
        """`wanted` must be JSON of at most 64 KiB. Raises OSError when the child is gone."""
        import json
        import socket

        socket.send_fds(self._socket, [json.dumps(wanted).encode()], descriptors)

    def join(self) -> None:
        """Wait for the end. Raises the CachedindError that ended the work, or one that says that it died."""
        import socket

        # Other children of this process may have the socket open, too.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._background.join()


def leave_out(names: Sequence[str]) -> None:
    """Have modules imported as if they were there, with nothing in them. For a process that ends with its one task."""
    import sys
    from types import ModuleType

    class Nothing(ModuleType):
        def __getattr__(self, name: str) -> type[object]:
            if name.startswith("__"):
                raise AttributeError(name)
            return object

    for name in names:
        sys.modules.setdefault(name, Nothing(name))
