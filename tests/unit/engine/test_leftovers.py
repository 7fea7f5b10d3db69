"""What a last job left, found in files that it may have changed as root."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from cachedind.base.errors import CleaningError
from cachedind.engine import networks as networks_database
from cachedind.engine.leftovers import UNREADABLE_NETWORKS, Leftovers, find_leftovers
from helpers.boltfiles import bucket, leaf_page, local_kv, whole_file

NOTHING: frozenset[str] = frozenset()
PREDEFINED = [("b" * 64, "bridge"), ("h" * 64, "host"), ("n" * 64, "none")]
A, B = "a" * 64, "f" * 64


def write(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def networks(root: Path, *more: tuple[str, str]) -> Path:
    return write(root / "network/files/local-kv.db", local_kv([*PREDEFINED, *more]))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A data-root as an engine leaves it that did nothing."""
    for name in ("containers", "volumes", "swarm", "network/files", "overlay2/l"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "volumes/metadata.db", bytes(100))
    networks(tmp_path)
    return tmp_path


@pytest.fixture
def used(fresh: Path) -> Path:
    """And one that has some of everything; the container uses the volumes "mine" and "anonymous" and the network A."""
    config = {
        "MountPoints": {
            "/v": {"Type": "volume", "Name": "mine"},
            "/w": {"Type": "volume", "Name": "anonymous"},
            "/b": {"Type": "bind", "Name": "other"},
        },
        "NetworkSettings": {"Networks": {"byname": {"NetworkID": A}}},
    }
    write(fresh / "containers" / A / "config.v2.json", json.dumps(config))
    for name in ("mine", "other", "anonymous"):
        (fresh / "volumes" / name / "_data").mkdir(parents=True)
    networks(fresh, (A, "one"), (B, "other"), ("c" * 64, "byname"), ("d" * 64, "docker_gwbridge"))
    write(fresh / "swarm/docker-state.json", "{}")
    write(fresh / "plugins" / B / "config.json", "{}")
    (fresh / "plugins/storage/blobs").mkdir(parents=True)
    return fresh


def test_nothing_is_found_where_nothing_is(fresh: Path, tmp_path: Path) -> None:
    assert find_leftovers(str(fresh), NOTHING) == Leftovers()
    assert not find_leftovers(str(fresh), NOTHING)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not find_leftovers(str(empty), NOTHING)


def test_each_kind_is_found(used: Path) -> None:
    found = find_leftovers(str(used), NOTHING)
    assert found == Leftovers((A,), (A, B, "c" * 64, "d" * 64), ("anonymous", "mine", "other"), True, (B,))
    assert str(found) == "1 container, 4 networks, 3 volumes, 1 plugin, a swarm"


@pytest.mark.parametrize(
    "one",
    [
        Leftovers((A,)),
        Leftovers(networks=(A,)),
        Leftovers(volumes=("v",)),
        Leftovers(swarm=True),
        Leftovers(plugins=(A,)),
    ],
)
def test_one_of_anything_is_something(one: Leftovers) -> None:
    assert one
    assert str(one) != "nothing"


def test_what_is_kept_is_not_left_over(used: Path) -> None:
    found = find_leftovers(str(used), frozenset({"networks"}))
    assert (found.networks, len(found.volumes), len(found.containers)) == ((), 3, 1)
    found = find_leftovers(str(used), frozenset({"volumes"}))
    assert (found.volumes, len(found.networks), len(found.containers)) == ((), 4, 1)
    assert not find_leftovers(str(used), frozenset({"containers", "networks", "volumes"}))


