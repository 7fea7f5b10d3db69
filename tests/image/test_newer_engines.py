"""What engines from 29 on can do, and how earlier ones take the same words: scripts/engine-check runs this with the new
ones."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from cachedind.base.model import parse_engine_version
from cachedind.start.container import NFT_DIRECTORY
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine

BACKEND = "firewall-backend"
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.default.forwarding", "net.ipv6.conf.all.forwarding")
HOWS: dict[str, tuple[list[str], dict[str, object]]] = {
    "argument": ([f"--{BACKEND}=nftables"], {}),
    "daemon.json": ([], {BACKEND: "nftables"}),
    "with IPv6": ([f"--{BACKEND}=nftables", "--ipv6", "--fixed-cidr-v6=fd00:1::/64"], {}),
}


def is_newer(engine: Engine) -> bool:
    return parse_engine_version(engine.engine_version("forky")).major >= 29


@pytest.mark.parametrize("how", HOWS)
def test_nftables_by_argument_and_by_file(engine: Engine, how: str) -> None:
    """The engine gets the forwarding that it insists on, and iptables is not asked."""
    args, file = HOWS[how]
    sysctls = {"net.ipv6.conf.all.disable_ipv6": "0", "net.ipv4.ip_forward": "0"}
    dind = engine.dind("forky", volume=engine.volume(), args=args, sysctls=sysctls, start=False)
    if file:
        dind.put("/etc/docker", {"daemon.json": json.dumps(file)})
    dind.start()
    if not is_newer(engine):
        assert dind.wait_exit() != 0
        assert re.search(rf"unknown flag: --{BACKEND}|following directives don't match any.*{BACKEND}", dind.log())
    else:
        dind.wait_ready()
        info = json.loads(dind.docker("info", "--format", "{{json .}}"))
        assert info["FirewallBackend"]["Driver"] == "nftables"
        check_networks(dind)
    asked_for = FORWARDING if how == "with IPv6" else FORWARDING[:1]
    told = [text.partition("=")[0] for text in dind.messages if f"{BACKEND}=nftables needs" in text]
    assert told == [*asked_for]
    assert not [text for text in dind.messages if text.startswith("iptables v")]
    assert dind.warnings == []


def check_networks(dind: Dind) -> None:
    """Containers on a network find each other, and a published port leads into one."""
    dind.load_base()
    dind.docker("network", "create", "own")
    dind.docker("run", "-d", "--name=one", "--network=own", "--publish=8080:80", "base:latest", "sleep", "1000")
    rules = dind.sh(f"{NFT_DIRECTORY}/nft list ruleset")
    assert "8080" in rules
    assert "masquerade" in rules
    assert dind.sh("iptables-save 2>/dev/null | grep -c DOCKER || :") == "0"


def test_forwarding_that_is_not_wanted_is_left_alone(engine: Engine) -> None:
    dind = engine.dind("forky", args=[f"--{BACKEND}=nftables", "--ip-forward=false"], sysctls={FORWARDING[0]: "0"})
    if is_newer(engine):
        dind.wait_ready()
        assert dind.sh("cat /proc/sys/net/ipv4/ip_forward") == "0"
    else:
        assert dind.wait_exit() != 0
    assert not [text for text in dind.messages if "ip_forward" in text]


def test_what_is_noted_is_what_a_migrating_engine_runs_with(engine: Engine) -> None:
    """It moves to the containerd store whatever it is told; an engine that does not know the feature stays."""
    options: dict[str, Any] = {"volume": engine.volume(), "args": ["--feature", "containerd-migration=true"]}
    first = engine.dind("forky", env={"CACHEDIND_IMAGE_STORE": "graphdriver"}, **options)
    first.wait_ready()
    info = first.info()
    assert info.store == ("containerd" if is_newer(engine) else "graphdriver")
    wait_until(lambda: noted(first) == (info.store, info.driver), what="the note")
    warned = [text for text in first.warnings if "as it was told" in text]
    assert len(warned) == (1 if is_newer(engine) else 0)
    first.load_base()
    first.kill()

    second = engine.dind("forky", **options)
    second.wait_ready()
    assert second.info() == info
    assert second.docker("image", "ls", "--quiet", "base") != ""
    assert second.warnings == []


def noted(dind: Dind) -> tuple[str, str]:
    state = json.loads(dind.sh("cat /var/lib/docker/.cachedind/state.json"))
    return (state["image_store"], state["driver"]) if state["ready_at"] else ("", "")


def test_the_engine_has_nothing_to_say_of_our_own_words(engine: Engine) -> None:
    """Engines from 29 on warn of a feature that is their default, when it is named."""
    dind = engine.dind("forky", volume=engine.volume())
    dind.wait_ready()
    assert "no longer needed to be set" not in dind.log()
