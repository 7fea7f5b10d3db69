"""dockerd's command line is taken apart by tables of our own; here they are held against the engines themselves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from cachedind.settings.arguments import INFORMATIONAL, SHORT, SWITCHES
from helpers.clients import run_once
from helpers.flavours import SUITES

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
