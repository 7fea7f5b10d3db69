"""libnetwork's database of networks in a data-root: read, copied for a private daemon, removed. Without a daemon.

An engine makes its default networks (bridge, host, none) anew at each start, and the database with them when there is
none (moby, daemon/daemon_unix.go, configureNetworking).
"""

from __future__ import annotations

import contextlib
import os

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import bolt, paths
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 16 << 20

_BUCKET = b"libnetwork"
_NETWORKS = b"docker/network/v1.0/network/"
_BRIDGES = b"docker/network/v1.0/bridge/"
_INDEX_BYTES = 8
"""Each of libnetwork's values begins with the number of its last change (moby, libnetwork/internal/kvstore/boltdb)."""
_DIRECTORY, _, _NAME = paths.NETWORK_DATABASE.rpartition("/")


class Bridge(NamedTuple):
    """A network of the bridge driver: its id, its interface, and the interface's addresses with
    the lengths of their prefixes ("172.18.0.1/16")."""

    identity: str
    interface: str
    addresses: tuple[str, ...]


def read_networks(database: bolt.Database, *, tested: bool) -> Iterator[tuple[str, str]]:
    """Id and name of each network (layout of engines 26.1 and 28.5). Raises ValueError: unless `tested`, only for pages
    that cannot be read, as records may be a later release's."""
    for identity, value in _records(database, _NETWORKS):
        try:
            record = state.parse_object(value)
        except ValueError:
            if tested:
                raise
            continue
        yield identity, str(record.get("name"))


def own_bridges(data_root: str) -> frozenset[str]:
    """The user's own bridges (--bridge) that the bridge driver has noted for the default network. A daemon cannot
    delete the record of that network when its bridge is missing in the daemon's network namespace."""
    with contextlib.suppress(OSError, ValueError), _opened(data_root) as root_fd:
        fd, _ = beneath.open_file(root_fd, paths.NETWORK_DATABASE)
        try:
            found = [state.parse_object(value) for _, value in _records(bolt.open(fd, MAX_BYTES), _BRIDGES)]
        finally:
            os.close(fd)
        names = (str(record.get("BridgeName")) for record in found if record.get("DefaultBridge") is True)
        return frozenset(name for name in names if name.isascii() and 0 < len(name) < 16) - {"docker0"}
    return frozenset()


def read_bridges(database: bolt.Database) -> Iterator[Bridge]:
    """The bridge driver's networks (layout of engines 26.1 and 28.5: networkConfiguration in moby,
    libnetwork/drivers/bridge/bridge_store.go). Raises ValueError."""
    for identity, value in _records(database, _BRIDGES):
        record = state.parse_object(value)
        addresses = (record.get(f"AddressIPv{version}") for version in (4, 6))
        yield Bridge(identity, str(record.get("BridgeName")), tuple(str(each) for each in addresses if each))


def _records(database: bolt.Database, prefix: bytes) -> Iterator[tuple[str, bytes]]:
    if _BUCKET not in database.buckets():
        return
    for key, value in database.items([_BUCKET]):
        if key.startswith(prefix):
            identity = key.removeprefix(prefix).strip(b"/").decode("ascii", "replace")
            yield identity, value[_INDEX_BYTES:]


def read(data_root: str) -> bytes | None:
    """The database's bytes; None where it is missing or cannot be read."""
    with contextlib.suppress(OSError, ValueError), _opened(data_root) as root_fd:
        return beneath.read(root_fd, paths.NETWORK_DATABASE, MAX_BYTES)
    return None


def write(data_root: str, raw: bytes) -> None:
    """Put a copy of a database where there is none. Raises OSError."""
    os.makedirs(f"{data_root}/{_DIRECTORY}", mode=0o750)
    with open(f"{data_root}/{paths.NETWORK_DATABASE}", "xb") as file:
        file.write(raw)


def forget(data_root: str) -> None:
    """Remove the database, and with it every record of a network. Raises OSError."""
    with (
        contextlib.suppress(FileNotFoundError),
        _opened(data_root) as root_fd,
        beneath.directory(root_fd, _DIRECTORY) as fd,
    ):
        os.unlink(_NAME, dir_fd=fd)


def set_aside(data_root: str) -> list[str]:
    """Move a database that no engine can read out of the way. Returns what there is to say. Raises OSError."""
    aside = f"{_NAME}.unreadable"
    with _opened(data_root) as root_fd, beneath.directory(root_fd, _DIRECTORY) as fd:
        os.rename(_NAME, aside, src_dir_fd=fd, dst_dir_fd=fd)
    return [f"{paths.NETWORK_DATABASE} is unreadable: it is now {aside}, and all networks are made anew"]


@contextlib.contextmanager
def _opened(data_root: str) -> Iterator[int]:
    fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
