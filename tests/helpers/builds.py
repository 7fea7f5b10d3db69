"""Inner builds: projects to build, and what BuildKit's plain progress says about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Step(NamedTuple):
    """One numbered step of a Dockerfile, as in `#7 [stage-1 3/5] RUN …`."""

    number: int
    name: str
    cached: bool


@dataclass(frozen=True)
class Build:
    """How one `docker build --progress=plain` went."""

    status: int
    output: str
    seconds: float

    @property
    def steps(self) -> tuple[Step, ...]:
        return parse_steps(self.output)

    @property
    def summary(self) -> str:
        """For people and for comparing: "7 of 7 CACHED"."""
        steps = self.steps
        return f"{sum(step.cached for step in steps)} of {len(steps)} CACHED"

    @property
    def uncached(self) -> list[str]:
        """The steps that were run rather than found."""
        return [step.name for step in self.steps if not step.cached]


def parse_steps(output: str) -> tuple[Step, ...]:
    """The Dockerfile's steps in order of appearance; [internal] ones and exports are not steps.

    A FROM step is left out: taking an image that is there is neither cached nor run, and BuildKit calls it
    sometimes DONE and sometimes CACHED.
    """
    names: dict[int, str] = {}
    cached: set[int] = set()
    for line in output.splitlines():
        if match := re.match(r"#(\d+) (\[ *(?:\S+ +)?\d+/\d+\] .*)", line):
            if not re.match(r"\[.*?\] FROM ", match[2]):
                names.setdefault(int(match[1]), match[2])
        elif match := re.match(r"#(\d+) CACHED$", line):
            cached.add(int(match[1]))
    return tuple(Step(number, name, number in cached) for number, name in names.items())


@dataclass(frozen=True)
class Project:
    """A build context whose image, run, tells whether it was built right.

    The image prints first a `build-id` that one of its steps drew at random: the same id again after a rebuild means
    that the step did not run again, whatever the progress output says. Then it prints what it finds in its
    filesystem, which must equal `expected`.
    """

    tag: str
    files: Mapping[str, str]
    expected: tuple[str, ...]
    step_count: int


_MAIN = r"""#!/bin/sh
cat /build-id
cd /app
for path in moved kept hidden folder/old folder/new renamed/inner gone tools/made; do
  if [ -e "$path" ]; then echo "$path:" $(cat "$path"); else echo "$path: -"; fi
done
echo layers: $(cat /layers)
"""


def overlay_project(nonce: str, *, tag: str = "app:latest") -> Project:
    """Two stages that do to lower layers what overlay filesystems get wrong on unfit storage.

    A file of a lower layer is renamed (RENAME_WHITEOUT), removed (whiteout) and appended to (copy-up), a directory
    removed and made anew (opaque), and another one renamed with `mv` (redirect or EXDEV). `nonce` goes into a source
    file, so that no other project's cache fits.
    """
    steps = (
        "RUN mv moving moved",
        "RUN rm gone",
        "RUN echo more >>kept",
        "RUN rm -rf folder && mkdir folder && echo fresh >folder/new",
        "RUN mv inside renamed",
        "RUN cat /proc/sys/kernel/random/uuid >/build-id",
        "RUN echo one >>/layers",
        "RUN echo two >>/layers",
        "COPY --from=tools /made /app/tools/made",
    )
    dockerfile = "\n".join(
        [
            "FROM base:latest AS tools",
            "COPY nonce /nonce",
            "RUN sha256sum </nonce | cut -c 1-64 >/made",
            "FROM base:latest",
            "WORKDIR /app",
            "COPY app/ /app/",
            "COPY main.sh nonce /",
            *steps,
            'CMD ["/bin/sh", "/main.sh"]',
            "",
        ]
    )
    files = {
        "Dockerfile": dockerfile,
        "nonce": nonce,
        "main.sh": _MAIN,
        "app/moving": "moving\n",
        "app/gone": "gone\n",
        "app/kept": "kept\n",
        "app/folder/old": "old\n",
        "app/inside/inner": "inner\n",
    }
    expected = (
        "moved: moving",
        "kept: kept more",
        "hidden: -",
        "folder/old: -",
        "folder/new: fresh",
        "renamed/inner: inner",
        "gone: -",
        f"tools/made: {_sha256(nonce)}",
        "layers: one two",
    )
    return Project(tag, files, expected, step_count=2 + 3 + len(steps))


def slow_project(nonce: str, *, tag: str = "slow:latest", steps: int = 6) -> Project:
    """A build of some seconds with data in every layer, to be interrupted anywhere."""
    lines = ["FROM base:latest", "COPY nonce main.sh /", "WORKDIR /app"]
    for number in range(steps):
        lines.append(
            f"RUN dd if=/dev/urandom of=/blob{number} bs=64k count=16 2>/dev/null "
            f"&& echo {number} >>/layers && sleep 0.2"
        )
    lines += ["RUN cat /proc/sys/kernel/random/uuid >/build-id", 'CMD ["/bin/sh", "/main.sh"]', ""]
    files = {"Dockerfile": "\n".join(lines), "nonce": nonce, "main.sh": _MAIN}
    names = ("moved", "kept", "hidden", "folder/old", "folder/new", "renamed/inner", "gone", "tools/made")
    layers = " ".join(str(number) for number in range(steps))
    expected = (*(f"{name}: -" for name in names), f"layers: {layers}")
    return Project(tag, files, expected, step_count=2 + steps + 1)


def content_project(nonce: str, *, tag: str = "content:latest", layers: int = 6, files: int = 40) -> Project:
    """Layers of many files whose bytes are known: run, the image tells the checksum of each layer's content.

    Whatever a disk made of it, an image built of the cache can be compared with what an uncached build would give.
    """
    lines = ["FROM base:latest", "COPY nonce /nonce"]
    for layer in range(layers):
        lines.append(
            f"RUN mkdir /{layer} && for i in $(seq {files}); do "
            f"{{ cat /nonce; seq $((i * {layer + 1})) 3000; }} >/{layer}/$i; done"
        )
    sums = f"for layer in $(seq 0 {layers - 1}); do cat /$layer/* | sha256sum | cut -c 1-64; done"
    lines += ["RUN cat /proc/sys/kernel/random/uuid >/build-id", f'CMD ["/bin/sh", "-c", "cat /build-id; {sums}"]', ""]
    expected = []
    for layer in range(layers):
        names = sorted(range(1, files + 1), key=str)
        numbers = (range(name * (layer + 1), 3001) for name in names)
        expected.append(_sha256("".join(f"{nonce}\n" + "".join(f"{n}\n" for n in found) for found in numbers)))
    context = {"Dockerfile": "\n".join(lines), "nonce": f"{nonce}\n"}
    return Project(tag, context, tuple(expected), step_count=1 + layers + 1)


def _sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
