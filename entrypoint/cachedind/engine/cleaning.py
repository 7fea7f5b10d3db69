"""Cleaning: what the last job left in a slot (leftovers.py) is removed by a private daemon before the job can see it.

Containers, networks and volumes go; images are hidden (hiding.py); their layers and the build cache stay. The private
daemon runs only when something was found, or the slot has to be pruned.

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
from cachedind.engine import fresh_images, hiding, image_uses, networks, pruning
from cachedind.engine.containerd_view import Client
from cachedind.engine.leftovers import (
    CONTAINERS,
    NETWORKS,
    SET_ASIDE,
    UNREADABLE_NETWORKS,
    VOLUMES,
    Leftovers,
    find_leftovers,
    opened_directory,
    opened_root,
    read_configs,
)
from cachedind.engine.private_containerd import DEADLINE_S, DIRECTORY, private_containerd, whole_seconds_left
from cachedind.engine.private_daemon import private_daemon
from cachedind.engine.remapping import engine_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import docker

    from cachedind.base.log import Log
    from cachedind.base.model import StoragePlan
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
    usual one. `hidden` are IDs of images; `by_engine`: an engine, or its containerd, was at work on the data; `kept`
    tells that there is something which stays for this job alone.
    """

    removed: Leftovers
    unknown: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()
    cache_limit_bytes: int | None = None
    hidden: frozenset[str] = frozenset()
    by_engine: bool = False
    kept: bool = False


class Job(NamedTuple):
    """What is to be cleaned, and with what: a data-root whose lease we hold with `lock_fd`. `keep` are the kinds that
    stay; `tested` is as in find_leftovers; what of images the next job is to see (None: all), and what is to be pruned,
    if anything."""

    data_root: str
    storage: StoragePlan
    keep: frozenset[str]
    lock_fd: int
    environ: Mapping[str, str]
    log: Log
    trace: Trace
    tested: bool = True
    images: hiding.Wish | None = None
    wanted: Pruning | None = None

    @property
    def root(self) -> str:
        """Where the engine's data is."""
        return engine_root(self.data_root, self.storage.remap)


def clean(job: Job, leftovers: Leftovers) -> Cleaned:
    """Remove `leftovers`, hide images, and have the data pruned, within DEADLINE_S seconds. Where nothing of networks
    can be kept, no record of any is: the last job may have had another bridge.

    Raises CleaningError when some of it is still there afterwards. If this process is killed, the next start finds
    what is left and does the rest. Needs --privileged, and a single thread.
    """
    started = time.monotonic()
    deadline = started + DEADLINE_S
    told = _settle_without_daemon(job.root, leftovers, job.keep)
    with opened_root(job.root) as root_fd:
        images = None if job.images is None else hiding.begin(root_fd, job.storage, job.images)
        cleaned = _clean_by_daemon(job, leftovers, images, deadline)
        if images is not None:
            images.finish(partial(_run_containerd, job, deadline))
            if images.seen and job.images is not None:
                image_uses.note(root_fd, images.seen, job.images.used_at)
            cleaned = cleaned._replace(hidden=images.seen)
            cleaned = cleaned._replace(by_engine=cleaned.by_engine or images.ran_containerd)
    told += cleaned.problems
    if leftovers:
        still_there = find_leftovers(job.root, job.keep, tested=job.tested).containers
        told += remove_unknown_containers(job.root, [name for name in still_there if name in cleaned.unknown])
    for problem in told:
        job.log.warn(f"cleaning: {problem}")
    if leftovers:
        _check_all_gone(job, told)
    job.trace.reach("maintain.stopped")
    _tell(cleaned, leftovers, time.monotonic() - started, job.log)
    return cleaned._replace(problems=tuple(told))


def _clean_by_daemon(job: Job, leftovers: Leftovers, images: hiding.Hiding | None, deadline: float) -> Cleaned:
    """Whatever takes an engine, by a private one, if anything does."""
    by_daemon = leftovers if CONTAINERS in job.keep else leftovers._replace(networks=())
    needed = by_daemon._replace(swarm=False) or job.wanted is not None or (images is not None and images.needs_daemon)
    if not needed:
        return Cleaned(leftovers)
    if images is not None:
        images.prepare(everything=job.wanted is not None)
    with private_daemon(
        job.data_root,
        job.storage,
        lock_fd=job.lock_fd,
        environ=job.environ,
        deadline=deadline,
        keeps_networks=bool(by_daemon.networks),
    ) as client:
        job.trace.reach("maintain.started")
        removal = _Removal(client, deadline)
        removed = _remove_by_api(removal, by_daemon, job.keep)._replace(networks=leftovers.networks)
        if images is not None:
            images.amid(removal.try_images, _client_of(job))
        job.trace.reach("maintain.cleaned")
        limit = None
        if job.wanted is not None:
            limit = _prune(client, job, job.wanted, deadline)
            job.trace.reach("maintain.pruned")
    return Cleaned(removed, frozenset(removal.unknown), tuple(removal.problems), limit, by_engine=True)


