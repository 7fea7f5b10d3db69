"""A pool that many tests share, one after the other: what is in it, what is held, and what of it the kernel still has.

Whatever a test does to it, the pool is expected to be as good afterwards; so the tests of one estate also show that
damage does not add up.
"""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Any

from docker.errors import NotFound

from helpers.builds import Project
from helpers.engine import NO_CHECK, exec_in
from helpers.pools import slot_of
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from docker.models.containers import Container

    from helpers.dind import Dind
    from helpers.engine import Engine, Volume
    from helpers.pools import Disk

KEY = "keys/default"
"""The directory of the key that instances have without a setting."""

# In the mount namespace that a start leaves when it hides the pool from its daemon.
_ENTER = "cd /cachedind\n"

# docker-init has boot.py on its command line, too; and so that this script is not counted, it spells it differently.
_COUNT_WITNESSES = r"""
count=0
for file in /proc/[0-9]*/cmdline; do
  case $file in /proc/1/*) continue ;; esac
  ! grep -qsa '/cachedind/[b]oot[.]py' "$file" || count=$((count + 1))
done
echo $count
"""


def small_project(nonce: str) -> Project:
    """Few steps, quickly found in the cache: for tests that build often."""
    dockerfile = (
        "FROM base:latest\n"
        "COPY nonce /nonce\n"
        "RUN cat /proc/sys/kernel/random/uuid >/build-id\n"
        'CMD ["/bin/sh", "-c", "cat /build-id /nonce"]\n'
    )
    return Project("small:latest", {"Dockerfile": dockerfile, "nonce": nonce}, (nonce,), 2)


def in_pool(dind: Dind, script: str, *, check: bool = True) -> str:
    """Run a shell script in the pool of a running instance, which its own processes no longer see."""
    argv = ("nsenter", "--mount=/run/cachedind/pool.mnt", "sh", "-euc", _ENTER + script)
    return dind.exec(*argv, check=check).stdout


class Visitor:
    """A container that has a volume at /volume, where scripts run, as long as the test runs."""

    def __init__(self, engine: Engine, volume: Volume) -> None:
        self._container: Container = engine.client.containers.create(
            engine.workbench_image,
            entrypoint=["sleep", "infinity"],
            name=engine.new_name("visitor"),
            labels=engine.labels,
            healthcheck=NO_CHECK,
            volumes={volume.name: {"bind": "/volume"}},
            init=True,
        )
        engine.undo_later("a visitor", lambda: self._container.remove(force=True, v=True))
        self._container.start()

    def sh(self, script: str, *, timeout_s: float = 60.0) -> str:
        """Run a script in /volume; returns what it printed. Raises CommandFailedError."""
        return exec_in(self._container, ["sh", "-euc", f"cd /volume\n{script}"], timeout_s=timeout_s).stdout

    def leave(self) -> None:
        self._container.remove(force=True, v=True)


