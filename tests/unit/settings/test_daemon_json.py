"""daemon.json and dockerd's flags: what is accepted, and what the user asked for with them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.errors import DaemonConfigError, DaemonConfigMissingError
from cachedind.base.model import ImageStore
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.settings.daemon_json import (
    CONTAINERD_FEATURE,
    DaemonSettings,
    parse_daemon_json,
    read_daemon_json,
    read_settings,
)
from helpers.daemon_settings import settings_of

# ---- daemon.json -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " \n", "{}"])
def test_an_empty_daemon_json_has_no_directives(text: str) -> None:
    assert parse_daemon_json(text, "daemon.json") == {}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ('{"a": 1}}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("1" * 5000, "is not JSON"),
    ],
    ids=["cut off", "list", "null", "trailing", "deeply nested", "endless number"],
)
def test_what_is_no_daemon_json_is_named_with_its_file(text: str, what: str) -> None:
    with pytest.raises(DaemonConfigError, match=what) as caught:
        parse_daemon_json(text, "/etc/docker/daemon.json")
    assert "/etc/docker/daemon.json" in caught.value.cause


@given(st.one_of(st.text(), st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps)))
def test_any_text_is_directives_or_a_documented_error(text: str) -> None:
    with contextlib.suppress(DaemonConfigError):
        assert isinstance(parse_daemon_json(text, "daemon.json"), dict)


def test_a_byte_order_mark_is_accepted_as_dockerd_does(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").write_bytes(b'\xef\xbb\xbf{"mtu": 1400}')
    assert read_daemon_json(str(tmp_path / "daemon.json"), must_exist=True) == {"mtu": 1400}


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    with pytest.raises(DaemonConfigMissingError, match="which does not exist") as caught:
        read_settings(parse_daemon_arguments([f"--config-file={path}"]))
    assert caught.value.exit_code == 66
    assert read_daemon_json(str(path), must_exist=False) == {}


@pytest.mark.parametrize("kind", ["directory", "not UTF-8"])
def test_a_file_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "daemon.json"
    if kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(b'{"x": "\xff"}')
    with pytest.raises(DaemonConfigError, match="cannot be read"):
        read_daemon_json(str(path), must_exist=True)


# ---- what the user asked for -------------------------------------------------------------------------------------


def test_a_flag_beats_the_file() -> None:
    settings = settings_of("--data-root /flag", data_root="/file", exec_root="/file", pidfile="")
    assert (settings.data_root, settings.exec_root, settings.pidfile) == ("/flag", "/file", "/var/run/docker.pid")
    assert settings_of().data_root == "/var/lib/docker"
    assert settings_of(data_root=7).data_root == "/var/lib/docker"


@pytest.mark.parametrize(
    ("settings", "driver"),
    [
        pytest.param(settings_of(), None, id="nothing"),
        pytest.param(settings_of("-s vfs"), ("vfs", "the argument --storage-driver vfs"), id="flag"),
        pytest.param(
            settings_of(storage_driver="zfs"), ("zfs", "storage-driver in /etc/docker/daemon.json"), id="file"
        ),
        pytest.param(
            settings_of("-s vfs", storage_driver="zfs"), ("vfs", "the argument --storage-driver vfs"), id="both"
        ),
        pytest.param(settings_of(storage_driver=""), None, id="empty"),
    ],
)
def test_requested_driver(settings: DaemonSettings, driver: tuple[str, str] | None) -> None:
    assert settings.requested_driver == driver


@pytest.mark.parametrize(
    ("settings", "store"),
    [
        pytest.param(settings_of(), None, id="nothing"),
        pytest.param(settings_of("--feature cdi=true"), None, id="another feature"),
        pytest.param(settings_of(f"--feature {CONTAINERD_FEATURE}=true"), ImageStore.CONTAINERD, id="flag"),
        pytest.param(settings_of(f"--feature {CONTAINERD_FEATURE}=false"), ImageStore.GRAPHDRIVER, id="flag off"),
        pytest.param(
            settings_of(f"--feature {CONTAINERD_FEATURE}=false --feature {CONTAINERD_FEATURE}=true"),
            ImageStore.CONTAINERD,
            id="the last flag",
        ),
        pytest.param(settings_of(features={CONTAINERD_FEATURE: True}), ImageStore.CONTAINERD, id="file"),
        pytest.param(settings_of(features={CONTAINERD_FEATURE: False}), ImageStore.GRAPHDRIVER, id="file off"),
        pytest.param(settings_of(features={CONTAINERD_FEATURE: "yes"}), None, id="file, not a boolean"),
        pytest.param(settings_of(features=[CONTAINERD_FEATURE]), None, id="file, not an object"),
    ],
)
def test_requested_store(settings: DaemonSettings, store: ImageStore | None) -> None:
    requested = settings.requested_store
    assert (requested and requested[0]) == store
    assert requested is None or CONTAINERD_FEATURE in requested[1]


def test_hosts_of_the_file_that_are_no_list_of_words_are_left_to_dockerd() -> None:
    assert settings_of(hosts="tcp://x").file_hosts == []
    assert settings_of(hosts=["a", 1]).file_hosts == ["a"]


@pytest.mark.parametrize("text", ['{"hosts": "tcp://0.0.0.0:1"}', '{"features": []}', '{"storage-driver": 1}'])
def test_a_directive_of_the_wrong_kind_names_the_users_own_file(text: str) -> None:
    with pytest.raises(DaemonConfigError, match=r"/etc/docker/daemon.json: ") as caught:
        parse_daemon_json(text, "/etc/docker/daemon.json")
    assert "must be a" in caught.value.hint


# ---- switches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "is_on"),
    [
        (settings_of(), True),
        (settings_of("--ip-forward"), True),
        (settings_of("--ip-forward=F"), False),
        (settings_of("--ip-forward=0 --ip-forward"), True),
        (settings_of(ip_forward=False), False),
        (settings_of(ip_forward="no"), True),
        (settings_of("--ip-forward", ip_forward=False), True),
    ],
)
def test_a_switch_is_the_last_flag_else_the_file_else_the_engines_own(settings: DaemonSettings, is_on: bool) -> None:
    assert settings.is_on("ip-forward", default=True) is is_on


@pytest.mark.parametrize(
    ("settings", "has_nftables"),
    [
        (settings_of(), False),
        (settings_of("--firewall-backend nftables"), True),
        (settings_of(firewall_backend="nftables"), True),
        (settings_of("--firewall-backend=iptables", firewall_backend="nftables"), False),
    ],
)
def test_the_firewall_backend(settings: DaemonSettings, has_nftables: bool) -> None:
    assert settings.has_nftables is has_nftables


@pytest.mark.parametrize(
    ("settings", "may_migrate"),
    [
        (settings_of(), False),
        (settings_of("--feature containerd-migration"), True),
        (settings_of("--feature containerd-migration=true --feature x=false"), True),
        (settings_of("--feature containerd-migration=false", features={"containerd-migration": True}), False),
        (settings_of(features={"containerd-migration": True}), True),
        (settings_of(features={"containerd-snapshotter": True}), False),
    ],
)
def test_the_engine_may_choose_another_store(settings: DaemonSettings, may_migrate: bool) -> None:
    assert settings.may_migrate is may_migrate
