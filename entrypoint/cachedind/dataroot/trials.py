"""Trials: does a storage driver really work on the data-root's filesystem?

A mount that succeeds proves nothing. ramfs, ZFS before 2.2 and bcachefs before RENAME_WHITEOUT accept an overlay
mount on
which the first `mv` of a lower file fails. So the overlay is used here the way builds use it: copy-up, rename,
whiteout, opaque directory, d_type, extended attributes, and a second mount of the same directories.

Each trial runs in a forked child with a mount namespace of its own, so that its mounts cannot outlive it, and takes
about 10 ms. CAP_SYS_ADMIN is needed; its lack is a verdict, not an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from cachedind.base.model import Verdict
from cachedind.host import linux
from cachedind.host.processes import find_program
from cachedind.host.procfs import read_is_full_user_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

PROBE_PREFIX = ".cachedind-probe-"
_TIMEOUT_S = 10.0
_PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PRIVILEGE = frozenset({errno.EPERM, errno.EACCES})
_INDEX_PARAMETER = "/sys/module/overlay/parameters/index"

_STALE_PREFIXES = (
    "check-overlayfs-support",
    "opaque-bug-check",
    "metacopy-check",
    "userxattr-check",
    "multiple-lowerdir-check",
    "fsutils-dummy",
)
"""What moby's and containers/storage's own trials leave behind when they are killed."""


_PROVEN = "works"
"""What a trial's child reports. A child that says nothing was killed, and has proven nothing."""


class Unfit(Exception):
    """A step of a trial did not behave as a container's root filesystem must."""


def probe_overlay(directory: str) -> Verdict:
    """Try the kernel's overlay filesystem (overlay2, overlayfs) with all its directories below `directory`.

    `directory` must be on the filesystem in question; what is made in it is removed again. Raises OSError when
    not even plain files can be made there (read-only, full).
    """
    return _probe("overlay2", directory, _try_overlay)


def probe_fuse_overlayfs(directory: str) -> Verdict:
    """Try fuse-overlayfs: needs the program, /dev/fuse and CAP_SYS_ADMIN."""
    return _probe("fuse-overlayfs", directory, _try_fuse_overlayfs)


def _probe(driver: str, directory: str, trial: Callable[[str], None]) -> Verdict:
    work = f"{directory}/{PROBE_PREFIX}{os.getpid()}-{time.monotonic_ns()}"
    try:
        _lay_out(work)
        return explain(driver, _in_child(trial, work))
    finally:
        # Removing a mount point detaches what other namespaces have mounted there: a fuse-overlayfs that a killed trial
        # left behind ends with it.
        with contextlib.suppress(FileNotFoundError):
            _remove_tree(work)


def _lay_out(work: str) -> None:
    for name in ("lower1/dir", "lower2", "upper", "work", "merged"):
        os.makedirs(f"{work}/{name}")
    for name in ("lower1/file", "lower1/gone", "lower1/dir/inner", "lower2/other"):
        with open(f"{work}/{name}", "w", encoding="ascii") as file:
            file.write("lower\n")


def sweep_stale_probes(directory: str) -> list[str]:
    """Remove what killed trials left in a data-root, ours and the engines' own. Only under the lease. Returns the
    names.
    """
    stale = [name for name in os.listdir(directory) if name.startswith((PROBE_PREFIX, *_STALE_PREFIXES))]
    if stale:
        import shutil  # 4 ms of imports, for the rare start that has something to sweep
    for name in stale:
        shutil.rmtree(f"{directory}/{name}", ignore_errors=True)
    return stale


def _remove_tree(top: str) -> None:
    """Remove a tree of plain files and directories, as a trial makes it."""
    for directory, subdirectories, names in os.walk(top, topdown=False):
        for name in names:
            os.unlink(f"{directory}/{name}")
        for name in subdirectories:
            os.rmdir(f"{directory}/{name}")
    os.rmdir(top)


def _in_child(trial: Callable[[str], None], work: str) -> tuple[int, str] | None:
    """Run a trial in a forked child. None when it went well, else errno (0: none) and what failed."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run_child(trial, work, write_fd)
    os.close(write_fd)
    try:
        return _read_outcome(read_fd, pid)
    finally:
        os.close(read_fd)
        os.waitpid(pid, 0)


def _run_child(trial: Callable[[str], None], work: str, write_fd: int) -> None:
    outcome = "0 the trial ended unexpectedly"
    try:
        linux.unshare(linux.CLONE_NEWNS)
        # First of all: where / is shared, as hack/dind makes it, the trial's mounts would show up outside.
        linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
        trial(work)
        outcome = _PROVEN
    except Unfit as error:
        outcome = f"0 {error}"
    except OSError as error:
        what = f"{error.filename} to {error.filename2}" if error.filename2 else error.filename or "a step"
        outcome = f"{error.errno or 0} {what}: {error.strerror}".replace(f"{work}/", "")
    except BaseException as error:  # the parent must hear of anything at all
        outcome = f"0 {type(error).__name__}: {error}"
    finally:
        try:
            os.write(write_fd, outcome.encode("utf-8", "replace")[:4000])
        finally:
            os._exit(0)


def _read_outcome(read_fd: int, pid: int) -> tuple[int, str] | None:
    ready, _, _ = select.select([read_fd], [], [], _TIMEOUT_S)
    if not ready:
        os.kill(pid, signal.SIGKILL)
        return errno.ETIMEDOUT, f"the trial did not end within {_TIMEOUT_S:g} s"
    text = os.read(read_fd, 4096).decode("utf-8", "replace")
    if text == _PROVEN:
        return None
    if not text:
        return 0, "the trial was killed"
    number, _, what = text.partition(" ")
    return int(number), what


def explain(driver: str, outcome: tuple[int, str] | None) -> Verdict:
    """Turn a trial's outcome into a verdict for people: EPERM is about privileges, EINVAL about the filesystem."""
    if outcome is None:
        return Verdict(
            driver, works=True, why="tried: copy-up, rename, whiteout, opaque directory, d_type, xattr, remount"
        )
    number, what = outcome
    if number in _PRIVILEGE:
        return Verdict(
            driver, works=False, why=f"no permission ({what}): the container lacks privileges", privilege=True
        )
    if number == errno.ENODEV:
        return Verdict(
            driver, works=False, why=f"the kernel has no such filesystem ({what}): load its module on the host"
        )
    if number == errno.EINVAL:
        return Verdict(driver, works=False, why=f"the backing filesystem is unfit ({what})")
    return Verdict(driver, works=False, why=what)


