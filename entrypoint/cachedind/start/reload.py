"""SIGHUP: dockerd reads its configuration file again. Where that is a merged copy, it is made anew first.

Where the user's daemon.json is all that dockerd needs, it reads that file itself. Where it does not (`hosts`, which
are bound here, a limit for the build cache, …), the supervisor has the copy made anew before it passes the signal on.
Where somebody has sent it to dockerd itself, that has read the copy as it was: the supervisor sees that (`watch`), has
the copy made anew if the user's file was modified since, and has dockerd read it once more (decisions/0019).
"""

from __future__ import annotations

import fcntl
import json
import os

from cachedind.base.errors import DaemonConfigError, DaemonConfigMissingError, HostPreparationError
from cachedind.base.model import EngineVersion, ImageStore, StoragePlan
from cachedind.base.modified import modified_ns
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.host import linux
from cachedind.settings import daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.settings.build_cache import CacheLimit
from cachedind.start import daemon_plan

if TYPE_CHECKING:
    from cachedind.settings.daemon_json import DaemonSettings

RUN_DIRECTORY = "/run/cachedind"
MERGED_CONFIG = f"{RUN_DIRECTORY}/daemon.json"
"""It has the user's file's time of modification, as a note of what it was made of."""
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
    _write(MERGED_CONFIG, text, settings.file_modified_ns)
    given = {
        "words": [word for flag in settings.arguments.flags if flag.name in _ASKED for word in flag.words],
        "storage": [storage.store, storage.driver, storage.beside_graph],
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
    store, driver, beside_graph = given["storage"]
    storage = StoragePlan(ImageStore(store), driver, "", beside_graph=beside_graph)
    arguments = parse_daemon_arguments(given["words"])
    modified = modified_ns(daemon_json.file_path(arguments))
    try:
        settings = daemon_json.read_settings(arguments)
        text = daemon_plan.plan_file(settings, storage, engine, limit).text
    except (DaemonConfigError, DaemonConfigMissingError) as error:
        _write(MERGED_CONFIG, f"{error.cause}\n", modified)  # no JSON: dockerd refuses it, and keeps what it had read
        raise
    _write(MERGED_CONFIG, text, modified)


class Copied(NamedTuple):
    """The user's file, the merged copy, and the descriptor of inotify that tells who has read that."""

    watch_fd: int
    config: str
    copy: str


def watch(config: str) -> Copied:
    """See from here on who reads the merged copy of `config`. Raises OSError: a host allows a user only so many
    (fs.inotify.max_user_instances)."""
    return Copied(linux.watch_reads(RUN_DIRECTORY), config, MERGED_CONFIG)


def tell(copied: Copied) -> None:
    """Have this process, and what it becomes, told by SIGIO, which must be blocked."""
    fcntl.fcntl(copied.watch_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(copied.watch_fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)


def _write(path: str, text: str, modified: int | None = None) -> None:
    new = f"{path}.new"
    try:
        os.makedirs(RUN_DIRECTORY, mode=0o755, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            if modified is not None:
                file.flush()
                os.utime(fd, ns=(modified, modified))
        os.rename(new, path)
    except OSError as error:
        raise HostPreparationError(
            f"{path} cannot be written: {error.strerror}", "the container needs a writable /run: --tmpfs /run"
        ) from error
