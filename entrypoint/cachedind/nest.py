"""`dind COMMAND…`: what moby's hack/dind script is for, a container made fit for a nested daemon, then the command."""

from __future__ import annotations

from typing import NoReturn

from cachedind import cgroups
from cachedind.boot import execute, make_log
from cachedind.boot import nest as make_mounts
from cachedind.config import load
from cachedind.errors import SettingsError


def nest(command: list[str], environ: dict[str, str]) -> NoReturn:
    """Prepare mounts and cgroups, then exec `command`. Raises CachedindError. Needs --privileged."""
    if not command:
        raise SettingsError("dind was given no command", "write dind dockerd …, or any other program")
    make_mounts(make_log(load(environ)))
    cgroups.prepare()
    execute(command, {**environ, "container": "docker"})
