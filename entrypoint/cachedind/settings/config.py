"""All settings of a start, read from the environment's variables.

`load` is total: it reports everything that is wrong at once.
"""

from __future__ import annotations

import os

from cachedind.base.errors import SettingsError
from cachedind.base.model import COPYING_DRIVERS
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.settings.environment import ENGINE_STORE_VARIABLES, PREFIX
from cachedind.settings.variables import PROJECT_NAMES, VARIABLES, is_known, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachedind.base.log import Level
    from cachedind.base.model import ImageStore
    from cachedind.settings.variables import Variable


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
    """None: not set, so there is one if something is mounted at /cachedind. Empty: none. Else an absolute path."""
    pool_max_bytes: int | None
    pool_min_free_bytes: int | None
    cache_max_bytes: int | None
    max_age_s: float | None
    unused_max_age_s: float | None
    key: str
    key_is_said: bool
    """Whether anything says whose cache it is: CACHEDIND_KEY, or a CI."""
    scope: str
    fallback_keys: tuple[str, ...]
    """In order of preference, without `key`."""
    read_only: bool
    keep: frozenset[str]
    """Some of KEPT_KINDS, and words that begin with VOLUMES_LIKE. Only a pool's slot ever loses them."""
    seed: tuple[str, ...] | None
    """Paths and globs. None: not set, so /seeds if that is a directory."""
    seed_host: str
    seed_host_certs: str
    seed_images: tuple[str, ...]
    seed_after: bool
    kill_at: str
    """Empty, or one of trace.POINTS."""
    unrelated: tuple[str, ...]
    """Variables named CACHEDIND_… that neither are nor resemble one of ours: a project's own, it seems."""


def load(environ: Mapping[str, str]) -> Config:
    """Read every setting. An empty value counts as not set, as CI systems pass empty variables; only POOL and SEED are
    switched off by it.

    Raises SettingsError that names all bad values, and all unknown CACHEDIND_ variables that look like misspelt ones.
    """
    values, problems = _parse_all(environ)
    unknown = {name: suggest(name) for name in sorted(environ) if name.startswith(PREFIX) and not is_known(name)}
    misspelt = {name: near for name, near in unknown.items() if near}
    problems += [f"{name} is not a variable of cachedind, did you mean {near}?" for name, near in misspelt.items()]
    problems = problems or _find_contradictions(values)
    if problems:
        raise SettingsError("; ".join(problems), "see docs/environment.md; nothing was touched")
    return _make_config(values, environ, tuple(name for name in unknown if name not in misspelt))


def _find_contradictions(values: Mapping[str, object]) -> list[str]:
    found = []
    if values["STORAGE_DRIVER"] in COPYING_DRIVERS and not values["ALLOW_VFS"]:
        found.append(f"{PREFIX}STORAGE_DRIVER={values['STORAGE_DRIVER']} also needs {PREFIX}ALLOW_VFS=1")
    if bool(values["SEED_HOST"]) != bool(values["SEED_IMAGES"]):
        found.append(f"{PREFIX}SEED_HOST and {PREFIX}SEED_IMAGES need each other")
    return found


def _make_config(values: Mapping[str, object], environ: Mapping[str, str], unrelated: tuple[str, ...]) -> Config:
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
        pool_max_bytes=values["POOL_MAX_SIZE"],  # type: ignore[arg-type]
        pool_min_free_bytes=values["POOL_MIN_FREE"],  # type: ignore[arg-type]
        cache_max_bytes=values["CACHE_MAX_SIZE"],  # type: ignore[arg-type]
        max_age_s=values["MAX_AGE"],  # type: ignore[arg-type]
        unused_max_age_s=values["UNUSED_MAX_AGE"],  # type: ignore[arg-type]
        key=values["KEY"],  # type: ignore[arg-type]
        key_is_said=any(_value(name, environ) for name in (f"{PREFIX}KEY", *PROJECT_NAMES)),
        scope=values["SCOPE"],  # type: ignore[arg-type]
        fallback_keys=tuple(key for key in values["FALLBACK_KEYS"] if key != values["KEY"]),  # type: ignore[attr-defined]
        read_only=bool(values["ACCESS"]),
        keep=values["KEEP"],  # type: ignore[arg-type]
        seed=values["SEED"],  # type: ignore[arg-type]
        seed_host=values["SEED_HOST"],  # type: ignore[arg-type]
        seed_host_certs=values["SEED_HOST_CERT_PATH"],  # type: ignore[arg-type]
        seed_images=values["SEED_IMAGES"],  # type: ignore[arg-type]
        seed_after=bool(values["SEED_WHEN"]),
        kill_at=values["KILL_AT"],  # type: ignore[arg-type]
        unrelated=unrelated,
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
    given = (_value(name, environ) for name in (PREFIX + variable.name, *variable.instead))
    return next(filter(None, given), variable.default)


def _value(name: str, environ: Mapping[str, str]) -> str:
    first, *more = (environ.get(part, "").strip() for part in name.split("/"))
    return "/".join(filter(None, (first, *more))) if first else ""
