"""The kernel is asked for its nf_tables: in network namespaces of their own."""

from __future__ import annotations

import subprocess

import pytest

from cachedind.host import linux, netfilter
from helpers.children import CLONE_NEWNET, in_child

IPTABLES = "iptables-nft"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def in_own_network(*commands: tuple[str, ...]) -> bool:
    def work() -> bool:
        linux.unshare(CLONE_NEWNET)
        for command in commands:
            run(*command)
        return netfilter.has_no_tables()

    return bool(in_child(work))


def test_a_new_network_has_none() -> None:
    assert in_own_network()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((IPTABLES, "-A", "INPUT", "-j", "ACCEPT"), id="IPv4"),
        pytest.param(("ip6tables-nft", "-A", "INPUT", "-j", "ACCEPT"), id="IPv6"),
    ],
)
def test_a_table_is_seen_whatever_its_family(command: tuple[str, ...]) -> None:
    assert not in_own_network(command)


def test_a_look_makes_none() -> None:
    """And `iptables -nL`, which it stands for, works there."""

    def work() -> bool:
        linux.unshare(CLONE_NEWNET)
        first = netfilter.has_no_tables()
        again = netfilter.has_no_tables()
        run(IPTABLES, "-nL")
        return first and again

    assert in_child(work)


def test_without_the_capability_nothing_is_said() -> None:
    source = "from cachedind.host import netfilter; raise SystemExit(netfilter.has_no_tables())"
    without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    said = [
        subprocess.run(
            ["unshare", "--net", *prefix, "python3", "-c", source],
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": "entrypoint"},
            check=False,
        ).returncode
        for prefix in ([], without)
    ]
    assert said == [True, False]
