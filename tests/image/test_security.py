"""What a job that was root in a data-root has planted there leads nowhere; and what is secret is in no log."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from helpers.estates import Visitor
from helpers.flavours import Flavour
from helpers.pools import Disk
from helpers.seeds import SeedVolume, docker_archive, small_image

if TYPE_CHECKING:
    from helpers.engine import Engine

BTRFS = Disk("btrfs", Flavour("forky", "graphdriver"))
# Everything that a start itself opens, makes, moves or removes in a data-root, each in the way of the others' parents.
PLANTED = (
    ".cachedind",
    ".cachedind/state.json",
    ".cachedind/state.json.new",
    ".cachedind/lock",
    ".cachedind/seeds.json",
    ".cachedind/seeds.json.new",
    ".cachedind/image-uses.json.new",
    ".cachedind/good",
    ".cachedind/aside",
    ".cachedind/spool",
    "buildkit",
    "buildkit/cache.db",
    "buildkit/metadata_v2.db",
    "buildkit/containerdmeta.db",
    "containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",
    "containers",
    "containers/planted",
    "engine-id",
    "image",
    "image/overlay2/repositories.json",
    "network",
    "network/files/local-kv.db",
    "overlay2",
    "overlay2/.cachedind-probe",
    "swarm",
    "volumes",
    "volumes/planted",
)
# A start that does not come up leaves more than one slot.
PLANT = """
for data in DATA; do
  cd "$data"
  if [ -L "$(dirname NAME)" ] || [ -f "$(dirname NAME)" ]; then continue; fi
  mkdir -p "$(dirname NAME)"
  if [ -e NAME ]; then mv NAME "/volume/moved-$(echo "$data" | tr / _)"; fi
  ln -s TARGET NAME
done
"""
REMOVE = """
for data in DATA; do
  cd "$data"
  if [ -L NAME ]; then rm NAME; fi
  moved="/volume/moved-$(echo "$data" | tr / _)"
  if [ -e "$moved" ] && [ ! -e NAME ]; then mv "$moved" NAME; fi
  rm -rf "$moved"
done
"""
TARGETS = ("/victim/directory", "/victim/file", "/victim")
VICTIM = {"bind": "/victim", "mode": "rw"}
MAKE_VICTIM = """
cd /volume
mkdir -p directory/planted directory/files
for name in file directory/file directory/planted/file directory/files/local-kv.db; do echo mine >$name; done
"""
LOOK = "cd /volume; find . -printf '%p %y %m %s %n %T@ %C@\\n' | sort; find . -type f | sort | xargs sha256sum"


@pytest.mark.parametrize("place", ["pool", "data-root"])
def test_no_link_leads_a_start_outside(engine: Engine, place: str) -> None:
    victim, volume = engine.volume(), BTRFS.volume(engine)
    engine.in_volume(victim, MAKE_VICTIM)
    before = engine.in_volume(victim, LOOK)
    source = SeedVolume(engine)
    source.put({"seed.tar": docker_archive(small_image(engine, "seed:1"))})
    volumes = {victim.name: VICTIM, **source.mount}
    where = {"pool" if place == "pool" else "volume": volume}
    visitor = Visitor(engine, volume)
    first = engine.dind("forky", volumes=volumes, **where)
    first.wait_ready()
    first.load_base()
    first.kill()

    def run(script: str, name: str, target: str = "") -> None:
        data = "/volume/keys/default/slots/*/data" if place == "pool" else "/volume"
        visitor.sh(script.replace("DATA", data).replace("NAME", name).replace("TARGET", target))

    # A start that never comes to a daemon makes the next one prove a data-root by one, which follows links: a pool has
    # other slots for that.
    names = PLANTED if place == "pool" else [name for name in PLANTED if name.startswith(".cachedind")]
    for name, target in zip(names, itertools.cycle(TARGETS), strict=False):
        run(PLANT, name, target)
        # What the engine makes of links is its own business: this one ends when it has looked at its arguments.
        start = engine.dind("forky", volumes=volumes, args=["--log-level=none-such"], **where)
        status = start.wait_exit()
        log = start.log()
        assert "Traceback" not in log, f"{name} -> {target}: {log}"
        if place == "data-root" and name in (".cachedind", ".cachedind/lock"):
            assert status == 65, f"{name} -> {target}: without its lock nobody may touch a data-root\n{log}"
        else:
            assert start.summary is not None, f"{name} -> {target}: {log}"
        assert engine.in_volume(victim, LOOK) == before, f"{name} -> {target}: {log}"
        start.remove()
        engine.dinds.remove(start)
        run(REMOVE, name)


SECRET = "hunter2-in-no-log"


def test_no_secret_is_in_a_log(engine: Engine) -> None:
    pool = BTRFS.volume(engine)
    env = {
        "HTTP_PROXY": f"http://user:{SECRET}@127.0.0.1:9",
        "https_proxy": f"http://user:{SECRET}@127.0.0.1:9",
        "NO_PROXY": "*",
        "REGISTRY_PASSWORD": SECRET,
        "CACHEDIND_LOG_LEVEL": "debug",
    }
    arguments = [f"--http-proxy=http://user:{SECRET}@127.0.0.1:9", "--no-proxy=*"]
    first = engine.dind("forky", pool=pool, env=env, args=arguments)
    first.wait_ready()
    first.load_base()
    # Left over: the next start has a private daemon remove it.
    first.docker("run", "--network=none", "base:latest", "true")
    first.kill()
    second = engine.dind("forky", pool=pool, env=env, args=arguments)
    second.wait_ready()
    assert second.exec("cachedind", "doctor").status == 0
    for dind in (first, second):
        assert dind.messages
        assert not [line for line in dind.messages if SECRET in line]
    assert SECRET not in second.exec("cachedind", "doctor", "--json").output
    assert SECRET not in second.sh("cat /run/cachedind/* 2>/dev/null || true")
