"""Promise 2: what was built is CACHED again after the container was killed, and still runs."""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project, slow_project

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume
    from helpers.flavours import Flavour

KILLS = 6


def start(engine: Engine, flavour: Flavour, volume: Volume) -> Dind:
    dind = engine.dind(flavour.suite, volume=volume, env=flavour.env)
    dind.wait_ready()
    info = dind.info()
    assert (info.store, info.driver) == (flavour.store, flavour.overlay)
    return dind


def test_rebuild_after_sigkill_is_all_cached(engine: Engine, flavour: Flavour) -> None:
    volume = engine.volume()
    project = overlay_project(secrets.token_hex(8))

    first = start(engine, flavour, volume)
    assert first.summary is not None
    assert first.summary.startswith("cold")
    cold = first.build(project)
    assert cold.summary == f"0 of {project.step_count} CACHED"
    build_id = first.run_image(project)
    first.kill()
    first.remove()

    second = start(engine, flavour, volume)
    assert second.summary is not None
    assert second.summary.startswith("warm")
    assert second.run_image(project) == build_id, "the image itself did not survive"
    # Without its tag the image can only come out of the build cache.
    second.docker("image", "rm", "--force", project.tag)
    warm = second.build(project)
    assert warm.uncached == []
    assert warm.summary == f"{project.step_count} of {project.step_count} CACHED"
    assert second.run_image(project) == build_id, "a step ran again, whatever the progress output says"


@pytest.mark.timeout(600)
def test_cache_survives_kills_amid_builds(engine: Engine, flavour: Flavour) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    moments = random.Random(seed)
    volume = engine.volume()
    project = overlay_project(secrets.token_hex(8))

    dind = start(engine, flavour, volume)
    dind.build(project)
    build_id = dind.run_image(project)
    # How long an undisturbed build takes here gives the range of moments at which to disturb one.
    whole = dind.build(slow_project(secrets.token_hex(8))).seconds

    interrupted = slow_project(secrets.token_hex(8), tag="interrupted:latest")
    amid = 0
    for _ in range(KILLS):
        build = dind.build_in_background(interrupted)
        # What was measured may have been slowed down by others: not all of it, or builds are over too often.
        build.join(timeout=moments.uniform(0, 0.7 * whole))
        amid += build.is_alive()
        dind.kill()
        build.join(timeout=30)
        assert not build.is_alive(), "docker exec outlived its container"
        dind.remove()
        interrupted = slow_project(secrets.token_hex(8), tag="interrupted:latest")
        dind = start(engine, flavour, volume)

    assert amid > KILLS / 2, "the builds were over, or never began, when they were to be killed"
    assert dind.run_image(project) == build_id
    dind.docker("image", "rm", "--force", project.tag)
    assert dind.build(project).uncached == []
    assert dind.run_image(project) == build_id

    # The state is good for new work too, not only for looking at.
    dind.build(interrupted)
    new_id = dind.run_image(interrupted)
    assert dind.build(interrupted).uncached == []
    assert dind.run_image(interrupted) == new_id