def overlay_options(work: str, *, full_user_namespace: bool, has_index: bool) -> str:
    """The mount options that dockerd uses: index=off where the kernel knows it, userxattr in a user namespace.

    moby, daemon/graphdriver/overlay2/overlay.go. gVisor refuses options that it does not know.
    """
    options = f"lowerdir={work}/lower1:{work}/lower2,upperdir={work}/upper,workdir={work}/work"
    if has_index:
        options += ",index=off"
    if not full_user_namespace:
        options += ",userxattr"
    return options


def _try_overlay(work: str) -> None:
    options = overlay_options(
        work, full_user_namespace=read_is_full_user_namespace(), has_index=os.path.exists(_INDEX_PARAMETER)
    )
    # The mount comes first: an overlay answers it with EINVAL, but mknod of a whiteout in it with EPERM, as if
    # privileges were missing.
    linux.mount("overlay", f"{work}/merged", "overlay", data=options)
    _use_as_root_filesystem(work)
    _check_whiteouts(f"{work}/upper")
    linux.umount(f"{work}/merged")
    _check_upper(f"{work}/upper", xattr="trusted.overlay.opaque")
    linux.mount("overlay", f"{work}/merged", "overlay", data=options)
    _check_after_remount(f"{work}/merged")


def _try_fuse_overlayfs(work: str) -> None:
    if not os.path.exists("/dev/fuse"):
        raise Unfit("/dev/fuse is missing: run the container with --privileged or --device /dev/fuse")
    program = find_program("fuse-overlayfs", _PROGRAM_PATH)
    if program is None:
        raise Unfit("the program fuse-overlayfs is not installed")
    options = f"lowerdir={work}/lower1:{work}/lower2,upperdir={work}/upper,workdir={work}/work"
    for check in (_use_as_root_filesystem, lambda work: _check_after_remount(f"{work}/merged")):
        _run_helper([program, "-o", options, f"{work}/merged"])
        check(work)
        linux.umount(f"{work}/merged", linux.MNT_DETACH)


def _run_helper(argv: list[str]) -> None:
    from cachedind.host.processes import run

    result = run(argv, timeout_s=_TIMEOUT_S / 2)
    if not result.ok:
        raise Unfit(f"{os.path.basename(argv[0])}: {result.stderr.strip() or f'exit status {result.status}'}")


def _check_upper(upper: str, xattr: str) -> None:
    """What layer extraction does straight in the upper directory: whiteouts as 0:0 devices, overlay's and file
    capabilities.
    """
    sample = f"{upper}/sample"
    os.mkdir(sample)
    os.setxattr(sample, xattr, b"y")
    os.mknod(f"{sample}/whiteout", 0o600 | 0o020000, os.makedev(0, 0))
    with open(f"{sample}/file", "w", encoding="ascii"):
        pass
    # VFS_CAP_REVISION_2 with cap_net_bind_service, as setcap(8) writes it.
    os.setxattr(f"{sample}/file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    check_entry_types(linux.directory_entry_types(sample))
    _remove_tree(sample)


def check_entry_types(types: dict[str, int]) -> None:
    """Raises Unfit when directory entries do not carry their type (xfs made with ftype=0): overlay needs d_type."""
    if not types or linux.DT_UNKNOWN in types.values():
        raise Unfit("directory entries carry no d_type (xfs: format it with ftype=1)")


def _use_as_root_filesystem(work: str) -> None:
    merged = f"{work}/merged"
    with open(f"{merged}/new", "w", encoding="ascii") as file:
        file.write("new\n")
    with open(f"{merged}/file", "a", encoding="ascii") as file:
        file.write("upper\n")
    os.rename(f"{merged}/other", f"{merged}/renamed")
    os.chmod(f"{merged}/file", 0o640)
    os.chown(f"{merged}/file", 1, 1)
    os.link(f"{merged}/file", f"{merged}/linked")
    os.unlink(f"{merged}/gone")
    os.unlink(f"{merged}/dir/inner")
    os.rmdir(f"{merged}/dir")
    os.mkdir(f"{merged}/dir")
    _check_after_remount(merged)


def _check_after_remount(merged: str) -> None:
    names = set(os.listdir(merged))
    if names != {"new", "file", "linked", "renamed", "dir"}:
        raise Unfit(f"files that were removed or renamed show up again: {', '.join(sorted(names))}")
    if os.listdir(f"{merged}/dir"):
        raise Unfit("a removed and re-made directory shows its old content")
    with open(f"{merged}/file", encoding="ascii") as file:
        if file.read() != "lower\nupper\n":
            raise Unfit("a changed file has lost its content")


def _check_whiteouts(upper: str) -> None:
    found = os.lstat(f"{upper}/gone")
    if found.st_rdev != os.makedev(0, 0) or linux.directory_entry_types(upper)["gone"] != linux.DT_CHR:
        raise Unfit("a removed file left no whiteout")
