"""nf_tables or legacy, by docker:dind's rules."""

from __future__ import annotations

import pytest

from cachedind.base.errors import HostPreparationError
from cachedind.host import iptables
from cachedind.host.iptables import LEGACY_DIRECTORY, Flavour, apply_to_path, plan_without_trial, try_in_turn
from cachedind.host.processes import Result

NFT, LEGACY = Flavour.NFT, Flavour.LEGACY
NFT_PROGRAM, LEGACY_PROGRAM = "iptables", f"{LEGACY_DIRECTORY}/iptables"


@pytest.mark.parametrize(
    ("setting", "tables", "flavour"),
    [
        pytest.param(None, [], None, id="nothing tells"),
        pytest.param(None, ["", "\n", ""], None, id="legacy modules without tables"),
        pytest.param(None, ["nat\nfilter\n"], LEGACY, id="legacy tables in use"),
        pytest.param(None, ["", "filter\n"], LEGACY, id="legacy tables of IPv6"),
        pytest.param("1", [], LEGACY, id="legacy wanted"),
        pytest.param("0", [], LEGACY, id="any text wants legacy, as in docker:dind"),
        pytest.param("", ["nat\n"], NFT, id="set but empty is nf_tables, whatever the tables"),
    ],
)
def test_plan_without_trial(setting: str | None, tables: list[str], flavour: Flavour | None) -> None:
    assert plan_without_trial(setting, tables) is flavour


@pytest.mark.parametrize(
    ("working", "flavour", "steps"),
    [
        (1, NFT, [NFT_PROGRAM]),
        (2, NFT, [NFT_PROGRAM, "nf_tables", NFT_PROGRAM]),
        (3, LEGACY, [NFT_PROGRAM, "nf_tables", NFT_PROGRAM, "ip_tables", "ip6_tables", LEGACY_PROGRAM]),
        (9, NFT, [NFT_PROGRAM, "nf_tables", NFT_PROGRAM, "ip_tables", "ip6_tables", LEGACY_PROGRAM]),
    ],
    ids=["at once", "after loading nf_tables", "legacy alone", "nothing"],
)
def test_trials_in_order(working: int, flavour: Flavour, steps: list[str]) -> None:
    done: list[str] = []
    tried: list[str] = []

    def works(program: str) -> bool:
        done.append(program)
        tried.append(program)
        return len(tried) == working

    assert try_in_turn(lambda modules: done.extend(modules), works) is flavour
    assert done == steps


@pytest.mark.parametrize(
    ("setting", "tables", "ran"),
    [
        ("", [], ["modprobe nf_tables"]),
        ("1", [], ["modprobe ip_tables", "modprobe ip6_tables"]),
        (None, ["nat\n"], []),
        (None, [], ["iptables -nL"]),
    ],
    ids=["nf_tables wanted", "legacy wanted", "legacy tables", "tried"],
)
def test_choose_runs_no_more_than_it_must(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, tables: list[str], ran: list[str]
) -> None:
    commands: list[str] = []

    def run(argv: list[str]) -> Result:
        commands.append(" ".join(argv))
        return Result(0, "", "")

    monkeypatch.setattr("cachedind.host.processes.run", run)
    monkeypatch.setattr(iptables, "read_tables", lambda: tables)
    iptables.choose(setting)
    assert commands == ran


def test_legacy_comes_first_on_path() -> None:
    assert apply_to_path(LEGACY, "/bin") == f"{LEGACY_DIRECTORY}:/bin"
    assert apply_to_path(NFT, "/bin") == "/bin"


def test_the_version_is_that_of_the_chosen_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachedind.host.processes.run", lambda argv: Result(0, f"{argv[0]} v1.8.9 (legacy)\n", ""))
    assert iptables.read_version(LEGACY) == f"{LEGACY_PROGRAM} v1.8.9 (legacy)"
    monkeypatch.setattr("cachedind.host.processes.run", lambda argv: Result(1, "", "no such thing\n"))
    with pytest.raises(HostPreparationError, match="iptables --version fails: no such thing"):
        iptables.read_version(NFT)


def test_tables_that_the_kernel_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iptables, "_TABLE_NAMES", ("/proc/no-such-file", "/proc/version"))
    assert len(iptables.read_tables()) == 1
