"""What a start finds out about real filesystems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cachedind.base.errors import DataRootUnwritableError
from cachedind.dataroot import facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.filesystems import Filesystems


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "tmpfs", "ramfs", "overlay"])
def test_a_fresh_filesystem_is_known_by_name_and_has_room(filesystem: Callable[[str], Path], name: str) -> None:
    place = facts.read_place(str(filesystem(name)))
    assert place.fstype == name
    assert not place.mount.read_only
    assert facts.check_room(place, fresh=True) is None


@pytest.mark.parametrize("name", ["tmpfs", "ramfs", "overlay"])
def test_what_does_not_last_is_told(filesystem: Callable[[str], Path], name: str) -> None:
    degradation = facts.persistence(facts.read_place(str(filesystem(name))))
    assert degradation is not None
    assert degradation.what == "the cache will not survive"


def test_a_full_filesystem(filesystems: Filesystems, small: Path) -> None:
    filesystems.fill(small)
    with pytest.raises(DataRootUnwritableError, match=r"is full: 0 B of 1\.0 MiB are free"):
        facts.check_room(facts.read_place(str(small)), fresh=True)


def test_root_with_all_capabilities_is_privileged() -> None:
    facts.check_privileges()
