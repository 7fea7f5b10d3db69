"""Whole trees by cp, with owners, modes, times, attributes and holes."""

from __future__ import annotations

import errno
import os

from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import processes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_TIMEOUT_S = 3600.0
_MAX_WORDS = 2000
_BAD_DISK = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO})


def run(source_fd: int, target_fd: int, how: str, wanted: Sequence[str]) -> None:
    """Copy what has these paths below the directory `source_fd` to the same below `target_fd`. `how` is --link or
    --reflink=auto. Links are copied as links. Needs root. Raises OSError.

    --preserve=xattr on top of --archive makes an attribute that cannot be copied an error; --reflink=auto and not
    =always: one file with chattr +C, which a job may leave, would forbid the copy for good.
    """
    here = f"/proc/self/fd/{source_fd}"
    there = f"--target-directory=/proc/self/fd/{target_fd}"
    options = ["--archive", "--preserve=xattr", "--parents", how, there]
    for some in _in_pieces(wanted):
        argv = ["env", f"--chdir={here}", "cp", *options, "--", *some]
        done = processes.run(argv, env=_ENVIRONMENT, pass_fds=(source_fd, target_fd), timeout_s=_TIMEOUT_S)
        if not done.ok:
            raise _error(done.stderr, done.status)


def _error(stderr: str, status: int) -> OSError:
    line = next(iter(stderr.splitlines()), f"cp ended with {status}")
    number = next((number for number in sorted(_BAD_DISK) if os.strerror(number) in stderr), errno.EIO)
    return OSError(number, line)


def _in_pieces(words: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(words), _MAX_WORDS):
        yield words[start : start + _MAX_WORDS]
