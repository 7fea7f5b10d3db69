"""Cache mounts (RUN --mount=type=cache) are each instance's own: nobody else sees what a build writes there."""

from __future__ import annotations

import io
import secrets
import tarfile
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from helpers.builds import Project
from helpers.flavours import FLAVOURS
from helpers.pools import Disk, slot_of, together

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour

FILES = 1000
MANY_FILES = 30_000
"""As many as Go's build cache has of a large project."""
BOOT = "/opt/cachedind/boot.py"

# What builds do in such a mount: many small files, as go's and ccache's; a file that is written again in its place, as
# sqlite's; a directory that is exchanged for a new one, as npm's. `look` tells what is there, all of it.
JOB = """
set -eu
cd /cache
look() {
  if [ -e go ]; then
    echo $(cat go/*/* | sort -u) $(cat go/*/* | wc -l) $(sort -u db) $(wc -l <db) $(ls) $(ls current) $(cat current/*)
  else
    echo $(ls) nothing
  fi
}
change() {
  for number in $(seq $2); do
    echo $1 >go/$((number % 30))/$number
  done
  for number in $(seq 512); do echo $1; done 1<>db
  mkdir next
  echo $1 >next/$1
  [ ! -e current ] || mv current previous
  mv next current
  rm -rf previous
}
echo found $(look)
date +"from %s.%N"
for number in $(seq 0 29); do mkdir -p go/$number; done
for round in $(seq $2); do
  change $1 $3
  echo wrote $(look)
  sleep 0.1
done
date +"to %s.%N"
"""
DOCKERFILE = """
FROM base:latest
COPY job.sh word /
RUN --mount=type=cache,target=/cache sh /job.sh $(cat /word) >/report
"""


class Report(NamedTuple):
    """What a build saw in its cache mount: before it wrote there, after each time, and when that was."""

    found: str
    wrote: set[str]
    began: float
    ended: float


def whole(word: str, files: int = FILES) -> str:
    """What `look` says of a mount in which one build has written all there is."""
    return f"{word} {files} {word} 512 current db go {word} {word}"


def build(dind: Dind, word: str, rounds: int = 1, files: int = FILES) -> Report:
    context = {"Dockerfile": DOCKERFILE, "job.sh": JOB, "word": f"{word} {rounds} {files}"}
    dind.build(Project("mounted:latest", context, (), 2))
    lines = dind.docker("run", "--rm", "mounted:latest", "cat", "/report").splitlines()
    told: dict[str, set[str]] = {}
    for line in lines:
        what, _, text = line.partition(" ")
        told.setdefault(what, set()).add(text)
    [found], [began], [ended] = told["found"], told["from"], told["to"]
    return Report(found, told["wrote"], float(began), float(ended))


def pass_collection(*instances: Dind) -> None:
    """Wait until BuildKit has looked at all sizes, one second after it has started: it keeps a cache mount to itself
    while it counts that, and a build beside it makes a new, empty one (control/control.go, throttledGC;
    cache/manager.go, DiskUsage; seen with bare daemons of 28.5 and a mount of 30,000 files: 2 of 32 builds)."""
    time.sleep(2)
    for dind in instances:
        dind.docker("builder", "du")


def words(count: int) -> list[str]:
    return [secrets.token_hex(8) for _ in range(count)]


@pytest.mark.everyday(f"trixie-graphdriver-{FILES}", f"forky-containerd-{FILES}")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("files", [FILES, MANY_FILES])
def test_instances_write_to_a_cache_mount_side_by_side(engine: Engine, flavour: Flavour, files: int) -> None:
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    first_word, left_word, right_word, later_word, last_word = words(5)
    first = disk.start(engine, pool)
    assert build(first, first_word, files=files)[:2] == ("nothing", {whole(first_word, files)})
    first.kill()

    own = {left_word: disk.start(engine, pool), right_word: disk.start(engine, pool)}
    word_of = {dind.id: word for word, dind in own.items()}
    pass_collection(*own.values())
    left, right = together(lambda dind: build(dind, word_of[dind.id], rounds=3, files=files), own.values())
    assert left.began < right.ended, "not side by side, so nothing is shown"
    assert right.began < left.ended, "not side by side, so nothing is shown"
    for word, report in ((left_word, left), (right_word, right)):
        assert report[:2] == (whole(first_word, files), {whole(word, files)}), own[word].summary
    slots = {slot_of(dind): word for word, dind in own.items()}
    for dind in own.values():
        dind.kill()

    later, beside = disk.start(engine, pool), disk.start(engine, pool)
    newest = slots[slot_of(later)]
    pass_collection(later, beside)
    assert build(later, later_word, files=files)[:2] == (whole(newest, files), {whole(later_word, files)})
    # It has a copy of the newest state, or the other one's slot, where that was not given up yet.
    assert build(beside, last_word, files=files)[:2] == (
        whole(slots.get(slot_of(beside), newest), files),
        {whole(last_word, files)},
    )
    assert later.warnings == beside.warnings == []


@pytest.mark.parametrize("flavour", FLAVOURS[1:], ids=str)
def test_a_mount_above_the_limit_is_empty_in_a_clone_and_whole_in_its_own_slot(
    engine: Engine, flavour: Flavour
) -> None:
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    first_word, own_word, other_word = words(3)
    first = disk.start(engine, pool)
    build(first, first_word)
    first.kill()

    own = disk.start(engine, pool, ready=False, start=False)
    with tarfile.open(fileobj=io.BytesIO(b"".join(own.container.get_archive(BOOT)[0]))) as archive:
        file = archive.extractfile("boot.py")
        assert file is not None
        boot = file.read().decode()
    limit = f"from cachedind.pool import mutable\nmutable.MAX_FILES = {FILES}\n"
    own.put("/opt/cachedind", {"boot.py": boot.replace("sys.exit(", f"{limit}sys.exit(")})
    own.start()
    own.wait_ready()
    [warning] = own.warnings
    assert f"the cache mount /cache (more than {FILES} files" in warning
    beside = disk.start(engine, pool)
    pass_collection(own, beside)
    assert build(beside, other_word)[:2] == ("nothing", {whole(other_word)})
    assert build(own, own_word)[:2] == (whole(first_word), {whole(own_word)})
    assert beside.warnings == []
