"""The door to the environment: every variable that steers cachedind, what it may hold, and what it means.

`load` is total: it reports everything that is wrong at once. The table in docs/environment.md is generated from
VARIABLES (python -m cachedind.settings.config), so it cannot drift.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.errors import SettingsError
from cachedind.base.log import Level
from cachedind.base.model import COPYING_DRIVERS, GRAPH_DRIVERS, ImageStore
from cachedind.base.sizes import parse_size_bytes
from cachedind.base.trace import POINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    _Number = TypeVar("_Number", int, float)

PREFIX = "CACHEDIND_"
DEFAULT_POOL = "/cachedind"

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_OWN_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

ENGINE_STORE_VARIABLES = {
    "TEST_INTEGRATION_USE_SNAPSHOTTER": ImageStore.CONTAINERD,
    "TEST_INTEGRATION_USE_GRAPHDRIVER": ImageStore.GRAPHDRIVER,
}
"""What engines read to have another image store, whatever the driver that they are given: 24 to 28 the first, 29 the
second (moby, daemon/daemon.go and daemon/image_store_choice.go). Any value that is not empty counts."""

KEPT_KINDS = ("containers", "networks", "volumes")
"""What a job makes in the engine besides images and build cache."""

# The name of the project in GitLab, GitHub, Woodpecker, Drone and Buildkite.
_PROJECT_NAMES = ("CI_PROJECT_PATH", "GITHUB_REPOSITORY", "CI_REPO", "DRONE_REPO", "BUILDKITE_PIPELINE_SLUG")

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
    # Zero might be meant as "no limit" or as "nothing": one keeps everything, the other empties the pool.
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


def parse_backing(text: str) -> str:
    if text not in ("auto", "directory", "image"):
        raise ValueError("auto, directory or image")
    return text


def parse_key(text: str) -> str:
    """A key without the blanks around it. Raises ValueError for an empty one and for one with a NUL."""
    key = text.strip()
    if not key or "\0" in key:
        raise ValueError("a key: any text that is not empty and has no NUL in it")
    return key


def parse_keys(text: str) -> tuple[str, ...]:
    """The keys between commas and line ends, each once. Raises ValueError as `parse_key` does."""
    names = re.split(r"[,\n]", text)
    return tuple(dict.fromkeys(parse_key(name) for name in names if name.strip()))


def parse_is_read_only(text: str) -> bool:
    if text not in ("rw", "ro"):
        raise ValueError("rw or ro")
    return text == "ro"


def parse_keep(text: str) -> frozenset[str]:
    """Some of KEPT_KINDS, all of them for "all", and none for "none"."""
    if text in ("all", "none"):
        return frozenset(KEPT_KINDS if text == "all" else ())
    kinds = frozenset(name.strip() for name in text.split(","))
    if not kinds <= frozenset(KEPT_KINDS):
        raise ValueError(f"a list of {', '.join(KEPT_KINDS)} separated by commas, or all or none")
    return kinds


def parse_seeds(text: str) -> tuple[str, ...] | None:
    """Absolute paths and globs between commas and line ends, each once; none for "", None for "auto"."""
    if text == "auto":
        return None
    paths = tuple(dict.fromkeys(path.strip() for path in re.split(r"[,\n]", text) if path.strip()))
    if any(not path.startswith("/") or "\0" in path for path in paths):
        raise ValueError("a list of absolute paths and globs separated by commas, auto, or empty for no seeds")
    return paths


def parse_images(text: str) -> tuple[str, ...]:
    """Names and globs between commas and white space, each once."""
    return tuple(dict.fromkeys(re.split(r"[,\s]+", text.strip(", \t\n")))) if text else ()


def parse_seed_host(text: str) -> str:
    """A docker host, "" for none. Raises ValueError also for the place of our own daemon's socket."""
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
    """Addresses of IPv4 or IPv6 between commas, each with a port or not (None); none of them for "none"."""
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


class Variable(NamedTuple):
    """One CACHEDIND_ variable: its name without the prefix, its default as text, its parser and its meaning."""

    name: str
    default: str
    parse: Callable[[str], object]
    accepts: str
    meaning: str
    empty_counts: bool = False
    """Whether an empty value is one, and not the same as none."""
    instead: tuple[str, ...] = ()
    """Variables of others, whole names, that are read in this order when this one is not set."""


