"""Leftovers: what the last job left in a slot, found without a daemon.

Looking takes about a millisecond and happens at each start of a pool's slot; cleaning.py removes what was found.
"""

from __future__ import annotations

import contextlib
import os
import re

from cachedind.base import state
from cachedind.base.errors import CleaningError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import bolt, kept_volumes, networks, paths
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTAINERS, NETWORKS, VOLUMES, IMAGES = "containers", "networks", "volumes", "images"
UNREADABLE_NETWORKS = "unreadable"
"""Stands among the networks when libnetwork's database cannot be read. dockerd could not either, and would not start;
it is moved out of the way, which takes all networks with it."""

PREDEFINED_NETWORKS = frozenset({"bridge", "host", "none"})
SWARM_NETWORK = "docker_gwbridge"
"""Made by a swarm, and left by it. Its overlay networks are in its own state, not in libnetwork's."""
_PLUGIN = re.compile(r"[0-9a-f]{64}")
"""A plugin's directory (moby, plugin/store.go). Beside those there is `storage`, which any engine makes."""
_MAX_CONFIG_BYTES = 8 << 20
SET_ASIDE = "set this data-root aside and start with another"
"""The hint of errors for what cleaning cannot remove."""


class Leftovers(NamedTuple):
    """What the last job left: containers, networks and plugins by id, volumes by name. False when there is nothing."""

    containers: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    swarm: bool = False
    plugins: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.needs_daemon or self.swarm or self.plugins)

    @property
    def needs_daemon(self) -> bool:
        """Whether there is something that an engine has to remove."""
        return bool(self.containers or self.networks or self.volumes)

    def __str__(self) -> str:
        counts = (
            (self.containers, "container"),
            (self.networks, "network"),
            (self.volumes, "volume"),
            (self.plugins, "plugin"),
        )
        words = [f"{len(found)} {what}{'s' if len(found) > 1 else ''}" for found, what in counts if found]
        return ", ".join(words + ["a swarm"] * self.swarm) or "nothing"


def find_leftovers(
    data_root: str, keep: frozenset[str], *, tested: bool = True, unusable: frozenset[str] = frozenset()
) -> Leftovers:
    """What there is to remove from an engine's root whose lease we hold: all but what `keep` says (values.parse_keep).

    What kept containers use is kept with them: their volumes, their networks, a swarm, whose services they may be, and
    plugins. Networks in `unusable` (ids and names) are not kept, nor are containers on them, which could not start.
    Unless the tests run the engines of the data (`tested`), records of networks that nobody knows are none.
    Follows no links below `data_root` and reads no more than a bounded part of any file. Raises CleaningError when a
    something else stands in the place of one of the engine's directories, or it cannot be read.
    """
    with opened_root(data_root) as root_fd:
        containers = _names_below(root_fd, CONTAINERS)
        references = {one: _used_by(root_fd, one) for one in containers} if CONTAINERS in keep else {}
        kept = {one: names for one, names in references.items() if not names & unusable}
        used = frozenset({SWARM_NETWORK} if CONTAINERS in keep else ()).union(*kept.values())
        made = _find_networks(root_fd, used, tested=tested) if NETWORKS not in keep or unusable else ()
        volumes = () if VOLUMES in keep else _directories_below(root_fd, VOLUMES)
        used_or_named = used | kept_volumes.find_kept(root_fd, VOLUMES, volumes, keep)
        swarm = CONTAINERS not in keep and "docker-state.json" in _names_below(root_fd, "swarm")
        plugins = () if CONTAINERS in keep else _directories_below(root_fd, "plugins")
    return Leftovers(
        tuple(one for one in containers if one not in kept),
        tuple(one for one in made if NETWORKS not in keep or one in unusable),
        tuple(name for name in volumes if name not in used_or_named),
        swarm,
        tuple(name for name in plugins if _PLUGIN.fullmatch(name)),
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_root(data_root: str) -> Iterator[int]:
    """The data-root's descriptor for the length of a block. What fails in the block is raised as a CleaningError."""
    root_fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root_fd
    except OSError as error:
        cause = f"what the last job left in {data_root} cannot be read or removed: {error.filename}: {error.strerror}"
        raise CleaningError(cause, SET_ASIDE) from error
    finally:
        os.close(root_fd)


@contextlib.contextmanager
def opened_directory(root_fd: int, path: str) -> Iterator[int | None]:
    """The descriptor of a directory below the root for the length of a block, or None where there is none."""
    try:
        fd = beneath.open_path(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _names_below(root_fd: int, name: str) -> tuple[str, ...]:
    """All entries: dockerd takes each one in containers/ for a container, whatever it is."""
    with opened_directory(root_fd, name) as fd:
        return () if fd is None else tuple(sorted(os.listdir(fd)))


def _directories_below(root_fd: int, name: str) -> tuple[str, ...]:
    """Directories alone: beside volumes there are metadata.db and backingFsBlockDev."""
    with opened_directory(root_fd, name) as fd:
        if fd is None:
            return ()
        with os.scandir(fd) as entries:
            return tuple(sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False)))


def _find_networks(root_fd: int, used: frozenset[str], *, tested: bool) -> tuple[str, ...]:
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
            for identity, network in networks.read_networks(bolt.open(file_fd, networks.MAX_BYTES), tested=tested)
            if network not in PREDEFINED_NETWORKS and not {identity, network} & used
        )
    except (ValueError, OSError):
        return (UNREADABLE_NETWORKS,)
    finally:
        os.close(file_fd)


def _used_by(root_fd: int, container: str) -> frozenset[str]:
    """Names of the volumes and names and ids of the networks that a container refers to. One that cannot be read refers
    to nothing.
    """
    return frozenset[str]().union(*map(_references, read_configs(root_fd, [container])))


def read_configs(root_fd: int, containers: Iterable[str]) -> Iterator[dict[str, object]]:
    """The configurations of these containers, without those that cannot be read."""
    for container in containers:
        with contextlib.suppress(OSError, ValueError):
            yield state.parse_object(
                beneath.read(root_fd, f"{CONTAINERS}/{container}/config.v2.json", _MAX_CONFIG_BYTES)
            )


def images_of_containers(root_fd: int, without: Iterable[str]) -> frozenset[str]:
    """IDs of the images of all containers that are there, `without` some."""
    configs = read_configs(root_fd, set(_names_below(root_fd, CONTAINERS)).difference(without))
    return frozenset(str(config.get("Image")) for config in configs)


def _references(config: dict[str, object]) -> Iterator[str]:
    for mount in _parts(config.get("MountPoints")).values():
        if _parts(mount).get("Type") == "volume":
            yield str(_parts(mount).get("Name"))
    for name, endpoint in _parts(_parts(config.get("NetworkSettings")).get("Networks")).items():
        yield name
        yield str(_parts(endpoint).get("NetworkID"))


def _parts(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
