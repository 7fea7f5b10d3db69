"""What a killed daemon of this container has left running holds its lock: the next daemon here takes it over.

A SIGKILL of dockerd leaves the shims of its containers, which have inherited the descriptor of the lock (lease.py).
docker:dind's next daemon in the same container finds and ends them, by containerd's state in /run; with a lock that
waits for them it would never come up.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cachedind.host import flock

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHIM = "containerd-shim"


def take_lock(fd: int) -> int | None:
    """A descriptor of the held lock whose file is open as `fd`, where shims alone hold it, and no engine; else None.

    Needs CAP_SYS_PTRACE and Linux 5.6 (pidfd_getfd(2)); without them None. Only where no daemon runs in this
    container, and the holder was this container: another one's shims are seen in a shared PID namespace.
    """
    from cachedind.host import linux

    wanted = os.fstat(fd)
    # Whoever else has the file open, a start beside this one, say, may have taken the lock over just now.
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
    """PID, descriptor and program of each process that has a file open; those that have gone meanwhile left out."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            for number in os.listdir(f"/proc/{pid}/fd"):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), wanted):
                    yield int(pid), int(number), program
        except OSError:
            continue
