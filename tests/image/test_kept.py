"""CACHEDIND_KEEP: volumes that are kept by their names, and networks that cannot be kept."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from helpers.flavours import Flavour
from helpers.pools import Disk, slot_of
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine

VOLUMES = "/var/lib/docker/volumes"
BUILDERS = {"CACHEDIND_KEEP": "volumes:buildx_buildkit_*"}


def disk_of(suite: str) -> Disk:
    return Disk("directory", Flavour(suite, "graphdriver"))


def containers(dind: Dind) -> set[str]:
    return set(dind.docker("ps", "--all", "--format={{.Names}}").split())


def networks(dind: Dind) -> set[str]:
    return set(dind.docker("network", "ls", "--format={{.Name}}").split()) - {"bridge", "host", "none"}


# ---- volumes ---------------------------------------------------------------------------------------------------------


def state_of(builder: str) -> str:
    return f"buildx_buildkit_{builder}0_state"


def use_builder(dind: Dind, builder: str) -> None:
    """What `docker buildx create --driver=docker-container` and a build leave. BuildKit's own image is in a registry
    that is not here: so its container does not run, and somebody else writes into the volume."""
    volume = f"--mount=type=volume,source={state_of(builder)},target=/var/lib/buildkit"
    dind.docker(
        "create", "--restart=unless-stopped", f"--name=buildx_buildkit_{builder}0", volume, "base:latest", "true"
    )
    dind.sh(f"echo {builder} >>{VOLUMES}/{state_of(builder)}/_data/cache.db")


def states(dind: Dind) -> dict[str, str]:
    """The volumes that there are, and what builders have written."""
    found = dind.docker("volume", "ls", "--quiet").split()
    return {name: dind.sh(f"cat {VOLUMES}/{name}/_data/cache.db 2>/dev/null || true") for name in found}


@pytest.mark.everyday("forky")
def test_a_builders_state_stays_and_is_there_beside_it_and_no_more_than_three_do(engine: Engine, suite: str) -> None:
    disk = disk_of(suite)
    pool = disk.volume(engine)
    first = disk.start(engine, pool, env=BUILDERS)
    first.load_base()
    use_builder(first, "ci")
    first.docker("volume", "create", "jobs")
    first.docker("run", "--volume=/anonymous", "base:latest", "true")
    assert len(states(first)) == 3
    first.kill()

    second = disk.start(engine, pool, env=BUILDERS)
    beside = disk.start(engine, pool, env=BUILDERS)
    assert slot_of(beside) != slot_of(second)
    for dind in (second, beside):
        assert states(dind) == {state_of("ci"): "ci"}
        assert containers(dind) == set()
        assert dind.warnings == []
    second.kill()
    beside.load_base()
    # A job whose builders have other names each time, and one builder that is used again.
    for builder in ("one", "two", "three", "four", "ci"):
        use_builder(beside, builder)
    beside.kill()

    third = disk.start(engine, pool, env=BUILDERS)
    assert states(third) == {state_of("three"): "three", state_of("four"): "four", state_of("ci"): "ci\nci"}
    third.kill()
    assert states(disk.start(engine, pool)) == {}


# ---- networks --------------------------------------------------------------------------------------------------------

SERVE = "import socket\nserver = socket.create_server(('', 80))\nwhile True: server.accept()[0].sendall(b'served')"
CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], 8080), 2).recv(9).decode())"


def publish(dind: Dind) -> None:
    """A server on the network "mine", on the container's own programs: the base image has none."""
    options = ("--detach", "--network=mine", "--publish=8080:80", "--volume=/usr:/usr:ro")
    dind.docker("run", *options, "base:latest", "python3", "-IS", "-c", SERVE)


def is_served(client: Dind, address: str) -> bool:
    return client.exec("python3", "-IS", "-c", CONNECT, address, check=False).stdout == "served\n"


@pytest.mark.everyday("forky-containers", "trixie-networks")
@pytest.mark.parametrize("keep", ["networks", "containers,networks"], ids=["networks", "containers"])
def test_a_network_that_overlaps_this_containers_own_is_dropped_and_told(engine: Engine, suite: str, keep: str) -> None:
    disk, env = disk_of(suite), {"CACHEDIND_KEEP": keep}
    subnet = f"10.{random.randrange(100, 200)}.{random.randrange(256)}.0/24"
    pool, outer = disk.volume(engine), engine.network(subnet)
    first = disk.start(engine, pool, env=env)
    first.load_base()
    first.docker("network", "create", f"--subnet={subnet}", "mine")
    first.docker("network", "create", "other")
    for place in ("mine", "other"):
        options = ("--detach", "--restart=always", f"--network={place}", f"--name=on-{place}")
        first.docker("run", *options, "base:latest", "sleep", "1000")
    first.kill()

    second = disk.start(engine, pool, env=env, network=outer)
    [warning] = second.warnings
    assert f"the kept network mine ({subnet}) overlaps {second.address}/" in warning
    assert networks(second) == {"other"}
    assert containers(second) == ({"on-other"} if "containers" in keep else set())
    # The engine gives it another subnet now, and what it publishes is reached from outside.
    second.load_base()
    second.docker("network", "create", "mine")
    publish(second)
    client = engine.dind(suite, network=outer, entrypoint=["sleep", "infinity"])
    wait_until(lambda: is_served(client, second.address), what="the published port to answer")