@contextlib.contextmanager
def _run_containerd(job: Job, deadline: float) -> Iterator[Client]:
    with private_containerd(
        job.data_root, job.storage.remap, lock_fd=job.lock_fd, environ=job.environ, deadline=deadline
    ):
        yield _client_of(job)


def _client_of(job: Job) -> Client:
    return Client(f"{DIRECTORY}/containerd.sock", {"PATH": job.environ.get("PATH", os.defpath)})


def _tell(cleaned: Cleaned, leftovers: Leftovers, took_s: float, log: Log) -> None:
    count = len(cleaned.hidden)
    images = f"{count} image{'s' if count > 1 else ''} (the layers stay)" if count else ""
    what = ", ".join(filter(None, (str(leftovers) if leftovers else "", images)))
    if what:
        log.info(f"removed what the last job left: {what} (in {took_s:.2f} s)")


def _check_all_gone(job: Job, told: list[str]) -> None:
    left = find_leftovers(job.root, job.keep, tested=job.tested)
    if left:
        why = "; ".join(told[:3]) or "the daemon kept it"
        raise CleaningError(f"of what the last job left, {left} could not be removed: {why}", SET_ASIDE)


# ---- by a daemon's API ----------------------------------------------------------------------------------------------


def _remove_by_api(removal: _Removal, leftovers: Leftovers, keep: frozenset[str]) -> Leftovers:
    """Remove what was found; what is gone already is fine. One failure does not stop the rest.

    Without "volumes" in `keep` the anonymous volumes of containers go with them.
    """
    api, with_volumes = removal.client.api, VOLUMES not in keep
    made = [name for name in leftovers.networks if name != UNREADABLE_NETWORKS]
    return Leftovers(
        removal.try_all("container", leftovers.containers, partial(api.remove_container, v=with_volumes, force=True)),
        removal.try_all("network", made, api.remove_network),
        removal.try_all("volume", leftovers.volumes, partial(api.remove_volume, force=True)),
        leftovers.swarm,
    )


class _Removal:
    """Removing one thing after the other until a deadline: what the daemon did not know, and what went wrong."""

    def __init__(self, client: docker.DockerClient, deadline: float) -> None:
        self.client = client
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
            self.client.api.timeout = whole_seconds_left(self._deadline)
            try:
                remove(name)
                gone.append(name)
            except NotFound:
                self.unknown.add(name)
            except (DockerException, RequestException, UnicodeError) as error:
                self.problems.append(f"{what} {name[:64]}: {getattr(error, 'explanation', None) or error}")
        return tuple(gone)

    def try_images(self, ids: Iterable[str]) -> tuple[str, ...]:
        """IDs of images that were removed. Of an image whose layers are gone the engine does not know."""
        return self.try_all("image", ids, partial(self.client.api.remove_image, force=True))


def _prune(client: docker.DockerClient, job: Job, wanted: Pruning, deadline: float) -> int | None:
    """Returns the limit that the job's own daemon is to keep the build cache to, None for the usual one."""
    from docker.errors import DockerException
    from requests import RequestException

    client.api.timeout = whole_seconds_left(deadline)
    with opened_root(job.root) as root_fd:
        uses, unused = image_uses.read(root_fd), fresh_images.read_unused(root_fd)
    if job.images is not None:
        uses = image_uses.latest(uses, job.images.uses)
    try:
        pruned = pruning.prune(
            client,
            wanted.wanted_bytes,
            wanted.cache_limit_bytes,
            store=job.storage.store,
            known=pruning.Known(uses, unused, wanted.seeded),
            deadline=deadline,
        )
    except (DockerException, RequestException) as error:
        job.log.warn(f"the pool is over its budget, and this slot could not be pruned: {error}")
        return None
    job.log.warn(
        f"the pool was {wanted.wanted_bytes / 1e6:.0f} MB over its budget with nothing left to evict: removed "
        f"{pruned}; give it more room (CACHEDIND_POOL_MAX_SIZE), or limit the build cache (CACHEDIND_CACHE_MAX_SIZE)"
    )
    for problem in pruned.problems:
        job.log.warn(f"pruning: {problem}")
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
