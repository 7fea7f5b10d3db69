"""`cachedind doctor` against the real place, and the refusals that come before any daemon: privileges, unsafe locks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from helpers.clients import run_once

if TYPE_CHECKING:
    from helpers.engine import Done, Engine, Volume

# Everything that a change would show in: names, kinds, sizes, times of change.
LISTING = "cd /volume; find . -mindepth 1 -printf '%P %y %s %T@\\n' | sort"


def doctor(engine: Engine, suite: str, *words: str, **options: Any) -> Done:
    return run_once(engine, suite, "cachedind", "doctor", *words, **{"privileged": True, **options})


def on(volume: Volume, path: str = "/var/lib/docker") -> dict[str, dict[str, str]]:
    return {volume.name: {"bind": path, "mode": "rw"}}


@pytest.mark.parametrize("fstype", ["ext4", "btrfs"])
def test_an_empty_volume_is_judged_and_left_empty(engine: Engine, suite: str, fstype: str) -> None:
    volume = engine.volume(fstype)
    before = engine.in_volume(volume, LISTING)
    done = doctor(engine, suite, "--json", volumes=on(volume))
    assert done.status == 0, done.output
    report = json.loads(done.stdout)
    assert report["engine"] == engine.engine_version(suite)
    assert report["data_root"]["fstype"] == fstype
    assert report["lease"] == "free"
    assert report["trials"]["overlay2"]["works"]
    assert report["trials"]["fuse-overlayfs"]["works"]
    assert (report["plan"]["driver"], report["plan"]["image_store"]) == ("overlay2", "graphdriver")
    assert engine.in_volume(volume, LISTING) == before


def test_a_plan_that_cannot_be_has_the_code_that_the_start_would_have(engine: Engine, suite: str) -> None:
    volume = engine.volume("ramfs")
    options: dict[str, Any] = {"volumes": on(volume), "env": {"CACHEDIND_STORAGE_DRIVER": "overlay2"}}
    done = doctor(engine, suite, "--json", **options)
    report = json.loads(done.stdout)
    assert done.status == report["error"]["exit_code"] == 69
    assert not report["trials"]["overlay2"]["works"]
    assert "merged/other to merged/renamed: Invalid argument" in report["trials"]["overlay2"]["why"]
    start = run_once(engine, suite, privileged=True, **options)
    assert start.status == 69, start.output


def test_beside_a_running_daemon_it_names_the_holder_and_disturbs_nobody(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    dind = engine.dind(suite, volume=volume)
    dind.wait_ready()
    [daemon] = dind.daemons()
    report = json.loads(doctor(engine, suite, "--json", volumes=on(volume)).stdout)
    assert report["lease"].startswith(f"held by container {dind.id[:12]}")
    assert [process.pid for process in dind.daemons()] == [daemon.pid]
    inside = dind.exec("cachedind", "doctor")
    assert inside.status == 0, inside.output
    assert "overlay2" in inside.stdout
    assert dind.sh("ls -A /var/lib/docker | grep probe || true") == ""
    assert dind.exec("cachedind", "healthcheck").status == 0


def test_without_privileges_everything_ends_with_77_and_the_line_that_works(engine: Engine, suite: str) -> None:
    for done in (run_once(engine, suite), run_once(engine, suite, "dockerd"), doctor(engine, suite, privileged=False)):
        assert done.status == 77, done.output
        flat = " ".join(done.output.split())
        assert "docker run --privileged -v cachedind:/var/lib/docker cachedind" in flat


def test_a_filesystem_whose_locks_may_not_hold_is_refused_unless_allowed(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    script = (
        "cd /volume && mkdir -p lower upper work /data"
        " && fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work /data"
        ' && exec dockerd-entrypoint.sh --data-root /data "$@"'
    )
    options: dict[str, Any] = {"entrypoint": ["sh", "-c", script, "sh"], "volumes": on(volume, "/volume")}
    done = run_once(engine, suite, privileged=True, **options)
    assert done.status == 78, done.output
    assert "/data is on fuse" in done.output
    assert "CACHEDIND_ALLOW_NETWORK_FS=1" in done.output
    assert engine.in_volume(volume, "ls -A /volume/upper") == "", "something was written before the refusal"

    env = {"CACHEDIND_ALLOW_NETWORK_FS": "1", "CACHEDIND_ALLOW_VFS": "1"}
    allowed = engine.dind(suite, env=env, **options)
    allowed.wait_ready()
    assert any("exclusive use is not certain" in warning for warning in allowed.warnings)
