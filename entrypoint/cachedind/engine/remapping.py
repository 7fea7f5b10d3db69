"""Where an engine's data is below a data-root: in the data-root itself, or with userns-remap in a directory of it that
is named after the IDs that stand for root (moby, daemon/daemon_unix.go, setupDaemonRoot). Everything asks here.

`.cachedind` with the lease and the state files is the data-root's own; what cachedind keeps beside an engine's data,
such as the ledger of seeds, is in that of the engine's root.
"""

from __future__ import annotations

import os
import pwd

from cachedind.base.errors import DaemonConfigError
from cachedind.base.model import Remap
from cachedind.base.typed import TYPE_CHECKING
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEFAULT_USER = "dockremap"
_SUBUID, _SUBGID = "/etc/subuid", "/etc/subgid"


def engine_root(data_root: str, remap: Remap | None) -> str:
    """Where the engine's data is. Pure."""
    return data_root if remap is None else f"{data_root}/{remap.directory}"


def make(data_root: str, remap: Remap | None) -> str:
    """The same, made where it is missing, as the engine would make it, which sets its owner later. Raises OSError."""
    path = engine_root(data_root, remap)
    if remap is not None:
        os.makedirs(path, mode=0o710, exist_ok=True)
    return path


def open_root(data_root: str, remap: Remap | None) -> int:
    """A descriptor of it. Raises OSError."""
    return os.open(engine_root(data_root, remap), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_in(data_fd: int, directory: str) -> int:
    """A descriptor of the engine's root in a slot's data; `directory` is as a slot's state has it (empty: no remap).
    Raises OSError."""
    return beneath.open_path(data_fd, directory or ".", os.O_RDONLY | os.O_DIRECTORY)


def read_remap(setting: str | None) -> Remap | None:
    """What a value of --userns-remap means on this machine; None without one.

    dockerd looks up IDs by the user alone, whatever group is named; "default" is the user dockremap (moby,
    daemon/daemon_unix.go, parseRemappedRoot; moby/sys, user/idtools_unix.go). Root is mapped to itself. Raises
    DaemonConfigError where dockerd would end with an error as well.
    """
    if not setting:
        return None
    name = setting.partition(":")[0]
    try:
        if name.isdecimal():
            user = pwd.getpwuid(int(name))
        else:
            user = pwd.getpwnam(_DEFAULT_USER if name == "default" else name)
    except (KeyError, OverflowError):
        wanted = _DEFAULT_USER if name == "default" else name
        raise DaemonConfigError(
            f"--userns-remap={setting}: there is no user {wanted} in /etc/passwd", "add that user, or name another one"
        ) from None
    if user.pw_name == "root":
        return Remap(setting, 0, 0)
    names = (user.pw_name, str(user.pw_uid))
    return Remap(setting, _first_id(_SUBUID, names, setting), _first_id(_SUBGID, names, setting))


def _first_id(path: str, names: tuple[str, ...], setting: str) -> int:
    for name, first in _ranges(path):
        if name in names:
            return first
    raise DaemonConfigError(
        f"--userns-remap={setting}: {path} has no range for {names[0]}",
        f"add one, say: echo {names[0]}:165536:65536 >>{path}",
    )


def _ranges(path: str) -> Iterator[tuple[str, int]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                name, *numbers = line.strip().split(":")
                if len(numbers) == 2 and numbers[0].isdecimal():
                    yield name, int(numbers[0])
    except FileNotFoundError:
        return