VARIABLES = (
    Variable(
        "POOL",
        "auto",
        parse_pool,
        "an absolute path, auto, or empty",
        "The pool's directory: a mount that all instances on a host share, which gives each of them a data-root of its "
        "own. auto: `/cachedind` if something is mounted there, else no pool. Empty: no pool, in any case.",
        empty_counts=True,
    ),
    Variable(
        "POOL_BACKING",
        "auto",
        parse_backing,
        "auto, directory, image",
        "Where a new pool keeps its slots. directory: in the mounted directory itself. image: in a filesystem inside "
        "one sparse file there, `pool.img`. auto: directory where the filesystem can clone (btrfs, xfs), else image "
        "where that works, else directory.",
    ),
    Variable(
        "POOL_SIZE",
        "auto",
        parse_size_or_auto,
        "a size: 100GB, 100GiB; auto",
        "How large the filesystem in `pool.img` becomes at most; never so large that the host's disk could be full "
        "before it is. The file is sparse: it takes what is in it. Another value takes effect at the next start "
        "(xfs only grows). auto: as large as the disk allows.",
    ),
    Variable(
        "POOL_MAX_SIZE",
        "none",
        parse_size_or_none,
        "a size; none",
        "How much the whole pool may hold. What is over it is evicted, least recently used first, never a slot in use.",
    ),
    Variable(
        "POOL_MIN_FREE",
        "auto",
        parse_free_bytes,
        "a size; auto, none",
        "How much of the pool's filesystem shall stay free; evicts as POOL_MAX_SIZE does. auto: a twentieth, 10 GiB at "
        "most; and, unless it is none, a twentieth of its inodes. "
        "With an image, as much of the host's disk is left to others, too (auto: a twentieth, 1 GiB at least).",
    ),
    Variable(
        "MAX_AGE",
        "none",
        parse_age_s,
        "a time above zero: 12h, 14d; none",
        "What nobody used for that long is evicted from the pool.",
    ),
    Variable(
        "CACHE_MAX_SIZE",
        "auto",
        parse_size_or_auto,
        "a size; auto",
        "How large the build cache of one data-root may grow, images not counted: the engine's `builder.gc`, unless "
        "your own daemon.json sets that. auto: the engine's default; in a pool a quarter of the pool's filesystem.",
    ),
    Variable(
        "KEY",
        "default",
        parse_key,
        "any text",
        "Whose cache it is: instances with the same key share one. Not set: the project's name from "
        f"{', '.join(f'`{name}`' for name in _PROJECT_NAMES)}, the first that is there.",
        instead=_PROJECT_NAMES,
    ),
    Variable(
        "FALLBACK_KEYS",
        "",
        parse_keys,
        "keys, separated by commas or line ends",
        "Whose cache to begin with, the first that has one, while KEY has none yet.",
    ),
    Variable(
        "ACCESS",
        "rw",
        parse_is_read_only,
        "rw, ro",
        "ro: the instance gets a clone that is thrown away after it, and what it does never reaches the pool's caches.",
    ),
    Variable(
        "KEEP",
        "none",
        parse_keep,
        "containers, networks, volumes, separated by commas; all, none",
        "What of the last job stays when a slot of the pool is used again, besides images and build cache. Without a "
        "pool everything stays.",
    ),
    Variable(
        "SEED",
        "auto",
        parse_seeds,
        "absolute paths and globs, separated by commas or line ends; auto, or empty",
        "Image archives (of `docker save` or OCI, also .gz .zst .xz), OCI layouts, and directories of them: their "
        "images are there before the job. auto: `/seeds` if there is such a directory. Empty: none.",
        empty_counts=True,
    ),
    Variable(
        "SEED_HOST",
        "",
        parse_seed_host,
        "`unix:///host/docker.sock`, `tcp://host:2376`",
        "Another daemon from which the images of SEED_IMAGES are fetched, what is missing of them.",
    ),
    Variable(
        "SEED_HOST_CERT_PATH",
        "",
        parse_optional_path,
        "an absolute path",
        "The directory with `ca.pem`, `cert.pem` and `key.pem` for SEED_HOST=tcp://…; without it TCP is not encrypted.",
    ),
    Variable(
        "SEED_IMAGES",
        "",
        parse_images,
        "names and globs of images, separated by commas or blanks",
        "Which images of SEED_HOST: `postgres:17, registry.example/ci/*`.",
    ),
    Variable(
        "SEED_WHEN",
        "before",
        parse_is_after,
        "before, after",
        "before: the daemon's first answer already has the seeds. after: it answers at once, and they come in the "
        "background (`cachedind status`).",
    ),
    Variable(
        "LISTEN",
        "0.0.0.0",
        parse_listen,
        "IP addresses, separated by commas; none",
        "Where the API's TCP socket listens, on port 2376 with TLS, else 2375: `127.0.0.1`, `10.0.0.5, ::1`, or with a "
        "port of its own `127.0.0.1:2400`, `[::1]:2400`. 0.0.0.0: all addresses, IPv6 too. none: no TCP socket, and no "
        "certificates. `dockerd …` with arguments of its own listens where these say.",
    ),
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
        "ALLOW_EPHEMERAL_POOL",
        "0",
        parse_bool,
        "0, 1",
        "Whether `CACHEDIND_POOL` may name a directory in the container's own layer. Such a pool goes with the "
        "container; mostly it is a mount that was forgotten.",
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
    Variable(
        "KILL_AT",
        "",
        parse_point,
        "the name of a step",
        "For tests of crash safety: the start kills itself with SIGKILL at that step.",
    ),
)


