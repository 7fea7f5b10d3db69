"""What a job plants in its slot's engine directories costs that slot, in the same start; no start fails for it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project
from helpers.dind import DATA_ROOT
from helpers.estates import small_project
from helpers.flavours import Flavour
from helpers.pools import slot_of

if TYPE_CHECKING:
    from helpers.engine import Engine

GRAPH, CONTAINERD = Flavour("trixie", "graphdriver"), Flavour("forky", "containerd")
LINK, LOOP, PIPE, FILE = "ln -s /etc $it", "ln -s $it $it", "mkfifo $it", "echo x >$it"
SOCKET = "/opt/cachedind/bin/python -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' $it"
READ_ONLY, KEEP_ALL = {"CACHEDIND_ACCESS": "ro"}, {"CACHEDIND_KEEP": "all"}

# What one job leaves, and with which settings the next one starts.
PLANTED: dict[Flavour, tuple[tuple[str, str, dict[str, str]], ...]] = {
    GRAPH: (
        ("containers", LINK, {}),
        ("swarm", LINK, KEEP_ALL),
        ("volumes", PIPE, {}),
        ("network", LINK, READ_ONLY),
        ("network/files", LOOP, {}),
        ("image", LOOP, {}),
        ("image/overlay2/layerdb", FILE, {}),
        ("buildkit", SOCKET, {}),
        (".cachedind", LINK, {}),
    ),
    CONTAINERD: (
        ("containers", LINK, READ_ONLY),
        ("containerd", LINK, {}),
        ("containerd/daemon/io.containerd.snapshotter.v1.overlayfs", LOOP, {}),
        ("buildkit/containerd-overlayfs", FILE, {}),
    ),
}


@pytest.mark.parametrize("flavour", PLANTED, ids=str)
def test_what_a_job_plants_costs_its_slot_in_the_same_start(engine: Engine, flavour: Flavour) -> None:
    pool = engine.volume()
    project = overlay_project(secrets.token_hex(8))
    dind = engine.dind(flavour.suite, pool=pool, env=flavour.env)
    dind.wait_ready()
    dind.build(project)
    dind.kill()
    dind = engine.dind(flavour.suite, pool=pool, env=flavour.env)
    dind.wait_ready()
    for path, how, settings in PLANTED[flavour]:
        slot = slot_of(dind)
        # Without something new in it a spare would be as good.
        dind.build(small_project(secrets.token_hex(8)))
        dind.sh(f"it={DATA_ROOT}/{path}; mkdir -p $it; mv $it {DATA_ROOT}/was; {how}")
        dind.kill()
        dind = engine.dind(flavour.suite, pool=pool, env={**flavour.env, **settings})
        dind.wait_ready()
        assert slot_of(dind) != slot, path
        if not settings.get("CACHEDIND_ACCESS"):
            [told] = [line for line in dind.warnings if "is set aside" in line]
            assert f"{path} is not a directory" in told
        assert dind.build(project).uncached == [], path
        if settings.get("CACHEDIND_ACCESS"):
            dind.kill()
            dind = engine.dind(flavour.suite, pool=pool, env=flavour.env)
            dind.wait_ready()
            assert f"{path} is not a directory" in dind.log()


def test_without_a_pool_a_link_that_the_engine_follows_is_followed(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    dind = engine.dind(suite, volume=volume)
    dind.wait_ready()
    dind.load_base()
    dind.docker("create", "--name=mine", "base:latest", "true")
    dind.stop()
    mover = engine.dind(suite, volume=volume, entrypoint=["sleep", "infinity"])
    for name in ("containers", "network", "buildkit", "image"):
        mover.sh(f"cd {DATA_ROOT}; mkdir -p elsewhere; mv {name} elsewhere/; ln -s elsewhere/{name} {name}")
    mover.kill()
    dind = engine.dind(suite, volume=volume)
    dind.wait_ready()
    assert dind.docker("ps", "-a", "--format={{.Names}}") == "mine"
    assert dind.docker("images", "-q") != ""
