"""Kept networks that overlap an address of this container.

An engine brings up a network's bridge with the addresses that the network was made with, whatever network this
container is on by now, and without a word: packets for one of the two then go to the other, and whoever asks for a
published port waits in vain.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os

from cachedind.base.errors import ProgramMissingError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import bolt, networks, paths
from cachedind.engine.leftovers import PREDEFINED_NETWORKS, SWARM_NETWORK
from cachedind.host import addresses, beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cachedind.engine.networks import Bridge
    from cachedind.host.addresses import Address

    _Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


class Overlap(NamedTuple):
    """A network by id and name, its subnet, and the address of this container that lies in the same range."""

    identity: str
    name: str
    subnet: str
    own: Address

    def __str__(self) -> str:
        return (
            f"the kept network {self.name} ({self.subnet}) overlaps {self.own.text}, this container's own address on "
            f"{self.own.interface}: nobody would reach the ports that its containers publish. It is removed, with the "
            "containers on it; make it with another --subnet, or start this daemon with another --default-address-pool"
        )


def find_overlaps(bridges: Iterable[Bridge], names: Mapping[str, str], own: Iterable[Address]) -> tuple[Overlap, ...]:
    """Pure. `names` are those of networks that can go, by their ids. An address of the bridge itself does not count: in
    a pod's network namespace it outlives the container."""
    taken = [(each, subnet) for each in own for subnet in _subnets([each.text])]
    found: dict[str, Overlap] = {}
    for bridge in bridges:
        for subnet in _subnets(bridge.addresses):
            for each, other in taken:
                if bridge.identity in names and each.interface != bridge.interface and subnet.overlaps(other):
                    overlap = Overlap(bridge.identity, names[bridge.identity], str(subnet), each)
                    found.setdefault(bridge.identity, overlap)
    return tuple(found.values())


def _subnets(texts: Iterable[str]) -> list[_Subnet]:
    """Without what every interface has for itself (link-local), and what is no address: a job may have written it."""
    found: list[_Subnet] = []
    for text in texts:
        with contextlib.suppress(ValueError):
            subnet = ipaddress.ip_interface(text).network
            if not (subnet.is_link_local or subnet.is_loopback):
                found.append(subnet)
    return found


def read_overlaps(data_root: str) -> tuple[Overlap, ...]:
    """The networks in an engine's root that overlap an address of this container, without the swarm's own. None where
    records or addresses cannot be read. Needs data of an engine that networks.py knows."""
    root_fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError, ValueError, ProgramMissingError):
            file_fd, _ = beneath.open_file(root_fd, paths.NETWORK_DATABASE)
            try:
                database = bolt.open(file_fd, networks.MAX_BYTES)
                bridges = list(networks.read_bridges(database))
                names = dict(networks.read_networks(database, tested=True)) if bridges else {}
            finally:
                os.close(file_fd)
            names = {one: name for one, name in names.items() if name not in PREDEFINED_NETWORKS | {SWARM_NETWORK}}
            return find_overlaps(bridges, names, addresses.read_addresses()) if names else ()
    finally:
        os.close(root_fd)
    return ()
