"""Nesting in cgroup v2: a group that delegates controllers may not have processes of its own.

The container's processes move to a group `init` below, and the controllers are passed on to children. cgroup v1 needs
nothing. The rules are the kernel's (Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint").
"""

from __future__ import annotations

import errno
import os
import time

from cachedind.base.errors import HostPreparationError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import procfs

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = "/sys/fs/cgroup"
DEADLINE_S = 5.0
_RETRY_S = 0.01
_GONE = frozenset({errno.ESRCH, errno.ENOENT})


def skip_reason(*, is_v2: bool, own_path: str | None) -> str | None:
    """Why there is nothing to do, or None. With the host's cgroup namespace, / would be the host's own root group."""
    if not is_v2:
        return "not cgroup v2"
    if own_path != "/":
        return f"the container sees the host's cgroups (own group {own_path}): --cgroupns=host"
    return None


def plan_controllers(available: str, enabled: str) -> str:
    """What to write to cgroup.subtree_control: the available controllers that are not enabled, or nothing."""
    missing = sorted(set(available.split()) - set(enabled.split()))
    return " ".join(f"+{name}" for name in missing)


def prepare(root: str = ROOT, deadline_s: float = DEADLINE_S) -> str | None:
    """Make nesting possible; returns why nothing was to be done. Raises HostPreparationError with what failed.

    A `docker exec` may add a process between the move and the delegation (moby#48850), so both are tried again, but not
    for ever: on a read-only cgroup filesystem no try would ever succeed.
    """
    reason = skip_reason(is_v2=os.path.exists(f"{root}/cgroup.controllers"), own_path=procfs.read_cgroup_v2_path())
    if reason is not None:
        return reason
    _retry(lambda: _delegate(root), root, deadline_s)
    return None


def _delegate(root: str) -> None:
    """One try. Raises OSError."""
    controllers = plan_controllers(_read(f"{root}/cgroup.controllers"), _read(f"{root}/cgroup.subtree_control"))
    if not controllers:
        return
    os.makedirs(f"{root}/init", exist_ok=True)
    for pid in _read(f"{root}/cgroup.procs").split():
        try:
            _write(f"{root}/init/cgroup.procs", pid)
        except OSError as error:
            if error.errno not in _GONE:
                raise
    _write(f"{root}/cgroup.subtree_control", controllers)


def _retry(attempt: Callable[[], None], root: str, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while True:
        try:
            return attempt()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= end:
                raise HostPreparationError(
                    f"cgroup v2 nesting: {error.filename or root}: {error.strerror}",
                    "run with --privileged and without --cgroupns=host; /sys/fs/cgroup must not be read-only",
                ) from error
        time.sleep(_RETRY_S)


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    # One write(2), as the kernel takes one command per call; the path is in the error even when the write fails.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(fd)
