"""The image backing: one sparse file with a copy-on-write filesystem inside, for pools on filesystems without.

    <pool>/pool.img       btrfs, or xfs where the kernel has no btrfs
    <pool>/pool.img.new   one that is being made
    <pool>/pool.img.bad   the last one that could not be mounted

All instances mount it through one loop device, each in its own mount namespace. Its size is a promise: what the file
takes already and what is free on the host, less a reserve. Should the host's disk fill up all the same, writes inside
would fail; so the size follows the host's free space up and, as far as no data has to be moved, down, and an image on a
disk that is nearly full is not mounted at all.

Options, as measured on Linux 6.18 with two cores that others used too: medians of interleaved rounds, as throughput
relative to the host's ext4 (20,000 files of 11 KB on average unpacked, synced, removed; 4 KB random writes with an
fsync each; 768 MiB written and synced). More than 1 is faster than the host.

    ext4                       inside              unpack  +sync  remove  fsync   big
    new, in memory             btrfs                 0.47   0.61    0.68   0.12  0.41
                               btrfs, direct I/O     0.48   0.69    0.73   0.16  1.19
                               xfs, direct I/O       0.94   0.88    1.01   0.36  0.81
    new, on a disk             btrfs, direct I/O     0.30           0.55   0.57  0.61
                               xfs, direct I/O       0.51           0.71   0.48  1.70
    old, on a disk, 0.5 ms     btrfs, direct I/O     9.3    3.4            0.36  0.76
    for a new file             xfs, direct I/O      15      3.4            0.55  1.04

Direct I/O of the loop device is what counts: without it all data is cached, and written back, twice. What is left is
btrfs itself and not the image: straight on a loop device in memory, where ext4 unpacks in 0.55 s, btrfs takes 1.4 s,
and in an image on ext4 1.6 s. nodatasum, nodatacow, ssd, max_inline and smaller nodes change none of it by more than
the noise; nobarrier makes an fsync 1.6 times as fast, and would lose the whole image in a crash of the host. An fsync
inside writes a log and flushes twice, and each flush is an fsync of the file on the host. discard=sync returns space
sooner and takes a tenth to a third longer for what frees it. btrfs is the first choice all the same, for a clone in
constant time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.errors import ImageImpossibleError, PoolUnusableError, ProgramMissingError
from cachedind.base.model import Degradation
from cachedind.host import linux, loops, procfs, trees
from cachedind.host.processes import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachedind.base.trace import Trace
    from cachedind.host.loops import LoopDevice

NAME = "pool.img"
NEW = "pool.img.new"
BAD = "pool.img.bad"
MIB = 1 << 20
STEP_BYTES = 256 * MIB
MINIMUM_BYTES = {"btrfs": 256 * MIB, "xfs": 512 * MIB}
"""Below that, mkfs refuses (xfs: 300 MiB) or the filesystem is full of its own metadata."""

FSTYPES = ("btrfs", "xfs")
"""What may be inside, best first."""

_MS_NOATIME = 1024
_MOUNT_OPTIONS = {"btrfs": "discard=async", "xfs": "discard,nouuid"}
_DEFAULT_RESERVE_BYTES = 1024 * MIB
_HARD_MINIMUM_BYTES = 256 * MIB
_MKFS_TIMEOUT_S = 300.0


class SizeAction(StrEnum):
    """What is to be done about the size of the filesystem inside."""

    CREATE = "create"
    GROW = "grow"
    SHRINK = "shrink"
    KEEP = "keep"


class SizePlan(NamedTuple):
    """`size_bytes` is what the filesystem inside shall have."""

    action: SizeAction
    size_bytes: int


class HostSpace(NamedTuple):
    """The filesystem that holds the image, in bytes: all of it, what is free, and what the image takes of it."""

    total: int
    free: int
    allocated: int


class Superblock(NamedTuple):
    """What an image says that it holds."""

    fstype: str
    size_bytes: int


class ImageMount(NamedTuple):
    """A mounted image. `created` tells that it is new and empty; `notes` what about it is worse than it could be."""

    target: str
    device: str
    fstype: str
    size_bytes: int
    created: bool
    notes: tuple[Degradation, ...]


# ---- how large -----------------------------------------------------------------------------------------------------


def default_reserve(space: HostSpace) -> int:
    """What is left to the host: 1 GiB or a twentieth of its disk, whichever is more, but no more than half of what
    there is to share.
    """
    return min(max(_DEFAULT_RESERVE_BYTES, space.total // 20), (space.allocated + space.free) // 2)


def plan_size(
    space: HostSpace,
    current: Superblock | None,
    *,
    wanted_bytes: int | None,
    min_free_bytes: int | None,
    fstype: str = "btrfs",
) -> SizePlan:
    """How large the filesystem inside shall be: never more than the host could hold, nor than what is wanted.

    Small differences are left alone, so that not every start resizes: those below a sixteenth when growing, and
    half of the reserve when shrinking. xfs cannot shrink. Raises PoolUnusableError where a new one would be too small,
    or the host's disk is so full that one might break.
    """
    fstype = current.fstype if current else fstype
    minimum = MINIMUM_BYTES[fstype]
    reserve = default_reserve(space) if min_free_bytes is None else min_free_bytes
    limit = space.allocated + space.free - reserve
    target = (limit if wanted_bytes is None else min(limit, wanted_bytes)) // STEP_BYTES * STEP_BYTES
    if current is None:
        if target < minimum:
            raise _too_small(space, reserve, wanted_bytes, minimum, fstype)
        return SizePlan(SizeAction.CREATE, target)
    _refuse_nearly_full(space, current)
    size = current.size_bytes
    is_wanted = wanted_bytes is not None and wanted_bytes <= limit
    if target > size and (is_wanted or target - size >= max(STEP_BYTES, size // 16)):
        return SizePlan(SizeAction.GROW, target)
    too_large = size > limit + reserve // 2 or (wanted_bytes is not None and size > wanted_bytes)
    if fstype == "btrfs" and too_large and size > max(target, minimum):
        return SizePlan(SizeAction.SHRINK, max(target, minimum))
    return SizePlan(SizeAction.KEEP, size)


def _refuse_nearly_full(space: HostSpace, current: Superblock) -> None:
    least = min(_HARD_MINIMUM_BYTES, space.total // 100)
    missing = current.size_bytes - space.allocated
    if space.free < least and missing > 0:
        raise PoolUnusableError(
            f"the disk under {NAME} is nearly full: {_mib(space.free)} of {_mib(space.total)} are free, and the "
            f"filesystem in it, which may still grow by {_mib(missing)}, would break on a full disk",
            f"free at least {_mib(least)}, or delete {NAME} when nobody uses it",
        )


def _too_small(
    space: HostSpace, reserve: int, wanted_bytes: int | None, minimum: int, fstype: str
) -> PoolUnusableError:
    if wanted_bytes is not None and wanted_bytes < minimum:
        return PoolUnusableError(
            f"CACHEDIND_POOL_SIZE is {_mib(wanted_bytes)}, and {fstype} needs at least {_mib(minimum)}",
            f"make it {_mib(minimum)} or more; a few GB are sensible",
        )
    return PoolUnusableError(
        f"the disk is too full for a pool: {_mib(space.free)} of {_mib(space.total)} are free, of which "
        f"{_mib(reserve)} must stay free, and {fstype} needs at least {_mib(minimum)}",
        "free some space, or use another disk",
    )


def _mib(size: int) -> str:
    return f"{size // MIB} MiB"


# ---- what is inside ------------------------------------------------------------------------------------------------


def parse_superblock(head: bytes) -> Superblock | None:
    """What the first 68 KiB of an image say, or None when it is neither btrfs nor xfs (btrfs's and xfs's on-disk
    formats).
    """
    if head[0x10040:0x10048] == b"_BHRfS_M":
        return Superblock("btrfs", struct.unpack_from("<Q", head, 0x10070)[0])
    if head[:4] == b"XFSB" and len(head) >= 16:
        block_size, blocks = struct.unpack_from(">IQ", head, 4)
        return Superblock("xfs", block_size * blocks)
    return None


# ---- opening -------------------------------------------------------------------------------------------------------


class _BadImageError(Exception):
    """The image cannot be used, and nobody else uses it either."""


class _Image(NamedTuple):
    directory: str
    fd: int
    target: str
    wanted_bytes: int | None
    min_free_bytes: int | None
    fstypes: tuple[str, ...]
    trace: Trace


def open_image(
    pool_dir: str,
    pool_fd: int,
    target: str,
    *,
    wanted_bytes: int | None,
    min_free_bytes: int | None,
    trace: Trace,
    fstypes: tuple[str, ...] = FSTYPES,
) -> ImageMount:
    """Mount the image of a pool at `target`, making it when there is none. The pool's lock must be held.

    An image that cannot be mounted is set aside, and replaced; the one set aside before goes. Nothing is written when
    the host's disk is nearly full.

    Raises PoolUnusableError, ImageImpossibleError (no loop devices, neither filesystem: another backing may work),
    OSError. Needs CAP_SYS_ADMIN.
    """
    image = _Image(pool_dir, pool_fd, target, wanted_bytes, min_free_bytes, fstypes, trace)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NEW, dir_fd=pool_fd)
    notes: list[Degradation] = []
    try:
        mounted = _open_existing(image, partial(_plan, image))
    except _BadImageError as error:
        notes.append(_set_aside(image, str(error)))
        mounted = None
    if mounted is None:
        mounted = _create(image, notes)
    return mounted._replace(notes=(*notes, *mounted.notes))


def mount_existing(pool_dir: str, pool_fd: int, target: str, trace: Trace) -> ImageMount:
    """Mount the image of a pool as it is, also when the host's disk is nearly full. The pool's lock must be held.

    Nothing is made, resized or set aside. Raises PoolUnusableError, ImageImpossibleError, OSError. Needs CAP_SYS_ADMIN.
    """
    image = _Image(pool_dir, pool_fd, target, None, None, FSTYPES, trace)
    try:
        mounted = _open_existing(image, lambda superblock, _: SizePlan(SizeAction.KEEP, superblock.size_bytes))
    except _BadImageError as error:
        raise PoolUnusableError(f"{pool_dir}/{NAME} {error}", "the next start makes a new one in its place") from error
    if mounted is None:
        raise PoolUnusableError(f"{pool_dir}/{NAME} is gone", "the next start makes a new one")
    return mounted


def _open_existing(image: _Image, plan: Callable[[Superblock, int], SizePlan]) -> ImageMount | None:
    try:
        fd = os.open(NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=image.fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _BadImageError("is no regular file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _BadImageError("is no regular file")
        superblock = parse_superblock(os.pread(fd, 68 << 10, 0))
        if superblock is None:
            _refuse_while_attached(image, fd)
            raise _BadImageError("holds neither btrfs nor xfs")
        return _mount(image, fd, superblock, plan(superblock, os.fstat(fd).st_blocks * 512))
    finally:
        os.close(fd)


def _plan(image: _Image, current: Superblock | None, allocated: int, fstype: str = "btrfs") -> SizePlan:
    host = os.fstatvfs(image.fd)
    if host.f_blocks == 0:
        raise ImageImpossibleError(
            f"the filesystem of {image.directory} does not tell how much is free", "use a pool on ext4, xfs or btrfs"
        )
    space = HostSpace(host.f_blocks * host.f_frsize, host.f_bavail * host.f_frsize, allocated)
    return plan_size(
        space, current, wanted_bytes=image.wanted_bytes, min_free_bytes=image.min_free_bytes, fstype=fstype
    )


def _refuse_while_attached(image: _Image, fd: int) -> None:
    with contextlib.suppress(ImageImpossibleError, FileNotFoundError):
        device = loops.find(fd)
        if device is not None:
            os.close(device.fd)
            raise PoolUnusableError(
                f"{image.directory}/{NAME} is damaged, and still attached to {device.path}",
                f"stop all instances on this pool, and detach it: losetup -d {device.path}",
            )


# ---- mounting ------------------------------------------------------------------------------------------------------


def _mount(image: _Image, fd: int, superblock: Superblock, plan: SizePlan) -> ImageMount:
    device = loops.attach(fd, f"{image.directory}/{NAME}")
    try:
        image.trace.reach("image.attached")
        options = _MOUNT_OPTIONS[superblock.fstype]
        try:
            linux.mount(device.path, image.target, superblock.fstype, _MS_NOATIME, options)
        except OSError as error:
            # A second look in one mount namespace (doctor, ls): the same filesystem does not go on top of itself.
            if error.errno != errno.EBUSY or not _is_mounted(device.path, image.target):
                raise _why_not_mounted(image, device, superblock, error) from error
        image.trace.reach("image.mounted")
        try:
            size, notes = _after_mount(image, fd, device, superblock, plan)
        except BaseException:
            linux.umount(image.target, linux.MNT_DETACH)
            raise
        return ImageMount(image.target, device.path, superblock.fstype, size, plan.action is SizeAction.CREATE, notes)
    finally:
        # The mount keeps it attached from now on.
        os.close(device.fd)


def _is_mounted(device: str, target: str) -> bool:
    mount = procfs.find_mount(procfs.read_mounts(), os.path.realpath(target))
    return mount is not None and mount.mount_point == os.path.realpath(target) and mount.source == device


def _why_not_mounted(image: _Image, device: LoopDevice, superblock: Superblock, error: OSError) -> Exception:
    path = f"{image.directory}/{NAME}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return ImageImpossibleError(f"this container may not mount {path}", "run the container with --privileged")
    if error.errno == errno.ENODEV:
        return PoolUnusableError(
            f"{path} holds {superblock.fstype}, which this kernel does not have",
            f"modprobe {superblock.fstype} on the host, or use another directory",
        )
    if error.errno == errno.EEXIST:
        return PoolUnusableError(
            f"a copy of {path} is mounted already, and {superblock.fstype} cannot tell them apart",
            "delete one of the two: a pool cannot be copied together with its image",
        )
    if device.shared:
        return PoolUnusableError(
            f"{path} is in use by others, and cannot be mounted again ({error.strerror}): the kernel may have made it "
            "read-only after an error",
            "see dmesg on the host; stop all instances on this pool",
        )
    if error.errno in (errno.ENOMEM, errno.EINTR):
        return error
    return _BadImageError(f"cannot be mounted as {superblock.fstype} ({error.strerror})")


def _after_mount(
    image: _Image, fd: int, device: LoopDevice, superblock: Superblock, plan: SizePlan
) -> tuple[int, tuple[Degradation, ...]]:
    if not _is_usable(image.target):
        raise PoolUnusableError(
            f"the filesystem in {image.directory}/{NAME} was shut down or made read-only by the kernel after an error",
            "see dmesg on the host; stop all instances on this pool, and delete the file if it does not get better",
        )
    if plan.action is SizeAction.GROW:
        try:
            _grow(image, fd, device, superblock, plan.size_bytes)
        except (OSError, ProgramMissingError) as error:
            why = f"{image.directory}/{NAME} could not grow to {_mib(plan.size_bytes)}: {error}"
            note = Degradation("the pool stays small", why, f"it has {_mib(superblock.size_bytes)}", "see dmesg")
            return superblock.size_bytes, (note,)
        return plan.size_bytes, ()
    if plan.action is SizeAction.SHRINK:
        return _shrink(image, superblock.size_bytes, plan.size_bytes), ()
    return plan.size_bytes, ()


def _is_usable(target: str) -> bool:
    """A filesystem that others have mounted may have failed already: btrfs is read-only then, xfs cannot be opened."""
    try:
        with _directory(target):
            return not os.statvfs(target).f_flag & os.ST_RDONLY
    except OSError:
        return False


def _grow(image: _Image, fd: int, device: LoopDevice, superblock: Superblock, size_bytes: int) -> None:
    if os.fstat(fd).st_size < size_bytes:
        os.ftruncate(fd, size_bytes)
    # Also when the file is large enough: a start that was killed may have come just so far.
    linux.refresh_loop_size(device.fd)
    if superblock.fstype == "btrfs":
        with _directory(image.target) as target_fd:
            linux.resize_btrfs(target_fd, size_bytes)
        return
    done = run(["xfs_growfs", "-d", image.target])
    if not done.ok:
        raise OSError(errno.EIO, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "xfs_growfs failed")


def _shrink(image: _Image, current_bytes: int, size_bytes: int) -> int:
    """Take back what was promised, as far as nothing has to be moved for it; returns the new size.

    The file keeps its length: what lies behind the end of the filesystem is a hole.
    """
    with _directory(image.target) as fd:
        used = -(-linux.btrfs_allocated_end(fd) // STEP_BYTES) * STEP_BYTES
        size = max(size_bytes, used)
        if size >= current_bytes:
            return current_bytes
        try:
            linux.resize_btrfs(fd, size)
        except OSError as error:
            # Somebody has written there meanwhile. The next start tries again.
            if error.errno not in (errno.ENOSPC, errno.EAGAIN, errno.EBUSY, errno.ETXTBSY):
                raise
            return current_bytes
    return size


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def give_back(target: str) -> int:
    """Tell the host now what is free in a mounted image; returns how many bytes that is. Takes some milliseconds, and
    with xfs the host has the space some more later. What was just removed is free after clone.wait_until_freed.

    By itself btrfs does so ten seconds to two minutes later, and never for what was deleted shortly before its last
    instance went (fs/btrfs/discard.c: at mount all that is free counts as told). Raises OSError. Needs CAP_SYS_ADMIN.
    """
    with _directory(target) as fd:
        return linux.trim(fd)


# ---- making --------------------------------------------------------------------------------------------------------


def _create(image: _Image, notes: list[Degradation]) -> ImageMount:
    fstype = _choose_fstype(image)
    try:
        plan = _plan(image, None, 0, fstype)
    except PoolUnusableError:
        if not notes:
            raise
        # What was set aside takes the space of the new one. It is a cache, and a broken one.
        trees.remove(image.fd, BAD)
        plan = _plan(image, None, 0, fstype)
        notes[:] = [note._replace(mend="it was deleted, for want of space") for note in notes]
    fd = os.open(NEW, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=image.fd)
    try:
        try:
            _format(image, fd, fstype, plan.size_bytes)
        except BaseException:
            os.unlink(NEW, dir_fd=image.fd)
            raise
        os.rename(NEW, NAME, src_dir_fd=image.fd, dst_dir_fd=image.fd)
        os.fsync(image.fd)
        image.trace.reach("image.named")
        return _mount_new(image, fd, Superblock(fstype, plan.size_bytes), plan)
    finally:
        os.close(fd)


def _mount_new(image: _Image, fd: int, superblock: Superblock, plan: SizePlan) -> ImageMount:
    try:
        return _mount(image, fd, superblock, plan)
    except (_BadImageError, ImageImpossibleError) as error:
        # Of no use to anybody, and the caller will do without one.
        os.unlink(NAME, dir_fd=image.fd)
        if isinstance(error, ImageImpossibleError):
            raise
        raise ImageImpossibleError(f"a new {image.directory}/{NAME} {error}", "see dmesg on the host") from error


def _choose_fstype(image: _Image) -> str:
    for fstype in image.fstypes:
        if _kernel_has(fstype, image.target):
            return fstype
    raise ImageImpossibleError(
        f"this kernel has none of {', '.join(image.fstypes)}", "modprobe btrfs on the host, where the kernel has it"
    )


def _kernel_has(fstype: str, target: str) -> bool:
    with open("/proc/filesystems", encoding="ascii") as file:
        if fstype in file.read().split():
            return True
    # The kernel loads a module for the name, and only then looks at the device.
    try:
        linux.mount("/dev/null", target, fstype)
    except OSError as error:
        return error.errno not in (errno.ENODEV, errno.EPERM, errno.EACCES)
    raise AssertionError("/dev/null was mounted")


def _format(image: _Image, fd: int, fstype: str, size_bytes: int) -> None:
    os.ftruncate(fd, size_bytes)
    image.trace.reach("image.sized")
    argv = {
        # One copy of the metadata, as on the disk below; -K: the file is a hole already.
        "btrfs": ["mkfs.btrfs", "-q", "-f", "-K", "-m", "single"],
        "xfs": ["mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1", "-s", f"size={loops.BLOCK_SIZE}"],
    }[fstype]
    done = run([*argv, f"/proc/self/fd/{fd}"], pass_fds=[fd], timeout_s=_MKFS_TIMEOUT_S)
    if not done.ok:
        raise PoolUnusableError(
            f"{image.directory}/{NEW} cannot be formatted: {' '.join(done.stderr.split()) or f'status {done.status}'}",
            "see whether the disk is full or failing",
        )
    os.fsync(fd)
    image.trace.reach("image.formatted")


def _set_aside(image: _Image, why: str) -> Degradation:
    trees.remove(image.fd, BAD)
    os.rename(NAME, BAD, src_dir_fd=image.fd, dst_dir_fd=image.fd)
    os.fsync(image.fd)
    path = f"{image.directory}/{NAME}"
    return Degradation(
        "the pool's image was replaced",
        f"{path} {why}",
        "every project's first start is cold",
        f"look at {image.directory}/{BAD}, and delete it",
    )
