"""Values in the text of variables. Each parser returns one, or raises ValueError saying what is accepted. Pure."""

from __future__ import annotations

import os
import re

from cachedind.base.log import Level
from cachedind.base.model import GRAPH_DRIVERS, ImageStore
from cachedind.base.sizes import parse_size_bytes
from cachedind.base.trace import POINTS
from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeVar

    _Number = TypeVar("_Number", int, float)

KEPT_KINDS = ("containers", "networks", "volumes", "images")
"""What a job makes in the engine besides build cache."""
VOLUMES_LIKE = "volumes:"
"""What comes before the pattern of names in a word that keeps some volumes."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_VOLUME_PATTERN = r"[A-Za-z0-9_.*?\[\]!-]+"
"""Characters of volumes' names (moby, volume/names), and those of fnmatch(3)."""
_OWN_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def parse_duration_s(text: str) -> float:
    """Seconds in "10s", "500ms", "1h30m" or a bare "0". Raises ValueError saying what is accepted."""
    if text == "0":
        return 0.0
    if not text or _DURATION.sub("", text):
        raise ValueError("a time such as 30s, 5m or 14d")
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(text))


def parse_bool(text: str) -> bool:
    """True for 1, true, yes, on; False for 0, false, no, off. Raises ValueError otherwise."""
    lowered = text.lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError("1 or 0")
    return lowered in _TRUE


def parse_image_store(text: str) -> ImageStore | None:
    """None for "auto"."""
    if text == "auto":
        return None
    if text not in {store.value for store in ImageStore}:
        raise ValueError("auto, graphdriver or containerd")
    return ImageStore(text)


def parse_storage_driver(text: str) -> str | None:
    """None for "auto"."""
    names = (*GRAPH_DRIVERS, "overlayfs", "native")
    if text == "auto":
        return None
    if text not in names:
        raise ValueError(f"auto, {', '.join(names[:-1])} or {names[-1]}")
    return text


def parse_level(text: str) -> Level:
    if text.upper() not in Level.__members__:
        raise ValueError("debug, info, warn or error")
    return Level[text.upper()]


def parse_is_json(text: str) -> bool:
    if text not in ("text", "json"):
        raise ValueError("text or json")
    return text == "json"


def parse_size_or_auto(text: str) -> int | None:
    """None for "auto"."""
    return None if text == "auto" else _above_zero(parse_size_bytes(text), "auto")


def parse_size_or_none(text: str) -> int | None:
    """None for "none"."""
    return None if text == "none" else _above_zero(parse_size_bytes(text), "none")


def parse_free_bytes(text: str) -> int | None:
    """None for "auto"; 0 for "none"."""
    return None if text == "auto" else 0 if text == "none" else parse_size_bytes(text)


def parse_age_s(text: str) -> float | None:
    """Seconds, or None for "none". Raises ValueError for 0 too."""
    return None if text == "none" else _above_zero(parse_duration_s(text), "none")


def _above_zero(number: _Number, instead: str) -> _Number:
    # Zero could mean "no limit" or "keep nothing": the one keeps everything, the other empties the pool.
    if not number:
        raise ValueError(f"above zero; to set nothing, say {instead}")
    return number


def parse_pool(text: str) -> str | None:
    """A normal absolute path, "" for no pool, or None for "auto"."""
    if text in ("", "auto"):
        return None if text else ""
    path = "/" + os.path.normpath(text).lstrip("/")
    if not text.startswith("/") or path == "/":
        raise ValueError("an absolute path such as /cachedind, auto, or empty for no pool")
    return path


def parse_key(text: str) -> str:
    """A key without the blanks around it. Raises ValueError for an empty one and for one with a NUL."""
    key = text.strip()
    if not key or "\0" in key:
        raise ValueError("a key: any text that is not empty and has no NUL in it")
    return key


_PART_OF_MANY = re.compile(r"\s*\b\d+/\d+$")
"""What GitLab puts after the name of a job that runs in several at once (`parallel: 3`)."""


def parse_scope(text: str) -> str:
    """A job's name, the same for all parts of a parallel one: "build 2/3" is "build". Raises ValueError for a NUL."""
    if "\0" in text:
        raise ValueError("any text without a NUL in it")
    return _PART_OF_MANY.sub("", text.strip()).strip()