class Config(NamedTuple):
    """All settings. Times in seconds, sizes in bytes."""

    lock_timeout_s: float
    image_store: ImageStore | None
    storage_driver: str | None
    allow_vfs: bool
    allow_network_fs: bool
    allow_ephemeral_pool: bool
    strict: bool
    log_json: bool
    log_level: Level
    listen: tuple[tuple[str, int | None], ...]
    docker_host: str
    tls_certdir: str
    tls_san: str
    docker_driver: str
    engine_stores: tuple[str, ...]
    """Those of ENGINE_STORE_VARIABLES that are set."""
    iptables_legacy: str | None
    """None: not set, so probe. Empty: nf_tables without probing. Anything else: legacy (docker:dind's rule)."""
    path: str
    pool: str | None
    """None: not set, so there is one if something is mounted at DEFAULT_POOL. Empty: none. Else an absolute path."""
    pool_backing: str
    """auto, directory or image."""
    pool_size_bytes: int | None
    pool_max_bytes: int | None
    pool_min_free_bytes: int | None
    cache_max_bytes: int | None
    max_age_s: float | None
    key: str
    fallback_keys: tuple[str, ...]
    """In order of preference, without `key`."""
    read_only: bool
    keep: frozenset[str]
    """Some of KEPT_KINDS. Only a pool's slot ever loses them."""
    seed: tuple[str, ...] | None
    """Paths and globs. None: not set, so facts.DEFAULT_SEEDS if that is a directory."""
    seed_host: str
    seed_host_certs: str
    seed_images: tuple[str, ...]
    seed_after: bool
    kill_at: str
    """Empty, or one of trace.POINTS."""
    strangers: tuple[str, ...]
    """Variables named CACHEDIND_… that are none of ours and resemble none of ours: a project's own, it seems."""


def load(environ: Mapping[str, str]) -> Config:
    """Read every setting. An empty value counts as not set, as CI systems pass empty variables; but for POOL, which
    it switches off.

    Raises SettingsError that names all bad values, and all unknown CACHEDIND_ variables that look like misspelt ones.
    """
    values, problems = _parse_all(environ)
    meant = {name: _meant(name) for name in sorted(environ) if name.startswith(PREFIX) and not _is_known(name)}
    problems += [f"{name} is not a variable of cachedind, did you mean {near}?" for name, near in meant.items() if near]
    if not problems and values["STORAGE_DRIVER"] in COPYING_DRIVERS and not values["ALLOW_VFS"]:
        problems.append(f"{PREFIX}STORAGE_DRIVER={values['STORAGE_DRIVER']} also needs {PREFIX}ALLOW_VFS=1")
    if not problems and bool(values["SEED_HOST"]) != bool(values["SEED_IMAGES"]):
        problems.append(f"{PREFIX}SEED_HOST and {PREFIX}SEED_IMAGES need each other")
    if problems:
        raise SettingsError("; ".join(problems), "see docs/environment.md; nothing was touched")
    return Config(
        lock_timeout_s=values["LOCK_TIMEOUT"],  # type: ignore[arg-type]
        image_store=values["IMAGE_STORE"],  # type: ignore[arg-type]
        storage_driver=values["STORAGE_DRIVER"],  # type: ignore[arg-type]
        allow_vfs=bool(values["ALLOW_VFS"]),
        allow_network_fs=bool(values["ALLOW_NETWORK_FS"]),
        allow_ephemeral_pool=bool(values["ALLOW_EPHEMERAL_POOL"]),
        strict=bool(values["STRICT"]),
        log_json=bool(values["LOG_FORMAT"]),
        log_level=values["LOG_LEVEL"],  # type: ignore[arg-type]
        listen=values["LISTEN"],  # type: ignore[arg-type]
        docker_host=environ.get("DOCKER_HOST", ""),
        tls_certdir=environ.get("DOCKER_TLS_CERTDIR", ""),
        tls_san=environ.get("DOCKER_TLS_SAN", ""),
        docker_driver=environ.get("DOCKER_DRIVER", ""),
        engine_stores=tuple(name for name in ENGINE_STORE_VARIABLES if environ.get(name)),
        iptables_legacy=environ.get("DOCKER_IPTABLES_LEGACY"),
        path=environ.get("PATH", os.defpath),
        pool=values["POOL"],  # type: ignore[arg-type]
        pool_backing=values["POOL_BACKING"],  # type: ignore[arg-type]
        pool_size_bytes=values["POOL_SIZE"],  # type: ignore[arg-type]
        pool_max_bytes=values["POOL_MAX_SIZE"],  # type: ignore[arg-type]
        pool_min_free_bytes=values["POOL_MIN_FREE"],  # type: ignore[arg-type]
        cache_max_bytes=values["CACHE_MAX_SIZE"],  # type: ignore[arg-type]
        max_age_s=values["MAX_AGE"],  # type: ignore[arg-type]
        key=values["KEY"],  # type: ignore[arg-type]
        fallback_keys=tuple(key for key in values["FALLBACK_KEYS"] if key != values["KEY"]),  # type: ignore[attr-defined]
        read_only=bool(values["ACCESS"]),
        keep=values["KEEP"],  # type: ignore[arg-type]
        seed=values["SEED"],  # type: ignore[arg-type]
        seed_host=values["SEED_HOST"],  # type: ignore[arg-type]
        seed_host_certs=values["SEED_HOST_CERT_PATH"],  # type: ignore[arg-type]
        seed_images=values["SEED_IMAGES"],  # type: ignore[arg-type]
        seed_after=bool(values["SEED_WHEN"]),
        kill_at=values["KILL_AT"],  # type: ignore[arg-type]
        strangers=tuple(name for name, near in meant.items() if not near),
    )


