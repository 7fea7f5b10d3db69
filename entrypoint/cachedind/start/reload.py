"""SIGHUP: dockerd reads its configuration file again. Where that is a merged copy, it is made anew first.

Where the user's daemon.json is all that dockerd needs, it reads that file itself. Where it does not (`hosts`, which
are bound here, a limit for the build cache, …), the supervisor has the copy made anew before it passes the signal on.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from cachedind.base.errors import DaemonConfigError, DaemonConfigMissingError, HostPreparationError
from cachedind.base.model import EngineVersion, ImageStore, StoragePlan
from cachedind.settings import daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.settings.build_cache import CacheLimit
from cachedind.start import daemon_plan

if TYPE_CHECKING:
    from cachedind.settings.daemon_json import DaemonSettings

RUN_DIRECTORY = "/run/cachedind"
MERGED_CONFIG = f"{RUN_DIRECTORY}/daemon.json"
_GIVEN = f"{RUN_DIRECTORY}/given.json"
"""What the merged copy is made of besides the user's file."""
_ASKED = frozenset({"config-file", "feature", "storage-driver"})
"""The flags of the user's that this depends on. Others may have a secret in them: a proxy's password, say."""


def write_merged(
    text: str, settings: DaemonSettings, storage: StoragePlan, limit: CacheLimit | None, engine: EngineVersion
) -> None:
    """Write the merged copy, and what it was made of. The user's daemon.json is never changed.

    Raises HostPreparationError.
    """
    _write(MERGED_CONFIG, text)
    given = {
        "words": [word for flag in settings.arguments.flags if flag.name in _ASKED for word in flag.words],
        "storage": [storage.store, storage.driver],
        "limit": limit and [limit.max_bytes, limit.requested],
        "engine": engine,
    }
    _write(_GIVEN, json.dumps(given))


def merge_again() -> None:
    """Make the merged copy of what the user's file says by now.

    Does nothing where there is no such copy. Raises DaemonConfigError, DaemonConfigMissingError, HostPreparationError.
    """
    try:
        with open(_GIVEN, encoding="utf-8") as file:
            given = json.load(file)
    except FileNotFoundError:
        return
    engine = EngineVersion(*given["engine"])
    limit = given["limit"] and CacheLimit(given["limit"][0], engine, given["limit"][1])
    storage = StoragePlan(ImageStore(given["storage"][0]), given["storage"][1], "")
    try:
        settings = daemon_json.read_settings(parse_daemon_arguments(given["words"]))
        text = daemon_plan.plan_file(settings, storage, engine, limit).text
    except (DaemonConfigError, DaemonConfigMissingError) as error:
        _write(MERGED_CONFIG, f"{error.cause}\n")  # no JSON: dockerd refuses it, and keeps what it had read
        raise
    _write(MERGED_CONFIG, text)


def _write(path: str, text: str) -> None:
    new = f"{path}.new"
    try:
        os.makedirs(RUN_DIRECTORY, mode=0o755, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(new, path)
    except OSError as error:
        raise HostPreparationError(
            f"{path} cannot be written: {error.strerror}", "the container needs a writable /run: --tmpfs /run"
        ) from error
