"""libnetwork's database without a daemon: the user's own bridges in it, its copy, and its end."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from cachedind.engine import networks
from helpers.boltfiles import bucket, leaf_page, local_kv, whole_file


def bridges(*records: dict[str, object]) -> bytes:
    """A database with these records of the bridge driver."""
    elements = [
        (0, f"docker/network/v1.0/bridge/{index:064x}/".encode(), struct.pack("=Q", 1) + json.dumps(record).encode())
        for index, record in enumerate(records)
    ]
    return whole_file([leaf_page(3, [(1, b"libnetwork", bucket(4))]), leaf_page(4, elements)])


def put(root: Path, raw: bytes) -> Path:
    path = root / "network/files/local-kv.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)
    return path


def test_own_bridges_are_the_default_network_s_that_docker_did_not_make(tmp_path: Path) -> None:
    raw = bridges(
        {"DefaultBridge": True, "BridgeName": "dind1"},
        {"DefaultBridge": True, "BridgeName": "docker0"},
        {"DefaultBridge": False, "BridgeName": "br-0123456789ab"},
        {"DefaultBridge": True, "BridgeName": "longer-than-any-name"},
        {"DefaultBridge": True, "BridgeName": ""},
    )
    put(tmp_path, raw)
    assert networks.own_bridges(str(tmp_path)) == {"dind1"}


@pytest.mark.parametrize("raw", [b"", b"noise" * 999, local_kv([("a" * 64, "bridge")])], ids=["empty", "noise", "none"])
def test_no_own_bridges(tmp_path: Path, raw: bytes) -> None:
    assert networks.own_bridges(str(tmp_path)) == frozenset()
    put(tmp_path, raw)
    assert networks.own_bridges(str(tmp_path)) == frozenset()


def test_a_copy_is_the_same_and_needs_no_original(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    raw = local_kv([("a" * 64, "bridge")])
    assert networks.read(str(tmp_path / "nothing")) is None
    put(source, raw)
    networks.write(str(target), networks.read(str(source)) or b"")
    assert (target / "network/files/local-kv.db").read_bytes() == raw


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    path = put(tmp_path, b"")
    path.unlink()
    os.mkfifo(path)
    assert networks.read(str(tmp_path)) is None
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert networks.read(str(tmp_path)) is None
    networks.forget(str(tmp_path))
    assert not path.is_symlink()
    assert Path("/etc/passwd").exists()


def test_forgetting_is_done_once(tmp_path: Path) -> None:
    networks.forget(str(tmp_path))
    path = put(tmp_path, local_kv([]))
    for _ in range(2):
        networks.forget(str(tmp_path))
        assert not path.exists()
    assert path.parent.is_dir()
