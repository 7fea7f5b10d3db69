"""What a user configured for dockerd, in a line."""

from __future__ import annotations

from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.settings.daemon_json import DaemonSettings


def settings_of(flags: str = "", **file: object) -> DaemonSettings:
    directives = {name.replace("_", "-"): value for name, value in file.items()}
    return DaemonSettings(parse_daemon_arguments(flags.split()), directives, "/etc/docker/daemon.json")
