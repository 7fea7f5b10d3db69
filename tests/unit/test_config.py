"""Settings: every variable, every complaint at once, and the table in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cachedind.config import (
    VARIABLES,
    Variable,
    daemon_environment,
    load,
    markdown_table,
    parse_bool,
    parse_duration_s,
)
from cachedind.errors import SettingsError
from cachedind.log import Level
from cachedind.model import ImageStore

ENVIRONMENT_PAGE = Path(__file__).parents[2] / "docs" / "environment.md"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("10s", 10), ("500ms", 0.5), ("1.5s", 1.5), ("5m", 300), ("1h30m", 5400), ("14d", 1209600), ("0s", 0)],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "-1s", "s", "1.s", "10 s", "1h 30m", "ten", "1e3s", "1.5.5s", "10S", "inf"])
def test_what_is_no_duration_is_told_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="30s, 5m or 14d"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("False", False), ("no", False)],
)
def test_parse_bool(text: str, value: bool) -> None:
    assert parse_bool(text) is value


@pytest.mark.parametrize("text", ["", "2", "y", "enable"])
def test_what_is_no_bool(text: str) -> None:
    with pytest.raises(ValueError, match="1 or 0"):
        parse_bool(text)


def test_defaults() -> None:
    settings = load({})
    assert settings.lock_timeout_s == 10
    assert settings.image_store is None
    assert settings.storage_driver is None
    assert (settings.allow_vfs, settings.allow_network_fs, settings.strict, settings.log_json) == (False,) * 4
    assert settings.log_level is Level.INFO
    assert settings.iptables_legacy is None
    assert (settings.docker_host, settings.tls_certdir, settings.tls_san, settings.docker_driver) == ("",) * 4


def test_every_variable_is_read() -> None:
    settings = load(
        {
            "CACHEDIND_LOCK_TIMEOUT": "2m",
            "CACHEDIND_IMAGE_STORE": "containerd",
            "CACHEDIND_STORAGE_DRIVER": "native",
            "CACHEDIND_ALLOW_VFS": "1",
            "CACHEDIND_ALLOW_NETWORK_FS": "1",
            "CACHEDIND_STRICT": "1",
            "CACHEDIND_LOG_FORMAT": "json",
            "CACHEDIND_LOG_LEVEL": "DEBUG",
            "DOCKER_HOST": "unix:///x",
            "DOCKER_TLS_CERTDIR": "/certs",
            "DOCKER_TLS_SAN": "DNS:x",
            "DOCKER_DRIVER": "vfs",
            "DOCKER_IPTABLES_LEGACY": "",
            "PATH": "/bin",
        }
    )
    assert settings._asdict() == {
        "lock_timeout_s": 120,
        "image_store": ImageStore.CONTAINERD,
        "storage_driver": "native",
        "allow_vfs": True,
        "allow_network_fs": True,
        "strict": True,
        "log_json": True,
        "log_level": Level.DEBUG,
        "docker_host": "unix:///x",
        "tls_certdir": "/certs",
        "tls_san": "DNS:x",
        "docker_driver": "vfs",
        "iptables_legacy": "",
        "path": "/bin",
    }


def test_an_empty_value_counts_as_not_set() -> None:
    empty = {f"CACHEDIND_{variable.name}": " " for variable in VARIABLES}
    assert load(empty) == load({})


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load(
            {
                "CACHEDIND_LOCK_TIMEOUT": "soon",
                "CACHEDIND_STORAGE_DRIVER": "aufs",
                "CACHEDIND_IMAGE_STORE": "podman",
                "CACHEDIND_LOG_LEVEL": "loud",
                "CACHEDIND_LOG_FORMAT": "xml",
                "CACHEDIND_STRICT": "perhaps",
                "CACHEDIND_ALLOW_VSF": "1",
                "CACHEDIND_QQQ": "1",
            }
        )
    assert caught.value.exit_code == 64
    complaints = caught.value.cause.split("; ")
    assert len(complaints) == 8
    assert "CACHEDIND_LOCK_TIMEOUT='soon' is not a time such as 30s, 5m or 14d" in complaints
    assert "CACHEDIND_ALLOW_VSF is not a variable of cachedind, did you mean CACHEDIND_ALLOW_VFS?" in complaints
    assert "CACHEDIND_QQQ is not a variable of cachedind" in complaints


@pytest.mark.parametrize("driver", ["vfs", "native"])
def test_a_copying_driver_needs_permission_even_when_it_is_named(driver: str) -> None:
    with pytest.raises(SettingsError, match=f"CACHEDIND_STORAGE_DRIVER={driver} also needs CACHEDIND_ALLOW_VFS=1"):
        load({"CACHEDIND_STORAGE_DRIVER": driver})
    assert load({"CACHEDIND_STORAGE_DRIVER": driver, "CACHEDIND_ALLOW_VFS": "1"}).storage_driver == driver


@pytest.mark.parametrize(
    "name",
    [
        "CACHEDIND_SERVICE_HOST",
        "CACHEDIND_SERVICE_PORT",
        "CACHEDIND_SERVICE_PORT_TLS",
        "CACHEDIND_PORT",
        "CACHEDIND_PORT_2376_TCP",
        "CACHEDIND_PORT_2376_TCP_ADDR",
        "CACHEDIND_PORT_53_UDP_PROTO",
        "CACHEDIND_NAME",
        "CACHEDIND_ENV_PATH",
    ],
)
def test_what_kubernetes_and_links_set_for_something_named_cachedind_is_not_ours(name: str) -> None:
    assert load({name: "tcp://10.0.0.1:2376"}) == load({})


def test_dockerd_gets_neither_our_variables_nor_what_would_override_the_decision() -> None:
    environ = {
        "HOME": "/root",
        "PATH": "/bin",
        "DOCKER_DRIVER": "vfs",
        "DOCKER_HOST": "unix:///x",
        "LISTEN_PID": "1",
        "LISTEN_FDS": "7",
        "LISTEN_FDNAMES": "a",
        "CACHEDIND_STRICT": "1",
    }
    assert daemon_environment(environ, path="/legacy:/bin", listen_fds=2) == {
        "HOME": "/root",
        "PATH": "/legacy:/bin",
        "DOCKER_HOST": "unix:///x",
        "container": "docker",
        "LISTEN_FDS": "2",
    }
    assert "LISTEN_FDS" not in daemon_environment(environ, path="/bin", listen_fds=0)


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_each_default_is_a_value_that_it_accepts(variable: Variable) -> None:
    load({f"CACHEDIND_{variable.name}": variable.default})


def test_the_table_in_the_documentation_is_the_generated_one() -> None:
    page = ENVIRONMENT_PAGE.read_text(encoding="utf-8")
    found = re.search(r"<!-- variables -->\n+(.*?)\n*<!-- /variables -->", page, re.DOTALL)
    assert found, f"{ENVIRONMENT_PAGE.name} has no table between <!-- variables --> and <!-- /variables -->"
    assert found[1].strip() == markdown_table().strip()
