"""The pool: one directory with many slots, on the host's filesystem or in a filesystem image inside it.

    <pool>/                      the mount, CACHEDIND_POOL (default /cachedind)
      CACHEDIR.TAG  pool.json {version, min_reader, backing, clone, fstype}  pool.lock
      pool.img                   only when the backing is an image; everything below is inside it then
      keys/<key>/key.json        the key as given
      keys/<key>/sequence        the number of the last start (a counter, not a clock: clocks are set back)
      keys/<key>/golden/         {golden.json, data/}; golden.previous/ and golden.other/<class>/ likewise
      keys/<key>/slots/<id>/     {slot.json, slot.lock, data/}
      aside/<id>/                {why.json, slot/}
      stage/<id>/  trash/<id>/   everything is born in stage and renamed in; renamed to trash first, deleted later

Three locks, all flock(2), always taken in this order: pool.lock (making and attaching the image), the key's directory
(which state is newest), slot.lock (the lease itself). Whoever makes something in stage holds its directory's lock, so
that a sweep leaves it alone; whoever copies a golden holds a shared lock on its directory, so that it is not deleted
meanwhile. Nobody waits for a lease.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.base.errors import ImageImpossibleError, NotPrivilegedError, PoolMissingError, PoolUnusableError
from cachedind.base.model import Degradation
from cachedind.dataroot import facts
from cachedind.host import flock, linux
from cachedind.pool.clone import CloneMethod, probe_method

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.base.model import Mount
    from cachedind.base.trace import Trace
    from cachedind.settings.config import Config

DEFAULT_POOL = "/cachedind"
IMAGE_MOUNT = "/run/cachedind/pool"
RECORD = "pool.json"
LOCK_TIMEOUT_S = 60.0
_POLL_S = 0.005
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTS = ("keys", "aside", "stage", "trash")
_CACHEDIR_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# A pool of Docker data-roots, made by cachedind; backups may leave it out (https://bford.info/cachedir/).\n"
)


class Record(NamedTuple):
    """What pool.json says: `backing` is "directory" or "image", `fstype` that of the pool's directory."""

    backing: str
    clone: CloneMethod
    fstype: str


class Pool(NamedTuple):
    """An open pool. `tree` is where keys/ lies, as a path; the descriptors are of its directories."""

    path: str
    tree: str
    tree_fd: int
    keys_fd: int
    aside_fd: int
    stage_fd: int
    trash_fd: int
    record: Record
    trace: Trace
    is_new: bool = False

    @property
    def method(self) -> CloneMethod:
        return self.record.clone

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self.tree_fd, self.keys_fd, self.aside_fd, self.stage_fd, self.trash_fd)

    def describe(self) -> str:
        """What kind of pool it is, for people."""
        clones = {
            CloneMethod.SUBVOLUME: "clones are btrfs snapshots",
            CloneMethod.REFLINK: "clones are reflinked copies",
            CloneMethod.NONE: "slots cannot be cloned",
        }
        where = f"in the image {self.path}/pool.img" if self.record.backing == "image" else f"on {self.record.fstype}"
        return f"{where}, {clones[self.method]}"

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


def wanted_path(settings: Config) -> str | None:
    """The pool's directory where pool mode is on: it is named, or something is mounted at the default place."""
    if settings.pool is not None:
        return settings.pool or None
    return DEFAULT_POOL if os.path.ismount(DEFAULT_POOL) else None


