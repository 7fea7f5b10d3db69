"""Facts, found out once per start: where the data-root is, which engine runs, what the container may do."""

from __future__ import annotations

import errno
import json
import os
import re

from cachedind.base.errors import DataRootUnwritableError, NotPrivilegedError, ProgramMissingError, UnsafeLockError
from cachedind.base.model import Degradation, EngineVersion, Holder, Mount, Verdict, parse_engine_version
from cachedind.base.sizes import format_bytes
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.dataroot.storage_facts import PRIVILEGED_RUN
from cachedind.host import procfs
from cachedind.host.linux import CAP_SYS_ADMIN
from cachedind.host.processes import engine_program

if TYPE_CHECKING:
    from typing import Any

    from cachedind.settings.daemon_json import DaemonSettings

ENGINE_FILE = "/usr/local/share/cachedind/engine.json"
MIN_FREE_BYTES = 16 << 20
MIN_FREE_INODES = 1000
"""With less than these, no daemon comes up on a fresh data-root: its databases alone need some hundred KiB, a first
layer needs megabytes."""

_NETWORK_FILESYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "9p",
        "virtiofs",
        "afs",
        "lustre",
        "gfs2",
        "ocfs2",
        "glusterfs",
        "beegfs",
    }
)
_ANONYMOUS_VOLUME = re.compile(r"/([0-9a-f]{64})/_data(?:/|$)")


class Place(NamedTuple):
    """Where a data-root is. Sizes in bytes; inode counts are 0 on filesystems without a fixed number (btrfs)."""

    path: str
    mount: Mount
    total_bytes: int
    free_bytes: int
    total_inodes: int
    free_inodes: int

    @property
    def fstype(self) -> str:
        return self.mount.fstype


def check_privileges() -> None:
    """Raises NotPrivilegedError without CAP_SYS_ADMIN, which mounting needs."""
    if os.getuid() != 0 or not procfs.read_effective_capabilities() >> CAP_SYS_ADMIN & 1:
        raise NotPrivilegedError(
            "this container may not mount filesystems (no CAP_SYS_ADMIN), so no daemon can run in it",
            f"run {PRIVILEGED_RUN}",
        )


def read_mount(path: str, mounts: list[Mount] | None = None) -> Mount:
    """The mount that an existing or future path lies on."""
    real = os.path.realpath(path)
    found = procfs.find_mount(procfs.read_mounts() if mounts is None else mounts, real)
    return found or Mount("/", "/", "unknown", "unknown", frozenset(), frozenset())


def read_place(data_root: str) -> Place:
    """Needs the data-root to exist."""
    status = os.statvfs(data_root)
    return Place(
        path=data_root,
        mount=read_mount(data_root),
        total_bytes=status.f_blocks * status.f_frsize,
        free_bytes=status.f_bavail * status.f_frsize,
        total_inodes=status.f_files,
        free_inodes=status.f_favail,
    )


def unsafe_lock_reason(fstype: str) -> str | None:
    """Why a lock on this filesystem may not exclude everybody; None where it does.

    flock(2) is emulated or local by mount option on nfs and cifs, lost with the client's session on ceph, local to the
    guest on 9p and virtiofs, and up to the program behind it on fuse.
    """
    if fstype in _NETWORK_FILESYSTEMS or fstype == "fuse" or fstype.startswith("fuse."):
        return f"locks on {fstype} may be invisible to other machines, so a second daemon could destroy the data"
    return None


def check_lock_filesystem(mount: Mount, data_root: str, *, allowed: bool) -> Degradation | None:
    """Raises UnsafeLockError on an unsafe filesystem unless `allowed`; then returns the degradation."""
    reason = unsafe_lock_reason(mount.fstype)
    if reason is None:
        return None
    mend = "use a local disk or a block volume (Kubernetes: ReadWriteOncePod)"
    if not allowed:
        raise UnsafeLockError(
            f"{data_root} is on {mount.fstype}: {reason}", f"{mend}; CACHEDIND_ALLOW_NETWORK_FS=1 uses it anyway"
        )
    return Degradation(
        "exclusive use is not certain", reason, "you have to make sure that only one daemon uses it", mend
    )


def is_cramped(path: str) -> bool:
    """Whether the filesystem has less room than a daemon needs to come up and a job to write anything."""
    status = os.statvfs(path)
    lacks_bytes = status.f_blocks > 0 and status.f_bavail * status.f_frsize < MIN_FREE_BYTES  # ramfs counts none
    return lacks_bytes or (status.f_files > 0 and status.f_favail < MIN_FREE_INODES)


def check_room(place: Place, *, fresh: bool) -> Degradation | None:
    """Whether there is room for a daemon. An existing data-root comes up on a full disk, a fresh one does not.

    Raises DataRootUnwritableError for a fresh one without room.
    """
    lacks = []
    if place.total_bytes > 0 and place.free_bytes < MIN_FREE_BYTES:  # ramfs counts no blocks at all
        lacks.append(f"{format_bytes(place.free_bytes)} of {format_bytes(place.total_bytes)} are free")
    if place.total_inodes > 0 and place.free_inodes < MIN_FREE_INODES:
        lacks.append(f"{place.free_inodes} of {place.total_inodes} inodes are free")
    if not lacks:
        return None
    what = f"the filesystem of {place.path} ({place.fstype}) is full: {' and '.join(lacks)}"
    if fresh:
        raise DataRootUnwritableError(
            what, f"free space on the volume: a daemon needs at least {format_bytes(MIN_FREE_BYTES)}"
        )
    return Degradation(
        what, "no room to write", "builds and pulls will fail", "docker system prune, or a larger volume"
    )


