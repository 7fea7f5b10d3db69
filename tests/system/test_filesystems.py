"""The lane's own ground: a filesystem that a test asks for is of that type, and nobody else sees it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.filesystems import FSTYPES, filesystems_below

if TYPE_CHECKING:
    from helpers.filesystems import Filesystems


def mounts(process: str) -> dict[str, str]:
    """Mount points and filesystem types, as a process sees them."""
    found = {}
    for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        found[before.split()[4]] = after.split()[0]
    return found


@pytest.mark.parametrize("fstype", FSTYPES)
def test_made_here_and_seen_only_here(filesystems: Filesystems, fstype: str) -> None:
    target = filesystems.make(fstype)
    (target / "file").write_text("written")
    assert mounts("self")[str(target)] == fstype
    assert str(target) not in mounts(str(os.getppid()))


@pytest.mark.parametrize("fstype", FSTYPES)
def test_nothing_stays(tmp_path: Path, fstype: str) -> None:
    before = mounts("self")
    with filesystems_below(tmp_path) as made:
        made.make(fstype)
        assert mounts("self") != before
    assert mounts("self") == before
    backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert [text for text in backing if str(tmp_path) in text] == []


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_full_is_full(filesystems: Filesystems, fstype: str) -> None:
    target = filesystems.make(fstype, size_mib=320 if fstype == "xfs" else 128)
    filesystems.fill(target)
    with pytest.raises(OSError, match="No space left"):
        (target / "more").write_bytes(b"\0" * (1 << 20))


def test_read_only_is_read_only(filesystems: Filesystems) -> None:
    target = filesystems.make("ext4", size_mib=64)
    filesystems.make_read_only(target)
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_text("no")
