"""Promise 3 for seeds: whatever is wrong with one costs its images, never the job, and is told in one line each time.

All that is bad lies beside what is good, so that none of it gets in the way of that.
"""

from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from helpers.flavours import Flavour
from helpers.pools import Disk
from helpers.seeds import (
    Image,
    SeedVolume,
    Ten,
    checksum,
    docker_archive,
    docker_archive_files,
    first_images,
    images,
    looked_closer,
    nameless,
    oci_files,
    run_small,
    seed_warnings,
    seeded,
    setting,
    small_image,
    tar_of,
    xz,
)

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine

GRAPH = Flavour("forky", "graphdriver")
STRICT = {"CACHEDIND_STRICT": "1"}
STRICT_EXIT = 78


def flip(data: bytes, needle: bytes) -> bytes:
    """The same with one byte changed amid `needle`."""
    at = data.index(needle) + len(needle) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def without(files: dict[str, bytes], layer: bytes) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if data != layer}


def escaping(image: Image) -> bytes:
    """manifest.json names a file of whoever reads it."""
    files = docker_archive_files(image)
    manifest = json.loads(files["manifest.json"])
    manifest[0]["Layers"] = ["../../../../../../etc/passwd" for _ in manifest[0]["Layers"]]
    return tar_of({**files, "manifest.json": json.dumps(manifest).encode()})


