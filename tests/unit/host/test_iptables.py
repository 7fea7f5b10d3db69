"""nf_tables or legacy, by docker:dind's rules."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cachedind.base.errors import HostPreparationError
from cachedind.host import iptables, netfilter, processes
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


class Machine:
    """Programs that say what they are told to, with a note of which were run."""

    def __init__(self, *, version: str = "iptables v1.8.9 (nf_tables)", working: bool = True) -> None:
        self.version = version
        self.working = working
        self.ran: list[str] = []

    def run(self, argv: list[str]) -> Result:
        self.ran.append(" ".join(argv))
        if argv[1:] == ["--version"]:
            is_legacy = argv[0].startswith(LEGACY_DIRECTORY)
            return Result(0, "iptables v1.8.9 (legacy)\n" if is_legacy else f"{self.version}\n", "")
        return Result(0 if self.working else 1, "", "")

    def question(self, argv: list[str]) -> SimpleNamespace:
        said = self.run(argv)
        return SimpleNamespace(answer=lambda: said)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """No table of either kind is there."""
    found = Machine()
    monkeypatch.setattr(processes, "run", found.run)
    monkeypatch.setattr(processes, "Question", found.question)
    monkeypatch.setattr(iptables, "read_tables", lambda: [])
    monkeypatch.setattr(netfilter, "has_no_tables", lambda: True)
    return found


@pytest.mark.parametrize(
    ("setting", "tables", "none", "ran"),
    [
        ("", [], True, ["modprobe nf_tables", "iptables --version"]),
        ("1", [], True, ["modprobe ip_tables", "modprobe ip6_tables", f"{LEGACY_PROGRAM} --version"]),
        (None, ["nat\n"], True, [f"{LEGACY_PROGRAM} --version"]),
        (None, [], True, ["iptables --version"]),
        (None, [], False, ["iptables -nL", "iptables --version"]),
    ],
    ids=["nf_tables wanted", "legacy wanted", "legacy tables", "no tables", "tried"],
)
def test_no_more_is_run_than_must_be(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    setting: str | None,
    tables: list[str],
    none: bool,
    ran: list[str],
) -> None:
    monkeypatch.setattr(iptables, "read_tables", lambda: tables)
    monkeypatch.setattr(netfilter, "has_no_tables", lambda: none)
    flavour, version = iptables.finish(iptables.begin(setting))
    assert machine.ran == ran
    assert version == f"iptables v1.8.9 ({flavour.value})"


def test_another_program_of_that_name_is_tried(machine: Machine) -> None:
    """A child image's alternative: legacy tables may not work although there are nf_tables."""
    machine.version, machine.working = "iptables v1.8.9 (legacy)", False
    assert iptables.finish(iptables.begin(None))[0] is NFT
    assert machine.ran[:2] == ["iptables --version", "iptables -nL"]
    assert f"{LEGACY_PROGRAM} -nL" in machine.ran


def test_what_was_tried_in_the_end_says_its_own_version(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netfilter, "has_no_tables", lambda: False)
    machine.working = False
    monkeypatch.setattr(iptables, "try_in_turn", lambda load, works, trials: LEGACY)
    assert iptables.finish(iptables.begin(None)) == (LEGACY, "iptables v1.8.9 (legacy)")


def test_the_first_trial_is_made_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a network of Docker's own there are tables, and with them it is asked beside the rest of the start."""
    monkeypatch.setattr(netfilter, "has_no_tables", lambda: False)
    machine.working = False
    assert iptables.finish(iptables.begin(None))[0] is NFT
    assert machine.ran == [
        "iptables -nL",
        "iptables --version",
        "modprobe nf_tables",
        "iptables -nL",
        "modprobe ip_tables",
        "modprobe ip6_tables",
        f"{LEGACY_PROGRAM} -nL",
    ]


def test_a_program_that_fails_ends_the_start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = SimpleNamespace(answer=lambda: Result(1, "", "no such thing\n"))
    monkeypatch.setattr(processes, "Question", lambda argv: bad)
    with pytest.raises(HostPreparationError, match="iptables --version fails: no such thing"):
        iptables.finish(iptables.begin(""))


def test_legacy_comes_first_on_path() -> None:
    assert apply_to_path(LEGACY, "/bin") == f"{LEGACY_DIRECTORY}:/bin"
    assert apply_to_path(NFT, "/bin") == "/bin"


def test_tables_that_the_kernel_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iptables, "_TABLE_NAMES", ("/proc/no-such-file", "/proc/version"))
    assert len(iptables.read_tables()) == 1
