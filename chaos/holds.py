"""What must hold of instances at any time, whatever was played."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from helpers.pools import together

if TYPE_CHECKING:
    from helpers.dind import Dind

_DONE_BY_KILLS = re.compile(r"there is no record of it: the last number given out is")
"""What a kill may really have done to data, as its reason says when it is moved aside (docs/reliability.md)."""


def no_alarm(dind: Dind) -> None:
    """Nobody has a traceback, and nothing of the data was moved aside but what a kill had really done."""
    log = dind.log()
    assert "Traceback" not in log, log
    aside = dind.sh("cat $(find /var/lib/docker -maxdepth 5 -path '*/.cachedind/aside/*/why.json') </dev/null")
    alarms = [why for why in re.findall(r'"why": "(.*?)"[,}]', aside) if not _DONE_BY_KILLS.search(why)]
    assert not alarms, f"moved aside: {alarms}"


def nothing_of_others(dind: Dind) -> None:
    """A job that has just begun sees what an empty daemon shows."""
    for what in (("ps", "--all"), ("images", "--all"), ("volume", "ls"), ("network", "ls", "--filter=type=custom")):
        found = dind.docker(*what, "--quiet")
        assert not found, f"{dind.name} finds what another job made: {what[0]} {found}"


def no_alarm_in_pool(dind: Dind) -> None:
    """`cachedind ls` shows nothing that was set aside."""
    aside = json.loads(dind.exec("cachedind", "ls", "--json", "--no-sizes").stdout).get("aside")
    assert not aside, f"set aside: {aside}"


def each_alone(dinds: list[Dind]) -> None:
    """No two daemons run on one data-root, and each has its files."""
    look = "stat -c %d:%i /var/lib/docker; test -e /var/lib/docker/engine-id || ls -A /var/lib/docker/*.*/engine-id >&2"
    places = together(lambda dind: dind.sh(look), dinds) if dinds else []
    assert len(set(places)) == len(places), "two on one data-root"
