"""Promise 6: what the image docker:dind has, this one has: metadata, programs, directories, users."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from cachedind.base import releases
from cachedind.base.model import parse_engine_version
from cachedind.start.container import NFT_DIRECTORY
from helpers.daemons import LEGACY_FARM
from helpers.dind import DATA_ROOT, Dind
from helpers.flavours import STAND_IN, SUITES

if TYPE_CHECKING:
    from helpers.engine import Engine

LABELS = {"org.opencontainers.image.title", "org.opencontainers.image.licenses", "org.opencontainers.image.version"}
NEEDED = (
    # what docker:dind has
    *("docker", "dockerd", "containerd", "ctr", "containerd-shim-runc-v2", "runc", "docker-init", "docker-proxy"),
    *("dind", "docker-compose", "modprobe", "docker-entrypoint.sh", "dockerd-entrypoint.sh"),
    *("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"),
    *("git", "ssh", "openssl", "pigz", "unpigz", "xz", "newuidmap", "newgidmap"),
    *("mkfs.btrfs", "btrfs", "mkfs.xfs", "xfs_repair", "mkfs.ext4", "e2fsck"),
    # and what its rootless variant has
    *("fuse-overlayfs", "ip"),
    # and what scripts use of its base, which is Alpine's busybox
    *("ash", "arp", "arping", "bc", "free", "hostname", "ifconfig", "killall", "less", "nc", "netstat"),
    *("nslookup", "pgrep", "pidof", "ping", "ps", "route", "time", "top", "traceroute", "unzip"),
    *("vi", "watch", "wget", "which", "xxd"),
)


@pytest.mark.parametrize("suite", [*SUITES, STAND_IN])
def test_metadata(engine: Engine, suite: str) -> None:
    config = engine.client.images.get(engine.images[suite]).attrs["Config"]
    assert config["Entrypoint"] == ["dockerd-entrypoint.sh"]
    assert not config["Cmd"]
    assert set(config["ExposedPorts"]) == {"2375/tcp", "2376/tcp"}
    assert set(config["Volumes"]) == {DATA_ROOT}
    check = config["Healthcheck"]
    assert check["Test"] == ["CMD", "cachedind", "healthcheck", "--timeout=30"]
    assert check["StartPeriod"] == 24 * 3600 * 10**9, "a long start is not unhealthy"
    assert not config.get("StopSignal")
    assert config["User"] in ("", "0", "root")
    assert config["WorkingDir"] in ("", "/")
    environment = dict(pair.split("=", 1) for pair in config["Env"])
    assert set(config["Labels"]) > LABELS
    assert config["Labels"]["cachedind.engine"] == environment["DOCKER_VERSION"]
    assert environment["DOCKER_TLS_CERTDIR"] == "/certs"
    # A client's settings would be taken for the daemon's.
    assert not {"DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_DRIVER"} & set(environment)


def test_versions_are_what_the_environment_says(bench: Dind) -> None:
    said = dict(line.split("=", 1) for line in bench.sh("env").splitlines() if line.startswith("DOCKER_"))
    for name, command in (
        ("DOCKER_VERSION", "dockerd --version"),
        ("DOCKER_VERSION", "docker --version"),
        ("DOCKER_BUILDX_VERSION", "docker buildx version"),
        ("DOCKER_COMPOSE_VERSION", "docker compose version"),
        ("DOCKER_COMPOSE_VERSION", "docker-compose version"),
    ):
        found = re.search(r"\d+\.\d+\.\d+", bench.sh(command))
        assert found, command
        assert found[0] == said[name], command


def test_data_of_the_engine_under_test_is_judged_by_its_bytes(engine: Engine, suite: str) -> None:
    """Databases are read only for releases in that table: one that is left out of it shares less, and mends less."""
    assert parse_engine_version(engine.engine_version(suite)).release in releases.TESTED


def test_programs_on_path(bench: Dind) -> None:
    script = 'for name; do command -v "$name" >/dev/null || echo "$name"; done'
    assert bench.exec("sh", "-c", script, "sh", *NEEDED).stdout.split() == []


def test_programs_where_docker_dind_has_them(bench: Dind) -> None:
    names = [f"/usr/local/bin/{name}" for name in NEEDED[:13]]
    names += [f"/usr/local/libexec/docker/cli-plugins/docker-{plugin}" for plugin in ("buildx", "compose")]
    names += [f"{LEGACY_FARM}/{name}" for name in NEEDED if "tables" in name]
    script = 'for name; do test -x "$name" || echo "$name"; done'
    assert bench.exec("sh", "-c", script, "sh", *names).stdout.split() == []


def test_nft_is_only_for_engines_that_are_told_to_use_it(bench: Dind) -> None:
    assert bench.sh("command -v nft || :") == ""
    assert bench.sh(f"{NFT_DIRECTORY}/nft --version").startswith("nftables v")


def test_iptables_and_its_legacy_farm(bench: Dind) -> None:
    for name in ("iptables", "ip6tables", "iptables-save", "ip6tables-restore"):
        assert "nf_tables" in bench.sh(f"{name} --version")
        assert "legacy" in bench.sh(f"PATH={LEGACY_FARM}:$PATH {name} --version")


def test_no_apparmor_parser(bench: Dind) -> None:
    """With it an inner engine could load a profile over the host's of the same name."""
    assert bench.sh("find / -xdev -name 'apparmor_parser*'") == ""


def test_certificate_directories(bench: Dind) -> None:
    assert bench.sh("stat -c '%a %U %F' /certs /certs/client").splitlines() == ["1777 root directory"] * 2


def test_groups_and_users(bench: Dind) -> None:
    assert bench.sh("getent group docker").startswith("docker:x:2375:")
    assert bench.sh("id -un dockremap; id -gn dockremap").split() == ["dockremap"] * 2
    assert bench.sh("cat /etc/subuid /etc/subgid").splitlines().count("dockremap:165536:65536") == 2
