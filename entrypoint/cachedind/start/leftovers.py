"""Whether a daemon still runs in this container; and what a killed one leaves in /run, which a kept container or a
shared /run volume keeps.

PIDs repeat in containers, and dockerd takes any live process with the noted PID for its own predecessor; so stale PID
files stop it, containerd's too (docker-library/docker#195, moby#40292), and a socket file at containerd's system
address makes it use a containerd that is not there. Only called under the lease, when no daemon of this data-root runs.
One of another data-root may, where containers share /run: what is answered is not stale.
"""

from __future__ import annotations

import errno
import os
import time

from cachedind.api.socket_files import is_answered
from cachedind.base.errors import DataRootBusyError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.base.log import Log

_POLL_S = 0.02
_SYSTEM_CONTAINERD = "/run/containerd/containerd.sock"
# Gone already, mounted there from outside, a directory, on something read-only: dockerd says what it thinks of it.
_STAYS = frozenset({errno.ENOENT, errno.EBUSY, errno.EISDIR, errno.EROFS, errno.EPERM})


def plan_removals(found: list[str], exec_root: str, pidfile: str) -> list[str]:
    """Which of the files below /run would be stale if nobody used them. Pure.

    docker:dind's pattern (docker*.pid anywhere, in any case), the configured PID file, and everything with which
    containerd presents itself below the daemon's exec-root.
    """
    chosen = []
    for path in found:
        name = os.path.basename(path).lower()
        in_exec_root = path.startswith(f"{os.path.realpath(exec_root)}/")
        stale = (name.startswith("docker") and name.endswith(".pid")) or path == os.path.realpath(pidfile)
        if stale or (in_exec_root and (name == "containerd.pid" or ".sock" in name)):
            chosen.append(path)
    return chosen


def check_free(exec_root: str) -> None:
    """Raises DataRootBusyError when a daemon works in this exec-root, which another container can share with /run."""
    path = f"{os.path.realpath(exec_root)}/containerd/containerd.sock"
    if is_answered(path):
        raise DataRootBusyError(
            f"a running daemon with another data-root works in {exec_root}: its containerd answers at {path}; it is "
            "unharmed",
            "do not share /run between containers, or give each an --exec-root and a --pidfile of its own",
        )


def sweep(exec_root: str, pidfile: str) -> list[str]:
    """Remove what is stale and can be removed, and return it."""
    roots = {os.path.realpath(path) for path in ("/run", exec_root)}
    found = sorted({path for root in roots for path in _files_below(root)} | {os.path.realpath(pidfile)})
    stale = [path for path in plan_removals(found, exec_root, pidfile) if not is_answered(path)]
    if os.path.exists(_SYSTEM_CONTAINERD) and not is_answered(_SYSTEM_CONTAINERD):
        stale.append(_SYSTEM_CONTAINERD)
    return [path for path in stale if _try_remove(path)]


def _try_remove(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno not in _STAYS:
            raise
        return False
    return True


def _files_below(root: str) -> Iterator[str]:
    # Containers' own mounts are below containerd's state directory: they are not ours to walk.
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if not os.path.ismount(f"{directory}/{name}")]
        yield from (f"{directory}/{name}" for name in names)


# ---- a daemon that still runs --------------------------------------------------------------------------------------


def wait_for_daemon(data_root: str, pidfile: str, timeout_s: float, log: Log) -> None:
    """Wait until no daemon of this container runs on the data-root or with the PID file: what a start takes away and
    binds is its. Raises DataRootBusyError."""
    deadline = time.monotonic() + timeout_s
    told = False
    while (pid := _find_daemon(data_root, pidfile)) is not None:
        if time.monotonic() >= deadline:
            raise DataRootBusyError(
                f"a daemon runs in this container already (PID {pid}), with {data_root} or {pidfile}; waited "
                f"{timeout_s:g} s, it is unharmed",
                "use that one, stop it first, or give a second one its own --data-root, --exec-root and --pidfile",
            )
        if not told:
            log.info(f"waiting up to {timeout_s:g} s for the daemon that runs in this container (PID {pid})")
            told = True
        time.sleep(_POLL_S)


def _find_daemon(data_root: str, pidfile: str) -> int | None:
    own = os.readlink("/proc/self/ns/mnt")
    noted = _read_text(pidfile).strip()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            program = os.readlink(f"/proc/{name}/exe").removesuffix(" (deleted)")
            # A private daemon has a mount namespace of its own, and ends with its start.
            if os.path.basename(program) != "dockerd" or os.readlink(f"/proc/{name}/ns/mnt") != own:
                continue
            if name == noted or any(procfs.is_below(path, data_root) for path in _open_files(name)):
                return int(name)
        except OSError:
            continue
    return None


def _open_files(pid: str) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(64)
    except OSError:
        return ""
