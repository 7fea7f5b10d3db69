"""Which iptables dockerd gets: nf_tables or legacy, by docker:dind's rules.

Legacy is chosen by PATH: a directory of links to the legacy programs comes first, no file is changed. The kernel is
shared with
the host, so what the host uses counts: rules of both kinds side by side block each other (docker-library/docker#467).
"""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.errors import HostPreparationError

if TYPE_CHECKING:
    from collections.abc import Callable

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


def choose(legacy_setting: str | None) -> Flavour:
    """Decide, trying where nothing else tells."""
    from cachedind.host.processes import run

    flavour = plan_without_trial(legacy_setting, read_tables())
    if flavour is not None:
        if legacy_setting is not None:
            load_modules(_LEGACY_MODULES if flavour is Flavour.LEGACY else _NFT_MODULES)
        return flavour
    return try_in_turn(load_modules, lambda program: run([program, "-nL"]).ok)


def try_in_turn(load: Callable[[tuple[str, ...]], None], works: Callable[[str], bool]) -> Flavour:
    """The flavour of the first trial that succeeds; nf_tables where none does, so that its own error message is
    seen.
    """
    for trial in TRIALS:
        if trial.modules:
            load(trial.modules)
        if works(trial.program):
            return trial.flavour
    return Flavour.NFT


def load_modules(modules: tuple[str, ...]) -> None:
    """Best effort, as in docker:dind: the host may have them built in, or loaded, or not let a container ask."""
    from cachedind.host.processes import run

    for module in modules:
        run(["modprobe", module])


def apply_to_path(flavour: Flavour, path: str) -> str:
    """The PATH with which dockerd finds that flavour."""
    return f"{LEGACY_DIRECTORY}{os.pathsep}{path}" if flavour is Flavour.LEGACY else path


def read_version(flavour: Flavour) -> str:
    """What `iptables --version` says. Raises HostPreparationError when it fails, as dockerd could do nothing then."""
    from cachedind.host.processes import run

    program = f"{LEGACY_DIRECTORY}/iptables" if flavour is Flavour.LEGACY else "iptables"
    result = run([program, "--version"])
    if not result.ok:
        raise HostPreparationError(
            f"{program} --version fails: {result.stderr.strip()}", "DOCKER_IPTABLES_LEGACY=1 takes the other flavour"
        )
    return result.stdout.strip()
