"""CACHEDIND_CACHE_MAX_SIZE: the engine itself keeps the build cache below it, oldest first."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from cachedind.base.sizes import parse_size_bytes
from helpers.builds import Project
from helpers.engine import CommandFailedError
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour

BLOB_BYTES = 40 << 20
LIMIT = "100MB"


def build_bulky(dind: Dind, tag: str) -> Project:
    """A build that leaves 40 MiB in the cache, and no image: what an image has is not counted."""
    large = f"RUN dd if=/dev/urandom of=/{tag} bs=64k count={BLOB_BYTES >> 16} 2>/dev/null"
    files = {"Dockerfile": f"FROM base:latest\nRUN echo {secrets.token_hex(8)}\n{large}\n"}
    project = Project(f"{tag}:latest", files, expected=(), step_count=2)
    dind.build(project)
    dind.docker("image", "rm", "--force", project.tag)
    return project


def ask_amid_collection(dind: Dind, argv: tuple[str, ...]) -> str | None:
    """28.5 with the containerd store fails this request when its collector takes a record that it has just listed."""
    try:
        return dind.docker(*argv)
    except CommandFailedError as error:
        if "does not exist: not found" in str(error):
            return None
        raise


def cache_bytes(dind: Dind) -> int:
    """What the build cache occupies that no image has: what builder.gc counts."""
    df = ("system", "df", "--verbose", "--format", "{{json .BuildCache}}")
    records = json.loads(wait_until(lambda: ask_amid_collection(dind, df), what="an answer amid a collection"))
    return sum(parse_size_bytes(record["Size"]) for record in records if record["Shared"] == "false")


def test_least_recently_used_cache_goes_and_recent_stays(engine: Engine, flavour: Flavour) -> None:
    volume = engine.volume()
    first = engine.dind(flavour.suite, volume=volume, env=flavour.env)
    first.wait_ready()
    old, _, recent = (build_bulky(first, tag) for tag in ("old", "between", "recent"))
    assert cache_bytes(first) > 3 * 40 * 10**6
    first.kill()
    first.remove()

    # BuildKit collects a second after the daemon's start, then a second after a build, but once a minute at most.
    second = engine.dind(flavour.suite, volume=volume, env={**flavour.env, "CACHEDIND_CACHE_MAX_SIZE": LIMIT})
    second.wait_ready()
    limit = parse_size_bytes(LIMIT)
    wait_until(lambda: cache_bytes(second) < limit, what=f"the build cache to fit into {LIMIT}", timeout_s=75)
    assert cache_bytes(second) > 40 * 10**6, "more went than had to"
    assert second.build(recent).uncached == []
    second.keep_image(old)
    assert second.build(old).uncached != []
