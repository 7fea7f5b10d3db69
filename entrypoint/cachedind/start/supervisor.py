"""The supervisor: dockerd's parent, which passes signals on, sees how dockerd ends, and ends with its exit code.

It is what the start becomes (decisions/0016): a fresh interpreter that has imported nothing, so that it costs little
memory for as long as the daemon runs, with the lease, the directory of the state file and what tells who reads a merged
configuration as its only open files. When dockerd has ended it notes the end down, still under the lease: the next
start then knows a clean end from a crash.
"""

from __future__ import annotations

# The C module: `signal` around it is memory and a millisecond. Everything that only the end needs is imported there.
import _signal  # type: ignore[import-not-found]
import os
import sys

SYNC_S = 5.0
"""How long a container's end may wait for the disk; one that is slower is not known to be clean."""

MERGE_S = 5.0
_ON_DISKS = frozenset({"ext4", "xfs", "btrfs", "f2fs", "zfs", "ext3", "ext2"})
"""What a user may have mounted below a data-root, for a driver's layers, say. Containers' own mounts are none of it."""

_OWN_FAULTS = (
    *(_signal.SIGFPE, _signal.SIGILL, _signal.SIGSEGV, _signal.SIGBUS, _signal.SIGABRT, _signal.SIGTRAP),
    *(_signal.SIGSYS, _signal.SIGTTIN, _signal.SIGTTOU),
)
"""Signals that are about the process that gets them: all others are passed on, as docker-init does it."""


def block_signals() -> set[int]:
    """Keep every signal that is passed on pending, from before the fork on, so that none is lost; returns the mask
    before. A terminal's orders to wait are blocked too, or giving the terminal away would stop the giver."""
    blocked = _passed_on() | {_signal.SIGTTIN, _signal.SIGTTOU}
    return set(_signal.pthread_sigmask(_signal.SIG_BLOCK, blocked))


def become_child(mask: set[int]) -> None:
    """What the new process does before it becomes dockerd: a process group of its own (the terminal's, if there is one,
    so that ^C comes once), signals as they were when the container began."""
    os.setpgid(0, 0)
    try:  # noqa: SIM105 (what contextlib needs would stay in memory)
        os.tcsetpgrp(0, os.getpgrp())
    except OSError:  # no terminal
        pass
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def command(daemon: int, witness: int, lock_fd: int, directory_fd: int, state_name: str, data_root: str) -> list[str]:
    """The program that a start becomes when it has made dockerd its child. Both descriptors must be inheritable. What a
    `reload.Copied` has may follow."""
    numbers = map(str, (daemon, witness, lock_fd, directory_fd))
    return [sys.executable, "-IS", os.path.abspath(__file__), *numbers, state_name, data_root]


def main(daemon: int, witness: int, directory_fd: int, state_name: str, data_root: str, *copied: str) -> int:
    """Wait for dockerd's end and note it down; returns the exit code. Signals must be blocked (`block_signals`)."""
    children = {daemon, witness}
    status = _watch(daemon, children, *copied)
    if witness in children:  # nobody else writes the state file from here on
        os.kill(witness, _signal.SIGKILL)
        os.waitpid(witness, 0)
    try:
        _find_package()
        note_end(directory_fd, state_name, data_root, status)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cachedind: warning: how the daemon ended cannot be noted down: {error}\n")
    return status


def _watch(daemon: int, children: set[int], watch: str = "", config: str = "", copy: str = "") -> int:
    """Pass signals on until dockerd has ended; returns its exit code, 128 and the number for a signal. `children` are
    those that are still to be reaped."""
    signals = _passed_on() | {_signal.SIGCHLD}
    while True:
        # Another program's exec may have come between fork and here, so look first.
        while pid := _reap(children):
            if pid[0] == daemon:
                code = os.waitstatus_to_exitcode(pid[1])
                return code if code >= 0 else 128 - code
        number = _signal.sigwaitinfo(signals).si_signo
        if number == _signal.SIGIO and watch:
            if not _was_read(int(watch), os.path.basename(copy)) or not _merge_configuration(config, copy):
                continue
            number = _signal.SIGHUP
        elif number == _signal.SIGHUP:
            _merge_configuration()
        if number != _signal.SIGCHLD:
            os.kill(daemon, number)


def _was_read(watch_fd: int, name: str) -> bool:
    """Whether a file of that name was, of those that inotify tells about."""
    try:
        return b"%b\0" % name.encode() in os.read(watch_fd, 1 << 16)
    except BlockingIOError:
        return False


def _merge_configuration(config: str = "", copy: str = "") -> bool:
    """What dockerd is about to read again is made anew of what the user's file says by now, in a child, so that what
    that takes is not kept. One that takes long, as the file is somewhere slow, keeps no signal from dockerd.

    With `config`, the user's file, only when that was modified since the copy was made.
    Returns whether there is a new copy.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _find_package()
            from cachedind.base.modified import modified_ns

            if not config or modified_ns(config) != modified_ns(copy):
                from cachedind.start import reload

                try:
                    reload.merge_again()
                finally:  # of a broken file, too, there is a copy
                    status = int(modified_ns(config) != modified_ns(copy))
        except Exception as error:  # whatever it is, dockerd reads what was there
            sys.stderr.write(f"cachedind: warning: daemon.json cannot be merged again: {error}\n")
        finally:
            os._exit(status)
    return _wait(pid, MERGE_S)


def _find_package() -> None:
    sys.path.append(os.path.abspath(f"{__file__}/../../.."))


def _reap(children: set[int]) -> tuple[int, int] | None:
    """A child that has ended, and its wait status."""
    pid, status = os.waitpid(-1, os.WNOHANG)
    children.discard(pid)
    return (pid, status) if pid else None


def _passed_on() -> set[int]:
    return set(_signal.valid_signals()) - {_signal.SIGKILL, _signal.SIGSTOP, *_OWN_FAULTS}


# ---- the note --------------------------------------------------------------------------------------------------------


def note_end(directory_fd: int, state_name: str, data_root: str, status: int) -> None:
    """Write into the state file how the daemon ended: `clean` when it had answered, ended with 0, and all of it is on
    the disk. Needs the lease, and to be the only one who writes. Raises OSError, ValueError."""
    import time

    from cachedind.base import state

    raw = state.read_state(directory_fd, state_name)
    if raw is None:
        return
    clean = status == 0 and raw.get("ready_at") is not None and _is_synced(directory_fd, data_root)
    ended: dict[str, object] = {"status": status, "clean": clean, "at": round(time.time(), 3)}
    state.write_state(directory_fd, state_name, {"ended": ended}, raw)


def _is_synced(directory_fd: int, data_root: str) -> bool:
    """Have the data-root's filesystem written to its disk, and those mounted below it, in a child that can be left
    alone with a slow one."""
    pid = os.fork()
    if pid == 0:
        try:
            _sync(directory_fd, data_root)
            os._exit(0)
        finally:
            os._exit(1)
    return _wait(pid, SYNC_S)


def _sync(directory_fd: int, data_root: str) -> None:
    from cachedind.host import linux, procfs

    linux.syncfs(directory_fd)
    for mount in procfs.read_mounts():
        if mount.fstype in _ON_DISKS and mount.mount_point.startswith(f"{data_root}/"):
            linux.syncfs(os.open(mount.mount_point, os.O_RDONLY | os.O_CLOEXEC))


def _wait(pid: int, timeout_s: float) -> bool:
    """Whether a child ends with 0 in that time. SIGCHLD must be blocked."""
    import time

    deadline = time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        _signal.sigtimedwait({_signal.SIGCHLD}, left)


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4]), *sys.argv[5:]))