def open_pool(path: str, settings: Config, trace: Trace) -> tuple[Pool, list[Degradation]]:
    """Open a pool, making it when it is new. Also returns what about it works less well than it could.

    Raises PoolUnusableError, OSError. Needs CAP_SYS_ADMIN for the image backing.
    """
    real = os.path.realpath(path)
    notes = check_filesystem(real, settings)
    os.makedirs(real, mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as undo:
        pool_fd = os.open(real, _DIRECTORY)
        undo.callback(os.close, pool_fd)
        lock_fd = _open_lock(pool_fd, real)
        undo.callback(os.close, lock_fd)
        fstype = facts.read_mount(real).fstype
        record = _glance(pool_fd, real)
        if record is None or record.backing == "image" or record.fstype != fstype:
            # Anything but a directory that is known to be good: one at a time.
            wait_for_lock(lock_fd, LOCK_TIMEOUT_S, f"{real}/pool.lock")
            record, found = read_record(pool_fd, real, strict=settings.strict)
            notes += found
        tree = real
        is_new = record is None
        if record is None or record.fstype != fstype:
            record, tree, found = _found_pool(real, pool_fd, fstype, settings, trace)
            notes += found
            _write_record(pool_fd, record)
            trace.reach("pool.recorded")
        elif record.backing == "image":
            tree, found = _open_image(real, pool_fd, settings, trace)
            notes += found
        notes += _judge(record, settings, real)
        return _open_tree(real, tree, record, trace)._replace(is_new=is_new), notes


def open_existing(path: str, trace: Trace) -> Pool:
    """Open a pool as it is, to look at it or tidy up: nothing is judged anew, resized or set aside.

    An image is mounted in a new mount namespace, which this process enters, so it must have one thread.

    Raises PoolMissingError, PoolUnusableError, NotPrivilegedError, ImageImpossibleError, OSError. An image needs
    CAP_SYS_ADMIN.
    """
    real = os.path.realpath(path)
    try:
        pool_fd = os.open(real, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(real, "there is no such directory") from error
    try:
        record = _load_record(pool_fd, real)
        if record is None:
            raise _missing(real, "the directory has no pool.json")
        tree = real if record.backing == "directory" else _enter_image(real, pool_fd, trace)
    except ValueError as error:
        raise PoolUnusableError(
            f"{real}/{RECORD} cannot be understood: {error}", "the next start makes it anew"
        ) from error
    finally:
        os.close(pool_fd)
    return _open_tree(real, tree, record, trace)


def _missing(path: str, why: str) -> PoolMissingError:
    return PoolMissingError(
        f"there is no pool at {path}: {why}",
        f"mount it there (-v /srv/cachedind:{path}), or say where it is with --pool; the first start makes one",
    )


def _enter_image(path: str, pool_fd: int, trace: Trace) -> str:
    from cachedind.pool.loop_image import mount_existing

    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    except PermissionError as error:
        raise NotPrivilegedError(
            f"the pool {path} is in an image, which this container may not mount", "run the container with --privileged"
        ) from error
    os.makedirs(IMAGE_MOUNT, mode=0o700, exist_ok=True)
    lock_fd = _open_lock(pool_fd, path)
    try:
        wait_for_lock(lock_fd, LOCK_TIMEOUT_S, f"{path}/pool.lock")
        return mount_existing(path, pool_fd, IMAGE_MOUNT, trace).target
    finally:
        os.close(lock_fd)


def check_filesystem(path: str, settings: Config) -> list[Degradation]:
    """Whether locks hold there, and for how long the pool will last. Raises PoolUnusableError."""
    mount = facts.read_mount(path)
    reason = facts.unsafe_lock_reason(mount.fstype)
    if reason is not None:
        if not settings.allow_network_fs:
            raise PoolUnusableError(
                f"the pool {path} is on {mount.fstype}: {reason}",
                "use a local disk or a block volume; CACHEDIND_ALLOW_NETWORK_FS=1 uses it anyway",
            )
        why = f"the pool {path} is on {mount.fstype}: {reason}"
        return [Degradation("exclusive use is not certain", why, "use it from one machine only", "use a local disk")]
    lost = _why_it_will_not_last(mount)
    if lost is None:
        return []
    where, cost = lost
    mend = "mount a named volume or a host directory there: -v /srv/cachedind:/cachedind"
    return [Degradation("the pool will not last", f"{path} is {where}", cost, mend)]


def _why_it_will_not_last(mount: Mount) -> tuple[str, str] | None:
    if mount.fstype == "overlay":
        return "in the container's own layer", "it is deleted with the container"
    if mount.fstype in ("tmpfs", "ramfs"):
        return f"in memory ({mount.fstype})", "it is gone after an unmount or a reboot"
    if facts.is_anonymous_volume(mount):
        return "an anonymous volume", "the next container gets another one"
    return None


def _found_pool(
    path: str, pool_fd: int, fstype: str, settings: Config, trace: Trace
) -> tuple[Record, str, list[Degradation]]:
    """Decide how a new pool keeps its slots, by trying."""
    with contextlib.suppress(FileExistsError):
        fd = os.open("CACHEDIR.TAG", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=pool_fd)
        with os.fdopen(fd, "wb") as file:
            file.write(_CACHEDIR_TAG)
    method = CloneMethod.NONE if settings.pool_backing == "image" else probe_method(pool_fd)
    if method is not CloneMethod.NONE or settings.pool_backing == "directory":
        return Record("directory", method, fstype), path, []
    if facts.unsafe_lock_reason(fstype) is not None:
        # Two kernels that mount one image destroy it, locks or no locks.
        return Record("directory", CloneMethod.NONE, fstype), path, []
    try:
        tree, notes = _open_image(path, pool_fd, settings, trace)
    except ImageImpossibleError as error:
        why = f"{path} is on {fstype}, and {error.cause}"
        cost = "an instance beside others starts cold unless a slot is free"
        found = [Degradation("the pool cannot clone", why, cost, error.hint)]
        return Record("directory", CloneMethod.NONE, fstype), path, found
    tree_fd = os.open(tree, _DIRECTORY)
    try:
        return Record("image", probe_method(tree_fd), fstype), tree, notes
    finally:
        os.close(tree_fd)


def _open_image(path: str, pool_fd: int, settings: Config, trace: Trace) -> tuple[str, list[Degradation]]:
    from cachedind.pool.loop_image import open_image

    os.makedirs(IMAGE_MOUNT, mode=0o700, exist_ok=True)
    mounted = open_image(
        path,
        pool_fd,
        IMAGE_MOUNT,
        wanted_bytes=settings.pool_size_bytes,
        min_free_bytes=settings.pool_min_free_bytes,
        trace=trace,
    )
    return IMAGE_MOUNT, list(mounted.notes)


def _judge(record: Record, settings: Config, path: str) -> list[Degradation]:
    wanted = settings.pool_backing
    if wanted in ("auto", record.backing):
        return []
    why = f"{path} was made with the backing {record.backing}"
    mend = "drop the variable, or use another (or emptied) directory"
    return [Degradation(f"CACHEDIND_POOL_BACKING={wanted} is ignored", why, "the pool stays as it is", mend)]


def _open_tree(path: str, tree: str, record: Record, trace: Trace) -> Pool:
    with contextlib.ExitStack() as undo:
        tree_fd = os.open(tree, _DIRECTORY)
        undo.callback(os.close, tree_fd)
        parts = []
        for name in _PARTS:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=tree_fd)
            try:
                parts.append(os.open(name, _DIRECTORY, dir_fd=tree_fd))
            except (NotADirectoryError, OSError) as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                raise PoolUnusableError(
                    f"{name} in the pool {path} is not the directory that cachedind made",
                    "look at it, and move it away",
                ) from error
            undo.callback(os.close, parts[-1])
        undo.pop_all()
    keys_fd, aside_fd, stage_fd, trash_fd = parts
    return Pool(path, tree, tree_fd, keys_fd, aside_fd, stage_fd, trash_fd, record, trace)


# ---- pool.json ---------------------------------------------------------------------------------------------------


_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})


