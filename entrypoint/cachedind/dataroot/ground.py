"""The ground of a trial: everything that its verdict hangs on.

A start whose daemon came up has noted down on what ground overlay was found to work (trials.py). The next one tries
again unless all of it is still the same: nothing that a trial could find out has changed then.

    boot          the kernel
    engine, trial which engine was to work with it, and what a trial did at that time (TRIAL)
    device …      the filesystem: its device, its own id, its size, its type and its options, those of the mount too
    rights        capabilities, the user namespace and the security module's label: whether mounting is allowed

Nothing is noted, so that the next start tries, where a part of it cannot be told: a seccomp filter (its mode can be
read, its rules cannot), or a driver's directory that is a mount of its own.
"""

from __future__ import annotations

import os

from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import procfs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachedind.base.model import DataRootState, EngineVersion, Mount

TRIAL = 1
"""Raised with each change of what overlay_trial.py does."""
DRIVERS = ("overlay2", "overlayfs")
"""What a trial of overlay2 is for."""

Ground = dict[str, object]


def read(data_root: str, mount: Mount, engine: EngineVersion) -> Ground | None:
    """The ground of a trial in this data-root, as values of JSON; None where it cannot be told. Needs no privilege."""
    try:
        return _read(data_root, mount, engine)
    except OSError:
        return None


def _read(data_root: str, mount: Mount, engine: EngineVersion) -> Ground | None:
    rights = procfs.read_rights()
    if rights is None or os.path.ismount(f"{data_root}/overlay2"):
        return None
    size = os.statvfs(data_root)
    return {
        "trial": TRIAL,
        "boot": procfs.read_boot_id(),
        "engine": str(engine),
        "device": os.stat(data_root).st_dev,
        "filesystem": size.f_fsid,
        "bytes": size.f_blocks * size.f_frsize,
        "fstype": mount.fstype,
        "source": mount.source,
        "options": sorted(mount.options),
        "super_options": sorted(mount.super_options),
        "rights": rights,
    }


def is_proven(noted: DataRootState | None, now: Mapping[str, object] | None) -> bool:
    """Whether the last start's daemon came up with overlay on just this ground. Pure.

    A data-root that is doubted is not to be asked for; its start tries.
    """
    if noted is None or now is None or noted.ready_at is None or noted.doubt:
        return False
    return noted.driver in DRIVERS and noted.ground == now
