"""Another daemon as the source of seeds: whatever stores the two have, only what is missing crosses over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from helpers.flavours import Flavour
from helpers.pools import Disk
from helpers.seeds import (
    Image,
    docker_archive,
    first_images,
    images,
    looked_closer,
    nameless,
    run_small,
    seed_phase_ms,
    seeded,
    small_image,
)

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

TRIXIE = Flavour("trixie", "graphdriver")
GRAPH = Flavour("forky", "graphdriver")
CONTAINERD = Flavour("forky", "containerd")
ADDRESS = "unix:///host/docker.sock"
STRICT_EXIT = 78

WAYS = ((TRIXIE, CONTAINERD), (CONTAINERD, TRIXIE), (CONTAINERD, CONTAINERD))
"""From one engine and store to another."""


def load(dind: Dind, image: Image) -> None:
    """As a job would."""
    dind.put("/cachedind-test", {"image.tar": docker_archive(image)})
    dind.docker("load", "--input", "/cachedind-test/image.tar")


class Host(NamedTuple):
    """A daemon whose socket is in a volume, with images of which only some are wanted."""

    engine: Engine
    dind: Dind
    socket: Volume
    one: Image
    two: Image

    @classmethod
    def start(cls, engine: Engine, flavour: Flavour) -> Host:
        socket = engine.volume()
        volumes = {socket.name: {"bind": "/host", "mode": "rw"}}
        dind = engine.dind(
            flavour.suite, volume=engine.volume(), volumes=volumes, env=flavour.env, args=[f"--host={ADDRESS}"]
        )
        dind.wait_ready()
        names = ("host/one:1", "registry.example.com/host/two:1.0", "host/unwanted:1")
        one, two, unwanted = (small_image(engine, name) for name in names)
        for image in (one, two, unwanted):
            load(dind, image)
        return cls(engine, dind, socket, one, two)

    @property
    def env(self) -> dict[str, str]:
        return {"CACHEDIND_SEED_HOST": ADDRESS, "CACHEDIND_SEED_IMAGES": "host/one:1, registry.example.com/*"}

    @property
    def names(self) -> frozenset[str]:
        return frozenset([self.one.name, self.two.name])

    @property
    def volumes(self) -> dict[str, dict[str, str]]:
        return {self.socket.name: {"bind": "/host", "mode": "ro"}}

    def guest(self, flavour: Flavour, volume: Volume, env: Mapping[str, str] | None = None) -> Dind:
        """An instance that takes its seeds from here."""
        settings = {**flavour.env, **self.env, **(env or {})}
        return self.engine.dind(flavour.suite, volume=volume, volumes=self.volumes, env=settings)


@pytest.mark.parametrize(("theirs", "ours"), WAYS, ids=lambda flavour: str(flavour))
def test_only_what_is_missing_crosses_over(engine: Engine, theirs: Flavour, ours: Flavour) -> None:
    host = Host.start(engine, theirs)
    volume = engine.volume()
    first = host.guest(ours, volume)
    assert first_images(first) == host.names
    assert nameless(first) == []
    assert first.warnings == []
    assert frozenset(seeded(first)) == host.names
    assert (first.summary or "").startswith("seeded: 2 images, ")
    run_small(first, [host.one, host.two])
    first.docker("container", "prune", "--force")
    first.kill()

    second = host.guest(ours, volume)
    assert first_images(second) == host.names
    assert seeded(second) == []
    assert not looked_closer(second)
    print(f"{theirs} to {ours}: asking for nothing takes {seed_phase_ms(second)} ms")
    second.docker("image", "rm", "host/one:1")
    second.kill()

    third = host.guest(ours, volume)
    assert first_images(third) == host.names
    assert seeded(third) == ["host/one:1"]
    third.kill()

    newer = small_image(engine, host.two.name)
    load(host.dind, newer)
    fourth = host.guest(ours, volume)
    assert first_images(fourth) == host.names
    assert seeded(fourth) == [newer.name]
    assert nameless(fourth) == []
    run_small(fourth, [host.one, newer])
    fourth.kill()
    fifth = host.guest(ours, volume)
    assert first_images(fifth) == host.names
    assert not looked_closer(fifth)


@pytest.mark.parametrize(("theirs", "ours"), WAYS, ids=lambda flavour: str(flavour))
def test_what_a_job_has_already_does_not_cross_over(engine: Engine, theirs: Flavour, ours: Flavour) -> None:
    host = Host.start(engine, theirs)
    volume = engine.volume()
    job = engine.dind(ours.suite, volume=volume, env=ours.env)
    job.wait_ready()
    load(job, host.one)
    # One of the same name that is another image.
    load(job, small_image(engine, host.two.name))
    job.kill()
    guest = host.guest(ours, volume)
    # What has lost its name was the job's, and stays.
    assert first_images(guest) == host.names | {"<none>:<none>"}
    assert seeded(guest) == [host.two.name]
    run_small(guest, [host.one, host.two])
    guest.docker("container", "prune", "--force")
    guest.kill()
    again = host.guest(ours, volume)
    assert first_images(again) > host.names
    assert not looked_closer(again)


def test_with_certificates(engine: Engine) -> None:
    certificates, network = engine.volume(), engine.network()
    host = engine.dind(
        "trixie",
        volume=engine.volume(),
        volumes={certificates.name: {"bind": "/certs", "mode": "rw"}},
        network=network,
        aliases=["docker"],
    )
    host.wait_ready()
    image = small_image(engine, "host/one:1")
    load(host, image)
    volume = engine.volume()
    env = {
        **CONTAINERD.env,
        "CACHEDIND_SEED_HOST": "tcp://docker:2376",
        "CACHEDIND_SEED_HOST_CERT_PATH": "/host/client",
        "CACHEDIND_SEED_IMAGES": "host/one:1",
    }
    options: dict[str, Any] = {
        "network": network,
        "volume": volume,
        "volumes": {certificates.name: {"bind": "/host", "mode": "ro"}},
    }
    for number in range(2):
        guest = engine.dind("forky", env=env, **options)
        assert first_images(guest) == {"host/one:1"}
        assert seeded(guest) == (["host/one:1"] if number == 0 else [])
        assert guest.warnings == []
        run_small(guest, [image])
        guest.kill()
    without = {**env, "CACHEDIND_SEED_HOST_CERT_PATH": ""}
    guest = engine.dind("forky", env=without, **{**options, "volume": engine.volume()})
    assert first_images(guest) == frozenset()
    [warning] = guest.warnings
    assert "it wants TLS" in warning
    assert "\n" not in warning


def test_once_for_a_pool(engine: Engine) -> None:
    host = Host.start(engine, CONTAINERD)
    disk = Disk("btrfs", GRAPH)
    pool = disk.volume(engine)
    first = disk.start(engine, pool, volumes=host.volumes, env=host.env)
    assert frozenset(seeded(first)) == host.names
    for key in ("default", "other"):
        guest = disk.start(engine, pool, volumes=host.volumes, env={**host.env, "CACHEDIND_KEY": key})
        assert images(guest) == host.names
        assert seeded(guest) == []
        assert not looked_closer(guest)
        run_small(guest, [host.one, host.two])


def test_after_the_daemon(engine: Engine) -> None:
    host = Host.start(engine, GRAPH)
    guest = host.guest(CONTAINERD, engine.volume(), {"CACHEDIND_SEED_WHEN": "after"})
    guest.wait_log("2 images of the seeds are there", timeout_s=120)  # it lets everybody go first
    assert images(guest) == host.names
    run_small(guest, [host.one, host.two])


UNREACHABLE = {
    "no socket": ("unix:///host/none.sock", "there is no such socket"),
    "nobody listens": ("tcp://127.0.0.1:9", "nobody listens there"),
}


@pytest.mark.parametrize("what", UNREACHABLE)
def test_a_host_that_is_not_there_costs_its_images_and_nothing_else(engine: Engine, what: str) -> None:
    address, reason = UNREACHABLE[what]
    env = {"CACHEDIND_SEED_HOST": address, "CACHEDIND_SEED_IMAGES": "host/one:1"}
    guest = engine.dind("forky", volume=engine.volume(), env=env)
    assert first_images(guest) == frozenset()
    [warning] = guest.warnings
    assert re.search(reason, warning), warning
    assert address in warning
    strict = engine.dind("forky", volume=engine.volume(), env={**env, "CACHEDIND_STRICT": "1"})
    assert strict.wait_exit() == STRICT_EXIT
    [error] = strict.errors
    assert re.search(reason, error), error
    assert "Traceback" not in strict.log()


def test_what_the_host_does_not_have_is_told(engine: Engine) -> None:
    host = Host.start(engine, GRAPH)
    wanted = {"CACHEDIND_SEED_IMAGES": "host/one:1, host/none:1, none/*"}
    guest = host.guest(GRAPH, engine.volume(), wanted)
    assert first_images(guest) == {"host/one:1"}
    assert len(guest.warnings) == 2
    for pattern in ("host/none:1", "none/*"):
        [line] = [line for line in guest.warnings if f"the seed {pattern} is not loaded" in line]
        assert "has no such image" in line
