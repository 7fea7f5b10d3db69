"""Work in forked children: for what would change this process for good, and for what has to be killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from cachedind.host import linux
from helpers.waiting import wait_until

T = TypeVar("T")

CLONE_NEWCGROUP = 0x02000000
CLONE_NEWNET = 0x40000000
PR_SET_CHILD_SUBREAPER = 36


class Child:
    """A forked child that runs `work` and sends its result, or the exception that ended it, back."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._read_fd, write_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, write_fd)
        os.close(write_fd)
        self._open = True

    def result(self, timeout_s: float = 20.0) -> Any:
        """What the work returned. Raises what it raised, EOFError when it was killed or exec'ed, TimeoutError."""
        try:
            raw = b""
            end = time.monotonic() + timeout_s
            while True:
                if not select.select([self._read_fd], [], [], max(0.0, end - time.monotonic()))[0]:
                    raise TimeoutError(f"a child did not end within {timeout_s:g} s")
                if not (part := os.read(self._read_fd, 1 << 16)):
                    break
                raw += part
        except TimeoutError:
            self.kill()
            raise
        finally:
            self._close()
        self.wait()
        if not raw:
            raise EOFError("the child ended without a result")
        good, value = pickle.loads(raw)
        if good:
            return value
        raise value

    def has_ended(self) -> str | None:
        """A sentence once it has, for wait_until's `hopeless`. Its status is still to be waited for."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if ended is None else f"child {self.pid} has ended with {ended.si_status}"

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int | None:
        """The wait status, or None when somebody has waited already."""
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            return None

    def end(self) -> None:
        """Kill, wait and forget."""
        self.kill()
        self._close()
        self.wait()

    def _close(self) -> None:
        if self._open:
            os.close(self._read_fd)
            self._open = False


def _run(work: Callable[[], Any], write_fd: int) -> None:
    status = 1
    try:
        # A child that is not waited for ends by itself.
        signal.alarm(60)
        try:
            outcome = (True, work())
        except BaseException as error:
            if not isinstance(error, Exception):
                traceback.print_exc()
            outcome = (False, error)
        data = pickle.dumps(outcome)
        while data:
            data = data[os.write(write_fd, data) :]
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@contextlib.contextmanager
def child(work: Callable[[], Any]) -> Iterator[Child]:
    """A child that is gone, whatever happens, when the block ends."""
    started = Child(work)
    try:
        yield started
    finally:
        started.end()


def in_child(work: Callable[[], T], *, timeout_s: float = 20.0) -> T:
    """Run `work` in a forked child and return what it returns, or raise what it raises."""
    with child(work) as started:
        return started.result(timeout_s)


def in_namespaces(work: Callable[[], T], *, more: int = 0, timeout_s: float = 20.0) -> T:
    """The same with a mount namespace of its own, whose mounts nobody else sees; `more` are further CLONE_ flags."""

    def enter() -> T:
        linux.unshare(linux.CLONE_NEWNS | more)
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
        return work()

    return in_child(enter, timeout_s=timeout_s)


def forever() -> None:
    """Sleep until killed, or for a minute."""
    while True:
        signal.pause()


@contextlib.contextmanager
def private_mounts() -> Iterator[None]:
    """This very process in a mount namespace of its own, and back."""
    where = os.getcwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
        yield
    finally:
        libc = ctypes.CDLL(None, use_errno=True)
        # A thread that was joined may still be on its way out of the kernel; until then setns(2) says EINVAL.
        wait_until(
            lambda: libc.setns(before, linux.CLONE_NEWNS) == 0,
            what="the mount namespace from before",
            timeout_s=10,
            diagnose=lambda: f"{os.strerror(ctypes.get_errno())}; threads: {os.listdir('/proc/self/task')}",
        )
        os.close(before)
        os.chdir(where)


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Orphaned grandchildren become children of this process, so that none goes unnoticed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def wait_for_no_children(timeout_s: float = 5.0) -> None:
    """Reap until nobody is left. Raises WaitedInVainError when somebody lives on."""

    def none_left() -> bool:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        return False

    wait_until(none_left, what="no processes left behind", timeout_s=timeout_s, every_s=0.01, diagnose=_children)


def children_of(pid: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
            if int(file.read().rpartition(") ")[2].split()[1]) == pid:
                found.append(int(name))
    return found


def _children() -> str:
    lines = []
    for pid in children_of(os.getpid()):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            lines.append(f"{pid}: {file.read()!r}")
    return "\n".join(lines)