class Spoiled:
    """A volume with good seeds and bad ones, and what is to be said of each of those."""

    def __init__(self, engine: Engine) -> None:
        self.source = SeedVolume(engine)
        self.good: list[Image] = []
        self.bad: dict[str, str] = {}
        self._engine = engine

    def image(self, name: str, **options: Any) -> Image:
        return small_image(self._engine, f"{name}:1", **options)

    def add_good(self) -> None:
        plain, packed, summed, oci = (self.image(name) for name in ("plain", "packed", "summed", "oci"))
        self.good += [plain, packed, summed, oci]
        archive = docker_archive(summed)
        self.source.put(
            {
                "a-plain.tar": docker_archive(plain),
                "z-packed.tar.gz": gzip.compress(docker_archive(packed), 1),
                "m-summed.tar": archive,
                "m-summed.tar.sha256": checksum("m-summed.tar", archive),
                "m-oci.oci": tar_of(oci_files(oci)),
                "notes.txt": b"nobody asks for this",
            }
        )

    def add_unreadable(self) -> None:
        """What shows when it is read, or before."""
        lost, kept = self.image("lost"), self.image("kept")
        self.good.append(kept)
        archive = docker_archive(self.image("bad-plain"))
        layer = gzip.compress(lost.layers[1], 1, mtime=0)
        foreign = self.image("foreign", architecture="s390x")
        self.source.put(
            {
                "truncated.tar": archive[: len(archive) * 2 // 3],
                "truncated.tar.gz": gzip.compress(archive, 1)[:-100_000],
                "truncated.tar.xz": xz(archive)[:-100_000],
                "empty.tar": b"",
                "text.tar": b"no tar at all\n" * 1000,
                "foreign.tar": docker_archive(foreign),
                "foreign.oci": tar_of(oci_files(foreign)),
                "escaping.tar": escaping(self.image("escaping")),
                "rootfs.tar": self._engine.base_tar,
                "lost.oci": tar_of(without(oci_files(lost), layer)),
                "summed.tar": archive,
                "summed.tar.sha256": checksum("summed.tar", archive + b"."),
                "packed.tar.gz": gzip.compress(archive, 1),
                "packed.tar.gz.sha256": checksum("packed.tar.gz", archive),
                "half.tar": tar_of(without(docker_archive_files(kept, lost), lost.layers[1])),
            }
        )
        self.source.sh(
            "mkdir directory.tar; echo hello >directory.tar/file; ln -s nowhere dangling.tar; mkfifo fifo.tar"
        )
        self.bad |= {
            "truncated.tar": "cut short|ends early|truncated",
            "truncated.tar.gz": "cut short|ends early|truncated",
            "truncated.tar.xz": "cut short|ends early|truncated",
            "empty.tar": "empty",
            "text.tar": "no tar|no archive|not a tar",
            "foreign.tar": "is for linux/s390x, and this machine is linux/amd64",
            "foreign.oci": "is for linux/s390x, and this machine is linux/amd64",
            "escaping.tar": r"etc/passwd",
            "rootfs.tar": "root filesystem, not an image",
            "lost.oci": "layer sha256:.* is not in it",
            "summed.tar": "checksum|sha256|SHA-256",
            "packed.tar.gz": "checksum|sha256|SHA-256",
            "half.tar": r"\(lost:1\).*which is not in it",
            "directory.tar": "directory",
            "dangling.tar": "cannot be looked at",
            "fifo.tar": "not a regular file",
        }

    def add_refused(self) -> None:
        """What shows only when it is loaded: other bytes than their digest's, and a layer that nobody can unpack."""
        plain, oci = self.image("flipped"), self.image("flipped-oci")
        oci_layer = gzip.compress(oci.layers[1], 1, mtime=0)
        garbage = self.image("garbage")
        garbage = Image(garbage.name, (garbage.layers[0], b"\xff" * 10_240), "")
        self.source.put(
            {
                "flipped.tar": flip(docker_archive(plain), plain.layers[1]),
                "flipped.oci": flip(tar_of(oci_files(oci)), oci_layer),
                "garbage.tar": docker_archive(garbage),
            }
        )
        self.bad |= {"flipped.tar": "", "flipped.oci": "", "garbage.tar": ""}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(image.name for image in self.good)

    def check(self, dind: Dind) -> None:
        """What is good is there and runs; what is bad is told in one line each, and there is nothing of it."""
        assert images(dind) == self.names
        assert nameless(dind) == []
        assert dind.docker("image", "ls", "--all", "--quiet").count("\n") == len(self.good) - 1
        run_small(dind, self.good)
        dind.docker("container", "prune", "--force")
        self.check_warnings(dind)

    def check_warnings(self, dind: Dind) -> None:
        for file, reason in self.bad.items():
            found = [line for line in seed_warnings(dind, file) if f"seed {file_or_name(line)}" in line]
            assert len(found) == 1, f"{file}: {found}\n{dind.describe()}"
            assert re.search(reason, found[0]), f"{reason!r} is not in {found[0]!r}"
        assert len(dind.warnings) == len(self.bad), "\n".join(dind.warnings)
        assert "Traceback" not in dind.log()
        assert dind.errors == []


def file_or_name(line: str) -> str:
    match = re.search(r"the seed (.+) is not loaded: ", line)
    assert match, line
    return match[1]


def start_on(engine: Engine, disk: Disk, pool: Any, source: SeedVolume, **env: str) -> Dind:
    dind = disk.start(engine, pool, ready=False, volumes=source.mount, env=env)
    first_images(dind)
    return dind


@pytest.fixture
def spoiled(engine: Engine) -> Spoiled:
    found = Spoiled(engine)
    found.add_good()
    return found


# ---- in a pool ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_told_and_not_read_again(engine: Engine, spoiled: Spoiled, flavour: Flavour) -> None:
    spoiled.add_unreadable()
    disk = Disk("btrfs", flavour)
    pool = disk.volume(engine)
    first = start_on(engine, disk, pool, spoiled.source)
    spoiled.check(first)
    assert frozenset(seeded(first)) == spoiled.names
    assert (first.summary or "").startswith("seeded: ")
    told = sorted(first.warnings)

    # Beside it, with another key: from the golden of the seeds, which has no more than them.
    other = start_on(engine, disk, pool, spoiled.source, CACHEDIND_KEY="other")
    spoiled.check(other)
    assert not looked_closer(other)
    assert sorted(other.warnings) == told

    first.kill()
    again = start_on(engine, disk, pool, spoiled.source)
    # Its job has left nothing that is not in the golden of the seeds.
    assert (again.summary or "").startswith("seeded: 6 layers of seeds, from the pool; ")
    assert not looked_closer(again)
    assert sorted(again.warnings) == told
    again.kill()

    # Mended, it is loaded.
    lost = spoiled.image("lost")
    spoiled.source.put({"lost.oci": tar_of(oci_files(lost))})
    del spoiled.bad["lost.oci"]
    spoiled.good.append(lost)
    mended = start_on(engine, disk, pool, spoiled.source)
    spoiled.check(mended)
    assert seeded(mended) == ["lost:1"]


def test_what_the_engine_refuses_is_told_and_leaves_nothing(engine: Engine, spoiled: Spoiled, flavour: Flavour) -> None:
    spoiled.add_refused()
    disk = Disk("btrfs", flavour)
    pool = disk.volume(engine)
    first = start_on(engine, disk, pool, spoiled.source)
    print("\n".join(first.warnings))
    spoiled.check(first)
    other = start_on(engine, disk, pool, spoiled.source, CACHEDIND_KEY="other")
    spoiled.check(other)
    first.kill()
    again = start_on(engine, disk, pool, spoiled.source)
    spoiled.check(again)
    assert seeded(again) == []


def test_what_the_engine_refuses_is_not_read_again(engine: Engine, spoiled: Spoiled, flavour: Flavour) -> None:
    spoiled.add_refused()
    if flavour.store == "containerd":
        # What the engine says of that one ("NotFound") might be true of a store that is just being swept.
        spoiled.source.sh("rm flipped.tar")
        del spoiled.bad["flipped.tar"]
    volume = engine.volume()
    for number in range(2):
        dind = engine.dind(flavour.suite, volume=volume, volumes=spoiled.source.mount, env=flavour.env)
        first_images(dind)
        spoiled.check(dind)
        assert looked_closer(dind) == (number == 0)
        dind.kill()


def test_a_bad_newer_archive_leaves_the_older_image(engine: Engine, flavour: Flavour) -> None:
    source, volume = SeedVolume(engine), engine.volume()
    old = small_image(engine, "app:1")
    source.put({"app.tar": docker_archive(old)})
    garbage = docker_archive(Image("app:1", (old.layers[0], b"\xff" * 10_240), ""))
    for archive in (None, garbage, docker_archive(old)[:-500_000]):
        if archive is not None:
            source.put({"app.tar": archive})
        dind = engine.dind(flavour.suite, volume=volume, volumes=source.mount, env=flavour.env)
        assert first_images(dind) == {"app:1"}
        assert nameless(dind) == []
        assert len(dind.warnings) == (archive is not None)
        run_small(dind, [old])
        dind.kill()


# ---- no room -------------------------------------------------------------------------------------------------------

BOMBS = r"""
/opt/cachedind/bin/python -I - <<'END'
import io, json, tarfile
try:
    from compression import zstd
except ImportError:
    from backports import zstd
from isal import igzip
zeros = bytes(1 << 20)
head = io.BytesIO()
entry = tarfile.TarInfo("layer.tar")
entry.size = 6 << 30
head = entry.tobuf(tarfile.GNU_FORMAT)
for file in (zstd.open("bomb.tar.zst", "wb", level=1), igzip.open("bomb.tar.gz", "wb", compresslevel=1)):
    with file:
        file.write(head)
        for _ in range(6 << 10):
            file.write(zeros)
END
"""


def test_what_is_larger_than_the_space_left(engine: Engine, ten: Ten, flavour: Flavour) -> None:
    source = SeedVolume(engine)
    good = [small_image(engine, f"{name}:1") for name in ("first", "last")]
    source.put({"a.tar.gz": gzip.compress(docker_archive(good[0]), 1), "z.tar": docker_archive(good[1])})
    source.sh(BOMBS, timeout_s=120)
    volume = engine.volume("ext4", size_mib=640)
    env = {**flavour.env, "CACHEDIND_SEED": "/seeds,/ten/big.tar"}
    volumes = {**source.mount, ten.source.volume.name: {"bind": "/ten", "mode": "ro"}}
    for number in range(2):
        dind = engine.dind(flavour.suite, volume=volume, volumes=volumes, env=env)
        assert first_images(dind) == {"first:1", "last:1"}
        assert nameless(dind) == []
        print("\n".join(dind.warnings))
        for file in ("bomb.tar.zst", "bomb.tar.gz", "big"):
            [line] = [line for line in dind.warnings if file in file_or_name(line)]
            assert re.search("free", line), line
        assert len(dind.warnings) == 3
        assert seeded(dind) == (["first:1", "last:1"] if number == 0 else [])
        run_small(dind, good)
        used = int(dind.sh("df --output=used --block-size=1M /var/lib/docker | tail -n 1"))
        assert used < 200, "what was decompressed is gone"
        dind.kill()


# ---- strict --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["missing", "unreadable", "refused", "fine"])
def test_strict_ends_the_start(engine: Engine, what: str) -> None:
    source = SeedVolume(engine)
    good = small_image(engine, "good:1")
    source.put({"good.tar": docker_archive(good)})
    env: dict[str, str] = {**STRICT}
    named = "bad.tar"
    if what == "missing":
        env |= setting(["good.tar", "none.tar"])
        named = "none.tar"
    elif what == "unreadable":
        source.put({"bad.tar": b"nothing\n"})
    elif what == "refused":
        bad = small_image(engine, "bad:1")
        source.put({"bad.tar": flip(docker_archive(bad), bad.layers[1])})
    dind = engine.dind("forky", volume=engine.volume(), volumes=source.mount, env=env)
    if what == "fine":
        assert first_images(dind) == {"good:1"}
        return
    assert dind.wait_exit() == STRICT_EXIT
    assert "Traceback" not in dind.log()
    [line] = dind.errors
    assert named in line, line
    assert dind.summary is None
