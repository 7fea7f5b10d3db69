"""Leasing what the daemon works on: a slot of the pool, bound over the data-root, or the data-root itself."""

from __future__ import annotations

import os
import time

from cachedind.base.errors import PoolUnusableError
from cachedind.base.model import Degradation
from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.dataroot.lease import Lease
    from cachedind.pool.slot_request import TakenSlot
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


def await_other(settings: Config, daemon: DaemonSettings, log: Log) -> None:
    """Before anything is touched that a daemon in this very container may use: wait for its end, or be refused."""
    from cachedind.start import leftovers

    pidfile = os.path.realpath(daemon.pidfile)
    leftovers.wait_for_daemon(os.path.realpath(daemon.data_root), pidfile, settings.lock_timeout_s, log)


def move_in(settings: Config, daemon: DaemonSettings, log: Log) -> tuple[Lease, TakenSlot | None]:
    """Lease a slot of the pool and put it in the data-root's place; without a (good) pool, lease the data-root."""
    from cachedind.dataroot import facts
    from cachedind.pool import directory
    from cachedind.start import restart

    facts.check_privileges()
    data_root = os.path.realpath(daemon.data_root)
    try:
        restart.make_way(directory.DEFAULT_POOL if settings.pool is None else settings.pool, data_root)
        path = directory.wanted_path(settings)
        if path is not None:
            from cachedind.start import pool_mode

            slot_request = pool_mode.make_slot_request(settings, daemon)
            lease, taken = pool_mode.move_in(path, slot_request, data_root, settings, log)
            _tell_of_a_shared_key(settings, log)
            return lease, taken
    except PoolUnusableError as bad:
        return go_without_pool(settings, daemon, bad, log), None
    return lease_data_root(settings, daemon, log), None


def _tell_of_a_shared_key(settings: Config, log: Log) -> None:
    """One line where nothing says whose cache it is: a daemon that is started before a job is known (ARC, Jenkins)
    never hears of a CI's variables."""
    from cachedind.settings.variables import PROJECT_NAMES

    if not settings.key_is_said:
        log.warn(
            f"no key: neither CACHEDIND_KEY nor any of {', '.join(PROJECT_NAMES)} is set here, so the key is "
            f"{settings.key}, as for all on this pool that say nothing: they begin with each other's state, and "
            "replace it; set CACHEDIND_KEY to the project's name where this container is started, or to "
            f"{settings.key} if one cache for all is meant"
        )


def go_without_pool(settings: Config, daemon: DaemonSettings, bad: PoolUnusableError, log: Log) -> Lease:
    """Lease the data-root itself, as a pool cannot be used. Raises StrictError with CACHEDIND_STRICT."""
    from cachedind.start import restart

    data_root = os.path.realpath(daemon.data_root)
    cost = f"this start uses {data_root} as it is, without the pool's cache"
    log.degraded(Degradation("no pool", bad.cause, cost, bad.hint))
    restart.uncover(data_root)
    return lease_data_root(settings, daemon, log)


def lease_data_root(settings: Config, daemon: DaemonSettings, log: Log) -> Lease:
    """Lease the data-root itself; from here on nobody else touches it."""
    from cachedind.dataroot import facts, lease
    from cachedind.engine.remapping import read_remap
    from cachedind.start import restart

    data_root = os.path.realpath(daemon.data_root)
    restart.refuse_slot(data_root)
    degradation = facts.check_lock_filesystem(facts.read_mount(data_root), data_root, allowed=settings.allow_network_fs)
    if degradation is not None:
        log.degraded(degradation)
    remap = read_remap(daemon.text("userns-remap"))
    held = lease.acquire(
        data_root,
        facts.read_holder_of_now(time.time()),
        settings.lock_timeout_s,
        lambda holder: log.info(
            f"waiting up to {settings.lock_timeout_s:g} s for {data_root}, in use by {lease.describe_holder(holder)}"
        ),
    )
    wait_for_daemon_without_lease(data_root, settings.lock_timeout_s - held.waited_s, log)
    return held._replace(state_name=lease.state_name(remap))


def wait_for_daemon_without_lease(data_root: str, timeout_s: float, log: Log) -> None:
    """Wait for the end of a daemon that holds no lease, such as docker:dind's. Raises DataRootBusyError."""
    from cachedind.base.errors import DataRootBusyError
    from cachedind.engine import in_use

    def tell(locked: str) -> None:
        log.info(f"waiting up to {timeout_s:g} s for {data_root}: a daemon of another image has {locked} open")

    locked = in_use.wait(data_root, timeout_s, tell)
    if locked is not None:
        raise DataRootBusyError(
            f"{data_root} is in use by a daemon that does not hold cachedind's lease: {locked} is locked; nothing was "
            "changed",
            "stop that daemon first (docker ps --filter volume=… names its container), or give this one its own volume",
        )