class Estate:
    """A pool with a project's cache in it, and the instance of the last test on it, which may still run."""

    def __init__(self, engine: Engine, pool: Disk, *, size_mib: int = 4096) -> None:
        self.engine = engine
        self.pool = pool
        self.volume = pool.volume(engine, size_mib)
        self.visitor = Visitor(engine, self.volume)
        self.project = small_project(secrets.token_hex(8))
        self.current: Dind | None = None
        self.build_id = ""

    # ---- instances -----------------------------------------------------------------------------------------------

    def create(self, env: Mapping[str, str] | None = None, **options: Any) -> Dind:
        """An instance that is not started yet."""
        return self.pool.start(self.engine, self.volume, ready=False, start=False, env=dict(env or {}), **options)

    def enter(self, env: Mapping[str, str] | None = None) -> Dind:
        """A new instance, ready."""
        dind = self.create(env)
        dind.start()
        dind.wait_ready()
        return dind

    def occupied(self) -> Dind:
        """The instance that runs on the pool, begun now if there is none. The pool has a golden in any case."""
        if not self.build_id:
            first = self.enter()
            first.build(self.project)
            self.build_id = first.run_image(self.project)
            self.await_upkeep(first)
            self.drop(first)
        if self.current is None:
            self.current = self.enter()
        return self.current

    def vacate(self) -> None:
        """SIGKILL for the instance that runs, once its witness has noted that it came up and is done."""
        dind = self.occupied()
        self.await_upkeep(dind)
        self.drop(dind)
        self.current = None

    def drop(self, dind: Dind) -> None:
        """Kill and forget an instance."""
        with contextlib.suppress(NotFound):
            dind.kill()
            dind.remove()
        if dind in self.engine.dinds:
            self.engine.dinds.remove(dind)

    def succeed(self, dind: Dind) -> None:
        """`dind` is the one that runs from now on."""
        if self.current is not None and self.current is not dind:
            self.drop(self.current)
        self.current = dind

    # ---- what is to be seen ----------------------------------------------------------------------------------------

    def await_witness(self, dind: Dind) -> None:
        """Wait until the witness of an instance has ended, however."""
        wait_until(lambda: in_pool(dind, _COUNT_WITNESSES) == "0\n", what="the witness to end", diagnose=dind.describe)

    def await_upkeep(self, dind: Dind) -> None:
        """Wait until the witness of an instance has ended, and stage and trash are empty."""
        self.await_witness(dind)
        # What cannot be done at once (somebody else is still at it) may take another start.
        wait_until(
            lambda: in_pool(dind, "ls stage trash") == "stage:\n\ntrash:\n",
            what="stage and trash to be empty",
            diagnose=lambda: in_pool(dind, "ls stage trash") + dind.describe(),
            timeout_s=5,
        )

    def held_slots(self) -> set[str]:
        """The slots whose locks are held, as another process of the same kernel sees it."""
        script = (
            f"for lock in {KEY}/slots/*/slot.lock; do\n"
            '  if [ -e "$lock" ] && ! flock --nonblock "$lock" true; then basename "${lock%/*}"; fi\n'
            "done"
        )
        return set(self.visitor.sh(script).split())

    def drop_spares(self, *wanted: str) -> None:
        """Remove slots that nobody holds, but for those: where copying took long, upkeep has made one in advance."""
        there = set(self.visitor.sh(f"ls {KEY}/slots").split())
        for spare in there - self.held_slots() - {*wanted}:
            self.visitor.sh(f"rm -rf {KEY}/slots/{spare}")

    def goldens(self) -> list[str]:
        """The key's whole goldens: with a state file and data."""
        script = (
            f"for golden in {KEY}/scopes/%/golden {KEY}/scopes/%/golden.previous {KEY}/scopes/%/golden.other/*; do\n"
            '  if [ -s "$golden/golden.json" ] && [ -d "$golden/data/buildkit" ]; then basename "$golden"; fi\n'
            "done"
        )
        return self.visitor.sh(script).split()

    def check(self, dind: Dind, *, beside: tuple[Dind, ...] = (), warm: bool = True, upkeep: bool = True) -> None:
        """A working daemon with a slot of its own, the cache in it, and (`upkeep`) nothing left to be swept."""
        assert dind.docker("ps", "--all", "--quiet") == ""
        build = dind.build(self.project)
        if warm:
            assert build.uncached == []
            assert dind.run_image(self.project) == self.build_id
        assert "Traceback" not in dind.log()
        if upkeep:
            self.await_upkeep(dind)
        everyone = (dind, *beside)
        assert len({one.sh("stat -c %d:%i /var/lib/docker") for one in everyone}) == len(everyone)
        mine = {slot_of(one) for one in everyone}
        assert len(mine) == len(everyone)
        assert self.goldens() != [] or not warm
        # Of other keys they are not among these.
        assert self.held_slots() == mine & set(self.visitor.sh(f"ls {KEY}/slots").split())

    def close(self) -> None:
        """Nothing of the pool is mounted any longer once all are gone."""
        if self.current is not None:
            self.drop(self.current)
            self.current = None
        self.visitor.leave()
        device = volume_device(self.engine, self.volume)
        script = f"grep -lsF ' {device} ' /proc/[0-9]*/mountinfo || true"
        wait_until(
            lambda: not exec_in(self.engine.workbench, ["sh", "-euc", script]).stdout,
            what="the volume to be unmounted everywhere",
        )


class Estates:
    """One estate for each disk, made when it is first asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._found: dict[Disk, Estate] = {}

    @contextlib.contextmanager
    def lend(self, pool: Disk) -> Iterator[Estate]:
        """The disk's estate. After a failure nobody else gets it."""
        estate = self._found.pop(pool, None) or Estate(self.engine, pool)
        yield estate
        self._found[pool] = estate

    def close(self) -> None:
        for estate in self._found.values():
            estate.close()


def volume_device(engine: Engine, volume: Volume) -> str:
    """The block device of a volume on a filesystem of its own."""
    return str(engine.client.volumes.get(volume.name).attrs["Options"]["device"])
