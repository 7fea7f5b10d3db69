"""The witness: a child forked before dockerd is executed, which sees the daemon come up.

It notes `ready_at` in the state file, does what may come late, and ends. It is killed when the daemon goes
(PR_SET_PDEATHSIG), gives up its part of the lease as soon as the note is written, and keeps a mount namespace of its
own, in which the pool stays mounted when it is gone from the daemon's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.base.errors import CachedindError
from cachedind.host import linux

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachedind.base.log import Log
    from cachedind.dataroot.lease import Lease

NAMESPACE = "/run/cachedind/pool.mnt"
"""Where the witness's mount namespace is kept: `cachedind ls` in this container finds the pool in it."""

GIVE_UP_S = 3600.0
_RETRY_S = 0.05


class Witness(NamedTuple):
    """A running witness; `ready_fd` tells when its mount namespace is its own."""

    pid: int
    ready_fd: int


def fork(
    lease: Lease,
    addresses: list[str],
    started: float,
    *,
    close: list[int],
    late: Callable[[], None],
    log: Log,
) -> Witness:
    """Fork the witness of the process that becomes dockerd. `started` is that start's time.monotonic().

    `addresses` are unix sockets where the daemon will answer ("unix:///var/run/docker.sock"), `close` descriptors that
    are none of its business, `late` what to do when the daemon is up (`step_back` before what nobody waits for). Fork
    it while this process has a single thread.
    """
    read_fd, write_fd = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid != 0:
        os.close(write_fd)
        return Witness(pid, read_fd)
    try:
        linux.die_with_parent()
        if os.getppid() != parent:
            return os._exit(0)
        os.close(read_fd)
        for fd in close:
            os.close(fd)
        _enter_own_namespace()
        with contextlib.suppress(BrokenPipeError):  # without a pool nobody waits, and the parent may be dockerd by now
            os.write(write_fd, b"1")
        os.close(write_fd)
        _watch(lease, addresses, started, late, log)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            log.warn(f"the witness of this start died: {type(error).__name__}: {error}")
    finally:
        os._exit(0)


def _enter_own_namespace() -> None:
    """A mount namespace of its own, made private, and younger than the parent's.

    The kernel lets a namespace be kept as a mount only in an older one, and tells their ages by their numbers; Linux
    6.18 draws these from a counter for each CPU (fs/namespace.c, mnt_ns_loop; include/linux/cookie.h), so that the
    younger one may have the smaller number. On the CPU where the parent's was drawn it cannot.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    older = _namespace_id(os.getppid())
    allowed = os.sched_getaffinity(0)
    for cpu in sorted(allowed):
        if _namespace_id(os.getpid()) > older or older == 0:
            break
        os.sched_setaffinity(0, {cpu})
        linux.unshare(linux.CLONE_NEWNS)
    os.sched_setaffinity(0, allowed)


def _namespace_id(pid: int) -> int:
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return linux.mount_namespace_id(fd)
    finally:
        os.close(fd)


def _watch(lease: Lease, addresses: list[str], started: float, late: Callable[[], None], log: Log) -> None:
    if not _wait_for_answer(addresses):
        return
    ready_s = time.monotonic() - started
    try:
        note_ready(lease, ready_s)
    except OSError as error:
        log.warn(f"that the daemon came up cannot be noted down: {error.strerror}; the next start will look twice")
    os.close(lease.fd)
    log.debug(f"the daemon answers, {ready_s:.2f} s after the start", ready_s=round(ready_s, 3))
    try:
        late()
    except CachedindError as error:
        log.warn(f"{error.cause}; {error.hint}")
    except OSError as error:
        log.warn(f"the pool's upkeep ended early: {error}; the next start goes on with it")


def step_back() -> None:
    """Let everybody else go first from here on."""
    os.nice(19)
    with contextlib.suppress(OSError):
        linux.set_idle_io()


def note_ready(lease: Lease, ready_s: float) -> None:
    """Write into the state file that the daemon came up. Needs the lease. Raises OSError."""
    try:
        raw = state.read_state(lease.directory_fd, lease.state_name)
    except ValueError:
        return
    values: dict[str, object] = {"ready_at": round(time.time(), 3), "ready_s": round(ready_s, 3)}
    if raw is not None and "pure" in raw:
        values["pure"] = False
    if raw is not None and "begun" in raw:  # a pool's: from here on the slot has more than what it was leased with
        values["sequence"] = raw["begun"]
    state.write_state(lease.directory_fd, lease.state_name, values, raw, durable=False)


def _wait_for_answer(addresses: list[str]) -> bool:
    """Wait until one of the addresses answers HTTP; a socket that is bound already just lets the request wait."""
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        for address in addresses:
            with contextlib.suppress(OSError):
                if _answers(address):
                    return True
        time.sleep(_RETRY_S)
    return False


def _answers(address: str) -> bool:
    """Whether the daemon speaks at a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address.removeprefix("unix://"))
        client.sendall(b"GET /_ping HTTP/1.0\r\nHost: cachedind\r\n\r\n")
        return client.recv(5) == b"HTTP/"


# ---- the pool is hidden from the daemon ----------------------------------------------------------------------------


def hide(witness: Witness, mount_points: list[str]) -> None:
    """Unmount the pool here; it stays mounted in the witness's namespace, which stays reachable at NAMESPACE.

    Raises OSError. Needs CAP_SYS_ADMIN.
    """
    with os.fdopen(witness.ready_fd, "rb") as pipe:
        alive = pipe.read(1)
    if alive:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(NAMESPACE, flags, 0o600))
        with contextlib.suppress(OSError):  # then `cachedind ls` works from a container of its own only
            linux.mount(f"/proc/{witness.pid}/ns/mnt", NAMESPACE, "", linux.MS_BIND)
    for point in mount_points:
        linux.umount(point, linux.MNT_DETACH)


def enter_hidden_namespace() -> bool:
    """Join the namespace in which the pool is mounted, in a container whose start has hidden it. Needs CAP_SYS_ADMIN.

    False where there is none.
    """
    try:
        fd = os.open(NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        linux.setns(fd, linux.CLONE_NEWNS)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