def read_record(pool_fd: int, path: str, *, strict: bool = False) -> tuple[Record | None, list[Degradation]]:
    """What pool.json says; None in a new pool. One that cannot be read is set aside, and the pool judged anew.

    Needs the pool's lock, or the good one of somebody else would be set aside. Raises PoolUnusableError when it is a
    later version's, and, `strict`, instead of setting anything aside.
    """
    try:
        return _load_record(pool_fd, path), []
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FILE:
            raise
        why = f"{path}/{RECORD} cannot be understood: {error.strerror if isinstance(error, OSError) else error}"
        if strict:
            raise PoolUnusableError(why, f"find out who wrote to it, and delete {path}/{RECORD}") from error
        mend = f"find out who wrote to it, and delete {path}/{state.set_aside(pool_fd, RECORD)}"
        return None, [Degradation("the pool is judged anew", why, "its slots and goldens stay as they are", mend)]


def _glance(pool_fd: int, path: str) -> Record | None:
    """The record, if it is there and can be read. Raises PoolUnusableError when it is a later version's."""
    try:
        return _load_record(pool_fd, path)
    except ValueError:
        return None
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return None


def _load_record(pool_fd: int, path: str) -> Record | None:
    """As `read_record`, but a file that cannot be understood is left alone: ValueError, OSError."""
    try:
        raw = state.read_state(pool_fd, RECORD)
        return None if raw is None else _parse_record(raw)
    except state.TooNewError as error:
        raise PoolUnusableError(
            f"the pool {path} is of a later cachedind: {error}", "use that version's image, or another directory"
        ) from error


def _parse_record(raw: dict[str, object]) -> Record:
    backing, fstype = raw.get("backing"), raw.get("fstype")
    if backing not in ("directory", "image") or not isinstance(fstype, str):
        raise ValueError("backing or fstype is missing")
    return Record(str(backing), CloneMethod(str(raw.get("clone"))), fstype)


