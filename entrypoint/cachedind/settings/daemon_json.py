"""daemon.json and dockerd's flags: what the user configured for dockerd. Pure but for `read_daemon_json`."""

from __future__ import annotations

import json

from cachedind.base.errors import DaemonConfigError, DaemonConfigMissingError
from cachedind.base.model import DEFAULT_DATA_ROOT, ImageStore
from cachedind.base.modified import modified_ns
from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cachedind.settings.arguments import DaemonArguments

DEFAULT_CONFIG_FILE = "/etc/docker/daemon.json"
CONTAINERD_FEATURE = "containerd-snapshotter"
MIGRATION_FEATURE = "containerd-migration"
_GO_FALSE = ("0", "f", "false")
"""What strconv.ParseBool reads as false, upper or lower case. dockerd itself refuses what is neither true nor false."""


_KINDS: dict[str, type] = {
    "builder": dict,
    "data-root": str,
    "exec-root": str,
    "features": dict,
    "group": str,
    "hosts": list,
    "pidfile": str,
    "storage-driver": str,
    "userns-remap": str,
}
"""The directives that are read here, and their types. dockerd would name the merged copy as the file at fault."""

_KIND_NAMES: dict[type, str] = {str: "string", list: "list", dict: "JSON object"}


class DaemonSettings(NamedTuple):
    """What the user configured for dockerd, from its flags and its file together; and when that was modified, before it
    was read."""

    arguments: DaemonArguments
    file: dict[str, object]
    file_path: str
    file_modified_ns: int = 0

    @property
    def data_root(self) -> str:
        return self.text("data-root") or DEFAULT_DATA_ROOT

    @property
    def exec_root(self) -> str:
        return self.text("exec-root") or "/var/run/docker"

    @property
    def pidfile(self) -> str:
        return self.text("pidfile") or "/var/run/docker.pid"

    def text(self, directive: str) -> str | None:
        """A directive's value, the flag's before the file's."""
        from_flag = self.arguments.last(directive)
        if from_flag is not None:
            return from_flag
        from_file = self.file.get(directive)
        return from_file if isinstance(from_file, str) and from_file else None

    @property
    def has_tls(self) -> bool:
        """Whether the user switched TLS on in dockerd's own settings. --tlsverify=false does that too, without checking
        clients (moby, daemon/command/daemon.go).
        """
        if self.arguments.has("tlsverify") or "tlsverify" in self.file:
            return True
        return (self.arguments.last("tls") or str(self.file.get("tls", "false")).lower()) not in ("false", "0")

    def is_on(self, directive: str, *, default: bool) -> bool:
        """What a directive that is true or false says, the flag's before the file's."""
        from_flag = self.arguments.last(directive)
        if from_flag is not None:
            return from_flag.lower() not in _GO_FALSE
        from_file = self.file.get(directive)
        return from_file if isinstance(from_file, bool) else default

    @property
    def has_nftables(self) -> bool:
        """Whether the engine is to make its rules with nft, which it can from 29 on."""
        return self.text("firewall-backend") == "nftables"

    @property
    def may_migrate(self) -> bool:
        """Whether the engine may take another image store than the one it is told (moby, daemon/daemon.go)."""
        for value in reversed(self.arguments.all("feature")):
            name, _, state = value.partition("=")
            if name == MIGRATION_FEATURE:
                return state.lower() not in _GO_FALSE
        features = self.file.get("features")
        return isinstance(features, dict) and features.get(MIGRATION_FEATURE) is True

    @property
    def file_hosts(self) -> list[str]:
        hosts = self.file.get("hosts")
        return [host for host in hosts if isinstance(host, str)] if isinstance(hosts, list) else []

    @property
    def requested_store(self) -> tuple[ImageStore, str] | None:
        """The image store that --feature or the file's features name, and where that was said."""
        for value in reversed(self.arguments.all("feature")):
            name, _, state = value.partition("=")
            if name == CONTAINERD_FEATURE:
                return _store(state.lower() not in _GO_FALSE), f"the argument --feature {value}"
        features = self.file.get("features")
        state_in_file = features.get(CONTAINERD_FEATURE) if isinstance(features, dict) else None
        if isinstance(state_in_file, bool):
            return _store(state_in_file), f"features.{CONTAINERD_FEATURE} in {self.file_path}"
        return None

    @property
    def requested_driver(self) -> tuple[str, str] | None:
        """The storage driver that --storage-driver or the file names, and where that was said."""
        from_flag = self.arguments.last("storage-driver")
        if from_flag:
            return from_flag, f"the argument --storage-driver {from_flag}"
        from_file = self.file.get("storage-driver")
        if isinstance(from_file, str) and from_file:
            return from_file, f"storage-driver in {self.file_path}"
        return None


def _store(containerd: bool) -> ImageStore:
    return ImageStore.CONTAINERD if containerd else ImageStore.GRAPHDRIVER


def read_settings(arguments: DaemonArguments) -> DaemonSettings:
    """Read the user's file.

    Raises DaemonConfigMissingError and DaemonConfigError.
    """
    path = file_path(arguments)
    modified = modified_ns(path)
    return DaemonSettings(arguments, read_daemon_json(path, must_exist=arguments.has("config-file")), path, modified)


def file_path(arguments: DaemonArguments) -> str:
    """The user's file: the one that --config-file names, or the default one, which may be missing."""
    return arguments.last("config-file") or DEFAULT_CONFIG_FILE


def read_daemon_json(path: str, *, must_exist: bool) -> dict[str, object]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except FileNotFoundError:
        if must_exist:
            raise DaemonConfigMissingError(
                f"--config-file names {path}, which does not exist", "mount the file there or drop the argument"
            ) from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DaemonConfigError(f"{path} cannot be read: {error}", "correct the file or its permissions") from error
    return parse_daemon_json(text, path)


def parse_daemon_json(text: str, path: str) -> dict[str, object]:
    """The directives of a daemon.json. An empty file has none, as for dockerd. Raises DaemonConfigError."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DaemonConfigError(f"{path} is not JSON: {error}", "correct it; dockerd --validate checks it") from error
    if not isinstance(value, dict):
        raise DaemonConfigError(f"{path} is not a JSON object", "write { } around its directives")
    for directive, kind in _KINDS.items():
        if directive in value and not isinstance(value[directive], kind):
            raise DaemonConfigError(
                f"{path}: {directive} is {json.dumps(value[directive])}", f"it must be a {_KIND_NAMES[kind]}"
            )
    return value
