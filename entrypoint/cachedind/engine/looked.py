"""What a look at layers after a crash of the host has reached, so that the next start goes on where it ended.

A look has a minute (hollow.py), and large data takes more. What was found whole in this boot of the host stays whole;
after the next crash all of it is looked at again. Needs the lease.
"""

from __future__ import annotations

import contextlib
import os

from cachedind.base import state
from cachedind.engine.aside import OWN_DIRECTORY
from cachedind.host import beneath, procfs

_NAME = "looked.json"
_MAX_BYTES = 16 << 20


def read(root_fd: int) -> frozenset[str] | None:
    """The names of what was looked at in this boot and is whole; None where no look was ended early."""
    with contextlib.suppress(OSError, ValueError):
        noted = state.parse_object(beneath.read(root_fd, f"{OWN_DIRECTORY}/{_NAME}", _MAX_BYTES))
        names = noted.get("names")
        if noted.get("boot_id") == procfs.read_boot_id() and isinstance(names, list):
            return frozenset(map(str, names))
    return None


def note(root_fd: int, names: frozenset[str] | None) -> None:
    """Note that a look was ended early, or, with None, that none was. Without room on the disk the next one begins
    anew."""
    with contextlib.suppress(OSError):
        if names is not None:
            with beneath.made_directory(root_fd, OWN_DIRECTORY) as fd:
                values: dict[str, object] = {"boot_id": procfs.read_boot_id(), "names": sorted(names)}
                state.write_state(fd, _NAME, values, None, durable=False)
        elif beneath.exists(root_fd, f"{OWN_DIRECTORY}/{_NAME}"):
            with beneath.directory(root_fd, OWN_DIRECTORY) as fd:
                os.unlink(_NAME, dir_fd=fd)
