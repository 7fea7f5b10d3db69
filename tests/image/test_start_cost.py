"""What a start costs shows in what it does: no module that it has no use for, no trial whose verdict is known.

Milliseconds are for scripts/bench; what is counted here is the same on every machine.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

PYTHON = ("/opt/cachedind/bin/python", "-IS")
# As dockerd-entrypoint.sh does it, but that Python tells what it imports, its forked children, too.
TELLING = ["env", "--block-signal=TERM", "docker-init", "-s", "--", *PYTHON, "-X", "importtime"]
BOOT = "/opt/cachedind/boot.py"
MOST = 152
"""How many modules a start in direct mode may import: what it did when this was written, and two more."""
NOT_NEEDED = re.compile(
    r"cachedind\.(pool\.(?!keys|directory|founding)|seeds\.(?!wanted)|commands)"
    r"|(subprocess|typing|ast|hashlib|gzip|shlex|shutil|tempfile|pathlib|inspect|dataclasses|asyncio|logging)$"
    r"|(click|docker|cryptography|urllib|http|email)\b"
)
TRIED = "overlay was tried"
NOT_TRIED = "overlay was found to work by an earlier start, on the same ground"


def imports(dind: Dind) -> list[str]:
    """The modules in the order in which their imports ended."""
    return re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", dind.log(), re.MULTILINE)


def test_a_start_imports_what_it_needs(engine: Engine, suite: str) -> None:
    """A second one on its data-root, without certificates, which a child makes."""
    volume = engine.volume()
    engine.dind(suite, volume=volume).wait_ready()
    engine.dinds[-1].kill()
    dind = engine.dind(
        suite,
        volume=volume,
        entrypoint=[*TELLING, BOOT, "boot"],
        env={"DOCKER_TLS_CERTDIR": "", "CACHEDIND_LISTEN": "none"},
    )
    dind.wait_ready()
    found = imports(dind)
    assert "cachedind.start.boot" in found
    assert [name for name in found if NOT_NEEDED.match(name)] == []
    assert len(found) <= MOST, f"{len(found)} modules: {' '.join(found)}"


# ---- trials ----


def start(engine: Engine, suite: str, volume: Volume, **options: object) -> Dind:
    dind = engine.dind(suite, volume=volume, env={"CACHEDIND_LOG_LEVEL": "debug"}, **options)
    dind.wait_ready()
    return dind


def has_tried(dind: Dind) -> bool:
    [said] = [text for text in dind.messages if text in (TRIED, NOT_TRIED)]
    return said == TRIED


def test_overlay_is_tried_once(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    first = start(engine, suite, volume)
    assert has_tried(first)
    first.kill()
    second = start(engine, suite, volume)
    assert not has_tried(second)
    second.stop()
    assert not has_tried(start(engine, suite, volume))


@pytest.mark.parametrize("name", ["boot", "engine", "device", "options", "rights"])
def test_it_is_tried_again_on_another_ground(engine: Engine, suite: str, name: str) -> None:
    volume = engine.volume()
    first = start(engine, suite, volume)
    assert not has_tried(restarted(engine, suite, volume, first, "pass"))
    assert has_tried(restarted(engine, suite, volume, engine.dinds[-1], f"state['ground'][{name!r}] = 'another'"))


def restarted(engine: Engine, suite: str, volume: Volume, before: Dind, change: str) -> Dind:
    """Another start on the data-root, after a change of what the last one has noted."""
    before.kill()
    source = (
        "import json; path = '/volume/.cachedind/state.json'; state = json.load(open(path)); "
        f"{change}; json.dump(state, open(path, 'w'))"
    )
    engine.in_volume(volume, f'python3 -c "{source}"')
    return start(engine, suite, volume)
