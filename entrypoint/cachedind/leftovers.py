"""What a killed daemon leaves in /run, which a kept container or a shared /run volume keeps.

PIDs repeat in containers, and dockerd takes any live process with the noted PID for its own predecessor; so stale PID
files
stop it, containerd's too (docker-library/docker#195, moby#40292), and a socket file at containerd's system address
makes it use a containerd that is not there. Only called under the lease, when no daemon of this data-root runs.
"""

from __future__ import annotations

import errno
import os
import socket
from fnmatch import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYSTEM_CONTAINERD = "/run/containerd/containerd.sock"
# Gone already, mounted there from outside, a directory, on something read-only: dockerd says what it thinks of it.
_STAYS = frozenset({errno.ENOENT, errno.EBUSY, errno.EISDIR, errno.EROFS, errno.EPERM})


def plan_removals(found: list[str], exec_root: str, pidfile: str, bound_socket: str | None) -> list[str]:
    """Which of the files below /run are stale. Pure.

    docker:dind's pattern (docker*.pid anywhere, in any case), the configured PID file, and everything with which
    containerd presents itself below the daemon's exec-root. Never the socket that is bound already.
    """
    chosen = []
    for path in found:
        name = os.path.basename(path).lower()
        in_exec_root = path.startswith(f"{os.path.realpath(exec_root)}/")
        stale = fnmatch(name, "docker*.pid") or path == os.path.realpath(pidfile)
        stale = stale or (in_exec_root and (name == "containerd.pid" or ".sock" in name))
        if stale and path != bound_socket:
            chosen.append(path)
    return chosen


def sweep(exec_root: str, pidfile: str, bound_socket: str | None) -> list[str]:
    """Remove what is stale and can be removed, and return it."""
    roots = {os.path.realpath(path) for path in ("/run", exec_root)}
    found = sorted({path for root in roots for path in _files_below(root)} | {os.path.realpath(pidfile)})
    bound = None if bound_socket is None else os.path.realpath(bound_socket)
    stale = plan_removals(found, exec_root, pidfile, bound)
    if _is_dead_socket(_SYSTEM_CONTAINERD):
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


def _is_dead_socket(path: str) -> bool:
    if not os.path.exists(path):
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False
