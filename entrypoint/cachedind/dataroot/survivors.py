"""Survivors of a killed daemon of this container still hold its lock: the next daemon here takes it over.

A SIGKILL of dockerd leaves the shims of its containers, which have inherited the descriptor of the lock (lease.py). The
next daemon in the same container finds them by containerd's state in /run and ends them, as with docker:dind; if it
waited for their lock first, it would never come up.
"""

from __future__ import annotations

import os

from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import flock

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHIM = "containerd-shim"


def take_lock(fd: int) -> int | None:
    """A descriptor of the held lock whose file is open as `fd`, if only shims hold it, and no engine; else None.

    Needs CAP_SYS_PTRACE and Linux 5.6 (pidfd_getfd(2)); without them None. Call it only when no daemon runs in this
    container, and the holder was this container: in a shared PID namespace the shims of others are visible too.
    """
    from cachedind.host import linux

    wanted = os.fstat(fd)
    # Another process that has the file open, such as a start beside this one, may just have taken the lock over.
    having = [one for one in _who_has_open(wanted) if one[0] != os.getpid()]
    if not all(program.startswith(_SHIM) for _, _, program in having):
        return None
    for pid, number, _ in having:
        try:
            found = linux.take_descriptor(pid, number)
        except OSError:
            continue
        if os.path.samestat(os.fstat(found), wanted) and flock.lock_exclusive(found):
            return found
        os.close(found)
    return None


def _who_has_open(wanted: os.stat_result) -> Iterator[tuple[int, int, str]]:
    """PID, descriptor and program of each process that has a file open, without those that have just ended."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            for number in os.listdir(f"/proc/{pid}/fd"):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), wanted):
                    yield int(pid), int(number), program
        except OSError:
            continue
