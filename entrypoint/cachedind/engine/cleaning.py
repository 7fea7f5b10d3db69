"""Cleaning: what the last job left in a slot (leftovers.py) is removed by a private daemon before the job can see it.

Containers, networks and volumes go; images are hidden (hiding.py); their layers and the build cache stay. The private
daemon runs only when something was found, or the slot has to be pruned.

The private daemon starts neither containers nor a swarm nor plugins, so nothing runs once more for that. A swarm is
ended without it, as `docker swarm leave --force` does it, which is to empty its directory (moby,
daemon/cluster/utils.go, clearPersistentState), and so are plugins, whose directory an engine makes anew.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial

from cachedind.base.errors import CleaningError, DaemonEnd, PrivateDaemonError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import fresh_images, hiding, image_uses, offline_removal
from cachedind.engine.leftovers import CONTAINERS, NETWORKS, SET_ASIDE, Leftovers, find_leftovers, opened_root
from cachedind.engine.remapping import engine_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import docker

    from cachedind.base.log import Log
    from cachedind.base.model import StoragePlan
    from cachedind.base.trace import Trace
    from cachedind.engine.containerd_view import Client


DEADLINE_S = 60.0


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
    tells that there is something which stays for this job alone, `put_off` why no engine came up for what can wait.
    """

    removed: Leftovers
    unknown: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()
    cache_limit_bytes: int | None = None
    hidden: frozenset[str] = frozenset()
    by_engine: bool = False
    kept: bool = False
    put_off: str = ""


class Job(NamedTuple):
    """What is to be cleaned, and with what: a data-root whose lease we hold with `lock_fd`. `keep`, `tested` and
    `unusable` are as in find_leftovers; what of images the next job is to see (None: all), and what is to be pruned, if
    anything."""

    data_root: str
    storage: StoragePlan
    keep: frozenset[str]
    lock_fd: int
    environ: Mapping[str, str]
    log: Log
    trace: Trace
    tested: bool = True
    unusable: frozenset[str] = frozenset()
    images: hiding.Wish | None = None
    wanted: Pruning | None = None

    @property
    def root(self) -> str:
        """Where the engine's data is."""
        return engine_root(self.data_root, self.storage.remap)

    def find_leftovers(self) -> Leftovers:
        """What there is to remove now. Raises CleaningError."""
        return find_leftovers(self.root, self.keep, tested=self.tested, unusable=self.unusable)


def clean(job: Job, leftovers: Leftovers) -> Cleaned:
    """Remove `leftovers`, hide images, and have the data pruned, by an engine for DEADLINE_S seconds at most, and then
    by its containerd for as long. Where nothing of networks can be kept, no record of any is: the last job may have had
    another bridge. What no job asked for to go now (old images, pruning) can wait for another start.

    Raises CleaningError when some of it is still there afterwards. If this process is killed, the next start finds
    what is left and does the rest. Needs --privileged, and a single thread.
    """
    started = time.monotonic()
    deadline = started + DEADLINE_S
    told = offline_removal.settle(job.root, leftovers, job.keep)
    with opened_root(job.root) as root_fd:
        images = None if job.images is None else hiding.begin(root_fd, job.storage, job.images, job.trace)
        cleaned = _clean_by_engine(job, leftovers, images, deadline)
        if images is not None:
            images.finish(partial(_run_containerd, job))
            by_engine = cleaned.by_engine or images.ran_containerd
            cleaned = cleaned._replace(hidden=images.seen, by_engine=by_engine)
            cleaned = cleaned._replace(put_off=cleaned.put_off or images.put_off)
            if images.expired and not cleaned.put_off:
                job.log.info(f"removed {_count(images.expired)} that no job had for long (CACHEDIND_UNUSED_MAX_AGE)")
    if cleaned.put_off:
        told.append(f"{cleaned.put_off}; old images stay, and nothing is pruned, until another start")
    told += cleaned.problems
    if leftovers:
        still_there = job.find_leftovers().containers
        told += offline_removal.remove_unknown_containers(
            job.root, [name for name in still_there if name in cleaned.unknown]
        )
    for problem in told:
        job.log.warn(f"cleaning: {problem}")
    if leftovers:
        _check_all_gone(job, told)
    job.trace.reach("maintain.stopped")
    _tell(cleaned, leftovers, time.monotonic() - started, job.log)
    return cleaned._replace(problems=tuple(told))


