"""A container's variables, set to nothing or of somebody else, and a root that is read-only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from helpers.daemons import LEGACY_FARM, daemon_environment, listening_ports

if TYPE_CHECKING:
    from helpers.engine import Engine


def test_iptables_set_but_empty_is_nf_tables(engine: Engine, suite: str) -> None:
    """Empty is a choice, not "not set": it holds even where the kernel has legacy rules."""
    rule = f"{LEGACY_FARM}/iptables -t nat -nL >/dev/null"
    entrypoint = ["sh", "-c", f'{rule}; exec dockerd-entrypoint.sh "$@"', "entrypoint"]
    unset = engine.dind(suite, entrypoint=entrypoint)
    empty = engine.dind(suite, entrypoint=entrypoint, env={"DOCKER_IPTABLES_LEGACY": ""})
    for dind, flavour in ((unset, "legacy"), (empty, "nf_tables")):
        dind.wait_ready()
        assert dind.sh("cat /proc/net/ip_tables_names") != ""
        assert [text for text in dind.messages if re.match(rf"iptables v[\d.]+ \({flavour}\)$", text)]
        assert daemon_environment(dind)["PATH"].startswith(LEGACY_FARM) == (flavour == "legacy")


def test_plain_tcp_without_encryption_is_warned_of(engine: Engine, suite: str) -> None:
    """Both known ways out of dockerd's pause: neither keeps the warning from being given."""
    for args in ([], ["--tls=false"]):
        dind = engine.dind(suite, args=args, env={"DOCKER_TLS_CERTDIR": ""})
        dind.wait_ready()
        assert listening_ports(dind) == {2375}
        assert len(dind.warnings) == 2, dind.warnings  # the other one: an anonymous volume
        assert any("2375" in text for text in dind.warnings)


def test_a_projects_own_variables_cost_one_line(engine: Engine, suite: str) -> None:
    """`services: [{name: $CACHEDIND_IMAGE}]` is how a team names the image, and GitLab tells services all variables."""
    env = {"CACHEDIND_IMAGE": "registry.example.com/cachedind:1", "CACHEDIND_VERSION": "1"}
    dind = engine.dind(suite, volume=engine.volume(), env=env)
    dind.wait_ready()
    [warning] = dind.warnings
    assert "CACHEDIND_IMAGE, CACHEDIND_VERSION" in warning


def test_a_read_only_container_is_told_what_it_needs_and_works_with_that(engine: Engine, suite: str) -> None:
    options: dict[str, Any] = {"volume": engine.volume(), "read_only": True}
    bare = engine.dind(suite, **options)
    assert bare.wait_exit() == 71
    [error] = bare.errors
    needed = re.findall(r"--tmpfs (/\w+)", error)
    assert needed == ["/run", "/certs"]
    engine.dind(suite, tmpfs=dict.fromkeys(needed, ""), **options).wait_ready()
