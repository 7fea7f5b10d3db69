"""Trials: does a storage driver really work on the data-root's filesystem?

Each trial (overlay_trial.py) runs in a forked child with a mount namespace of its own, so that its mounts cannot
outlive it, and takes about 10 ms. CAP_SYS_ADMIN is needed; its lack is a verdict, not an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time

from cachedind.base.model import Verdict
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot import overlay_trial
from cachedind.dataroot.stale_trials import PROBE_PREFIX
from cachedind.host import linux

if TYPE_CHECKING:
    from collections.abc import Callable

_PRIVILEGE = frozenset({errno.EPERM, errno.EACCES})

_PROVEN = "works"
"""What a trial's child reports when all went well. A child that reports nothing was killed."""


def probe_overlay(directory: str) -> Verdict:
    """Try the kernel's overlay filesystem (overlay2, overlayfs) with all its directories below `directory`.

    `directory` must be on the filesystem in question; what is made in it is removed again. Raises OSError when
    not even plain files can be made there (read-only, full).
    """
    return _probe("overlay2", directory, overlay_trial.try_overlay)


def probe_fuse_overlayfs(directory: str) -> Verdict:
    """Try fuse-overlayfs: needs the program, /dev/fuse and CAP_SYS_ADMIN."""
    return _probe("fuse-overlayfs", directory, overlay_trial.try_fuse_overlayfs)


def _probe(driver: str, directory: str, trial: Callable[[str], None]) -> Verdict:
    work = f"{directory}/{PROBE_PREFIX}{os.getpid()}-{time.monotonic_ns()}"
    try:
        overlay_trial.lay_out(work)
        return explain(driver, _in_child(trial, work))
    finally:
        # Removing a mount point detaches what other namespaces have mounted there: a fuse-overlayfs that a killed trial
        # left behind ends with it.
        with contextlib.suppress(FileNotFoundError):
            overlay_trial.remove_tree(work)


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
    except overlay_trial.Unfit as error:
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
    ready, _, _ = select.select([read_fd], [], [], overlay_trial.TIMEOUT_S)
    if not ready:
        os.kill(pid, signal.SIGKILL)
        return errno.ETIMEDOUT, f"the trial did not end within {overlay_trial.TIMEOUT_S:g} s"
    text = os.read(read_fd, 4096).decode("utf-8", "replace")
    if text == _PROVEN:
        return None
    if not text:
        return 0, "the trial was killed"
    number, _, what = text.partition(" ")
    return int(number), what


def explain(driver: str, outcome: tuple[int, str] | None) -> Verdict:
    """Turn a trial's outcome into a verdict for people: EPERM means missing privileges, EINVAL an unfit filesystem."""
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