def _clean_by_engine(job: Job, leftovers: Leftovers, images: hiding.Hiding | None, deadline: float) -> Cleaned:
    """Whatever takes an engine, by a private one, if anything does. Raises CleaningError."""
    by_daemon = leftovers if job.keep & {CONTAINERS, NETWORKS} else leftovers._replace(networks=())
    for_images = images is not None and images.needs_daemon
    if not (by_daemon.needs_daemon or for_images or job.wanted is not None):
        return Cleaned(leftovers)
    try:
        cleaned = _clean_by_daemon(job, by_daemon, images, deadline)
    except PrivateDaemonError as error:
        # One that ended by itself speaks against the data.
        if by_daemon.needs_daemon or error.end is DaemonEnd.BY_ITSELF:
            raise
        return Cleaned(leftovers, by_engine=True, put_off=error.cause)
    return cleaned._replace(removed=cleaned.removed._replace(networks=leftovers.networks))


def _clean_by_daemon(job: Job, leftovers: Leftovers, images: hiding.Hiding | None, deadline: float) -> Cleaned:
    # Ten milliseconds, which most starts spare.
    from cachedind.engine.private_daemon import private_daemon
    from cachedind.engine.removal import Removal, remove_by_api

    if images is not None:
        images.prepare(everything=job.wanted is not None)
    with private_daemon(
        job.data_root,
        job.storage,
        lock_fd=job.lock_fd,
        environ=job.environ,
        deadline=deadline,
        keeps_networks=bool(leftovers.networks),
    ) as client:
        job.trace.reach("maintain.started")
        removal = Removal(client, deadline)
        removed = remove_by_api(removal, leftovers)
        if images is not None:
            images.amid(removal.try_images, _client_of(job))
        job.trace.reach("maintain.cleaned")
        limit = None
        if job.wanted is not None:
            limit = _prune(client, job, job.wanted, images.seen if images else frozenset(), deadline)
            job.trace.reach("maintain.pruned")
    return Cleaned(removed, frozenset(removal.unknown), tuple(removal.problems), limit, by_engine=True)


@contextlib.contextmanager
def _run_containerd(job: Job) -> Iterator[Client]:
    from cachedind.engine.private_containerd import private_containerd

    with private_containerd(job.data_root, job.storage.remap, lock_fd=job.lock_fd, environ=job.environ):
        yield _client_of(job)


def _client_of(job: Job) -> Client:
    from cachedind.engine.containerd_view import Client
    from cachedind.engine.private_containerd import DIRECTORY

    return Client(f"{DIRECTORY}/containerd.sock", {"PATH": job.environ.get("PATH", os.defpath)})


def _tell(cleaned: Cleaned, leftovers: Leftovers, took_s: float, log: Log) -> None:
    images = f"{_count(cleaned.hidden)} (the layers stay)" if cleaned.hidden else ""
    what = ", ".join(filter(None, (str(leftovers) if leftovers else "", images)))
    if what:
        log.info(f"removed what the last job left: {what} (in {took_s:.2f} s)")


def _count(images: frozenset[str]) -> str:
    return f"{len(images)} image{'s' if len(images) > 1 else ''}"


def _check_all_gone(job: Job, told: list[str]) -> None:
    left = job.find_leftovers()
    if left:
        why = "; ".join(told[:3]) or "the daemon kept it"
        raise CleaningError(f"of what the last job left, {left} could not be removed: {why}", SET_ASIDE)


def _prune(client: docker.DockerClient, job: Job, wanted: Pruning, seen: frozenset[str], deadline: float) -> int | None:
    """Returns the limit that the job's own daemon is to keep the build cache to, None for the usual one."""
    from docker.errors import DockerException
    from requests import RequestException

    from cachedind.engine import pruning
    from cachedind.engine.private_containerd import whole_seconds_left

    client.api.timeout = whole_seconds_left(deadline)
    with opened_root(job.root) as root_fd:
        uses, hidden = image_uses.read(root_fd), fresh_images.read_unused(root_fd)
    unused = {image_id: known.names for image_id, known in hidden.items() if image_id not in seen}
    uses = image_uses.latest(uses, {image_id: known.used_at for image_id, known in hidden.items()})
    hides = False
    if job.images is not None:
        uses, hides = image_uses.latest(uses, job.images.uses), job.images.view is not None
    try:
        pruned = pruning.prune(
            client,
            wanted.wanted_bytes,
            wanted.cache_limit_bytes,
            store=job.storage.store,
            known=pruning.Known(uses, unused, wanted.seeded, hides=hides),
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
