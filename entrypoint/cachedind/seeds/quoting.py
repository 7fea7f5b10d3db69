"""Words of others, from a seed or a daemon, as they can stand in a line of the log. Pure."""

from __future__ import annotations


def shown(text: object) -> str:
    """Something from a seed, as it can stand in a line of the log."""
    line = "".join(character if character.isprintable() else "?" for character in str(text))
    return line if len(line) <= 120 else f"{line[:119]}…"


def one_line(text: object, limit: int = 300) -> str:
    """An error message of a daemon or a library."""
    printable = "".join(character if character.isprintable() else " " for character in str(text))
    return " ".join(printable.split())[:limit]
