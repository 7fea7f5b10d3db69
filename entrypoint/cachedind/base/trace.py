"""Named steps of everything that changes a pool. A test has a start killed at one of them: nothing may be lost by that.

The names are what CACHEDIND_KILL_AT takes. Each stands right after the effect that it is named for.
"""

from __future__ import annotations

import os

from cachedind.base.typed import NamedTuple

POINTS = (
    "pool.recorded",
    "key.staged",
    "key.named",
    "lease.locked",
    "lease.recorded",
    "clone.staged",
    "clone.copied",
    "clone.recorded",
    "clone.named",
    "share.listed",
    "share.planned",
    "share.linked",
    "share.exchanged",
    "share.moved",
    "share.done",
    "promote.staged",
    "promote.copied",
    "promote.recorded",
    "promote.retired",
    "promote.named",
    "aside.renamed",
    "evict.renamed",
    "evict.emptied",
    "mend.moved",
    "mend.proven",
    "mend.settled",
    "maintain.started",
    "maintain.cleaned",
    "maintain.pruned",
    "view.noted",
    "view.named",
    "view.moved",
    "view.held",
    "view.gone",
    "maintain.stopped",
    "seed.started",
    "seed.loaded",
    "seed.stopped",
    "seed.recorded",
    "seed.promoted",
    "bind.bound",
    "hide.unmounted",
)


class Trace(NamedTuple):
    """Where to die, or nowhere."""

    kill_at: str = ""

    def reach(self, point: str) -> None:
        """The step `point` (one of POINTS) is done."""
        if self.kill_at and point == self.kill_at:
            import signal  # a millisecond, for tests alone

            os.kill(os.getpid(), signal.SIGKILL)


NOWHERE = Trace()
