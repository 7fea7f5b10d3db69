"""Each kind of file of a data-root, damaged in each way: the same start ends with a daemon in which a build succeeds.

Files whose paths differ in digests and numbers only are of one kind, and one stands for all; of containerd's blobs each
is tried. Ways are: empty, gone, noise, zeros, a pipe; single bits flipped, so many in each file, more in databases; and
swapped: as it was before the last build, as another data-root has it, or another database of the same.

Whatever is lost by it may be lost: what exactly, tests/image/test_damage.py says for those that matter.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from helpers.engine import CommandFailedError
from helpers.ward import EMPTY, GONE, NOISE, PIPE, ZEROS, Ward, flip, marked_project, on, swap

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour
    from helpers.ward import Good

READY_S = 30.0
_WAYS = {"empty": EMPTY, "gone": GONE, "noise": NOISE, "pipe": PIPE, "zeros": ZEROS}
_BEFORE, _FOREIGN = "before", "foreign"
_DIFFERS = re.compile(r"[0-9a-f]{32,}|[a-z0-9]{25}")


class _Case(NamedTuple):
    way: str
    path: str
    script: str


def damage_each_file(
    engine: Engine, flavour: Flavour, dice: random.Random, flips: int, deadline: float, tell: Callable[[str], None]
) -> Counter[str]:
    """`flips` single bits of each file, four times as many of each database. Raises AssertionError after the last one,
    with what did not hold."""
    ward = Ward(engine)
    good = ward.good(flavour)
    _add_things(ward, flavour, good)
    counts: Counter[str] = Counter()
    failed: list[str] = []
    for case in _cases(_kinds(good), dice, flips):
        if time.monotonic() > deadline:
            break
        try:
            good.damage(case.script)
        except CommandFailedError:
            if not case.way.startswith("swapped"):
                raise
            continue  # there is no such file, or the same
        dind = ward.create(flavour, good.volume, "case")
        what = f"{flavour}: {case.way}: {case.path}"
        try:
            uncached = _use(dind, good)
            counts[f"{flavour}: {case.way.partition(' ')[0]}: built {'again' if uncached else 'from the cache'}"] += 1
            tell(f"{what}: {uncached} steps built again; {' '.join(dind.warnings)[:100]}")
        except AssertionError as error:
            failed.append(f"{what}: {error}")
            tell(failed[-1])
        _end(engine, dind)
    assert not failed, "\n".join(failed)
    return counts


def _cases(kinds: list[str], dice: random.Random, flips: int) -> Iterator[_Case]:
    databases = [path for path in kinds if path.endswith(".db")]
    for way, how in _WAYS.items():
        for path in kinds:
            yield _Case(way, path, on(path, how))
    for path in kinds:
        for _ in range(flips * 4 if path in databases else flips):
            seed = dice.randrange(2**31)
            yield _Case(f"flipped (seed {seed})", path, on(path, flip(seed)))
    for other in (_BEFORE, _FOREIGN):
        for path in kinds:
            yield _Case(f"swapped with {other}", path, on(path, swap(other)))
    for path in databases:
        other = dice.choice([one for one in databases if one != path])
        yield _Case(f"swapped with {other}", path, f'cp -a "../good/{other}" "{path}"')


def _use(dind: Dind, good: Good) -> int:
    """Start it, build the project that it knows and one that it does not, and run both. How many steps of the first
    were built again. Raises AssertionError."""
    dind.start()
    dind.wait_ready(timeout_s=READY_S)
    if dind.docker_status("tag", good.project.tag, "kept:small") != 0:
        dind.docker_status("image", "rm", "--force", good.project.tag)  # a name whose image is damaged
    uncached = dind.build(good.project, timeout_s=60).uncached
    build_id = dind.run_image(good.project)
    assert uncached or build_id == good.build_id, f"CACHED, and it printed {build_id}"
    more = _project("more:latest")
    dind.build(more, timeout_s=60)
    dind.run_image(more)
    return len(uncached)


def _add_things(ward: Ward, flavour: Flavour, good: Good) -> None:
    """What a job leaves; and beside it the data-root as it was before, and another one."""
    dind = ward.start(flavour, good.volume, "good")
    dind.docker("create", "--name=left", "--volume=data:/data", good.project.tag)
    dind.docker("volume", "create", "--opt=type=tmpfs", "--opt=device=tmpfs", "more")
    dind.docker("network", "create", "left")
    _end(ward.engine, dind)
    good.visitor.sh(f"cp -a --reflink=always good {_BEFORE}")
    for name in ("good", _FOREIGN):
        dind = ward.start(flavour, good.volume, name)
        later = _project("later:latest")
        dind.build(later)
        dind.run_image(later)
        _end(ward.engine, dind)


def _project(tag: str) -> Project:
    return replace(marked_project(secrets.token_hex(8)), tag=tag)


def _end(engine: Engine, dind: Dind) -> None:
    dind.kill()
    dind.remove()
    engine.dinds.remove(dind)


def _kinds(good: Good) -> list[str]:
    """One path of each kind, relative to the data-root: not what layers contain, nor what is cachedind's own."""
    found = good.visitor.sh("cd good; find . -type f -size +0 -printf '%P\\n'").splitlines()
    kinds: dict[str, str] = {}
    for path in found:
        if not re.match(r"\.cachedind/", path) and not re.search(r"/(diff|fs)/", path):
            kinds.setdefault(path if "/blobs/" in path else _DIFFERS.sub("*", path), path)
    return sorted(kinds.values())
