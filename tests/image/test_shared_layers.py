"""What a pool shares is the same as what was built: packed, measured and protected, in a leased slot and in a clone."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from helpers.builds import Project
from helpers.pools import Disk

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour

# The names of files in all layers of an image, as `docker save` packs them.
NAMES = r"""
import json, subprocess, sys, tarfile, tempfile
found = set()
with tempfile.NamedTemporaryFile() as file:
    subprocess.run(["docker", "save", "--output", file.name, sys.argv[1]], check=True)
    with tarfile.open(file.name) as outer:
        for member in outer:
            try:
                with tarfile.open(fileobj=outer.extractfile(member)) as layer:
                    found |= {f"{entry.name} {entry.size}" for entry in layer if entry.isreg()}
            except (tarfile.TarError, EOFError, ValueError):
                pass  # not a layer
print(json.dumps(sorted(found)))
"""
STAGE = (
    "FROM base:latest AS stage\nCOPY nonce /nonce\nRUN mkdir /one && cat /nonce >/one/file\nRUN cat /one/file >/two\n"
)
FINAL = "FROM base:latest\nCOPY --link --from=stage /one /linked\nCOPY --from=stage /two /copied\n"


def packed(dind: Dind, tag: str) -> set[str]:
    environment = "unset DOCKER_TLS_VERIFY; export DOCKER_HOST=unix:///var/run/docker.sock"
    dind.put("/cachedind-test", {"names.py": NAMES})
    return set(json.loads(dind.sh(f"{environment}; python3 -IS /cachedind-test/names.py {tag}", timeout_s=120)))


def measured(dind: Dind) -> list[tuple[str, str, str]]:
    records = json.loads(dind.docker("system", "df", "--verbose", "--format", "{{json .BuildCache}}"))
    return sorted((record["ID"], record["CacheType"], record["Size"]) for record in records)


def test_what_was_built_before_it_was_shared_is_packed_whole(engine: Engine, flavour: Flavour) -> None:
    """A build that failed leaves results that no image has; the next one makes an image of them."""
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    nonce = secrets.token_hex(8)
    failing = Project("failed:latest", {"Dockerfile": f"{STAGE}RUN false\n", "nonce": nonce}, (), 4)
    first = disk.start(engine, pool)
    first.build(failing, check=False)
    first.kill()

    leased = disk.start(engine, pool)
    cloned = disk.start(engine, pool)
    # A clone that was made in advance, where copying took long, is leased.
    assert (cloned.summary or "").startswith(("cloned: ", "warm: "))
    stage = Project("stage:latest", {"Dockerfile": STAGE, "nonce": nonce}, (), 3)
    final = Project("final:latest", {"Dockerfile": STAGE + FINAL, "nonce": nonce}, (), 5)
    for dind in (leased, cloned):
        assert dind.build(stage).uncached == []
        dind.build(final)
        assert packed(dind, "stage:latest") >= {"one/file 16", "two 16", "nonce 16"}
        assert packed(dind, "final:latest") >= {"linked/file 16", "copied 16"}
        assert dind.docker("run", "--rm", "final:latest", "cat", "/linked/file") == nonce


def test_a_clone_measures_what_its_origin_does_and_cannot_change_it(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    nonce = secrets.token_hex(8)
    project = Project("stage:latest", {"Dockerfile": STAGE, "nonce": nonce}, (), 3)
    first = disk.start(engine, pool)
    first.build(project)
    before = measured(first)
    first.kill()
    leased, cloned = disk.start(engine, pool), disk.start(engine, pool)
    assert measured(leased) == measured(cloned) == before
    assert cloned.exec("touch", "/var/lib/docker/.cachedind/layers/planted", check=False).status != 0
    cloned.docker("system", "prune", "--all", "--force", "--volumes")
    cloned.docker("builder", "prune", "--all", "--force")
    assert leased.build(project).uncached == []
    assert packed(leased, "stage:latest") >= {"one/file 16", "two 16", "nonce 16"}
