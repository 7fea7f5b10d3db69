"""Cleaning: what the last job left in a slot is found without a daemon, and removed by a private one.

Containers, networks and volumes go before the job can see the daemon; images and build cache stay. Looking takes about
a millisecond and happens at each start; the private daemon runs only when something was found.

The private daemon starts neither containers nor a swarm, so none runs once more for that. A swarm is ended without it,
in the way of `docker swarm leave --force`, which is to empty its directory (moby, daemon/cluster/utils.go,
clearPersistentState).
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.base.errors import CleaningError
from cachedind.engine import bolt, networks, paths, pruning
from cachedind.engine.private_daemon import DEADLINE_S, private_daemon, whole_seconds_left
from cachedind.engine.remapping import engine_root
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import docker

    from cachedind.base.log import Log
    from cachedind.base.model import ImageStore, StoragePlan
    from cachedind.base.trace import Trace

CONTAINERS, NETWORKS, VOLUMES = "containers", "networks", "volumes"
UNREADABLE_NETWORKS = "unreadable"
"""Stands among the networks when libnetwork's database cannot be read. dockerd could not either, and would not start;
it is moved out of the way, which takes all networks with it."""

_PREDEFINED_NETWORKS = frozenset({"bridge", "host", "none"})
_SWARM_NETWORK = "docker_gwbridge"
"""Made by a swarm, and left by it. Its overlay networks are in its own state, not in libnetwork's."""
_MAX_CONFIG_BYTES = 8 << 20
_ASIDE = "set this data-root aside and start with another"


class Leftovers(NamedTuple):
    """What the last job left: containers and networks by id, volumes by name. False when there is nothing."""

    containers: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    swarm: bool = False

    def __bool__(self) -> bool:
        return bool(self.containers or self.networks or self.volumes or self.swarm)

    def __str__(self) -> str:
        counts = ((self.containers, "container"), (self.networks, "network"), (self.volumes, "volume"))
        words = [f"{len(found)} {what}{'s' if len(found) > 1 else ''}" for found, what in counts if found]
        return ", ".join(words + ["a swarm"] * self.swarm) or "nothing"


class Pruning(NamedTuple):
    """How many bytes to free, what the build cache may keep in any case (None: no limit), and the names of images that
    are to stay."""

    wanted_bytes: int
    cache_limit_bytes: int | None
    seeded: frozenset[str]


class Cleaned(NamedTuple):
    """What was removed, what the daemon did not know, and sentences about what did not go as it should.

    `cache_limit_bytes` is what the job's own daemon shall keep the build cache to this time, None for the usual.
    """

    removed: Leftovers
    unknown: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()
    cache_limit_bytes: int | None = None


# ---- looking, without a daemon --------------------------------------------------------------------------------------


def find_leftovers(data_root: str, keep: frozenset[str]) -> Leftovers:
    """What is in an engine's root whose lease we hold, but for the kinds in `keep`.

    What kept containers use is kept with them: their volumes, their networks, and a swarm, whose services they may be.
    Follows no links below `data_root` and reads no more than a bounded part of any file. Raises CleaningError when a
    directory of the engine's is something else, or cannot be read.
    """
    with _at_work(data_root) as root_fd:
        containers = _names_below(root_fd, CONTAINERS)
        used = _used_by(root_fd, containers) if CONTAINERS in keep else frozenset()
        made = () if NETWORKS in keep else _find_networks(root_fd, used)
        volumes = () if VOLUMES in keep else _directories_below(root_fd, VOLUMES)
        swarm = CONTAINERS not in keep and "docker-state.json" in _names_below(root_fd, "swarm")
    return Leftovers(
        () if CONTAINERS in keep else containers, made, tuple(name for name in volumes if name not in used), swarm
    )


@contextlib.contextmanager
def _opened(root_fd: int, *parts: str) -> Iterator[int | None]:
    """A directory for the length of a block, or None where there is none."""
    try:
        fd = beneath.open_path(root_fd, "/".join(parts), os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _names_below(root_fd: int, name: str) -> tuple[str, ...]:
    """All entries: dockerd takes each one in containers/ for a container, whatever it is."""
    with _opened(root_fd, name) as fd:
        return () if fd is None else tuple(sorted(os.listdir(fd)))


def _directories_below(root_fd: int, name: str) -> tuple[str, ...]:
    """Directories alone: beside volumes there are metadata.db and backingFsBlockDev."""
    with _opened(root_fd, name) as fd:
        if fd is None:
            return ()
        with os.scandir(fd) as entries:
            return tuple(sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False)))


