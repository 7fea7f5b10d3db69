"""Proof: what a private daemon says of a data-root that is doubted, and whether the data is to blame.

A daemon that comes up ends the doubt. One that ends by itself speaks against the data if another one comes up on an
empty directory beside it. One that is silent, or was killed, says nothing.
"""

from __future__ import annotations

import os
import time

from cachedind.base.errors import DaemonEnd, PrivateDaemonError
from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import aside, databases, paths
from cachedind.engine.remapping import engine_root
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachedind.base.model import EngineVersion, StoragePlan

CONTROL = "control"
PROOF_S = 60.0
"""How long a private daemon may take to answer on a small data-root. A healthy one takes 0.1 s; on a slow disk, or
after a crash, it takes longer."""
MAX_PROOF_S = 600.0
_BYTES_EACH_S = 4 << 20
_LAYERS_EACH_S = 20
"""The pace of a slow disk: of reading databases, and of looking at layers one by one."""
_NOT_OF_THE_DATA = ("no space left", "disk quota", "read-only file system", "too many open files", "cannot allocate")
"""What a daemon says that ended for another reason than its data."""


class Subject(NamedTuple):
    """A data-root whose lease is held: its path, a descriptor of the engine's root in it, and the lock that a private
    daemon inherits. `engines` are the one that wrote it last, where that is known, and the one that is to start."""

    data_root: str
    root_fd: int
    storage: StoragePlan
    lock_fd: int
    engines: tuple[EngineVersion | None, ...] = ()


class Proof(NamedTuple):
    """What a private daemon said: `problem` is None when it came up; otherwise `end` tells how it ended."""

    problem: str | None = None
    end: DaemonEnd | None = None

    @property
    def speaks_against_data(self) -> bool:
        words = (self.problem or "").lower()
        return self.end is DaemonEnd.BY_ITSELF and not any(word in words for word in _NOT_OF_THE_DATA)


def prove(subject: Subject, environ: Mapping[str, str]) -> Proof:
    """What a private daemon says of the data, within a time that grows with its size."""
    from cachedind.engine.private_daemon import private_daemon

    until = time.monotonic() + proof_s(*measure(subject))
    try:
        with private_daemon(
            subject.data_root, subject.storage, lock_fd=subject.lock_fd, environ=environ, deadline=until
        ):
            return Proof()
    except PrivateDaemonError as error:
        return Proof(error.cause, error.end)


def proof_s(database_bytes: int, layers: int) -> float:
    """How long a private daemon may take to answer, in seconds."""
    return min(MAX_PROOF_S, PROOF_S + database_bytes / _BYTES_EACH_S + layers / _LAYERS_EACH_S)


def measure(subject: Subject) -> tuple[int, int]:
    """Bytes of the databases, and how many layers there are."""
    total = 0
    for path in databases.known(subject.storage):
        try:
            total += beneath.look(subject.root_fd, path).st_size
        except OSError:
            continue
    storage = subject.storage
    above = paths.snapshots if storage.store is ImageStore.CONTAINERD else paths.layers
    return total, len(beneath.names(subject.root_fd, above(storage.driver)))


def is_to_blame(subject: Subject, environ: Mapping[str, str]) -> bool:
    """Whether a private daemon comes up on an empty directory beside the data. Where it does not, something else than
    the data is wrong, and nothing must be moved for that. Raises OSError."""
    from cachedind.host import trees

    with beneath.made_directory(subject.root_fd, aside.OWN_DIRECTORY) as own_fd:
        trees.remove(own_fd, CONTROL)
        os.mkdir(CONTROL, 0o710, dir_fd=own_fd)
        try:
            root = engine_root(subject.data_root, subject.storage.remap)
            empty = subject._replace(data_root=f"{root}/{aside.OWN_DIRECTORY}/{CONTROL}")
            if subject.storage.remap is not None:
                os.fchmod(own_fd, 0o711)  # an engine looks whether its remapped root gets there
            return prove(empty, environ).problem is None
        finally:
            trees.remove(own_fd, CONTROL)
