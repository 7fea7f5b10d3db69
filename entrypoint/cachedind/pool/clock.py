"""What time it is for a pool: a clock that jumps makes nothing in it look old.

Ages are told by clocks, and clocks are set: a host that comes up with a wrong one, or an instance on another host that
is a year ahead, would find that nobody has used anything for ages. So the pool notes down when it was looked after.
A clock that is more than JUMP_S ahead of that note is believed only when it still says so JUMP_S later, by itself,
and nobody came with an earlier time meanwhile. Until then, it is for the pool as late as the note says: nothing gets
older. A pool that lay idle for longer is the same case, and evicts nothing by age for that much longer.
"""

from __future__ import annotations

import errno

from cachedind.base import state
from cachedind.base.typed import NamedTuple

NAME = "clock.json"
JUMP_S = 86_400.0


class Note(NamedTuple):
    """When the pool was looked after last, in seconds since the epoch, and the first time that was suspiciously far
    ahead of that; 0: none was."""

    at: float
    ahead: float = 0.0


class Judgement(NamedTuple):
    """The time by which ages are to be told, and what to note down."""

    now: float
    note: Note


def judge(note: Note | None, now: float) -> Judgement:
    """Pure. `now` is what this process's clock says."""
    if note is None or now <= note.at + JUMP_S:
        return Judgement(now, Note(now))
    if note.ahead and now >= note.ahead + JUMP_S:
        return Judgement(now, Note(now))
    first = min(note.ahead, now) if note.ahead else now
    return Judgement(note.at, Note(note.at, first))


def read_now(tree_fd: int, now: float) -> float:
    """The time for the pool whose tree is open, which is noted down with that, unless the pool is full: then room is
    about to be made. Raises OSError.

    A note that makes no sense counts as none.
    """
    try:
        note = _parse(state.read_state(tree_fd, NAME))
    except ValueError:
        note = None
    judgement = judge(note, now)
    values: dict[str, object] = {"at": judgement.note.at, "ahead": judgement.note.ahead}
    try:
        state.write_state(tree_fd, NAME, values, None, durable=False)
    except (FileExistsError, FileNotFoundError):
        pass  # somebody else notes it down right now
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    return judgement.now


def _parse(raw: dict[str, object] | None) -> Note | None:
    if raw is None:
        return None
    at, ahead = raw.get("at"), raw.get("ahead")
    if not isinstance(at, int | float) or not isinstance(ahead, int | float):
        raise ValueError("at or ahead is not a number")
    return Note(float(at), float(ahead))