def _find_networks(root_fd: int, used: frozenset[str]) -> tuple[str, ...]:
    """Ids of networks that somebody made and nobody in `used` uses, from libnetwork's database."""
    if not beneath.exists(root_fd, paths.NETWORK_DATABASE):
        return ()
    try:
        file_fd, _ = beneath.open_file(root_fd, paths.NETWORK_DATABASE)
    except (ValueError, OSError):
        return (UNREADABLE_NETWORKS,)
    try:
        return tuple(
            identity
            for identity, network in networks.read_networks(bolt.open(file_fd, networks.MAX_BYTES))
            if network not in _PREDEFINED_NETWORKS and not {identity, network} & used
        )
    except (ValueError, OSError):
        return (UNREADABLE_NETWORKS,)
    finally:
        os.close(file_fd)


def _used_by(root_fd: int, containers: Iterable[str]) -> frozenset[str]:
    """Names of the volumes and names and ids of the networks that these containers, or a swarm, refer to. A container
    that cannot be read refers to nothing.
    """
    configs = _read_configs(root_fd, containers)
    return frozenset({_SWARM_NETWORK}.union(*map(_references, configs)))


def _read_configs(root_fd: int, containers: Iterable[str]) -> Iterator[dict[str, object]]:
    for container in containers:
        with contextlib.suppress(OSError, ValueError):
            yield state.parse_object(
                beneath.read(root_fd, f"{CONTAINERS}/{container}/config.v2.json", _MAX_CONFIG_BYTES)
            )


def _references(config: dict[str, object]) -> Iterator[str]:
    for mount in _parts(config.get("MountPoints")).values():
        if _parts(mount).get("Type") == "volume":
            yield str(_parts(mount).get("Name"))
    for name, endpoint in _parts(_parts(config.get("NetworkSettings")).get("Networks")).items():
        yield name
        yield str(_parts(endpoint).get("NetworkID"))


def _parts(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


# ---- removing -------------------------------------------------------------------------------------------------------


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
) -> Cleaned:
    """Remove `leftovers` from a data-root whose lease we hold with `lock_fd`, and have it pruned, within DEADLINE_S
    seconds. Where nothing of networks can be kept, no record of any is: the last job may have had another bridge.

    Raises CleaningError when some of it is still there afterwards. If this process is killed, the next start finds
    what is left and does the rest. Needs --privileged, and a single thread.
    """
    started = time.monotonic()
    deadline = started + DEADLINE_S
    told: list[str] = []
    root = engine_root(data_root, storage.remap)
    if leftovers.containers:
        _note_uses(root, leftovers.containers)
    if leftovers.swarm:
        end_swarm(root)
    told += _settle_networks(root, leftovers, keep)
    if not leftovers and wanted is None:
        return Cleaned(leftovers)
    by_daemon = leftovers if CONTAINERS in keep else leftovers._replace(networks=())
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
            cleaned = remove(client, by_daemon, keep, deadline=deadline)
            cleaned = cleaned._replace(removed=cleaned.removed._replace(networks=leftovers.networks))
            trace.reach("maintain.cleaned")
            if wanted is not None:
                limit = _prune(client, root, storage.store, wanted, deadline, log)
                cleaned = cleaned._replace(cache_limit_bytes=limit)
                trace.reach("maintain.pruned")
        told += cleaned.problems
        still_there = find_leftovers(root, keep).containers
        told += remove_unknown_containers(root, [name for name in still_there if name in cleaned.unknown])
    for problem in told:
        log.warn(f"cleaning: {problem}")
    left = find_leftovers(root, keep)
    if left:
        why = "; ".join(told[:3]) or "the daemon kept it"
        raise CleaningError(f"of what the last job left, {left} could not be removed: {why}", _ASIDE)
    trace.reach("maintain.stopped")
    if leftovers:
        log.info(f"removed what the last job left: {leftovers} (in {time.monotonic() - started:.2f} s)")
    return cleaned._replace(problems=tuple(told))


