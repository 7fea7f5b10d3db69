"""Doubt: whether what is in a data-root has to be proven before a daemon gets it. Pure.

    crash        the host went down without a clean end of the last daemon (another boot_id), or the note of the last
                 start is lost, as after a crash. Engines sync their records, but not the files of layers: these may be
                 empty although all their records are there (containerd issue 5854). A daemon that comes up proves
                 nothing about that, so this doubt ends only when the layers have been looked at, as far as that is
                 possible: one start has little time for it, and the next one goes on (looked.py).
    never ready  the last daemon did not come up. A cancelled job or a mistake in daemon.json is no evidence against the
                 data; a private daemon that comes up takes little time, and ends the doubt.
    unproven     no private daemon came up in time, or none comes up here at all. Slow is not dead: the data is used as
                 it is, and the first daemon that answers ends the doubt.

The reason is kept in the state file until a proof succeeds: a start that is killed amid its proof has already noted its
own boot_id there, and the next start must still know of the doubt.
"""

from __future__ import annotations

from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cachedind.base.model import DataRootState

CRASHED = "the host went down since its last daemon"
LOST_NOTE = "the note of its last start is lost, as after a crash of the host"
NEVER_READY = "no daemon came up on it at its last start"
UNPROVEN = "an earlier start could not prove it"
SAME_STATE = "another slot of the same key was just found to be bad"

_ENDED_BY_A_DAEMON = frozenset({NEVER_READY, UNPROVEN, SAME_STATE})
"""Doubts that end as soon as a daemon answers."""


class Doubt(NamedTuple):
    """Why a data-root is looked at closely. With `crashed`, files of layers may be empty."""

    why: str
    crashed: bool = False


def find(noted: DataRootState | None, boot_id: str, *, lost_note: bool = False) -> Doubt | None:
    """Why to doubt the data, or None. `noted` is what the last start and its daemon's end have left, `boot_id` this
    boot's; with `lost_note` there was something, and it cannot be read.

    A data-root that no start of ours has seen is taken as it is, as docker:dind does.
    """
    if noted is None:
        return Doubt(LOST_NOTE, crashed=True) if lost_note else None
    if noted.doubt and noted.doubt not in _ENDED_BY_A_DAEMON:
        return Doubt(noted.doubt, crashed=True)
    if noted.ended is not None and noted.ended.clean:
        return None
    if noted.boot_id != boot_id:
        return Doubt(CRASHED, crashed=True)
    if noted.ready_at is not None:
        return None
    if noted.doubt:
        return Doubt(noted.doubt)
    # A start that was killed while seeds were put in had a private daemon on it that came up.
    return None if noted.seeding else Doubt(NEVER_READY)


def after_a_look(doubt: Doubt, *, late: bool, unproven: bool) -> str:
    """What is still doubted after a start has looked at the data, for its note; empty when nothing is.

    `late`: there was no time for all layers. `unproven`: no private daemon could tell.
    """
    if doubt.crashed and late:
        return doubt.why
    return UNPROVEN if unproven else ""


def after_a_daemon(why: str) -> str:
    """What is left of a doubt that was noted once a daemon has answered."""
    return "" if why in _ENDED_BY_A_DAEMON else why


def is_grave(doubt: Doubt | None) -> bool:
    """Whether another state, if there is any, is better than this one. A start that was merely cancelled is not
    enough."""
    return doubt is not None and doubt.why != NEVER_READY
