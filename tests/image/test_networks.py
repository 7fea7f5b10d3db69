"""Networks in a pool: each job has the default network that its own settings ask for, and no other job's."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.flavours import Flavour

if TYPE_CHECKING:
    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

# As Umbrel and others run it: the bridge is there before the daemon is.
OWN_BRIDGE = """
ip link add dind1 type bridge && ip addr add 10.78.1.1/24 dev dind1 && ip link set dind1 up
exec dockerd-entrypoint.sh "$@"
"""
BRIDGED = ("--bridge=dind1",)


def start(engine: Engine, flavour: Flavour, pool: Volume, args: tuple[str, ...] = (), keep: str = "") -> Dind:
    env = {**flavour.env, **({"CACHEDIND_KEEP": keep} if keep else {})}
    dind = engine.dind(flavour.suite, pool=pool, env=env, entrypoint=["sh", "-c", OWN_BRIDGE, "sh"], args=args)
    dind.wait_ready()
    return dind


def leave_behind(dind: Dind, project: Project) -> None:
    """A job of which everything is left: it is killed."""
    dind.build(project)
    dind.docker("network", "create", "left")
    dind.docker("run", "-d", "--restart=always", "--network=left", "--name=zombie", "base:latest", "sleep", "1000")
    dind.kill()


def subnet(dind: Dind) -> str:
    return dind.docker("network", "inspect", "bridge", "--format={{(index .IPAM.Config 0).Subnet}}").strip()


def names(dind: Dind, what: str) -> set[str]:
    return set(dind.docker(*what.split()).split())


def test_an_own_bridge_comes_and_goes_on_one_key(engine: Engine, flavour: Flavour) -> None:
    pool = engine.volume()
    project = overlay_project(secrets.token_hex(8))
    leave_behind(start(engine, flavour, pool, BRIDGED), project)
    expected = [
        (BRIDGED, "10.78.1.0/24"),
        (BRIDGED, "10.78.1.0/24"),
        (("--bip=10.79.0.1/16",), "10.79.0.0/16"),
        (BRIDGED, "10.78.1.0/24"),
        (("--default-address-pool=base=10.80.0.0/16,size=24",), "10.80.0.0/24"),
    ]
    for args, wanted in expected:
        dind = start(engine, flavour, pool, args)
        assert subnet(dind) == wanted
        assert names(dind, "network ls --format={{.Name}}") == {"bridge", "host", "none"}
        assert names(dind, "ps -aq") == set()
        assert dind.build(project).uncached == []
        leave_behind(dind, project)


@pytest.mark.everyday("forky-containers", "trixie-networks")
@pytest.mark.parametrize("keep", ["containers", "networks"])
def test_what_is_kept_does_not_stop_an_own_bridge(engine: Engine, suite: str, keep: str) -> None:
    flavour = Flavour(suite, "graphdriver")
    pool = engine.volume()
    project = overlay_project(secrets.token_hex(8))
    first = start(engine, flavour, pool, BRIDGED, keep)
    first.docker("network", "create", "nobodys")
    leave_behind(first, project)
    for _ in range(2):
        dind = start(engine, flavour, pool, BRIDGED, keep)
        left = {"left"} if keep == "containers" else {"left", "nobodys"}
        assert names(dind, "network ls --format={{.Name}}") == {"bridge", "host", "none"} | left
        assert subnet(dind) == "10.78.1.0/24"
        assert names(dind, "ps -a --format={{.Names}}") == ({"zombie"} if keep == "containers" else set())
        assert dind.build(project).uncached == []
        dind.docker("volume", "create", "left")
        dind.kill()