def _parse_all(environ: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    values: dict[str, object] = {}
    problems: list[str] = []
    for variable in VARIABLES:
        text = _text(variable, environ)
        try:
            values[variable.name] = variable.parse(text)
        except ValueError as error:
            problems.append(f"{PREFIX}{variable.name}={text!r} is not {error}")
    return values, problems


def _text(variable: Variable, environ: Mapping[str, str]) -> str:
    own = environ.get(PREFIX + variable.name)
    if own is not None and variable.empty_counts:
        return own.strip()
    given = (environ.get(name, "").strip() for name in (PREFIX + variable.name, *variable.instead))
    return next(filter(None, given), variable.default)


def _is_known(name: str) -> bool:
    return any(name == PREFIX + variable.name for variable in VARIABLES) or _OF_A_LINK.fullmatch(name) is not None


def _meant(name: str) -> str:
    """The variable that an unknown one looks like; empty where it looks like none.

    A slip of the keyboard, or a name of several words of which some are left out (CACHE_SIZE for CACHE_MAX_SIZE). One
    word alone is no such case: CACHEDIND_IMAGE is what projects call the image, and none means IMAGE_STORE by it.
    """
    import difflib  # only here: most starts have no use for it

    # Without the prefix, which all have in common and which would make any two names look alike.
    own = name.removeprefix(PREFIX).upper()
    near = difflib.get_close_matches(own, [variable.name for variable in VARIABLES], n=1, cutoff=0.8)
    words = own.split("_")
    if not near and len(words) > 1:
        near = [variable.name for variable in VARIABLES if set(words) <= set(variable.name.split("_"))]
    return PREFIX + near[0] if near else ""


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

    DOCKER_DRIVER and ENGINE_STORE_VARIABLES are taken out because they would override the decision (moby reads them
    before --storage-driver),
    LISTEN_* of
    somebody else because ours follow, CACHEDIND_* because inner tools have no use for it. container=docker keeps
    the inner engine's hands off the host's AppArmor profiles (containerd, pkg/apparmor/apparmor_linux.go).
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in ("DOCKER_DRIVER", *ENGINE_STORE_VARIABLES, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
        and not name.startswith(PREFIX)
    }
    kept["container"] = "docker"
    kept["PATH"] = path
    if listen_fds:
        kept["LISTEN_FDS"] = str(listen_fds)
    return kept


def markdown_table() -> str:
    """docs/environment.md's table of cachedind's own variables."""
    lines = ["| variable | default | accepts | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{PREFIX}{v.name}` | {f'`{v.default}`' if v.default else ''} | {v.accepts} | {v.meaning} |"
        for v in VARIABLES
    ]
    return "\n".join(lines) + "\n"
