"""dockerd's command line: our tables of its flags are held against the engines themselves, and what a user says there
has the last word."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cachedind.settings.arguments import INFORMATIONAL, SHORT, SWITCHES
from helpers.clients import run_once, wait_ready_at
from helpers.daemons import LEGACY_FARM, LOCK, daemon_argv, daemon_environment, listening_ports, mount_line
from helpers.engine import on
from helpers.flavours import SUITES, own_overlay

if TYPE_CHECKING:
    from helpers.engine import Engine

# -h works in both and is mentioned in neither's help.
UNDOCUMENTED_SHORT = {"h": "help"}


class Help(NamedTuple):
    """What `dockerd --help` tells: each long flag and whether it takes a value, and the one-letter names."""

    takes_value: dict[str, bool]
    short: dict[str, str]


def read_help(engine: Engine, suite: str) -> Help:
    text = run_once(engine, suite, "--help", check=True).stdout
    found = re.findall(r"^ +(?:-(\w), )?--([a-z0-9-]+)(?: ([^\s(]\S*))?(?= {2,}|$)", text, re.MULTILINE)
    help_ = Help({name: bool(kind) for _, name, kind in found}, {letter: name for letter, name, _ in found if letter})
    # Whether the expression above understood it at all.
    assert len(help_.takes_value) > 70, help_
    assert help_.takes_value["data-root"]
    assert help_.takes_value["storage-opt"]
    assert not help_.takes_value["debug"]
    return help_


def test_switches_are_the_engine_s(engine: Engine, suite: str) -> None:
    takes_value = read_help(engine, suite).takes_value
    assert {name for name, value in takes_value.items() if not value} - SWITCHES == set()
    assert {name for name, value in takes_value.items() if value} & SWITCHES == set()


def test_one_letter_names_are_the_engine_s(engine: Engine, suite: str) -> None:
    assert {**read_help(engine, suite).short, **UNDOCUMENTED_SHORT} == SHORT
    assert "Usage:" in run_once(engine, suite, "-h", check=True).output


def test_no_switch_is_made_up(engine: Engine) -> None:
    known = {name for suite in SUITES for name in read_help(engine, suite).takes_value}
    assert known >= SWITCHES
    assert known >= INFORMATIONAL


# ---- what a user says there ------------------------------------------------------------------------------------------


def test_users_arguments_come_last(engine: Engine, suite: str) -> None:
    args = ["--mtu=1400", "--label", "one=1", "--storage-driver", "overlay2", "-D", "--insecure-registry", "reg:5000"]
    dind = engine.dind(
        suite,
        volume=engine.volume(),
        volumes=on(engine.volume(), "/tmp"),
        args=args,
        env={"DOCKER_DRIVER": "overlay2", "DOCKER_IPTABLES_LEGACY": "1", "DOCKER_TMPDIR": "/var/lib/docker/tmp"},
    )
    dind.wait_ready()
    words = daemon_argv(dind)
    assert words[-len(args) :] == args
    assert [word for word in words if word.startswith("--storage-driver")] == ["--storage-driver"]
    assert (
        json.loads(dind.docker("network", "inspect", "--format", "{{json .Options}}", "bridge"))[
            "com.docker.network.driver.mtu"
        ]
        == "1400"
    )
    info = json.loads(dind.docker("info", "--format", "{{json .}}"))
    assert info["Labels"] == ["one=1"]
    assert info["Debug"]
    assert "reg:5000" in info["RegistryConfig"]["IndexConfigs"]
    assert info["Driver"] == "overlay2"
    # DOCKER_DRIVER would have the last word in dockerd; it agrees here, and is gone all the same.
    environment = daemon_environment(dind)
    assert "DOCKER_DRIVER" not in environment
    assert environment["DOCKER_TMPDIR"] == "/var/lib/docker/tmp"
    assert dind.warnings == []

    # DOCKER_IPTABLES_LEGACY=1, by PATH alone.
    assert environment["PATH"].startswith(f"{LEGACY_FARM}:/")
    assert [text for text in dind.messages if re.match(r"iptables v[\d.]+ \(legacy\)$", text)]
    assert "DOCKER" in dind.sh(f"{LEGACY_FARM}/iptables -nL")

    # A /tmp of the user's stays his.
    assert " - tmpfs " not in mount_line(dind, "/tmp")


def test_users_arguments_win(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, args=["--tlscert", "/mine/cert.pem"])
    assert dind.wait_exit() not in (0, 73)
    assert "/mine/cert.pem" in dind.log()


def test_explicit_dockerd_binds_only_what_it_names(engine: Engine, suite: str) -> None:
    """ARC starts it so: `dockerd --host=unix:///var/run/docker.sock --group=$GID`."""
    dind = engine.dind(suite, volume=engine.volume(), args=["dockerd", "--host=unix:///run/other.sock", "--group=1234"])
    wait_ready_at(dind, "unix:///run/other.sock")
    words = daemon_argv(dind)
    # The socket is bound before anything slow, and handed over.
    assert [word for word in words if "host" in word or "://" in word] == ["--host", "fd://"]
    assert words[-1] == "--group=1234"
    assert not [word for word in words if word.startswith("--tls")]
    assert listening_ports(dind) == set()
    assert dind.sh("stat -c '%a %g' /run/other.sock") == "660 1234"
    assert dind.sh("ls /var/run/docker.sock", check=False) == ""
    assert dind.sh("find /certs -type f") == ""
    # But it leases and decides as ever.
    [daemon] = dind.daemons()
    assert daemon.has_open(LOCK)
    assert words[words.index("--storage-driver") + 1] == own_overlay(suite)
    assert dind.summary is not None
    assert daemon_environment(dind)["container"] == "docker"


def test_explicit_dockerd_alone_has_dockerd_s_own_socket(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, args=["dockerd"], env={"DOCKER_HOST": "unix:///run/ignored.sock"})
    dind.wait_ready()
    assert listening_ports(dind) == set()
    assert dind.sh("stat -c '%a %g' /var/run/docker.sock") == "660 2375"


@pytest.mark.parametrize("words", [["--version"], ["-v"], ["--help"], ["dockerd", "--version"]], ids=" ".join)
def test_informational_arguments_need_nothing(engine: Engine, suite: str, words: list[str]) -> None:
    volume = engine.volume()
    done = run_once(engine, suite, *words, volume=volume, read_only_volume=True, read_only=True, network_mode="none")
    assert done.status == 0, done.output
    assert ("Usage:" if "--help" in words else engine.engine_version(suite)) in done.stdout
    assert engine.in_volume(volume, "ls -A /volume") == ""


def test_validate_needs_nothing(engine: Engine, suite: str) -> None:
    files = {"good.json": b'{"debug": true}', "bad.json": b'{"no-such-directive": true}'}
    good = run_once(engine, suite, "--validate", "--config-file=/files/good.json", files=files)
    assert good.status == 0, good.output
    bad = run_once(engine, suite, "--validate", "--config-file=/files/bad.json", files=files)
    assert bad.status != 0
    assert "no-such-directive" in bad.output
