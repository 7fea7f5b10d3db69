"""Each kind of file of a data-root, damaged in each way: the same start ends with a daemon in which a build succeeds.

Files whose paths differ in digests and numbers only are of one kind, and one stands for all; of containerd's blobs each
is tried. Whatever is lost by it may be lost: what exactly, tests/image/test_damage.py says for those that matter.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import TYPE_CHECKING

from helpers.ward import EMPTY, GONE, NOISE, PIPE, ZEROS, Ward, on

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.engine import Engine
    from helpers.flavours import Flavour
    from helpers.ward import Good

WAYS = {"empty": EMPTY, "gone": GONE, "noise": NOISE, "pipe": PIPE, "zeros": ZEROS}
READY_S = 30.0
_DIFFERS = re.compile(r"[0-9a-f]{32,}|[a-z0-9]{25}")


def damage_each_file(engine: Engine, flavour: Flavour, deadline: float, tell: Callable[[str], None]) -> Counter[str]:
    """Raises AssertionError after the last one, with what did not hold."""
    ward = Ward(engine)
    good = ward.good(flavour)
    _add_things(ward, flavour, good)
    counts: Counter[str] = Counter()
    failed: list[str] = []
    for way, how in WAYS.items():
        for path in _kinds(good):
            if time.monotonic() > deadline:
                break
            good.damage(on(path, how))
            dind = ward.create(flavour, good.volume, "case")
            try:
                dind.start()
                dind.wait_ready(timeout_s=READY_S)
                dind.keep_image(good.project)
                uncached = dind.build(good.project, timeout_s=60).uncached
                dind.run_image(good.project)
                counts[f"{flavour}: built {'again' if uncached else 'from the cache'}"] += 1
                tell(f"{flavour}: {way}: {path}: {len(uncached)} steps built again; {' '.join(dind.warnings)[:100]}")
            except AssertionError as error:
                failed.append(f"{flavour}: {way}: {path}: {error}")
                tell(failed[-1])
            dind.kill()
            dind.remove()
            engine.dinds.remove(dind)
    assert not failed, "\n".join(failed)
    return counts


def _add_things(ward: Ward, flavour: Flavour, good: Good) -> None:
    """What a job leaves."""
    dind = ward.start(flavour, good.volume, "good")
    dind.docker("create", "--name=left", "--volume=data:/data", good.project.tag)
    dind.docker("volume", "create", "--opt=type=tmpfs", "--opt=device=tmpfs", "more")
    dind.docker("network", "create", "left")
    dind.kill()
    dind.remove()


def _kinds(good: Good) -> list[str]:
    """One path of each kind, relative to the data-root: not what layers contain, nor what is cachedind's own."""
    found = good.visitor.sh("cd good; find . -type f -printf '%P\\n'").splitlines()
    kinds: dict[str, str] = {}
    for path in found:
        if not re.match(r"\.cachedind/", path) and not re.search(r"/(diff|fs)/", path):
            kinds.setdefault(path if "/blobs/" in path else _DIFFERS.sub("*", path), path)
    return sorted(kinds.values())