def persistence(place: Place) -> Degradation | None:
    """Why the cache will not outlive this container, or None when it will."""
    mount = place.mount
    mend = "mount a named volume or a host directory: -v cachedind:/var/lib/docker"
    cost = "the next container starts cold"
    if mount.fstype in ("tmpfs", "ramfs"):
        return Degradation("the cache will not survive", f"{place.path} is in memory ({mount.fstype})", cost, mend)
    if mount.fstype == "overlay":
        return Degradation("the cache will not survive", f"{place.path} is in the container's own layer", cost, mend)
    if is_anonymous_volume(mount):
        return Degradation("the cache may not survive", f"{place.path} is an anonymous volume", cost, mend)
    return None


def is_anonymous_volume(mount: Mount) -> bool:
    """Whether a mount is an anonymous volume, which the engine made for this container alone."""
    return _ANONYMOUS_VOLUME.search(mount.root) is not None


def probe_directory(data_root: str, driver: str) -> str:
    """Where to try a driver: in its own directory only if that is a mount, as what a kill leaves in it would pass for
    data of that driver (moby, daemon/graphdriver/driver.go, scanPriorDrivers)."""
    candidate = f"{data_root}/{driver}"
    return candidate if os.path.ismount(candidate) else data_root


def probe_directories(data_root: str) -> list[str]:
    """All directories in which a driver may have been tried."""
    return sorted({data_root, *(probe_directory(data_root, driver) for driver in ("overlay2", "fuse-overlayfs"))})


def probe_driver(data_root: str, driver: str, *, has_data: bool) -> Verdict:
    """Try overlay2 or fuse-overlayfs where its layers would be. Leaves nothing behind.

    On a full disk nothing can be tried; then a driver whose data is there counts as working. Raises
    DataRootUnwritableError when nothing can be written in other cases.
    """
    from cachedind.dataroot import trials  # seldom needed (ground.py)

    directory = probe_directory(data_root, driver)
    trial = trials.probe_overlay if driver == "overlay2" else trials.probe_fuse_overlayfs
    try:
        return trial(directory)
    except OSError as error:
        if has_data and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Verdict(driver, works=True, why="not tried, the disk is full; it was used here before")
        raise DataRootUnwritableError(
            f"{directory} cannot be written: {error.strerror}", "free space on the volume and check its mode"
        ) from error


def read_engine_version(path: str) -> EngineVersion:
    """The version of the dockerd that would be run. Raises ProgramMissingError.

    dockerd --version takes 30 ms; the image has its answer in a file, which counts only for that very program.
    """
    program = engine_program(path)
    noted = _noted_version(os.path.realpath(program))
    if noted is not None:
        return noted
    key = (program, os.stat(program).st_mtime_ns)
    if key not in _asked:
        _asked[key] = _ask_version(program)
    return _asked[key]


_asked: dict[tuple[str, int], EngineVersion] = {}
"""By program and its time, in ns: one that is not the image's is asked once in a start."""


def _ask_version(program: str) -> EngineVersion:
    from cachedind.host.processes import run

    text = run([program, "--version"]).stdout
    match = re.search(r"version ([0-9][^\s,]*)", text)
    if match is None:
        raise ProgramMissingError(
            f"{program} --version says {text.strip()!r}", "use an image built from image/Dockerfile"
        )
    return parse_engine_version(match.group(1))


def read_containerd_version(path: str, daemon: DaemonSettings) -> str:
    """The version of the containerd that comes with the dockerd that would be run; empty for another than the image's,
    of which nobody noted it, and where dockerd is told to use one that runs already. Raises ProgramMissingError."""
    if daemon.text("containerd"):
        return ""
    noted = _noted(os.path.realpath(engine_program(path))).get("containerd")
    return noted if isinstance(noted, str) else ""


def _noted_version(program: str) -> EngineVersion | None:
    try:
        return parse_engine_version(_noted(program)["version"])
    except (ValueError, KeyError, AttributeError):
        return None


def _noted(program: str) -> dict[str, Any]:
    """What the image has noted of this very program, else nothing."""
    try:
        with open(ENGINE_FILE, encoding="ascii") as file:
            noted = json.load(file)
        found = os.stat(program)
        is_same = (noted["path"], noted["size"], noted["mtime"]) == (program, found.st_size, int(found.st_mtime))
        return dict(noted) if is_same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_holder_of_now(now: float) -> Holder:
    """What this container writes about itself for others that wait for it."""
    container = procfs.parse_container_id(procfs.read_mounts()) or ""
    return Holder(container[:12], procfs.hostname(), now)
