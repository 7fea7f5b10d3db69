"""What the next start of a key must find, told from what was played alone. Nothing is done here.

A state is what a scope of a key has of one engine and store. Its project has to be found in it, unless

- no start that lived has built it there yet, or one that did had another start of the same state beside it, which may
  have left a newer state without the project;
- a start is read-only, and nothing has been promoted since: it clones goldens alone;
- a job has pruned everything as its last step before there was a golden, or is not the first of the state that did:
  that is what the project wants then (how long ago the first was is not counted here);
- the host went down without a clean end: an older golden is better then than what may be half written.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from kinds import Fate, Form

if TYPE_CHECKING:
    from kinds import Start

State = tuple[str, str, str]

_ENDS_CLEANLY = (Form.IMAGE, Form.EXPLICIT, Form.BARE, Form.DIND)
"""Where a `docker stop` reaches the daemon; a shell that is PID 1 drops the signal."""


class Played(NamedTuple):
    """A start that was played, whether its end was a `docker stop`, and its last step to prune everything."""

    start: Start
    key: str
    scope: str
    read_only: bool
    stopped: bool
    pruned: bool

    @property
    def state(self) -> State:
        return self.key, self.scope, str(self.start.flavour)

    @property
    def ended_cleanly(self) -> bool:
        return self.start.fate is Fate.LIVES and self.stopped and self.start.form in _ENDS_CLEANLY


class Expected:
    """What must be found, round by round."""

    def __init__(self) -> None:
        self._known: set[State] = set()
        self._promoted: set[State] = set()
        self._clean: set[State] = set()
        self._pruned: set[State] = set()

    def why_cold(self, state: State, *, read_only: bool) -> str:
        """Why a start may build the project again; empty where it may not."""
        if state not in self._known:
            return "the first of a state, or unsure"
        return "read-only, before the first golden" if read_only and state not in self._promoted else ""

    def learn(self, round_of: list[Played]) -> None:
        """A round was played, and all of it has ended."""
        writers = [one for one in round_of if not one.read_only]
        alone = Counter(one.state for one in writers)
        for one in writers:
            if not one.ended_cleanly:
                self._clean.discard(one.state)
            elif alone[one.state] == 1:
                self._clean.add(one.state)
            if one.start.lives and one.state in self._known:
                self._promoted.add(one.state)
            elif one.start.lives and alone[one.state] == 1:
                self._known.add(one.state)
        for one in writers:
            if one.pruned:
                self._prune(one.state)

    def _prune(self, state: State) -> None:
        if state in self._pruned or state not in self._promoted:
            self._known.discard(state)
            self._promoted.discard(state)
        self._pruned.add(state)

    def reboot(self) -> None:
        """The host went down, after ends of whatever kind."""
        self._known &= self._promoted | self._clean
