"""The commands for people on a pool in an image: it is mounted for the command alone, and its space goes back."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.host import linux
from cachedind.pool.directory import Pool
from helpers import tenants
from helpers.commands import MIB, Command, fill
from helpers.filesystems import Filesystems
from helpers.waiting import wait_until


def attached(pool: Pool) -> list[str]:
    """The loop devices of a pool's image."""
    inode = os.stat(f"{pool.path}/pool.img").st_ino
    found = []
    for name in os.listdir("/sys/block"):
        with contextlib.suppress(OSError), open(f"/dev/{name}", "rb") as device:
            status = linux.loop_status(device.fileno()) if name.startswith("loop") else None
            if status is not None and status.inode == inode and status.device == os.stat(pool.path).st_dev:
                found.append(name)
    return found


@pytest.fixture
def image_pool(filesystems: Filesystems, image_mount: Path) -> Iterator[Pool]:
    """A pool in an image on ext4 that is not mounted any more, with two keys."""
    pool = tenants.open_pool(filesystems.make("ext4", size_mib=2048))
    fill(pool, "a", "b")
    pool.close()
    linux.umount(str(image_mount))
    yield pool
    while os.path.ismount(image_mount):
        linux.umount(str(image_mount))


def test_an_image_is_mounted_for_the_command_alone(image_pool: Pool, image_mount: Path, cachedind: Command) -> None:
    wait_until(lambda: not attached(image_pool), what="the loop device to be gone")
    found = cachedind("ls", "--json", "--pool", image_pool.path).entries
    assert sorted(entry["key"] for entry in found) == ["a", "a", "b", "b"]
    report = json.loads(cachedind("status", "--json", "--pool", image_pool.path).stdout)
    assert report["pool"]["backing"] == "image"
    assert (report["filesystem"]["fstype"], report["image"]["fstype"]) == ("ext4", "btrfs")
    assert report["image"]["file_allocated_bytes"] < report["image"]["file_size_bytes"]
    assert cachedind("rm", "a", "--pool", image_pool.path).status == 0
    assert cachedind("promote", "b", "--pool", image_pool.path).status in (0, 1)
    assert cachedind("gc", "--pool", image_pool.path).status == 0
    assert {entry["key"] for entry in cachedind("ls", "--json", "--pool", image_pool.path).entries} == {"b"}
    assert not os.path.ismount(image_mount)
    wait_until(lambda: not attached(image_pool), what="the loop device to be gone")


def test_beside_an_instance_the_image_has_one_device(image_pool: Pool, cachedind: Command) -> None:
    running = tenants.open_pool(Path(image_pool.path))
    held = tenants.take(running, tenants.slot_request("a"))
    [device] = attached(running)
    states = cachedind("ls", "a", "--json", "--pool", running.path).states
    assert states[f"slots/{held.slot.id}"] == "held"
    assert cachedind("rm", "--slot", held.slot.id, "--pool", running.path).status == 75
    assert attached(running) == [device]
    held.slot.close()
    running.close()


def test_space_in_an_image_goes_back_to_the_host(image_pool: Pool, cachedind: Command) -> None:
    running = tenants.open_pool(Path(image_pool.path))
    taken = tenants.take(running, tenants.slot_request("big"))
    tenants.write(taken, "layer", os.urandom(30 * MIB).hex())
    linux.syncfs(running.tree_fd)
    taken.slot.close()
    image = Path(running.path) / "pool.img"
    before = image.stat().st_blocks * 512
    assert cachedind("rm", "big", "--pool", running.path).status == 0
    assert image.stat().st_blocks * 512 < before - 50 * MIB
    running.close()


@pytest.mark.parametrize("break_it", ["missing", "empty", "garbage", "a directory", "a link"])
def test_an_image_that_is_none_is_left_for_the_next_start(
    image_pool: Pool, cachedind: Command, tmp_path: Path, break_it: str
) -> None:
    image = Path(image_pool.path) / "pool.img"
    wait_until(lambda: not attached(image_pool), what="the loop device to be gone")
    if break_it == "garbage":
        with image.open("r+b") as file:
            file.seek(0x10000)
            file.write(b"x" * 4096)
    else:
        image.unlink()
    if break_it == "empty":
        image.touch()
    if break_it == "a directory":
        image.mkdir()
    if break_it == "a link":
        image.symlink_to(tmp_path / "elsewhere")
    names = sorted(os.listdir(image_pool.path))
    for words in (("ls",), ("rm", "--all", "-f"), ("gc",)):
        done = cachedind(*words, "--pool", image_pool.path)
        assert (done.status, done.stdout) == (74, ""), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "pool.img" in done.stderr
    assert sorted(os.listdir(image_pool.path)) == names
