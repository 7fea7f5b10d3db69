"""Kept networks that overlap an address of this container: which, and what is said of them."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from cachedind.engine import network_overlaps
from cachedind.engine.network_overlaps import Overlap, find_overlaps
from cachedind.engine.networks import Bridge
from cachedind.host import addresses
from cachedind.host.addresses import Address
from helpers.boltfiles import Elements, bucket, leaf_page, whole_file

LO, ETH0 = Address("lo", "127.0.0.1/8"), Address("eth0", "172.18.0.3/16")
POD = Address("eth0", "10.244.1.5/32")
ULA, LINK = Address("eth0", "fd00::3/64"), Address("eth0", "fe80::fc:ff:fe00:1/64")


@pytest.mark.parametrize(
    ("bridge", "own", "subnet"),
    [
        (("172.18.0.1/16",), ETH0, "172.18.0.0/16"),
        (("172.18.7.1/24",), ETH0, "172.18.7.0/24"),
        (("172.0.0.1/8",), ETH0, "172.0.0.0/8"),
        (("10.244.0.1/16",), POD, "10.244.0.0/16"),
        (("172.20.0.1/16", "fd00::1/64"), ULA, "fd00::/64"),
        (("172.19.0.1/16",), ETH0, None),
        (("172.18.0.1/16",), ULA, None),
        (("172.20.0.1/16", "fd00:0:0:1::1/64"), ULA, None),
        # Each interface has these for itself.
        (("172.20.0.1/16", "fe80::1/64"), LINK, None),
        (("127.0.0.1/8",), LO, None),
        (("169.254.1.1/16",), Address("eth0", "169.254.1.2/16"), None),
        # Nothing that an engine writes.
        (("nonsense", ""), ETH0, None),
        ((), ETH0, None),
    ],
)
def test_which_overlap(bridge: tuple[str, ...], own: Address, subnet: str | None) -> None:
    found = find_overlaps([Bridge("id", "br-id", bridge)], {"id": "mine"}, [own])
    assert found == (() if subnet is None else (Overlap("id", "mine", subnet, own),))


def test_each_network_is_told_once() -> None:
    bridges = [
        Bridge("a", "br-a", ("172.18.0.1/16", "fd00::1/64")),
        Bridge("b", "br-b", ("172.18.1.1/24",)),
        Bridge("gone", "br-gone", ("172.18.0.1/16",)),
        Bridge("c", "br-c", ("172.30.0.1/16",)),
    ]
    found = find_overlaps(bridges, {"a": "one", "b": "two", "c": "three"}, [LO, LINK, ETH0, ULA])
    assert found == (Overlap("a", "one", "172.18.0.0/16", ETH0), Overlap("b", "two", "172.18.1.0/24", ETH0))


def test_a_bridge_that_is_still_there_does_not_overlap_itself() -> None:
    """The container of a pod was started again: its network namespace is the pod's."""
    left, other = Address("br-id", "172.18.0.1/16"), Address("br-other", "172.18.0.1/16")
    bridge = Bridge("id", "br-id", ("172.18.0.1/16",))
    assert find_overlaps([bridge], {"id": "mine"}, [left]) == ()
    assert find_overlaps([bridge], {"id": "mine"}, [left, other])[0].own == other


def test_the_line_says_what_why_and_how_to_mend_it() -> None:
    line = str(Overlap("a" * 64, "mine", "172.18.0.0/16", ETH0))
    for part in ("the kept network mine (172.18.0.0/16) overlaps 172.18.0.3/16", "on eth0", "--subnet"):
        assert part in line
    assert "\n" not in line


# ---- what an engine has written --------------------------------------------------------------------------------------


def database(networks: dict[str, str], bridges: dict[str, dict[str, object]]) -> bytes:
    """libnetwork's, with names of networks and records of the bridge driver by the networks' ids."""

    def record(kind: str, identity: str, value: dict[str, object]) -> tuple[int, bytes, bytes]:
        return 0, f"docker/network/v1.0/{kind}/{identity}/".encode(), struct.pack("=Q", 1) + json.dumps(value).encode()

    elements: Elements = [record("bridge", identity, value) for identity, value in sorted(bridges.items())]
    elements += [record("network", identity, {"id": identity, "name": name}) for identity, name in networks.items()]
    return whole_file([leaf_page(3, [(1, b"libnetwork", bucket(4))]), leaf_page(4, elements)])


def of(interface: str, address: str, **more: str) -> dict[str, object]:
    return {"BridgeName": interface, "DefaultBridge": False, "AddressIPv4": address, **more}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine's root, in a container with the addresses ETH0 and ULA."""
    monkeypatch.setattr(addresses, "read_addresses", lambda: (LO, ETH0, ULA))
    (tmp_path / "network/files").mkdir(parents=True)
    return tmp_path


def test_networks_that_somebody_made_are_looked_at(root: Path) -> None:
    (root / "network/files/local-kv.db").write_bytes(
        database(
            {"a": "mine", "b": "other", "c": "bridge", "d": "docker_gwbridge", "e": "none", "f": "six"},
            {
                "a": of("br-a", "172.18.0.1/16"),
                "b": of("br-b", "172.30.0.1/16"),
                # The engine's own: it looks after that itself. And a swarm's, which is not ours to remove.
                "c": of("docker0", "172.18.0.1/16"),
                "d": of("docker_gwbridge", "172.18.0.1/16"),
                "f": of("br-f", "172.31.0.1/16", AddressIPv6="fd00::1/64"),
            },
        )
    )
    assert network_overlaps.read_overlaps(str(root)) == (
        Overlap("a", "mine", "172.18.0.0/16", ETH0),
        Overlap("f", "six", "fd00::/64", ULA),
    )


def test_what_cannot_be_read_overlaps_nothing(root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    path = root / "network/files/local-kv.db"
    assert network_overlaps.read_overlaps(str(root)) == ()
    whole = database({"a": "mine"}, {"a": of("br-a", "172.18.0.1/16")})
    for raw in (b"", b"noise" * 999, whole[:9000], database({"a": "mine"}, {}), database({}, {"a": of("br-a", "x")})):
        path.write_bytes(raw)
        assert network_overlaps.read_overlaps(str(root)) == ()
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert network_overlaps.read_overlaps(str(root)) == ()
    assert os.listdir("/proc/self/fd") == before
