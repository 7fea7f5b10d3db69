"""Results of builds that no image has (a stage of which files are copied) are on the disk once, like layers."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import Project
from helpers.flavours import FLAVOURS
from helpers.pools import Disk, used_bytes

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour

MIB = 1 << 20
STAGE_MIB = 64
CLONES = 2
DOCKERFILE = f"""
FROM base:latest AS stage
COPY nonce /nonce
RUN head -c {STAGE_MIB}M /dev/urandom >/large && mkdir /made && sha256sum /large >/made/sum
FROM base:latest
COPY --from=stage /made /made
CMD ["cat", "/made/sum"]
"""
USE_STAGE = """
FROM base:latest AS last
COPY --from=stage /large /large
RUN sha256sum /large >/sum
CMD ["cat", "/sum"]
"""


def run(dind: Dind, tag: str) -> str:
    return dind.docker("run", "--rm", tag)


@pytest.mark.parametrize("flavour", [FLAVOURS[0], FLAVOURS[2]], ids=str)
def test_a_stage_is_there_once_and_can_be_built_upon(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    nonce = secrets.token_hex(8)
    project = Project("stage:latest", {"Dockerfile": DOCKERFILE, "nonce": nonce}, (), 4)
    first = disk.start(engine, pool)
    first.build(project)
    content = run(first, project.tag)
    alone = used_bytes(first)
    first.kill()

    crowd = [disk.start(engine, pool) for _ in range(CLONES + 1)]
    assert used_bytes(crowd[0]) - alone < STAGE_MIB * MIB // 8
    # Each goes on from the stage in its own way, and the others' is as it was.
    for number, dind in enumerate(crowd):
        assert dind.build(project).uncached == []
        more = f"FROM stage AS more{number}\nRUN echo {number} >>/large && rm /made/sum\n"
        both = {"Dockerfile": DOCKERFILE.split("FROM base:latest\nCOPY --from")[0] + more + USE_STAGE, "nonce": nonce}
        dind.build(Project(f"more:{number}", {**both, "Dockerfile": both["Dockerfile"].split(USE_STAGE)[0]}, (), 4))
        dind.build(Project(f"last:{number}", both, (), 5))
        assert run(dind, f"last:{number}") == content
        dind.docker("builder", "prune", "--all", "--force")
    assert [dind.warnings for dind in crowd] == [[]] * (CLONES + 1)
    for dind in crowd:
        dind.kill()
