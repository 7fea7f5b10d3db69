"""A key as a directory's name. Pure.

    group/project   group%2fproject
    Org/Repo.x      !org%2f!repo.x
    ../../etc       %2e.%2f..%2fetc
    ""              %
    xxx… (4 KB)     xxx…~<sha256 of the whole key>

Every name is made of a-z, 0-9 and `.` `_` `-` `%` `!` `~`, so neither folding of case nor Unicode normalisation, which
some filesystems do, can make two names one. The mark for an uppercase letter is that of Go's module cache
(golang.org/x/mod/module, EscapePath).
"""

from __future__ import annotations

BASE_KEY = ""
"""Whose golden has nothing but seeds in it: what a start begins with that finds nothing of its own key. No setting can
name it, because an empty key is refused."""

MAX_NAME_BYTES = 200
"""Below NAME_MAX (255 on every filesystem a pool may be on), which leaves room for a suffix."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-")
_NOT_IN_FRONT = frozenset(b".-")


def directory_name(key: str) -> str:
    """A name of one path component for any text: two keys have two names, and a key has the same one for ever.

    It is ASCII, at most MAX_NAME_BYTES long, and begins neither with a dot (hidden, or `..`) nor with a hyphen (an
    option to whatever is run on it).
    """
    # "surrogatepass" keeps all texts apart; "surrogateescape" would make one of "ÿ" and of its two bytes, escaped.
    raw = key.encode("utf-8", "surrogatepass")
    name = "".join(_escape(byte, front=index == 0) for index, byte in enumerate(raw)) or "%"
    return name if len(name) <= MAX_NAME_BYTES else _shorten(name, raw)


def key_of(name: str) -> str | None:
    """The key whose `directory_name` that is; None for a shortened one, and for what no key is called."""
    raw = bytearray()
    rest = "" if name == "%" or not name.isascii() else name
    while rest:
        mark, size = rest[0], {"%": 3, "!": 2}.get(rest[0], 1)
        try:
            raw.append(int(rest[1:3], 16) if mark == "%" else ord(rest[size - 1].upper() if mark == "!" else mark))
        except (ValueError, IndexError):
            return None
        rest = rest[size:]
    try:
        key = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    # Whatever the above made of a name that is none: it does not lead back there.
    return key if directory_name(key) == name else None


def _escape(byte: int, *, front: bool) -> str:
    if byte in _PLAIN and not (front and byte in _NOT_IN_FRONT):
        return chr(byte)
    return "!" + chr(byte).lower() if ord("A") <= byte <= ord("Z") else f"%{byte:02x}"


def _shorten(name: str, raw: bytes) -> str:
    import hashlib  # slow to import, and most keys are short

    digest = hashlib.sha256(raw).hexdigest()
    # "~" is escaped in every other name, so none of them can look like this one.
    return f"{name[: MAX_NAME_BYTES - len(digest) - 1]}~{digest}"
