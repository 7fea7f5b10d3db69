"""Which iptables dockerd gets: nf_tables or legacy, by docker:dind's rules.

Legacy is chosen by PATH: a directory of links to the legacy programs comes first, no file is changed. The kernel is
shared with
the host, so what the host uses counts: rules of both kinds side by side block each other (docker-library/docker#467).
"""

from __future__ import annotations

import os
from enum import Enum

from cachedind.base.errors import HostPreparationError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.host import netfilter, processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachedind.host.processes import Question, Result

LEGACY_DIRECTORY = "/usr/local/sbin/.iptables-legacy"
_TABLE_NAMES = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names", "/proc/net/arp_tables_names")
_NFT_MODULES = ("nf_tables",)
_LEGACY_MODULES = ("ip_tables", "ip6_tables")


class Flavour(Enum):
    NFT = "nf_tables"
    LEGACY = "legacy"


class Trial(NamedTuple):
    """What to find out, in this order, when neither the user nor the host's tables decide. Each loads modules first."""

    modules: tuple[str, ...]
    program: str
    flavour: Flavour


TRIALS = (
    Trial((), "iptables", Flavour.NFT),
    Trial(_NFT_MODULES, "iptables", Flavour.NFT),
    Trial(_LEGACY_MODULES, f"{LEGACY_DIRECTORY}/iptables", Flavour.LEGACY),
)


def plan_without_trial(legacy_setting: str | None, tables: list[str]) -> Flavour | None:
    """The flavour where DOCKER_IPTABLES_LEGACY (set but empty means nf_tables) or the kernel's legacy tables decide."""
    if legacy_setting is not None:
        return Flavour.LEGACY if legacy_setting else Flavour.NFT
    return Flavour.LEGACY if any(text.strip() for text in tables) else None


def read_tables() -> list[str]:
    """The names of the legacy tables in use; a missing file means that the kernel does not have that kind."""
    found = []
    for path in _TABLE_NAMES:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                found.append(file.read())
        except OSError:
            continue
    return found


class Begun(NamedTuple):
    """What is known of the flavour before its program has said its version: `decided` by the user or the host's tables;
    else the first trial is being made (`listing`), or there is no table and nf_tables are it, if `version` says so."""

    decided: Flavour | None
    version: Question
    listing: Question | None


def begin(legacy_setting: str | None) -> Begun:
    """Ask what can be asked while the start goes on (`finish`). Raises ProgramMissingError."""
    decided = plan_without_trial(legacy_setting, read_tables())
    if decided is not None and legacy_setting is not None:
        load_modules(_LEGACY_MODULES if decided is Flavour.LEGACY else _NFT_MODULES)
    listing = None
    if decided is None and not netfilter.has_no_tables():
        # In a network of Docker's own, where its name server has rules.
        listing = processes.Question(_list_command(TRIALS[0].program))
    return Begun(decided, processes.Question(_version_command(decided or Flavour.NFT)), listing)


def finish(begun: Begun) -> tuple[Flavour, str]:
    """The flavour, and what its program says of its version; tries where nothing else tells.

    `iptables -nL`, the first trial, fails where the kernel has no nf_tables, or where a table is not as iptables makes
    it. So where the kernel has them, no table is there, and the program is the one for them, it need not be run. Raises
    HostPreparationError, ProgramMissingError.
    """
    said = begun.version.answer()
    flavour = begun.decided
    listed = None if begun.listing is None else begun.listing.answer()
    if flavour is None and (is_for_nf_tables(said) if listed is None else listed.ok):
        flavour = Flavour.NFT
    if flavour is None:
        trials = TRIALS if listed is None else TRIALS[1:]
        flavour = try_in_turn(load_modules, lambda program: processes.run(_list_command(program)).ok, trials)
        if flavour is Flavour.LEGACY:
            said = processes.run(_version_command(flavour))
    return flavour, _check_version(said, flavour)


def is_for_nf_tables(version: Result) -> bool:
    """Whether it is nf_tables' iptables that says this version: a child image may have put another one on PATH."""
    return version.ok and version.stdout.strip().endswith("(nf_tables)")


def try_in_turn(
    load: Callable[[tuple[str, ...]], None], works: Callable[[str], bool], trials: tuple[Trial, ...] = TRIALS
) -> Flavour:
    """The flavour of the first trial that succeeds; nf_tables where none does, so that its own error message is
    seen.
    """
    for trial in trials:
        if trial.modules:
            load(trial.modules)
        if works(trial.program):
            return trial.flavour
    return Flavour.NFT


def load_modules(modules: tuple[str, ...]) -> None:
    """Best effort, as in docker:dind: the host may have them built in, or loaded, or not let a container ask."""
    for module in modules:
        processes.run(["modprobe", module])


def apply_to_path(flavour: Flavour, path: str) -> str:
    """The PATH with which dockerd finds that flavour."""
    return f"{LEGACY_DIRECTORY}{os.pathsep}{path}" if flavour is Flavour.LEGACY else path


def _list_command(program: str) -> list[str]:
    return [program, "-nL"]


def _version_command(flavour: Flavour) -> list[str]:
    return [f"{LEGACY_DIRECTORY}/iptables" if flavour is Flavour.LEGACY else "iptables", "--version"]


def _check_version(said: Result, flavour: Flavour) -> str:
    """The line itself. Raises HostPreparationError when the program fails, as dockerd could do nothing then."""
    if not said.ok:
        raise HostPreparationError(
            f"{' '.join(_version_command(flavour))} fails: {said.stderr.strip()}",
            "DOCKER_IPTABLES_LEGACY=1 takes the other flavour",
        )
    return said.stdout.strip()
