"""Cleaning: what the last job left in a slot (leftovers.py) is removed by a private daemon before the job can see it.

Containers, networks and volumes go; images and build cache stay. The private daemon runs only when something was
found, or the slot has to be pruned.

The private daemon starts neither containers nor a swarm, so nothing runs once more for that. A swarm is ended without
it, as `docker swarm leave --force` does it, which is to empty its directory (moby, daemon/cluster/utils.go,
clearPersistentState).
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.errors import CleaningError
from cachedind.engine import image_uses, networks, pruning
from cachedind.engine.leftovers import (
    CONTAINERS,
    NETWORKS,
    SET_ASIDE,
    UNREADABLE_NETWORKS,
    Leftovers,
    find_leftovers,
    opened_directory,
    opened_root,
    read_configs,
)
from cachedind.engine.private_daemon import DEADLINE_S, private_daemon, whole_seconds_left
from cachedind.engine.remapping import engine_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import docker

    from cachedind.base.log import Log
    from cachedind.base.model import ImageStore, StoragePlan
    from cachedind.base.trace import Trace


class Pruning(NamedTuple):
    """How many bytes to free, what the build cache may keep in any case (None: no limit), and the names of images that
    are to stay."""

    wanted_bytes: int
    cache_limit_bytes: int | None
    seeded: frozenset[str]


class Cleaned(NamedTuple):
    """What was removed, what the daemon did not know, and sentences about what went wrong.

    `cache_limit_bytes` is the limit that the job's own daemon is to keep the build cache to this time, None for the
    usual one.
    """

    removed: Leftovers
    unknown: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()
    cache_limit_bytes: int | None = None


def clean(
    data_root: str,
    storage: StoragePlan,
    leftovers: Leftovers,
    keep: frozenset[str],
    *,
    lock_fd: int,
    environ: Mapping[str, str],
    log: Log,
    trace: Trace,
    wanted: Pruning | None = None,
    tested: bool = True,
    unusable: frozenset[str] = frozenset(),
) -> Cleaned:
    """Remove `leftovers` from a data-root whose lease we hold with `lock_fd`, and have it pruned, within DEADLINE_S
    seconds. Where nothing of networks can be kept, no record of any is: the last job may have had another bridge.
    `tested` and `unusable` are as in find_leftovers.

    Raises CleaningError when some of it is still there afterwards. If this process is killed, the next start finds
    what is left and does the rest. Needs --privileged, and a single thread.
    """
    started = time.monotonic()
    deadline = started + DEADLINE_S
    root = engine_root(data_root, storage.remap)
    told = _settle_without_daemon(root, leftovers, keep)
    if not leftovers and wanted is None:
        return Cleaned(leftovers)
    by_daemon = leftovers if keep & {CONTAINERS, NETWORKS} else leftovers._replace(networks=())
    cleaned = Cleaned(leftovers)
    if by_daemon._replace(swarm=False) or wanted is not None:
        with private_daemon(
            data_root,
            storage,
            lock_fd=lock_fd,
            environ=environ,
            deadline=deadline,
            keeps_networks=bool(by_daemon.networks),
        ) as client:
            trace.reach("maintain.started")
            cleaned = _remove_by_api(client, by_daemon, deadline)
            cleaned = cleaned._replace(removed=cleaned.removed._replace(networks=leftovers.networks))
            trace.reach("maintain.cleaned")
            if wanted is not None:
                limit = _prune(client, root, storage.store, wanted, deadline, log)
                cleaned = cleaned._replace(cache_limit_bytes=limit)
                trace.reach("maintain.pruned")
        still_there = find_leftovers(root, keep, tested=tested, unusable=unusable).containers
        told += cleaned.problems
        told += remove_unknown_containers(root, [name for name in still_there if name in cleaned.unknown])
    for problem in told:
        log.warn(f"cleaning: {problem}")
    _check_all_gone(find_leftovers(root, keep, tested=tested, unusable=unusable), told)
    trace.reach("maintain.stopped")
    if leftovers:
        log.info(f"removed what the last job left: {leftovers} (in {time.monotonic() - started:.2f} s)")
    return cleaned._replace(problems=tuple(told))


def _check_all_gone(left: Leftovers, told: list[str]) -> None:
    if left:
        why = "; ".join(told[:3]) or "the daemon kept it"
        raise CleaningError(f"of what the last job left, {left} could not be removed: {why}", SET_ASIDE)


# ---- by a daemon's API ----------------------------------------------------------------------------------------------


def _remove_by_api(client: docker.DockerClient, leftovers: Leftovers, deadline: float) -> Cleaned:
    """Remove what was found; what is gone already is fine. One failure does not stop the rest. A container's anonymous
    volumes are among the volumes, where they are not kept. Requests end at `deadline` (of time.monotonic()).
    """
    api = client.api
    removal = _Removal(client, deadline)
    made = [name for name in leftovers.networks if name != UNREADABLE_NETWORKS]
    removed = Leftovers(
        removal.try_all("container", leftovers.containers, partial(api.remove_container, force=True)),
        removal.try_all("network", made, api.remove_network),
        removal.try_all("volume", leftovers.volumes, partial(api.remove_volume, force=True)),
        leftovers.swarm,
    )
    return Cleaned(removed, frozenset(removal.unknown), tuple(removal.problems))


class _Removal:
    """Removing one thing after the other until a deadline: what the daemon did not know, and what went wrong."""

    def __init__(self, client: docker.DockerClient, deadline: float) -> None:
        self._client = client
        self._deadline = deadline
        self.unknown: set[str] = set()
        self.problems: list[str] = []

    def try_all(self, what: str, names: Iterable[str], remove: Callable[[str], object]) -> tuple[str, ...]:
        """The names of those that were removed."""
        from docker.errors import DockerException, NotFound
        from requests import RequestException

        gone = []
        for name in names:
            if time.monotonic() >= self._deadline:
                self.problems.append(f"no time left to remove every {what}")
                break
            self._client.api.timeout = whole_seconds_left(self._deadline)
            try:
                remove(name)
                gone.append(name)
            except NotFound:
                self.unknown.add(name)
            except (DockerException, RequestException, UnicodeError) as error:
                self.problems.append(f"{what} {name[:64]}: {getattr(error, 'explanation', None) or error}")
        return tuple(gone)


def _prune(
    client: docker.DockerClient, data_root: str, store: ImageStore, wanted: Pruning, deadline: float, log: Log
) -> int | None:
    """Returns the limit that the job's own daemon is to keep the build cache to, None for the usual one."""
    from docker.errors import DockerException
    from requests import RequestException

    client.api.timeout = whole_seconds_left(deadline)
    with opened_root(data_root) as root_fd:
        uses = image_uses.read(root_fd)
    try:
        pruned = pruning.prune(
            client,
            wanted.wanted_bytes,
            wanted.cache_limit_bytes,
            store=store,
            uses=uses,
            seeded=wanted.seeded,
            deadline=deadline,
        )
    except (DockerException, RequestException) as error:
        log.warn(f"the pool is over its budget, and this slot could not be pruned: {error}")
        return None
    log.warn(
        f"the pool was {wanted.wanted_bytes / 1e6:.0f} MB over its budget with nothing left to evict: removed "
        f"{pruned}; give it more room (CACHEDIND_POOL_MAX_SIZE), or limit the build cache (CACHEDIND_CACHE_MAX_SIZE)"
    )
    for problem in pruned.problems:
        log.warn(f"pruning: {problem}")
    return pruned.cache_limit_bytes