def parse_keys(text: str) -> tuple[str, ...]:
    """Keys separated by commas or line ends, each once. Raises ValueError as `parse_key` does."""
    names = re.split(r"[,\n]", text)
    return tuple(dict.fromkeys(parse_key(name) for name in names if name.strip()))


def parse_is_read_only(text: str) -> bool:
    if text not in ("rw", "ro"):
        raise ValueError("rw or ro")
    return text == "ro"


def parse_keep(text: str) -> frozenset[str]:
    """Some of KEPT_KINDS, and words such as "volumes:db_*" with a pattern of volumes' names; "all" is all kinds, "none"
    none."""
    if text in ("all", "none"):
        return frozenset(KEPT_KINDS if text == "all" else ())
    words = frozenset(word.strip() for word in text.split(","))
    patterns = (word.removeprefix(VOLUMES_LIKE) for word in words if word.startswith(VOLUMES_LIKE))
    named = frozenset(VOLUMES_LIKE + pattern for pattern in patterns if re.fullmatch(_VOLUME_PATTERN, pattern))
    if not words <= named.union(KEPT_KINDS):
        raise ValueError(
            f"a list of {', '.join(KEPT_KINDS)} and {VOLUMES_LIKE}PATTERN separated by commas, or all or none"
        )
    return words


def parse_seeds(text: str) -> tuple[str, ...] | None:
    """Absolute paths and globs separated by commas or line ends, each once; no path for "", None for "auto"."""
    if text == "auto":
        return None
    paths = tuple(dict.fromkeys(path.strip() for path in re.split(r"[,\n]", text) if path.strip()))
    if any(not path.startswith("/") or "\0" in path for path in paths):
        raise ValueError("a list of absolute paths and globs separated by commas, auto, or empty for no seeds")
    return paths


def parse_images(text: str) -> tuple[str, ...]:
    """Names and globs separated by commas or white space, each once."""
    return tuple(dict.fromkeys(re.split(r"[,\s]+", text.strip(", \t\n")))) if text else ()


def parse_seed_host(text: str) -> str:
    """A docker host, "" for none. Raises ValueError for the path of our own daemon's socket, too."""
    if not text:
        return ""
    scheme, _, rest = text.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        if os.path.normpath(rest) in _OWN_SOCKETS:
            raise ValueError(
                "a socket of another daemon: that path is this daemon's own; mount the other one elsewhere, "
                "for example at /host/docker.sock"
            )
        return text
    if scheme == "tcp" and re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^/:@\s\[\]]+):[0-9]{1,5}/?", rest):
        return text
    raise ValueError("a docker host such as unix:///host/docker.sock or tcp://host:2376")


def parse_optional_path(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError("an absolute path")
    return text


def parse_is_after(text: str) -> bool:
    if text not in ("before", "after"):
        raise ValueError("before or after")
    return text == "after"


def parse_listen(text: str) -> tuple[tuple[str, int | None], ...]:
    """IPv4 or IPv6 addresses separated by commas, each with its port or None; no address at all for "none"."""
    if text == "none":
        return ()
    return tuple(_parse_address(entry.strip()) for entry in text.split(","))


def _parse_address(entry: str) -> tuple[str, int | None]:
    import socket

    # One colon is before a port, more of them are an IPv6 address's own unless that is in brackets.
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::([0-9]{1,5}))?|([0-9.]+)(?::([0-9]{1,5}))?|([0-9a-fA-F:.]+)", entry)
    accepted = "none, or IP addresses separated by commas: 127.0.0.1, 0.0.0.0, ::1, [::1]:2376"
    if match is None:
        raise ValueError(accepted)
    name, port = match[1] or match[3] or match[5], match[2] or match[4]
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in name else socket.AF_INET, name)
    except OSError:
        raise ValueError(accepted) from None
    if port is not None and not 0 < int(port) < 1 << 16:
        raise ValueError(accepted)
    return name, None if port is None else int(port)


def parse_point(text: str) -> str:
    if text and text not in POINTS:
        raise ValueError(f"one of {', '.join(POINTS)}")
    return text
