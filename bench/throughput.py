"""How fast builds write: in a slot of a pool, and in direct mode on the same kind of filesystem.

Both sides run the same inner build in turns, each on a volume of its own. A second data-root in direct mode takes turns
with them: what it differs from the first is the noise. The clock runs inside the container, from the start of the
command until `sync -f` has written everything; how long the command took by itself is told as well.

The volumes are new ext4 filesystems, or the engine's own disk. An ext4 on which much was deleted is no measure: it does
not give out an inode again within five minutes of its deletion, and looks at each of them whenever it makes a file
(recently_deleted in fs/ext4/ialloc.c). That is up to 0.8 ms for a file instead of 0.03, seen here after an hour of
tests. So nothing is deleted before the end, either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from starts import say

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine

HOST = "direct"
AGAIN = "direct, a second one"
POOL = "slot"
DISKS = {"new": "ext4", "engine": "directory"}
_VOLUME_MIB = 24576
_BUILD = "docker build --quiet --no-cache --tag bench:{turn} /bench/{slug}"

# 30 layers of 10 MB: sizes of files as in Linux distributions, many small ones and few large ones, incompressible.
_MAKE_LAYERS = r"""
import hashlib, io, json, os, random, sys, tarfile
dice = random.Random(sys.argv[1])
noise = os.urandom(4 << 20)
digests, names = [], []

def add(tar, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))

with tarfile.open("/tmp/layers.tar", "w") as outer:
    for number in range(30):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as layer:
            add(layer, f"nonce/{number}", sys.argv[1].encode())
            left, count = 10_000_000, 0
            while left > 0:
                size = min(left, int(dice.lognormvariate(8.8, 1.7)), 2_000_000)
                start = dice.randrange(len(noise) - size)
                add(layer, f"{number}/{count % 40}/{count}", noise[start:start + size])
                left, count = left - size - 512, count + 1
        data = stream.getvalue()
        digests.append("sha256:" + hashlib.sha256(data).hexdigest())
        names.append(f"{number}/layer.tar")
        add(outer, names[-1], data)
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": digests}}
    config["history"] = [{"created_by": "bench"} for _ in digests]
    add(outer, "config.json", json.dumps(config).encode())
    manifest = [{"Config": "config.json", "RepoTags": [f"layers:{sys.argv[1]}"], "Layers": names}]
    add(outer, "manifest.json", json.dumps(manifest).encode())
"""

_SMALL_FILES = r"""FROM base:latest
WORKDIR /tree
RUN mkdir $(seq 0 199); i=0; while [ $i -lt 20000 ]; do \
    echo "file $i of a tree of small ones, some 1 KB each" >$((i % 200))/$i; i=$((i + 1)); done
RUN cp -r /tree /copy && mv /copy /moved
RUN rm -rf /tree/?5 /moved/1??
"""

# What databases and package managers do: each write waits for the disk. The last one is sqlite's rollback journal:
# journal written and synced, pages of the database written and synced, journal removed.
_FSYNC = r"""FROM base:latest
WORKDIR /db
RUN dd if=/dev/zero of=log bs=4k count=1000 oflag=dsync 2>/dev/null
RUN i=0; while [ $i -lt 200 ]; do dd if=/dev/zero of=f$i bs=4k count=1 conv=fsync 2>/dev/null; i=$((i + 1)); done
RUN dd if=/dev/zero of=db bs=1M count=16 2>/dev/null; i=0; while [ $i -lt 150 ]; do \
    dd if=/dev/zero of=journal bs=4k count=4 conv=fsync 2>/dev/null; \
    dd if=/dev/zero of=db bs=4k count=3 seek=$((i * 1237 % 4000)) conv=notrunc,fsync 2>/dev/null; \
    rm journal; i=$((i + 1)); done
"""

_SEQUENTIAL = r"""FROM base:latest
RUN dd if=/dev/zero of=/big bs=1M count=1024 2>/dev/null
"""


class Workload(NamedTuple):
    """A command in the instance; `{turn}` and `{slug}` are filled in. `dockerfile` is "" where there is no build."""

    name: str
    what: str
    dockerfile: str
    command: str = _BUILD

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-")


WORKLOADS = (
    Workload("unpack", "docker load, 300 MB in 30 layers", "", "docker load --quiet --input /tmp/layers.tar"),
    Workload("small files", "20,000 files made, copied, moved, 12,000 of them removed", _SMALL_FILES),
    Workload("fsync", "1,000 dsync writes, 200 synced files, 150 transactions", _FSYNC),
    Workload("sequential", "one file of 1 GiB", _SEQUENTIAL),
)


class Write(NamedTuple):
    """One run of a workload: seconds of the command, and until everything was on the disk."""

    workload: str
    side: str
    command_s: float
    written_s: float


def measure_writes(engine: Engine, suite: str, runs: int, disk: str) -> list[Write]:
    """`runs` rounds per workload in which the sides take turns, after one that warms up. `disk` is one of DISKS."""
    volumes = {side: engine.volume(DISKS[disk], size_mib=_VOLUME_MIB) for side in (HOST, POOL, AGAIN)}
    sides = {
        side: engine.dind(suite, pool=volume) if side == POOL else engine.dind(suite, volume=volume)
        for side, volume in volumes.items()
    }
    for name, dind in sides.items():
        dind.wait_ready()
        _check(name, dind)
        dind.load_base()
        for workload in WORKLOADS:
            if workload.dockerfile:
                dind.put(f"/bench/{workload.slug}", {"Dockerfile": workload.dockerfile})
    found = []
    for workload in WORKLOADS:
        for turn in range(runs + 1):
            # The first of a turn has the disk as the last one left it: nobody is always the first.
            order = list(sides.items())
            shift = turn % len(order)
            for side, dind in order[shift:] + order[:shift]:
                write = _run(dind, workload, side, turn)
                say(f"{suite} {turn}/{runs} {workload.name}, {side}: {write.command_s:.2f} → {write.written_s:.2f} s")
                found += [write] if turn else []
    return found


def _check(side: str, dind: Dind) -> None:
    """On which filesystem, and the slot in a pool; else something else would be measured."""
    if (side == POOL) is not (dind.sh("test -d /var/lib/docker/.cachedind/layers && echo pool || true") == "pool"):
        raise SystemExit(f"{side}: not what was to be measured")
    say(f"{side}: {dind.sh('stat -f -c %T /var/lib/docker')}")


def _run(dind: Dind, workload: Workload, side: str, turn: int) -> Write:
    if not workload.dockerfile:
        # New layers each time: a daemon takes those that it has for granted.
        dind.python(_MAKE_LAYERS, f"turn-{turn}", timeout_s=120)
    command = workload.command.format(turn=turn, slug=workload.slug)
    clock = f"sync; sleep 0.5; date +%s%N; {command} >/dev/null; date +%s%N; sync -f /var/lib/docker; date +%s%N"
    started, ended, written = (int(line) / 1e9 for line in dind.sh(clock, timeout_s=500).split())
    return Write(workload.name, side, ended - started, written - started)
