"""A disk whose power can fail: what had reached it by then is all that there is afterwards.

It is a loop device on a file that lies on a filesystem with reflinks. A clone of that file is what the disk had at one
moment: everything that was still on its way from the page cache is lost. (A disk that loses what it has acknowledged,
too, is not played.)
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from typing import TYPE_CHECKING

from helpers.builds import content_project
from helpers.engine import MKFS, exec_in

if TYPE_CHECKING:
    import random

    from helpers.builds import Project
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume
    from helpers.pools import Disk


class FailingDisk:
    """A disk with a filesystem, which the engine mounts as `volume`."""

    def __init__(self, engine: Engine, fstype: str, image: str, *, size_mib: int | None = None) -> None:
        """`image` is a file in a shelter: what a disk before this one left, or with `size_mib` a new one."""
        self._scope = engine.scope()
        self.fstype = fstype
        self.image = image
        self.device = self._scope.loop_device(image, size_mib)
        if size_mib is not None:
            self._sh(f"{MKFS[fstype]} {self.device}")
        self.volume: Volume = self._scope.volume_on(self.device, fstype)

    def cut(self) -> str:
        """The power fails: returns the file that a new disk is to be made of. The old one just goes on."""
        left = f"{self.image}+"
        self._sh(f"cp --reflink=always {self.image} {left}")
        return left

    def forget_boot(self) -> None:
        """What the states on it tell of was another boot of the host."""
        forget_boot(self._scope, self.device)

    def empty_note(self) -> None:
        """The data-root's state file has its name, and none of its bytes: a rename that came before them."""
        script = _EMPTY_NOTE.replace("DEVICE", self.device)
        exec_in(self._scope.workbench, ["sh", "-euc", script])

    def close(self) -> None:
        """Nobody has it mounted any longer."""
        self._scope.close()

    def _sh(self, script: str) -> None:
        exec_in(self._scope.workbench, ["sh", "-euc", script])


def make_shelter(engine: Engine) -> str:
    """A directory of the workbench on a filesystem with reflinks, as long as `engine`'s scope lives."""
    path = f"/var/lib/docker/{engine.new_name('shelter')}"
    device = engine.loop_device(f"{path}.img", 16 << 10)
    script = f"{MKFS['xfs']} {device}; mkdir {path}; mount {device} {path}"
    exec_in(engine.workbench, ["sh", "-euc", script])
    engine.undo_later(f"the filesystem {path}", functools.partial(exec_in, engine.workbench, ["umount", path]))
    return path


_FORGET_BOOT = r"""
forget() { grep -rlZ --include='*.json' --include='*.lock' --include=lock '"boot_id"' "$1" | xargs -0r sed -i \
  's/"boot_id": "[^"]*"/"boot_id": "of-before"/'; }
after=$(mktemp -d)
mount DEVICE "$after"
if [ -d "$after/keys" ]; then
  forget "$after/keys"
else
  forget "$after/.cachedind"
fi
umount "$after"
rmdir "$after"
"""


_EMPTY_NOTE = r"""
after=$(mktemp -d)
mount DEVICE "$after"
test -s "$after/.cachedind/state.json" || echo 'it is empty already' >&2
: >"$after/.cachedind/state.json"
umount "$after"
rmdir "$after"
"""


def forget_boot(engine: Engine, device: str) -> None:
    """What the state files on a device tell of was another boot of the host. Nobody may use what is on it."""
    exec_in(engine.workbench, ["sh", "-euc", _FORGET_BOOT.replace("DEVICE", device)])


class Ordeal:
    """A data-root, or a pool, whose host loses its power amid builds again and again, and what must hold each time."""

    def __init__(self, engine: Engine, disk: Disk, *, pooled: bool, dice: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._engine = engine
        self._on = disk
        self._pooled = pooled
        self._dice = dice
        self._disk = FailingDisk(engine, disk.fstype, f"{make_shelter(engine)}/disk", size_mib=4096)
        self._project = content_project(self._nonce())
        first = self._start()
        self._whole_s = first.build(self._project).seconds
        first.run_image(self._project)
        # Whoever starts after this finds it on the disk: what was there long before a loss is not lost.
        first.sh("sync -f /var/lib/docker")
        self._end(first)

    def suffer(self, *, empty_note: bool = False) -> None:
        """One loss of power: the daemon comes up afterwards, and what it has in its cache is right, and all that was
        there long before. With `empty_note` a data-root's state file has lost its bytes, as it may on xfs."""
        dind = self._start()
        self._check(dind, self._project, "before")
        interrupted = content_project(self._nonce(), tag="interrupted:latest")
        dind.build_in_background(interrupted)
        time.sleep(self._dice.uniform(0, 1.5 * self._whole_s + self._dice.choice((0, 0, 6))))
        left = self._disk.cut()
        self._end(dind)
        self._disk.close()
        self._disk = FailingDisk(self._engine, self._disk.fstype, left)
        self._disk.forget_boot()
        if empty_note:
            self._disk.empty_note()

        dind = self._start()
        self.counts[f"began {(dind.summary or '?').partition(':')[0]}"] += 1
        uncached = self._check(dind, self._project, "old project")
        assert uncached == [], f"{uncached} of the old project were built again: {dind.describe()}"
        self._check(dind, interrupted, "interrupted project")
        assert "Traceback" not in dind.log()
        # Whatever the disk has kept of the state file: another boot's, or nothing.
        told = ("as after a crash",) if empty_note else ("the host went down", "as after a crash")
        assert self._pooled or any(why in dind.log() for why in told), dind.log()
        self._end(dind)
        self.counts["losses"] += 1

    def close(self) -> None:
        self._disk.close()

    def _check(self, dind: Dind, project: Project, what: str) -> list[str]:
        """Build and run it; returns the steps that were built again."""
        dind.keep_image(project)
        build = dind.build(project)
        dind.run_image(project)
        self.counts[f"{what}: {'CACHED' if not build.uncached else 'built again'}"] += 1
        return build.uncached

    def _start(self) -> Dind:
        where = {"pool" if self._pooled else "volume": self._disk.volume}
        flavour = self._on.flavour
        dind = self._engine.dind(flavour.suite, env=flavour.env, **where)
        dind.wait_ready()
        return dind

    def _end(self, dind: Dind) -> None:
        dind.kill()
        dind.remove()
        self._engine.dinds.remove(dind)

    def _nonce(self) -> str:
        return f"{self._dice.getrandbits(64):x}"
