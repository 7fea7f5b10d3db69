"""What a lane needs of the machine, found out by trying. A lane that misses something fails; it never skips.

Each capability is a function that returns None, or a sentence about what is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.engine import MKFS, exec_in

if TYPE_CHECKING:
    from helpers.engine import Engine

Capability = Callable[[], str | None]


def missing(capabilities: Iterable[Capability]) -> list[str]:
    """The sentences of those capabilities that are not there."""
    return [sentence for capability in capabilities if (sentence := capability())]


def root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def programs(*names: str) -> Capability:
    def capability() -> str | None:
        absent = [name for name in names if shutil.which(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    return capability


def filesystem(name: str) -> Capability:
    """The kernel knows the filesystem; a module that is not loaded yet is loaded by the first mount, so mount."""

    def capability() -> str | None:
        known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
        return None if name in known else f"the kernel has no {name}"

    return capability


def device(path: str) -> Capability:
    def capability() -> str | None:
        return None if Path(path).exists() else f"no {path}"

    return capability


def images(engine: Engine, *suites: str) -> Capability:
    def capability() -> str | None:
        absent = [suite for suite in suites if suite not in engine.images]
        return f"no image for {', '.join(absent)} (scripts/test makes them)" if absent else None

    return capability


def workbench(engine: Engine) -> Capability:
    """The engine runs privileged containers that can attach loop devices, make filesystems and mount overlays."""

    def capability() -> str | None:
        script = f"""
            test -e /dev/loop-control || echo 'no /dev/loop-control on the engine'
            test -c /dev/fuse || echo 'no /dev/fuse on the engine'
            for tool in losetup {" ".join(command.split()[0] for command in MKFS.values())}; do
              command -v $tool >/dev/null || echo "the image has no $tool"
            done
            for fs in {" ".join(MKFS)} overlay tmpfs ramfs; do
              grep -qw "$fs" /proc/filesystems || echo "the engine's kernel has no $fs"
            done
            mkdir -p /var/lib/docker/try/l /var/lib/docker/try/u /var/lib/docker/try/w /var/lib/docker/try/m
            cd /var/lib/docker/try
            mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m && umount m || echo 'no overlay mounts'
        """
        done = exec_in(engine.workbench, ["sh", "-c", script], check=False)
        return done.output.strip().replace("\n", "; ") or None

    return capability