def _settle_networks(data_root: str, leftovers: Leftovers, keep: frozenset[str]) -> list[str]:
    """What is done about networks without a daemon. Returns what there is to say. Raises CleaningError."""
    with _at_work(data_root):
        if UNREADABLE_NETWORKS in leftovers.networks:
            return networks.set_aside(data_root)
        if not keep & {CONTAINERS, NETWORKS}:
            networks.forget(data_root)
    return []


def _note_uses(data_root: str, containers: Iterable[str]) -> None:
    """Which images the last job used, for when some have to go. To have missed one is no loss."""
    with contextlib.suppress(CleaningError), _at_work(data_root) as root_fd:
        used = [str(config.get("Image")) for config in _read_configs(root_fd, containers)]
        if used:
            pruning.note_uses(root_fd, used, time.time())


def _prune(
    client: docker.DockerClient, data_root: str, store: ImageStore, wanted: Pruning, deadline: float, log: Log
) -> int | None:
    """Returns what is left to the job's own daemon to keep the build cache to."""
    from docker.errors import DockerException
    from requests import RequestException

    client.api.timeout = whole_seconds_left(deadline)
    with _at_work(data_root) as root_fd:
        uses = pruning.read_uses(root_fd)
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


def remove(client: docker.DockerClient, leftovers: Leftovers, keep: frozenset[str], *, deadline: float) -> Cleaned:
    """Remove by the API what was found; what is gone already is fine. One failure does not stop the rest.

    Without "volumes" in `keep` the anonymous volumes of containers go with them. Requests end at `deadline` (of
    time.monotonic()).
    """
    from docker.errors import DockerException, NotFound
    from requests import RequestException

    problems = []
    unknown = set()

    def try_all(what: str, names: Iterable[str], remove: Callable[[str], object]) -> tuple[str, ...]:
        gone = []
        for name in names:
            if time.monotonic() >= deadline:
                problems.append(f"no time left to remove each {what}")
                break
            client.api.timeout = whole_seconds_left(deadline)
            try:
                remove(name)
            except NotFound:
                unknown.add(name)
                continue
            except (DockerException, RequestException, UnicodeError) as error:
                problems.append(f"{what} {name[:64]}: {getattr(error, 'explanation', None) or error}")
                continue
            gone.append(name)
        return tuple(gone)

    with_volumes = VOLUMES not in keep
    made = (name for name in leftovers.networks if name != UNREADABLE_NETWORKS)
    removed = Leftovers(
        try_all(
            "container", leftovers.containers, lambda i: client.api.remove_container(i, v=with_volumes, force=True)
        ),
        try_all("network", made, client.api.remove_network),
        try_all("volume", leftovers.volumes, lambda name: client.api.remove_volume(name, force=True)),
        leftovers.swarm,
    )
    return Cleaned(removed, frozenset(unknown), tuple(problems))


# ---- without a daemon -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _at_work(data_root: str) -> Iterator[int]:
    """The data-root's descriptor; what fails is a CleaningError."""
    root_fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root_fd
    except OSError as error:
        cause = f"what the last job left in {data_root} cannot be dealt with: {error.filename}: {error.strerror}"
        raise CleaningError(cause, _ASIDE) from error
    finally:
        os.close(root_fd)


def end_swarm(data_root: str) -> None:
    """Empty the directory of the swarm's state. Raises CleaningError."""
    with _at_work(data_root) as root_fd, _opened(root_fd, "swarm") as fd:
        for name in () if fd is None else os.listdir(fd):
            _remove(name, fd)


def remove_unknown_containers(data_root: str, names: Iterable[str]) -> list[str]:
    """Remove from containers/ what a daemon did not take for containers: records cut off by a crash, or foreign things.

    They would be found again at each start. Returns a sentence for each. Raises CleaningError.
    """
    told = []
    with _at_work(data_root) as root_fd, _opened(root_fd, CONTAINERS) as fd:
        for name in () if fd is None else names:
            _remove(name, fd)
            told.append(f"containers/{name[:64]} was nothing that the daemon could read as a container; it is removed")
    return told


def _remove(name: str, directory_fd: int | None) -> None:
    from shutil import rmtree

    if stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
        rmtree(name, dir_fd=directory_fd)
    else:
        os.unlink(name, dir_fd=directory_fd)
