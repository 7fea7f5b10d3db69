"""dockerd's command line, understood far enough to know what the user asked for. Pure.

click is not used here: it would take options for its own. The rules are those of spf13/pflag, which dockerd uses:
--name=value, --name value, --switch, --switch=false, -H value, -Hvalue, -H=value, -DH value, and -- as the end.
"""

from __future__ import annotations

from cachedind.base.errors import DaemonConfigError
from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SWITCHES = frozenset(
    {
        "allow-direct-routing",
        "cri-containerd",
        "debug",
        "experimental",
        "help",
        "icc",
        "init",
        "ip-forward",
        "ip-forward-no-drop",
        "ip-masq",
        "ip6tables",
        "iptables",
        "ipv6",
        "live-restore",
        "no-new-privileges",
        "raw-logs",
        "rootless",
        "selinux-enabled",
        "tls",
        "tlsverify",
        "userland-proxy",
        "validate",
        "version",
    }
)
"""dockerd's flags that take no separate value (dockerd --help of 26.1 and 28.5, checked by a test against both)."""

SHORT = {
    "b": "bridge",
    "D": "debug",
    "G": "group",
    "H": "host",
    "h": "help",
    "l": "log-level",
    "p": "pidfile",
    "s": "storage-driver",
    "v": "version",
}
"""dockerd's one-letter flags."""

INFORMATIONAL = frozenset({"help", "validate", "version"})
"""Flags with which dockerd tells something and ends."""


class Flag(NamedTuple):
    """One flag as given: its long name, its value, and the words it was made of."""

    name: str
    value: str
    words: tuple[str, ...]


class DaemonArguments(NamedTuple):
    """dockerd's arguments in their order. `rest` is what follows the flags: dockerd refuses it itself."""

    flags: tuple[Flag, ...]
    rest: tuple[str, ...]

    def all(self, name: str) -> list[str]:
        return [flag.value for flag in self.flags if flag.name == name]

    def last(self, name: str) -> str | None:
        """The value that counts, as pflag lets a later one win."""
        values = self.all(name)
        return values[-1] if values else None

    def has(self, *names: str) -> bool:
        return any(flag.name in names for flag in self.flags)

    def without(self, dropped: Iterable[Flag]) -> DaemonArguments:
        gone = set(dropped)
        return DaemonArguments(tuple(flag for flag in self.flags if flag not in gone), self.rest)

    @property
    def words(self) -> list[str]:
        return [word for flag in self.flags for word in flag.words] + list(self.rest)

    @property
    def is_informational(self) -> bool:
        return any(flag.name in INFORMATIONAL and flag.value != "false" for flag in self.flags)


def parse_daemon_arguments(words: list[str]) -> DaemonArguments:
    """Take dockerd's command line (without the program's name) apart.

    Raises DaemonConfigError when a flag that needs a value is the last word, and for a dash among one-letter flags.
    """
    flags: list[Flag] = []
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--" or not word.startswith("-") or word == "-":
            return DaemonArguments(tuple(flags), tuple(words[position:]))
        following = words[position + 1] if position + 1 < len(words) else None
        found, used = _parse_long(word, following) if word.startswith("--") else _parse_short(word, following)
        flags += found
        position += used
    return DaemonArguments(tuple(flags), ())


def _parse_long(word: str, following: str | None) -> tuple[list[Flag], int]:
    name, equals, value = word[2:].partition("=")
    if equals:
        return [Flag(name, value, (word,))], 1
    if name in SWITCHES:
        return [Flag(name, "true", (word,))], 1
    return _with_following(name, word, word, following)


def _parse_short(word: str, following: str | None) -> tuple[list[Flag], int]:
    flags: list[Flag] = []
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter == "-":
            raise DaemonConfigError(
                f"dockerd's argument {word} has a second dash", "write its flags apart, as in -D -l=info"
            )
        name = SHORT.get(letter, letter)
        if letters.startswith("="):
            return [*flags, Flag(name, letters[1:], (f"-{letter}{letters}",))], 1
        if name in SWITCHES:
            flags.append(Flag(name, "true", (f"-{letter}",)))
        elif letters:
            return [*flags, Flag(name, letters, (f"-{letter}{letters}",))], 1
        else:
            more, used = _with_following(name, f"-{letter}", word, following)
            return [*flags, *more], used
    return flags, 1


def _with_following(name: str, spelled: str, word: str, following: str | None) -> tuple[list[Flag], int]:
    if following is None:
        raise DaemonConfigError(f"dockerd's argument {word} needs a value", f"give one: {word}=VALUE")
    return [Flag(name, following, (spelled, following))], 2