def test_volumes_that_are_named_stay(used: Path) -> None:
    found = find_leftovers(str(used), frozenset({"volumes:m?ne", "volumes:oth*"}))
    assert (found.volumes, len(found.networks), len(found.containers)) == (("anonymous",), 4, 1)
    assert find_leftovers(str(used), frozenset({"volumes:*"})).volumes == ()
    for name in ("anonymous", "mine", "other"):
        os.utime(used / "volumes" / name / "_data", (0, 1))
    for number in range(3):
        (used / f"volumes/new{number}/_data").mkdir(parents=True)
    # The newest three of a pattern, besides those that kept containers use.
    assert find_leftovers(str(used), frozenset({"volumes:*"})).volumes == ("anonymous", "mine", "other")
    assert find_leftovers(str(used), frozenset({"volumes:*", "containers"})).volumes == ("other",)


def test_what_is_kept_of_images_is_nothing_to_these(used: Path) -> None:
    assert find_leftovers(str(used), frozenset({"images"})) == find_leftovers(str(used), NOTHING)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("networks", Leftovers((A,), (A,), ("anonymous", "mine", "other"), True, (B,))),
        ("networks,containers", Leftovers((A,), (A,), ("anonymous", "mine", "other"))),
        ("networks,containers,volumes", Leftovers((A,), (A,))),
        ("containers", Leftovers((A,), (A, B, "c" * 64), ("anonymous", "mine", "other"))),
        ("volumes", Leftovers((A,), (A, B, "c" * 64, "d" * 64), (), True, (B,))),
    ],
)
def test_a_network_that_cannot_be_used_goes_with_the_containers_on_it(
    used: Path, keep: str, expected: Leftovers
) -> None:
    assert find_leftovers(str(used), frozenset(keep.split(",")), unusable=frozenset({A, "one"})) == expected


def test_containers_that_are_elsewhere_stay_beside_a_network_that_cannot_be_used(used: Path) -> None:
    keep = frozenset({"containers", "networks"})
    found = find_leftovers(str(used), keep, unusable=frozenset({B, "other"}))
    assert found == Leftovers(networks=(B,), volumes=("other",))
    # By its name too: a container that has never run knows no id.
    assert find_leftovers(str(used), keep, unusable=frozenset({"c" * 64, "byname"})).containers == (A,)


def test_what_kept_containers_use_is_kept_with_them(used: Path) -> None:
    assert find_leftovers(str(used), frozenset({"containers"})) == Leftovers(networks=(B,), volumes=("other",))


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[]",
        "[" * 100_000,
        "\x00",
        '{"MountPoints": []}',
        '{"MountPoints": {"/v": 7}, "NetworkSettings": {"Networks": {"x": "y"}}}',
        '{"NetworkSettings": 1}',
    ],
)
def test_a_kept_container_that_cannot_be_read_uses_nothing(used: Path, config: str) -> None:
    write(used / "containers" / A / "config.v2.json", config)
    assert len(find_leftovers(str(used), frozenset({"containers"})).volumes) == 3


def test_a_file_in_containers_is_a_container_to_dockerd_too(fresh: Path) -> None:
    write(fresh / "containers/stray")
    (fresh / "containers/link").symlink_to("/")
    assert find_leftovers(str(fresh), NOTHING).containers == ("link", "stray")
    # But a volume is a directory.
    (fresh / "volumes/link").symlink_to("/")
    assert find_leftovers(str(fresh), NOTHING).volumes == ()


# ---- networks that cannot be read -------------------------------------------------------------------------------


def bad_record(value: bytes) -> bytes:
    record = (0, b"docker/network/v1.0/network/abc/", value)
    return whole_file([leaf_page(3, [(1, b"libnetwork", bucket(4))]), leaf_page(4, [record])])


