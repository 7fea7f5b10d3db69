"""A start in a container in which a daemon ran before, and no daemon on a slot of a pool without the slot's lock.

The start before has hidden the pool (witness.hide) and left its slot bound over the data-root. Both are taken back, so
that this start goes the way of every other one: it leases the same slot if nobody else has it, or another one.
"""

from __future__ import annotations

import os
import re

from cachedind.base.errors import DataRootInvalidError, PoolUnusableError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot import witness
from cachedind.host import linux, procfs

if TYPE_CHECKING:
    from cachedind.base.model import Mount

_OF_A_POOL = re.compile(r"/keys/[^/]+/(slots/[0-9a-f]{12}|scopes/[^/]+/golden(\.previous|\.other/[^/]+)?)/data$")


def make_way(pool_path: str, data_root: str) -> None:
    """Take slots off the data-root, and bring the pool back to its path, if a start before this one has hidden it.

    No daemon may run on the data-root. Raises PoolUnusableError. Needs CAP_SYS_ADMIN and a single thread.
    """
    pins = [mount for mount in procfs.read_mounts() if mount.mount_point == witness.NAMESPACE]
    if not pins and not os.path.ismount(pool_path):
        return
    try:
        uncover(data_root)
        if pins and pool_path and not os.path.ismount(pool_path):
            _bring_back(os.path.realpath(pool_path))
        for _ in pins:
            linux.umount(witness.NAMESPACE, linux.MNT_DETACH)
    except OSError as error:
        raise PoolUnusableError(
            f"the pool {pool_path} cannot be brought back after an earlier start in this container: "
            f"{error.filename}: {error.strerror}",
            "create the container anew",
        ) from error


def uncover(data_root: str) -> None:
    """Take slots off the data-root. Raises OSError. Needs CAP_SYS_ADMIN."""
    while is_slot(procfs.read_mounts(), data_root):
        linux.umount(data_root, linux.MNT_DETACH)


def _bring_back(pool_path: str) -> None:
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        if not witness.enter_hidden_namespace():
            return
        try:
            copy = linux.clone_mount(pool_path) if os.path.ismount(pool_path) else None
        finally:
            linux.setns(own, linux.CLONE_NEWNS)
            os.fchdir(here)
    finally:
        os.close(own)
        os.close(here)
    if copy is not None:
        os.makedirs(pool_path, exist_ok=True)
        linux.move_mount(copy, pool_path)
        os.close(copy)


def is_slot(mounts: list[Mount], data_root: str) -> bool:
    """Whether a data-root (without links) is the data of a pool's slot or golden: slot_lease.py alone leases those.
    Pure. What lies below such data, say a volume in which another engine is nested, is none."""
    mount = procfs.find_mount(mounts, data_root)
    if mount is None:
        return False
    below = data_root.removeprefix(mount.mount_point.rstrip("/"))
    return _OF_A_POOL.search(f"{mount.root.rstrip('/')}{below}") is not None


def refuse_slot(data_root: str) -> None:
    """Raises DataRootInvalidError where the data-root is a slot's data that the pool did not lease to this start."""
    if is_slot(procfs.read_mounts(), data_root):
        raise DataRootInvalidError(
            f"{data_root} is a slot of a pool, whose lock is out of reach: another instance may get it at any time",
            "mount the pool itself instead (-v /srv/cachedind:/cachedind), or another directory at the data-root",
        )
