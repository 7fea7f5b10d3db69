"""What a start takes back that an earlier one in the same mount namespace has bound and hidden."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from cachedind.base.errors import DataRootInvalidError, PoolUnusableError
from cachedind.dataroot import witness
from cachedind.host import linux, mounts, procfs
from cachedind.start import restart
from helpers.children import forever, in_namespaces

SLOT = "keys/k/slots/0123456789ab/data"


class Seen(NamedTuple):
    """The pool and the data-root after `make_way`, and whether a namespace is still kept."""

    pool: list[str]
    data_root: list[str]
    kept: bool


class Container:
    """A pool with one slot, and the two places of a container. Use it in a mount namespace of its own."""

    def __init__(self, path: Path) -> None:
        self.pool, self.data_root = path / "pool", path / "docker"
        witness.NAMESPACE = str(path / "pool.mnt")
        self.pool.mkdir()
        self.data_root.mkdir()
        linux.mount("tmpfs", str(self.pool), "tmpfs")
        (self.pool / SLOT).mkdir(parents=True)
        (self.pool / SLOT / "of-a-slot").touch()

    def bind(self) -> None:
        fd = os.open(self.pool / SLOT, os.O_RDONLY | os.O_DIRECTORY)
        mounts.bind(fd, str(self.data_root))
        os.close(fd)

    def hide(self) -> None:
        """As a start does it, with a witness that is gone afterwards."""
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            witness._enter_own_namespace()
            os.write(write_fd, b"1")
            forever()
        os.close(write_fd)
        witness.hide(witness.Witness(pid, read_fd), [str(self.pool)])
        os.kill(pid, 9)
        os.waitpid(pid, 0)

    def make_way(self, pool: str | None = None) -> Seen:
        restart.make_way(str(self.pool) if pool is None else pool, str(self.data_root))
        return Seen(os.listdir(self.pool), os.listdir(self.data_root), os.path.ismount(witness.NAMESPACE))


def twice(path: Path) -> list[Seen]:
    container = Container(path)
    found = []
    for _ in range(2):
        container.bind()
        container.bind()  # a start that was killed between binding and hiding
        container.hide()
        assert os.listdir(container.pool) == []
        where = os.getcwd()
        found.append(container.make_way())
        assert os.getcwd() == where
        assert len([m for m in procfs.read_mounts() if m.mount_point == str(container.pool)]) == 1
    return found


def test_a_hidden_pool_comes_back_and_the_slot_goes(tmp_path: Path) -> None:
    assert in_namespaces(partial(twice, tmp_path)) == [Seen(["keys"], [], False)] * 2


def without_a_pool(path: Path) -> Seen:
    container = Container(path)
    container.bind()
    container.hide()
    return container.make_way("")


def test_a_start_that_wants_no_pool_gets_none_and_no_slot(tmp_path: Path) -> None:
    assert in_namespaces(partial(without_a_pool, tmp_path)) == Seen([], [], False)


def killed_before_hiding(path: Path) -> Seen:
    container = Container(path)
    container.bind()
    return container.make_way()


def test_a_pool_that_is_there_stays(tmp_path: Path) -> None:
    assert in_namespaces(partial(killed_before_hiding, tmp_path)) == Seen(["keys"], [], False)


def by_hand(path: Path) -> Seen:
    container = Container(path)
    container.bind()
    linux.umount(str(container.pool), linux.MNT_DETACH)
    found = container.make_way()
    with pytest.raises(DataRootInvalidError, match="is a slot of a pool"):
        restart.refuse_slot(str(container.data_root))
    return found


def test_a_slot_mounted_by_hand_stays_and_is_refused(tmp_path: Path) -> None:
    assert in_namespaces(partial(by_hand, tmp_path)) == Seen([], ["of-a-slot"], False)


def on_an_old_kernel(path: Path) -> None:
    container = Container(path)
    container.bind()
    container.hide()
    linux.clone_mount = _fail
    try:
        container.make_way()
    finally:
        with contextlib.suppress(FileNotFoundError):
            assert os.listdir(container.data_root) == [], "no slot without its lock"


def _fail(path: str) -> int:
    raise OSError(38, "Function not implemented", path)


def test_a_pool_that_cannot_come_back_leaves_no_slot_behind(tmp_path: Path) -> None:
    with pytest.raises(PoolUnusableError, match=r"cannot be brought back .*: Function not implemented"):
        in_namespaces(partial(on_an_old_kernel, tmp_path))