@pytest.mark.parametrize(
    "content",
    [b"", b"noise" * 1000, local_kv(PREDEFINED)[:9000], bad_record(b""), bad_record(b"01234567[]"), bad_record(b"{}")],
    ids=["empty", "noise", "cut", "no value", "no object", "no index"],
)
def test_unreadable_networks_are_left_over_and_can_be_set_aside(fresh: Path, content: bytes) -> None:
    path = write(fresh / "network/files/local-kv.db", content)
    assert find_leftovers(str(fresh), NOTHING).networks == (UNREADABLE_NETWORKS,)
    # Whoever keeps networks leaves it to dockerd to say what it thinks of them.
    assert not find_leftovers(str(fresh), frozenset({"networks"}))

    [told] = networks_database.set_aside(str(fresh))
    assert "local-kv.db.unreadable" in told
    assert not path.exists()
    assert (fresh / "network/files/local-kv.db.unreadable").read_bytes() == content
    assert not find_leftovers(str(fresh), NOTHING)


@pytest.mark.parametrize("value", [b"", b"01234567[]", b"{}"], ids=["no value", "no object", "no index"])
def test_records_of_an_engine_that_nobody_knows_are_no_damage(fresh: Path, value: bytes) -> None:
    path = write(fresh / "network/files/local-kv.db", bad_record(value))
    assert not find_leftovers(str(fresh), NOTHING, tested=False)
    networks(fresh, (A, "one"))
    assert find_leftovers(str(fresh), NOTHING, tested=False).networks == (A,)
    for content in (b"", b"noise" * 1000, local_kv(PREDEFINED)[:9000]):
        path.write_bytes(content)
        assert find_leftovers(str(fresh), NOTHING, tested=False).networks == (UNREADABLE_NETWORKS,)


def test_only_a_regular_file_is_read_for_networks(fresh: Path, tmp_path: Path) -> None:
    path = fresh / "network/files/local-kv.db"
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    assert find_leftovers(str(fresh), NOTHING).networks == (UNREADABLE_NETWORKS,)
    path.unlink()
    os.mkfifo(path)
    assert find_leftovers(str(fresh), NOTHING).networks == (UNREADABLE_NETWORKS,)
    path.unlink()
    path.mkdir()
    assert find_leftovers(str(fresh), NOTHING).networks == (UNREADABLE_NETWORKS,)


def test_a_huge_file_of_networks_is_not_read(fresh: Path) -> None:
    networks(fresh, (A, "x" * (17 << 20)))
    assert find_leftovers(str(fresh), NOTHING).networks == (UNREADABLE_NETWORKS,)


def test_no_networks_at_all_is_nothing(fresh: Path) -> None:
    (fresh / "network/files/local-kv.db").unlink()
    assert not find_leftovers(str(fresh), NOTHING)
    write(fresh / "network/files/local-kv.db", whole_file([leaf_page(3, [])]))
    assert not find_leftovers(str(fresh), NOTHING)


# ---- links that lead out ------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is none of a data-root's business."""
    path = tmp_path_factory.mktemp("outside")
    write(path / "precious" / "file", "kept")
    return path


@pytest.mark.parametrize("name", ["containers", "volumes", "swarm", "network", "network/files"])
def test_a_link_for_one_of_the_engines_directories_is_an_error(fresh: Path, outside: Path, name: str) -> None:
    shutil.rmtree(fresh / name)
    (fresh / name).symlink_to(outside)
    with pytest.raises(CleaningError, match=f"{name.split('/')[-1]}: Not a directory"):
        find_leftovers(str(fresh), NOTHING)


def test_looking_changes_nothing(used: Path) -> None:
    def everything() -> list[tuple[str, int, int]]:
        found = list(used.rglob("*"))
        return sorted((str(path), path.lstat().st_mtime_ns, stat.S_IFMT(path.lstat().st_mode)) for path in found)

    before = everything()
    find_leftovers(str(used), NOTHING)
    find_leftovers(str(used), frozenset({"containers"}))
    assert everything() == before


def test_no_descriptor_is_left_open(used: Path) -> None:
    before = os.listdir("/proc/self/fd")
    find_leftovers(str(used), NOTHING)
    find_leftovers(str(used), frozenset({"containers"}))
    write(used / "network/files/local-kv.db", b"")
    find_leftovers(str(used), NOTHING)
    assert os.listdir("/proc/self/fd") == before
