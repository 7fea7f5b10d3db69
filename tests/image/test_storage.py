"""Promise 5: on every kind of filesystem a driver that really works there, or an exit that says why not.

All proofs build and run a project that renames, removes and replaces files of lower layers: a driver that mounts is not
yet a driver that works.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import overlay_project

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume
    from helpers.flavours import Flavour

# /dev is the container's own: what a job's device rules leave out is missing there.
WITHOUT_FUSE = ["sh", "-c", 'rm /dev/fuse; exec dockerd-entrypoint.sh "$@"', "entrypoint"]
# Below this the data-root lies on the container's own layers, an overlay.
ON_OVERLAY = ["--data-root=/data"]


def build_and_run(dind: Dind) -> None:
    project = overlay_project(secrets.token_hex(8))
    build = dind.build(project)
    assert len(build.steps) == project.step_count
    dind.run_image(project)


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_overlay_on_a_disk_and_cached_after_a_kill(engine: Engine, flavour: Flavour, fstype: str) -> None:
    volume = engine.volume(fstype)
    project = overlay_project(secrets.token_hex(8))
    first = start(engine, flavour, volume)
    assert len(first.build(project).steps) == project.step_count
    build_id = first.run_image(project)
    assert first.summary is not None
    assert flavour.overlay in first.summary
    assert first.warnings == []
    first.kill()

    second = start(engine, flavour, volume)
    assert second.build(project).uncached == []
    assert second.run_image(project) == build_id
    assert second.warnings == []


def test_overlay_in_memory_and_a_word_about_it(engine: Engine, flavour: Flavour) -> None:
    dind = start(engine, flavour, engine.volume("tmpfs"))
    build_and_run(dind)
    [warning] = dind.warnings
    assert "tmpfs" in warning


def start(engine: Engine, flavour: Flavour, volume: Volume) -> Dind:
    dind = engine.dind(flavour.suite, volume=volume, env=flavour.env)
    dind.wait_ready()
    info = dind.info()
    assert (info.store, info.driver) == (flavour.store, flavour.overlay)
    return dind


FEATURE = "containerd-snapshotter"


@pytest.mark.parametrize("said", ["flag", "file"])
def test_the_engines_own_switch_chooses_the_store_but_not_against_the_data(engine: Engine, said: str) -> None:
    def create(volume: Volume, *, wanted: bool = True) -> Dind:
        args = [f"--feature={FEATURE}=true"] if wanted and said == "flag" else []
        dind = engine.dind("forky", args=args, volume=volume, start=False)
        if wanted and said == "file":
            dind.put("/etc/docker", {"daemon.json": json.dumps({"features": {FEATURE: True}})})
        dind.start()
        return dind

    dind = create(engine.volume())
    dind.wait_ready()
    assert (dind.info().store, dind.info().driver) == ("containerd", "overlayfs")
    assert dind.warnings == []
    build_and_run(dind)

    volume = engine.volume()
    project = overlay_project(secrets.token_hex(8))
    first = create(volume, wanted=False)
    first.wait_ready()
    first.build(project)
    build_id = first.run_image(project)
    first.kill()
    refused = create(volume)
    assert refused.wait_exit() == 78
    [error] = refused.errors
    assert f"{'--feature ' if said == 'flag' else 'features.'}{FEATURE}" in error
    assert "holds overlay2 data in the graphdriver image store" in error
    again = create(volume, wanted=False)
    again.wait_ready()
    assert again.build(project).uncached == []
    assert again.run_image(project) == build_id


def test_fuse_overlayfs_on_overlay(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, args=ON_OVERLAY)
    dind.wait_ready()
    assert dind.info().driver == "fuse-overlayfs"
    assert any("overlay" in warning for warning in dind.warnings)
    build_and_run(dind)


def test_overlay_without_fuse_is_69_and_names_the_device(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, args=ON_OVERLAY, entrypoint=WITHOUT_FUSE)
    assert dind.wait_exit() == 69
    [error] = dind.errors
    assert "/dev/fuse" in error
    assert "CACHEDIND_ALLOW_VFS" in error, "does not tell the way out"


def test_overlay_without_fuse_is_vfs_when_allowed(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, args=ON_OVERLAY, entrypoint=WITHOUT_FUSE, env={"CACHEDIND_ALLOW_VFS": "1"})
    dind.wait_ready()
    assert dind.info().driver == "vfs"
    assert any("vfs" in warning for warning in dind.warnings), "vfs, silently"
    build_and_run(dind)


def test_containerd_store_on_overlay_is_69_and_blames_the_filesystem(engine: Engine, suite: str) -> None:
    """An overlay answers EPERM to what an overlay's upper layer needs, in the most privileged container too."""
    dind = engine.dind(suite, args=ON_OVERLAY, env={"CACHEDIND_IMAGE_STORE": "containerd"})
    assert dind.wait_exit() == 69
    [error] = dind.errors
    assert "overlay" in error
    assert "privilege" not in error


def test_ramfs_never_gets_overlay2(engine: Engine, suite: str) -> None:
    """An overlay mounts on ramfs and then fails at the first rename of a lower file."""
    dind = engine.dind(suite, volume=engine.volume("ramfs"))
    dind.wait_ready()
    assert dind.info().driver == "fuse-overlayfs"
    assert any("overlay2 does not work on ramfs" in warning for warning in dind.warnings)
    build_and_run(dind)


def test_ramfs_without_fuse_is_vfs_when_allowed(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, volume=engine.volume("ramfs"), entrypoint=WITHOUT_FUSE, env={"CACHEDIND_ALLOW_VFS": "1"})
    dind.wait_ready()
    assert dind.info().driver == "vfs"
    build_and_run(dind)


def test_ramfs_without_a_way_out_is_69(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, volume=engine.volume("ramfs"), entrypoint=WITHOUT_FUSE)
    assert dind.wait_exit() == 69
    [error] = dind.errors
    assert "ramfs" in error


def test_read_only_volume_is_74(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, volume=engine.volume("ext4"), read_only_volume=True)
    assert dind.wait_exit() == 74
    [error] = dind.errors
    assert "read-only" in error


def test_full_volume_is_74_and_says_full(engine: Engine, suite: str) -> None:
    volume = engine.volume("ext4", size_mib=64)
    engine.in_volume(volume, "cat /dev/zero >/volume/ballast 2>/dev/null || :; sync")
    dind = engine.dind(suite, volume=volume)
    assert dind.wait_exit() == 74
    [error] = dind.errors
    assert "full" in error
    # Nothing but what was there, and no traces of having tried.
    assert engine.in_volume(volume, "cd /volume && find . -name '.cachedind-probe*'").strip() == ""


def test_a_probe_leaves_nothing_behind(engine: Engine, suite: str) -> None:
    volume = engine.volume("ext4")
    dind = engine.dind(suite, volume=volume)
    dind.wait_ready()
    dind.kill()
    names = engine.in_volume(volume, "ls -A /volume").split()
    assert [name for name in names if "probe" in name or "check" in name] == []
    # A directory named for a driver that is not in use would be taken for prior data of it.
    assert not {"fuse-overlayfs", "vfs", "btrfs", "zfs"} & set(names)
