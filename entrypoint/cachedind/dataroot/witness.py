"""The witness: a child forked before dockerd is executed, which sees the daemon come up.

It notes `ready_at` in the state file, and what the daemon says it runs with where that may be another store than was
decided, does the work that may come late, and ends. It is killed when the daemon ends
(PR_SET_PDEATHSIG), closes its descriptor of the lease as soon as the note is written, and has a mount namespace of its
own, in which the pool stays mounted after it is unmounted in the daemon's.
"""

from __future__ import annotations

import contextlib
import os
import time

from cachedind.api import way_in
from cachedind.base import state
from cachedind.base.errors import CachedindError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.host import linux

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachedind.base.log import Log
    from cachedind.base.model import ImageStore
    from cachedind.dataroot.lease import Lease

NAMESPACE = "/run/cachedind/pool.mnt"
"""The witness's mount namespace as a file: `cachedind ls` in this container finds the pool through it."""

GIVE_UP_S = 3600.0
_RETRY_S = 0.05


class Witness(NamedTuple):
    """A running witness; `ready_fd` gets a byte when it has its own mount namespace."""

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
    planned: tuple[ImageStore, str] | None = None,
) -> Witness:
    """Fork the witness of the process that becomes dockerd. `started` is that start's time.monotonic().

    `addresses` are unix sockets where the daemon will answer ("unix:///var/run/docker.sock"), `close` descriptors that
    the witness must not keep, `late` what to do when the daemon is up (which calls `step_back` before work that nobody
    waits for). `planned` are the store and the driver that were noted down, where the engine may have taken others:
    then it is asked. Fork it while this process has a single thread.
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
        _watch(lease, addresses, started, late, log, planned)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            log.warn(f"the witness of this start died: {type(error).__name__}: {error}")
    finally:
        os._exit(0)


def _enter_own_namespace() -> None:
    """Enter a mount namespace of its own, made private, whose number is above the parent's.

    The kernel allows a namespace to be bind-mounted only in an older one, and compares their numbers for that; Linux
    6.18 takes these from a counter for each CPU (fs/namespace.c, mnt_ns_loop; include/linux/cookie.h), so that the
    younger one may have the smaller number. On the CPU where the parent's was made it cannot.
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


def _watch(
    lease: Lease,
    addresses: list[str],
    started: float,
    late: Callable[[], None],
    log: Log,
    planned: tuple[ImageStore, str] | None,
) -> None:
    answering = _wait_for_answer(addresses)
    if answering is None:
        return
    ready_s = time.monotonic() - started
    try:
        note_ready(lease, ready_s)
    except OSError as error:
        log.warn(
            f"cannot note down that the daemon came up: {error.strerror}; the next start will check the data closely"
        )
    if planned is not None:
        correct_note(lease, answering, planned, log)
    os.close(lease.fd)
    log.debug(f"the daemon answers, {ready_s:.2f} s after the start", ready_s=round(ready_s, 3))
    try:
        late()
    except CachedindError as error:
        log.warn(f"{error.cause}; {error.hint}")
    except OSError as error:
        log.warn(f"the pool's upkeep ended early: {error}; the next start goes on with it")


def step_back() -> None:
    """Run with the lowest CPU and I/O priority from here on."""
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
    if raw is not None and raw.get("begun"):  # a pool's slot: from here on it has more than when it was leased
        values |= {"sequence": raw["begun"], "nothing_new": False}
    state.write_state(lease.directory_fd, lease.state_name, values, raw, durable=False)


def correct_note(lease: Lease, path: str, planned: tuple[ImageStore, str], log: Log) -> None:
    """Have the state file say what the daemon at `path` runs with, where that is not what was `planned`. Needs the
    lease."""
    from cachedind.engine import running_store

    try:
        store, driver = running_store.read(path)
        if (store, driver) == planned:
            return
        raw = state.read_state(lease.directory_fd, lease.state_name)
        state.write_state(lease.directory_fd, lease.state_name, {"image_store": str(store), "driver": driver}, raw)
    except (OSError, ValueError) as error:
        log.warn(f"cannot note down which image store the daemon runs with: {error}; the next start takes {planned[1]}")
        return
    log.warn(
        f"the engine runs with {driver} in the {store} image store, not with {planned[1]} in {planned[0]}, as it was "
        "told (features.containerd-migration?); the next start takes what it chose"
    )


def _wait_for_answer(addresses: list[str]) -> str | None:
    """Wait until one of the addresses answers HTTP, and return its path; on a socket that is bound already the request
    just waits."""
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        for address in addresses:
            with contextlib.suppress(OSError):
                if way_in.answers(path := address.removeprefix("unix://")):
                    return path
        time.sleep(_RETRY_S)
    return None


# ---- the pool is hidden from the daemon ----------------------------------------------------------------------------


def hide(witness: Witness, mount_points: list[str]) -> None:
    """Unmount the pool here; it stays mounted in the witness's namespace, which NAMESPACE leads to.

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
