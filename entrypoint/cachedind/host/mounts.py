"""The mounts that a nested daemon expects in its container: securityfs, a tmpfs on /tmp, and shared propagation."""

from __future__ import annotations

import os

from cachedind.base.errors import HostPreparationError
from cachedind.base.typed import NamedTuple
from cachedind.host import beneath, linux


class MountOp(NamedTuple):
    """A mount to be made. `needed` tells whether a daemon is of no use without it."""

    source: str
    target: str
    fstype: str
    flags: int
    needed: bool
    purpose: str

    def describe(self) -> str:
        what = f"{self.fstype} on {self.target}" if self.fstype else f"{self.target}"
        return f"{what} ({self.purpose})"


def plan_mounts(mount_points: frozenset[str], *, has_securityfs_directory: bool) -> list[MountOp]:
    """What is missing, given the mount points that there are. moby's hack/dind does the same, in this order."""
    wanted = []
    if has_securityfs_directory and "/sys/kernel/security" not in mount_points:
        wanted.append(MountOp("none", "/sys/kernel/security", "securityfs", 0, needed=False, purpose="LSM detection"))
    if "/tmp" not in mount_points:
        wanted.append(MountOp("none", "/tmp", "tmpfs", 0, needed=True, purpose="temporary files"))
    # Last, so that what was mounted above is shared as well.
    flags = linux.MS_REC | linux.MS_SHARED
    wanted.append(MountOp("none", "/", "", flags, needed=True, purpose="shared propagation for volumes"))
    return wanted


def apply_mounts(operations: list[MountOp]) -> list[str]:
    """Make them; returns one line for each that failed and is not needed. Raises HostPreparationError. Needs
    CAP_SYS_ADMIN.
    """
    failed = []
    for operation in operations:
        try:
            linux.mount(operation.source, operation.target, operation.fstype, operation.flags)
        except OSError as error:
            if operation.needed:
                raise HostPreparationError(
                    f"mount {operation.describe()}: {error.strerror}", "run the container with --privileged"
                ) from error
            failed.append(f"could not mount {operation.describe()}: {error.strerror}")
    return failed


def has_securityfs_directory() -> bool:
    return os.path.isdir("/sys/kernel/security")


def bind(directory_fd: int, target: str) -> bool:
    """Put an open directory in the place of `target`, which is made when it is missing; tells whether that hides
    something. Raises OSError. Needs CAP_SYS_ADMIN.

    The mount is private. As a peer of the one that the directory is from (which is shared after an earlier start in
    this container, or mounted with propagation), it would lose what is mounted below it as soon as that one is
    unmounted, and have it appear there until then.
    """
    os.makedirs(target, mode=0o710, exist_ok=True)
    hides = any(name not in (".cachedind", "lost+found") for name in os.listdir(target))
    linux.mount(f"/proc/self/fd/{directory_fd}", target, "", linux.MS_BIND)
    linux.mount("none", target, "", linux.MS_PRIVATE)
    return hides


def bind_read_only(directory_fd: int, below_fd: int, mounted: str, path: str) -> None:
    """Put an open directory, for reading, at `path` below a place where the directory `below_fd` is mounted. It is made
    when it is missing; no part of the path may be a link. Raises OSError. Needs CAP_SYS_ADMIN."""
    with beneath.made_directory(below_fd, path):
        pass
    mounted_fd = os.open(mounted, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Looked up from where it is mounted: a mount belongs to a mount, not to a directory.
        with beneath.directory(mounted_fd, path) as fd:
            target = f"/proc/self/fd/{fd}"
            linux.mount(f"/proc/self/fd/{directory_fd}", target, "", linux.MS_BIND)
        with beneath.directory(mounted_fd, path) as fd:
            # In a user namespace what the mount was made with may not be dropped.
            kept = os.statvfs(fd).f_flag & (
                os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
            )
            flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | kept
            linux.mount("none", f"/proc/self/fd/{fd}", "", flags)
    finally:
        os.close(mounted_fd)


def mount_points_at(paths: list[str]) -> list[str]:
    """Those of `paths` that are mount points themselves, each once and in this order."""
    return [path for path in dict.fromkeys(paths) if os.path.ismount(path)]
