"""The door to the environment: every variable that steers cachedind, what it may hold, and what it means.

`load` is total: it reports everything that is wrong at once. The table in docs/environment.md is generated from
VARIABLES (python -m cachedind.config), so it cannot drift.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from cachedind.errors import SettingsError
from cachedind.log import Level
from cachedind.model import COPYING_DRIVERS, GRAPH_DRIVERS, ImageStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "CACHEDIND_"

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

# What Kubernetes tells each pod about a Service, and docker --link about a container, whose name begins with
# "cachedind": not meant for us, and nobody can switch it off where the service is named so.
_OF_A_LINK = re.compile(
    r"CACHEDIND_(?:\w+_)?(?:NAME|ENV_\w+|SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)"
)


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


class Variable(NamedTuple):
    """One CACHEDIND_ variable: its name without the prefix, its default as text, its parser and its meaning."""

    name: str
    default: str
    parse: Callable[[str], object]
    accepts: str
    meaning: str


VARIABLES = (
    Variable(
        "LOCK_TIMEOUT",
        "10s",
        parse_duration_s,
        "a time: 30s, 5m; 0 does not wait",
        "How long to wait for a data-root that another daemon holds, before exit 75.",
    ),
    Variable(
        "IMAGE_STORE",
        "auto",
        parse_image_store,
        "auto, graphdriver, containerd",
        "Where the engine keeps images. auto: what the data-root has, else the engine's own default "
        "(graphdriver before 29, containerd from 29 on).",
    ),
    Variable(
        "STORAGE_DRIVER",
        "auto",
        parse_storage_driver,
        "auto, overlay2, fuse-overlayfs, btrfs, zfs, vfs; overlayfs, native for the containerd store",
        "The storage driver or snapshotter. auto: what the data-root has, else the best one that a trial proves.",
    ),
    Variable(
        "ALLOW_VFS",
        "0",
        parse_bool,
        "0, 1",
        "Whether vfs (containerd store: native), which copies every layer in full, may be chosen when nothing "
        "else works.",
    ),
    Variable(
        "ALLOW_NETWORK_FS",
        "0",
        parse_bool,
        "0, 1",
        "Whether to use a data-root on a filesystem whose locks other machines may not see (nfs, cifs, ceph, 9p, "
        "virtiofs, fuse). Two daemons on one data-root destroy it.",
    ),
    Variable(
        "STRICT",
        "0",
        parse_bool,
        "0, 1",
        "Whether a degradation (a slower driver, a cache that will not survive, …) ends the start instead of being "
        "logged.",
    ),
    Variable("LOG_FORMAT", "text", parse_is_json, "text, json", "How cachedind's own lines on standard error look."),
    Variable("LOG_LEVEL", "info", parse_level, "debug, info, warn, error", "How much cachedind says."),
)


class Config(NamedTuple):
    """All settings. Times in seconds."""

    lock_timeout_s: float
    image_store: ImageStore | None
    storage_driver: str | None
    allow_vfs: bool
    allow_network_fs: bool
    strict: bool
    log_json: bool
    log_level: Level
    docker_host: str
    tls_certdir: str
    tls_san: str
    docker_driver: str
    iptables_legacy: str | None
    """None: not set, so probe. Empty: nf_tables without probing. Anything else: legacy (docker:dind's rule)."""
    path: str


def load(environ: Mapping[str, str]) -> Config:
    """Read every setting. An empty value counts as not set, as CI systems pass empty variables.

    Raises SettingsError that names all bad values and all unknown CACHEDIND_ variables.
    """
    values, problems = _parse_all(environ)
    problems += [_unknown(name) for name in sorted(environ) if name.startswith(PREFIX) and not _is_known(name)]
    if not problems and values["STORAGE_DRIVER"] in COPYING_DRIVERS and not values["ALLOW_VFS"]:
        problems.append(f"{PREFIX}STORAGE_DRIVER={values['STORAGE_DRIVER']} also needs {PREFIX}ALLOW_VFS=1")
    if problems:
        raise SettingsError("; ".join(problems), "see docs/environment.md; nothing was touched")
    return Config(
        lock_timeout_s=values["LOCK_TIMEOUT"],  # type: ignore[arg-type]
        image_store=values["IMAGE_STORE"],  # type: ignore[arg-type]
        storage_driver=values["STORAGE_DRIVER"],  # type: ignore[arg-type]
        allow_vfs=bool(values["ALLOW_VFS"]),
        allow_network_fs=bool(values["ALLOW_NETWORK_FS"]),
        strict=bool(values["STRICT"]),
        log_json=bool(values["LOG_FORMAT"]),
        log_level=values["LOG_LEVEL"],  # type: ignore[arg-type]
        docker_host=environ.get("DOCKER_HOST", ""),
        tls_certdir=environ.get("DOCKER_TLS_CERTDIR", ""),
        tls_san=environ.get("DOCKER_TLS_SAN", ""),
        docker_driver=environ.get("DOCKER_DRIVER", ""),
        iptables_legacy=environ.get("DOCKER_IPTABLES_LEGACY"),
        path=environ.get("PATH", os.defpath),
    )


def _parse_all(environ: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    values: dict[str, object] = {}
    problems: list[str] = []
    for variable in VARIABLES:
        text = environ.get(PREFIX + variable.name, "").strip() or variable.default
        try:
            values[variable.name] = variable.parse(text)
        except ValueError as error:
            problems.append(f"{PREFIX}{variable.name}={text!r} is not {error}")
    return values, problems


def _is_known(name: str) -> bool:
    return any(name == PREFIX + variable.name for variable in VARIABLES) or _OF_A_LINK.fullmatch(name) is not None


def _unknown(name: str) -> str:
    import difflib  # only here: a good start has no use for it

    # Without the prefix, which all have in common and which would make any two names look alike.
    near = difflib.get_close_matches(name.removeprefix(PREFIX), [variable.name for variable in VARIABLES], n=1)
    return f"{name} is not a variable of cachedind" + (f", did you mean {PREFIX}{near[0]}?" if near else "")


def environment() -> dict[str, str]:
    """This process's environment as it was started with, the only place that reads it.

    Python adds LC_CTYPE to its own when there is no locale (PEP 538); dockerd and what it runs must not get that.
    """
    found = dict(os.environ)
    with open("/proc/self/environ", "rb") as file:
        if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
            found.pop("LC_CTYPE", None)
    return found


def daemon_environment(environ: Mapping[str, str], *, path: str, listen_fds: int) -> dict[str, str]:
    """What dockerd gets to see.

    DOCKER_DRIVER is taken out because it would override the decision (moby reads it before --storage-driver),
    LISTEN_* of
    somebody else because ours follow, CACHEDIND_* because inner tools have no use for it. container=docker keeps
    the inner engine's hands off the host's AppArmor profiles (containerd, pkg/apparmor/apparmor_linux.go).
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in ("DOCKER_DRIVER", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES") and not name.startswith(PREFIX)
    }
    kept["container"] = "docker"
    kept["PATH"] = path
    if listen_fds:
        kept["LISTEN_FDS"] = str(listen_fds)
    return kept


def markdown_table() -> str:
    """docs/environment.md's table of cachedind's own variables."""
    lines = ["| variable | default | accepts | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{PREFIX}{v.name}` | `{v.default}` | {v.accepts} | {v.meaning} |" for v in VARIABLES]
    return "\n".join(lines) + "\n"
