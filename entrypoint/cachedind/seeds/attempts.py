"""How often in a row a start has ended while it put seeds in: a number in the state file of its data-root."""

from __future__ import annotations

import contextlib

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from cachedind.dataroot.lease import Lease

MAX_ATTEMPTS = 3
"""After that many starts in a row that ended while seeds were put in, the next one goes without."""
_FIELD = "seeding"


def count(lease: Lease) -> int:
    """The number in the state file. Raises ValueError, OSError."""
    raw = state.read_state(lease.directory_fd, lease.state_name) or {}
    attempts = raw.get(_FIELD, 0)
    return attempts if isinstance(attempts, int) else 0


def was_interrupted(lease: Lease) -> bool:
    """Whether the last start ended while seeds were put in: perhaps when all of them were there, and were not promoted
    yet."""
    try:
        return count(lease) > 0
    except (ValueError, OSError):
        return False


def is_hopeless(lease: Lease) -> bool:
    """Whether each of the last MAX_ATTEMPTS starts ended while seeds were put in."""
    try:
        return count(lease) >= MAX_ATTEMPTS
    except (ValueError, OSError):
        return False


def mark(lease: Lease, attempts: int) -> None:
    """Note that seeds are being put in, or with 0 that they are there. A mark that cannot be written is left out: that
    costs at most one attempt too many."""
    with contextlib.suppress(ValueError, OSError):
        raw = state.read_state(lease.directory_fd, lease.state_name)
        state.write_state(lease.directory_fd, lease.state_name, {_FIELD: attempts}, raw, durable=False)