def _write_record(pool_fd: int, record: Record) -> None:
    before = None
    with contextlib.suppress(ValueError):
        before = state.read_state(pool_fd, RECORD)
    values: dict[str, object] = {"backing": record.backing, "clone": str(record.clone), "fstype": record.fstype}
    state.write_state(pool_fd, RECORD, values, before)


# ---- locks -------------------------------------------------------------------------------------------------------


def _open_lock(pool_fd: int, path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open("pool.lock", flags, 0o600, dir_fd=pool_fd)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise PoolUnusableError(
                f"the pool {path} is on a read-only filesystem", "mount it read-write; CACHEDIND_ACCESS=ro protects it"
            ) from error
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise PoolUnusableError(
                f"{path}/pool.lock is not the file that cachedind made", "look at it, and move it away"
            ) from error
        raise


def try_lock(fd: int) -> bool:
    """Take the exclusive flock of an open file or directory, if it is free."""
    return flock.lock_exclusive(fd)


def wait_for_lock(fd: int, timeout_s: float, what: str) -> None:
    """Raises PoolUnusableError when others hold it for longer than `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not try_lock(fd):
        if time.monotonic() >= deadline:
            raise PoolUnusableError(
                f"{what} was held by other starts for {timeout_s:g} s", "see what they do: cachedind ls"
            )
        time.sleep(_POLL_S)


def is_current(fd: int, parent_fd: int, name: str) -> bool:
    """Whether a name still stands for what is open as `fd`: between opening and locking it may have been renamed."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=parent_fd, follow_symlinks=False))
    except FileNotFoundError:
        return False


def open_directory(parent_fd: int, name: str) -> int | None:
    """A directory's descriptor, or None when there is no such directory (nothing, a link, a file)."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def names_in(directory_fd: int) -> list[str]:
    """What is in an open directory now. btrfs shows a descriptor the entries of the moment it was opened (Linux 6.5,
    fs/btrfs/inode.c, btrfs_opendir), so the directory is opened anew.
    """
    fd = os.open(".", _DIRECTORY, dir_fd=directory_fd)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


# ---- stage, trash, aside -----------------------------------------------------------------------------------------


def new_id() -> str:
    return os.urandom(6).hex()


class Stage(NamedTuple):
    """A directory that is being made, and locked by whoever makes it."""

    name: str
    fd: int


@contextlib.contextmanager
def staged(pool: Pool) -> Iterator[Stage]:
    """A new directory in stage. What still has its name at the end is thrown away."""
    stage = _new_stage(pool)
    try:
        yield stage
    finally:
        try:
            if is_current(stage.fd, pool.stage_fd, stage.name):
                throw_away(pool, pool.stage_fd, stage.name)
        finally:
            os.close(stage.fd)


def _new_stage(pool: Pool) -> Stage:
    while True:
        name = new_id()
        os.mkdir(name, 0o700, dir_fd=pool.stage_fd)
        fd = open_directory(pool.stage_fd, name)
        if fd is None:
            continue
        # A sweep may have met the directory before it was locked.
        if try_lock(fd) and is_current(fd, pool.stage_fd, name):
            return Stage(name, fd)
        os.close(fd)


def publish(pool: Pool, stage: Stage, parent_fd: int, name: str) -> None:
    """Give what was made in stage its place. Raises OSError: EEXIST or ENOTEMPTY when the place is taken."""
    os.rename(stage.name, name, src_dir_fd=pool.stage_fd, dst_dir_fd=parent_fd)


def throw_away(pool: Pool, parent_fd: int, name: str) -> None:
    """Move a directory to trash; `upkeep` deletes it later, in the background. What is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(name, new_id(), src_dir_fd=parent_fd, dst_dir_fd=pool.trash_fd)
        pool.trace.reach("evict.renamed")


def set_aside(pool: Pool, parent_fd: int, name: str, why: str, now: float) -> str:
    """Keep something bad for inspection, whatever it is, and return where."""
    aside = new_id()
    os.mkdir(aside, 0o700, dir_fd=pool.aside_fd)
    fd = os.open(aside, _DIRECTORY, dir_fd=pool.aside_fd)
    try:
        state.write_state(fd, "why.json", {"why": why, "was": name, "at": round(now, 3)}, None)
        os.rename(name, "slot", src_dir_fd=parent_fd, dst_dir_fd=fd)
    finally:
        os.close(fd)
    pool.trace.reach("aside.renamed")
    return f"aside/{aside}"