# ---- without a daemon -----------------------------------------------------------------------------------------------


def _settle_without_daemon(root: str, leftovers: Leftovers, keep: frozenset[str]) -> list[str]:
    """What comes before any daemon. Returns what there is to say. Raises CleaningError."""
    if leftovers.containers:
        _note_uses(root, leftovers.containers)
    if leftovers.swarm:
        end_swarm(root)
    return _settle_networks(root, leftovers, keep)


def _settle_networks(data_root: str, leftovers: Leftovers, keep: frozenset[str]) -> list[str]:
    """What is done about networks without a daemon. Returns what there is to say. Raises CleaningError."""
    with opened_root(data_root):
        if UNREADABLE_NETWORKS in leftovers.networks:
            return networks.set_aside(data_root)
        if not keep & {CONTAINERS, NETWORKS}:
            networks.forget(data_root)
    return []


def _note_uses(data_root: str, containers: Iterable[str]) -> None:
    """Which images the last job used, for when some have to go. To have missed one is no loss."""
    with contextlib.suppress(CleaningError), opened_root(data_root) as root_fd:
        used = [str(config.get("Image")) for config in read_configs(root_fd, containers)]
        if used:
            image_uses.note(root_fd, used, time.time())


def end_swarm(data_root: str) -> None:
    """Empty the directory of the swarm's state. Raises CleaningError."""
    with opened_root(data_root) as root_fd, opened_directory(root_fd, "swarm") as fd:
        for name in () if fd is None else os.listdir(fd):
            _remove(name, fd)


def remove_unknown_containers(data_root: str, names: Iterable[str]) -> list[str]:
    """Remove from containers/ what a daemon did not take for containers: records cut off by a crash, or foreign things.

    They would be found again at each start. Returns a sentence for each. Raises CleaningError.
    """
    told = []
    with opened_root(data_root) as root_fd, opened_directory(root_fd, CONTAINERS) as fd:
        for name in () if fd is None else names:
            _remove(name, fd)
            told.append(f"containers/{name[:64]} is removed: the daemon could not read it as a container")
    return told


def _remove(name: str, directory_fd: int | None) -> None:
    from shutil import rmtree

    if stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
        rmtree(name, dir_fd=directory_fd)
    else:
        os.unlink(name, dir_fd=directory_fd)
