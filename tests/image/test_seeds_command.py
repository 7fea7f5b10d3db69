"""`cachedind seed` and scripts/save-seeds, as a cron job calls them: no job has to put the seeds in."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.clients import run_once
from helpers.pools import DISKS, Disk, slot_of
from helpers.seeds import (
    SEEDS,
    Image,
    SeedVolume,
    checksum,
    docker_archive,
    first_images,
    images,
    looked_closer,
    oci_files,
    run_small,
    seeded,
    small_image,
    tar_of,
)

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Done, Engine, Volume

SAVE_SEEDS = Path(__file__).resolve().parents[2] / "scripts" / "save-seeds"


@pytest.fixture(params=DISKS, ids=str)
def disk(request: pytest.FixtureRequest) -> Disk:
    found: Disk = request.param
    return found


class Desk:
    """Where cron calls from: throw-away containers with the pool and the seeds."""

    def __init__(self, engine: Engine, disk: Disk, pool: Volume, source: SeedVolume) -> None:
        self._engine, self._disk, self._pool, self._source = engine, disk, pool, source

    def visit(self, *words: str) -> Done:
        volumes = {self._pool.name: {"bind": "/cachedind", "mode": "rw"}, **self._source.mount}
        options: dict[str, Any] = {"privileged": True, "volumes": volumes, "env": self._disk.flavour.env}
        done = run_once(self._engine, self._disk.flavour.suite, "cachedind", *words, **options)
        assert "Traceback" not in done.output, done.output
        return done

    def keys(self) -> set[str]:
        done = self.visit("ls", "--json", "--no-sizes")
        assert done.status == 0, done.output
        return {entry["key"] for entry in json.loads(done.stdout)["entries"]}

    def checked(self) -> tuple[int, dict[str, str]]:
        done = self.visit("seed", "--check", "--json")
        return done.status, {row["seed"]: row["verdict"] for row in json.loads(done.stdout)}

    def enter(self, key: str = "default") -> Dind:
        env = {**self._disk.flavour.env, "CACHEDIND_KEY": key}
        dind = self._disk.start(self._engine, self._pool, ready=False, volumes=self._source.mount, env=env)
        first_images(dind)
        return dind


def load_outside(engine: Engine, image: Image) -> None:
    """Give an image to the outer engine as long as the test runs."""
    [loaded] = engine.client.images.load(docker_archive(image))
    engine.undo_later(f"image {image.name}", functools.partial(engine.client.images.remove, str(loaded.id), force=True))


def assert_nothing_loaded(dind: Dind) -> None:
    assert seeded(dind) == []
    assert not looked_closer(dind)


@pytest.mark.everyday("ext4-trixie-graphdriver")
def test_a_pool_is_filled_before_any_job_and_beside_one(engine: Engine, disk: Disk) -> None:
    source, pool = SeedVolume(engine), disk.volume(engine)
    desk = Desk(engine, disk, pool, source)
    done = desk.visit("seed")
    assert "(seeds): nothing was missing" in done.stdout or done.status == 0, done.output
    one, two = small_image(engine, "one:1"), small_image(engine, "two:1")
    one_archive = docker_archive(one)
    source.put({"one.tar": one_archive, "one.tar.sha256": checksum("one.tar", one_archive)})

    assert desk.checked() == (1, {f"{SEEDS}/one.tar": "missing"})
    done = desk.visit("seed")
    assert (done.status, done.stdout) == (0, "(seeds): 1 put in\n"), done.output
    assert "seeded one:1: " in done.stderr
    assert desk.checked() == (0, {f"{SEEDS}/one.tar": "in the pool"})
    done = desk.visit("seed", "--check")
    assert done.status == 0
    assert "one:1" in done.stdout
    assert "in the pool" in done.stdout
    done = desk.visit("seed")
    assert (done.status, done.stdout) == (0, "(seeds): nothing was missing\n"), done.output
    assert "seeded" not in done.stderr

    first = desk.enter("group/project")
    assert images(first) == {"one:1"}
    assert_nothing_loaded(first)
    assert (first.summary or "").startswith("seeded: ")
    run_small(first, [one])
    first.docker("create", "--name=job", "one:1")
    first.docker("cp", "/etc/hostname", "job:/made")
    first.docker("commit", "job", "of-the-job:1")  # a layer that nobody else has
    first.docker("container", "prune", "--force")
    first.kill()
    first = desk.enter("group/project")  # with it the key gets a golden of its own
    table = desk.visit("ls")
    assert "(seeds)" in table.stdout, table.output

    # A new seed, while a job has its slot: the next ones of all keys have it, this one goes on.
    source.put({"two.oci": tar_of(oci_files(two))})
    assert desk.checked() == (1, {f"{SEEDS}/one.tar": "in the pool", f"{SEEDS}/two.oci": "missing"})
    done = desk.visit("seed", "--json")
    assert done.status == 0, done.output
    assert {entry["key"]: entry["images"] for entry in json.loads(done.stdout)} == {"": 1, "group/project": 1}
    inside = first.exec("cachedind", "seed", check=False)
    assert inside.status == 0, inside.output
    assert inside.stdout == "(seeds): nothing was missing\ngroup/project: nothing was missing\n"
    assert images(first) == {"one:1"}
    beside = desk.enter("group/project")
    assert images(beside) == {"one:1", "two:1"}
    assert_nothing_loaded(beside)
    assert slot_of(beside) != slot_of(first)
    other = desk.enter("other")
    assert images(other) == {"one:1", "two:1"}
    assert_nothing_loaded(other)
    for dind in (beside, other):
        run_small(dind, [one, two])

    done = desk.visit("rm", "--seeds")
    assert done.status == 0, done.output
    assert "(seeds)" in done.stdout
    assert desk.keys() == {"group/project", "other"}
    assert images(other) == {"one:1", "two:1"}, "a clone needs its golden no more"


def test_only_some_keys_and_bad_seeds(engine: Engine) -> None:
    disk = DISKS[1]
    source, pool = SeedVolume(engine), disk.volume(engine)
    desk = Desk(engine, disk, pool, source)
    for key in ("a", "b"):
        desk.enter(key).kill()
    seed = small_image(engine, "seed:1")
    archive = docker_archive(seed)
    source.put({"seed.tar": archive, "bad.tar": archive[:-1_000_000], "wrong.tar": archive})
    source.put({"wrong.tar.sha256": checksum("wrong.tar", b"")})
    status, verdicts = desk.checked()
    assert status == 1
    assert verdicts == {f"{SEEDS}/bad.tar": "bad", f"{SEEDS}/seed.tar": "missing", f"{SEEDS}/wrong.tar": "bad"}
    done = desk.visit("seed", "a")
    assert done.status == 1, done.output
    assert "(seeds): 1 put in, 2 not loaded" in done.stdout
    assert "a: nothing put in, 2 not loaded" in done.stdout, "it has nothing of its own, and begins with the seeds'"
    assert "b:" not in done.stdout
    loaded = desk.enter("a")
    assert images(loaded) == {"seed:1"}
    assert_nothing_loaded(loaded)
    done = desk.visit("seed", "none")
    assert done.status == 66, done.output


def test_what_save_seeds_writes(engine: Engine, tmp_path: Path) -> None:
    """The script runs where the tests run, against the outer engine; its archives then go into a volume."""
    one, two = small_image(engine, f"save-{engine.session}/one:1"), small_image(engine, f"save-{engine.session}-two:1")
    for image in (one, two):
        load_outside(engine, image)

    def save(*names: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SAVE_SEEDS, "-o", tmp_path, *names], env=dict(os.environ), capture_output=True, text=True, check=False
        )

    done = save(one.name, two.name)
    assert done.returncode == 0, done.stderr
    files = {path.name: path for path in tmp_path.iterdir()}
    tars = sorted(name for name in files if name.endswith(".tar"))
    assert tars == [f"save-{engine.session}-two-1.tar", f"save-{engine.session}_one-1.tar"]
    assert set(files) == {*tars, *(f"{name}.sha256" for name in tars)}
    subprocess.run(["sha256sum", "--check", "--quiet", *(f"{name}.sha256" for name in tars)], cwd=tmp_path, check=True)
    before = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in files.items()}
    done = save(one.name, two.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("has it already") == 2
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before
    assert save(f"save-{engine.session}/none:1").returncode == 66

    disk = DISKS[1]
    source, pool = SeedVolume(engine), disk.volume(engine)
    source.put({name: path.read_bytes() for name, path in files.items()})
    desk = Desk(engine, disk, pool, source)
    assert desk.checked() == (1, {f"{SEEDS}/{name}": "missing" for name in tars})
    dind = desk.enter()
    assert images(dind) == {one.name, two.name}
    run_small(dind, [one, two])
    assert desk.checked() == (0, {f"{SEEDS}/{name}": "in the pool" for name in tars})
    # A newer image: one archive is written anew, and that one alone.
    newer = small_image(engine, one.name)
    load_outside(engine, newer)
    done = save(one.name, two.name)
    assert done.stdout.count("has it already") == 1
    source.put({path.name: path.read_bytes() for path in tmp_path.iterdir() if "_one" in path.name})
    assert desk.checked() == (1, {f"{SEEDS}/{tars[0]}": "in the pool", f"{SEEDS}/{tars[1]}": "missing"})
