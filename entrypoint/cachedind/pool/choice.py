"""Which state of a pool a start wants, and which replaces which. Pure.

Of the own scope's free slots and golden the newest; else the newest of the key's other scopes, which is cloned. A state
replaces others of its own scope and class only.
"""

from __future__ import annotations

import os
from collections import Counter

from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import doubt
from cachedind.pool import clone
from cachedind.pool.slot_state import Candidate, Kind, SlotState, class_name

if TYPE_CHECKING:
    from cachedind.base.model import DataRootState, EngineVersion
    from cachedind.dataroot.storage_facts import StorageRequest

HELD = "held by other instances"
PASSED_OVER = "passed over by this start"
COMES_BACK_S = 600.0
"""How long what a container has left is not removed for being superseded: longer than any restart policy waits (Docker
one minute, a kubelet five)."""


class Requirements(NamedTuple):
    """What a start can use: data of its own or an older engine, of its architecture, with its remapped users, and of
    the store and driver that were asked for."""

    engine: EngineVersion
    arch: str
    store: ImageStore | None = None
    driver: str | None = None
    docker_driver: str = ""
    """DOCKER_DRIVER's: asked for, and given up where it cannot be had."""
    remap: str = ""
    scope: str = ""
    """Whose states come first; those of others are cloned."""
    container: str = ""
    """Where the start is: a daemon that is started again in the same container goes on with its slot."""

    def is_own(self, found: SlotState) -> bool:
        """Whether it is what the daemon before this one, in the same container, has left."""
        return bool(self.container) and found.container == self.container


def build_requirements(request: StorageRequest, engine: EngineVersion, scope: str = "") -> Requirements:
    """What a start with this engine can use of a pool."""
    store = ImageStore(request.store.value) if request.store else None
    return Requirements(
        engine=engine,
        arch=os.uname().machine,
        store=ImageStore.GRAPHDRIVER if request.userns_remap else store,
        driver=request.driver.value if request.driver else None,
        docker_driver=request.docker_driver,
        remap=request.userns_remap.directory if request.userns_remap else "",
        scope=scope,
    )


def is_compatible(found: SlotState, requirements: Requirements) -> bool:
    """What has nothing new in it is not worth a lease: what it began with is there."""
    is_worth_it = not found.nothing_new or requirements.is_own(found)
    return not found.read_only and is_worth_it and not why_incompatible(found, requirements)


def why_incompatible(found: SlotState, requirements: Requirements) -> str:
    """What of a state a start cannot use, or an empty word."""
    data = found.data
    if found.arch != requirements.arch:
        return f"of another architecture ({found.arch})"
    if data is None:
        return ""
    if data.engine.release > requirements.engine.release:
        return f"of a newer engine ({data.engine})"
    if data.remap != requirements.remap:
        return f"with other remapped users ({data.remap})" if data.remap else "without userns-remap"
    if requirements.store not in (None, data.store):
        return f"in another image store ({data.store})"
    if requirements.driver not in (None, data.driver) or not _is_asked_for(found, data, requirements):
        return f"with another storage driver ({data.driver}{' in the containerd store' * _is_containerd(data)})"
    return ""


def _is_containerd(data: DataRootState) -> bool:
    return data.store is ImageStore.CONTAINERD


def _is_asked_for(found: SlotState, data: DataRootState, requirements: Requirements) -> bool:
    """What one start asked for does not become its key's: it is for those that ask for it, too."""
    if found.asked == "driver":
        return data.driver in (requirements.driver, requirements.docker_driver)
    return found.asked != "store" or requirements.store is not None or requirements.driver is not None


def plan_choice(candidates: list[Candidate], requirements: Requirements, boot_id: str) -> list[Candidate]:
    """What to start from, best first: without a grave doubt, what the same container had, of the own scope, of this
    engine's own release before an older one's, the newest.

    What has nothing but seeds in it comes after other scopes' states. Of equally new ones a slot, which needs no clone.
    A slot that never had a daemon and has no parent comes last.
    """

    def rank(candidate: Candidate) -> tuple[bool, bool, bool, int, bool, int, bool]:
        found = candidate.state
        worth = 0 if found.pure else 2 if found.scope == requirements.scope else 1
        same = found.data is not None and found.data.engine.release == requirements.engine.release
        return (
            found.data is not None,
            found.is_likely(boot_id),
            candidate.kind is Kind.SLOT and requirements.is_own(found),
            worth,
            same,
            found.sequence,
            candidate.kind is Kind.SLOT,
        )

    fitting = [candidate for candidate in candidates if is_compatible(candidate.state, requirements)]
    return sorted(fitting, key=rank, reverse=True)


def why_nothing_warmer(
    candidates: list[Candidate],
    requirements: Requirements,
    boot_id: str,
    got: SlotState | None,
    held: frozenset[str] = frozenset(),
    *,
    lends: bool = False,
) -> str:
    """Why a start got `got` of its key, or nothing, and nothing warmer; an empty word where there is nothing warmer.
    `held` are names of candidates; `lends`: it takes no slot away, and wants a clone.

    What instances at work hold is no state yet for one that got what their scope has finished.
    """
    got = got if got and got.data else None
    is_own = got is not None and got.scope == requirements.scope
    found = [
        _why_not(one, requirements, boot_id, is_held=one.name in held, lends=lends)
        for one in _warmer(candidates, requirements, got)
    ]
    reasons = Counter(why for why in found if not (is_own and why in (HELD, PASSED_OVER)))
    count = reasons.total()
    if not reasons:
        return ""
    if count == 1:
        what = "what is newer" if is_own else "what is there" if got is None else "what this scope has"
        return f"{what} is {next(iter(reasons))}"
    which = " newer ones" if is_own else "" if got is None else " of this scope"
    return f"none of {count}{which} fits: " + ", ".join(f"{number} {why}" for why, number in sorted(reasons.items()))


def _warmer(candidates: list[Candidate], requirements: Requirements, got: SlotState | None) -> list[Candidate]:
    """What a start would rather have had: of its own scope what is newer, or all of that where it got another scope's;
    whatever has data, where it got none."""
    full = [one for one in candidates if one.state.data is not None and not one.state.read_only]
    if got is None:
        return full
    own = [one for one in full if one.state.scope == requirements.scope and not one.state.nothing_new]
    return [one for one in own if got.scope != requirements.scope or one.state.sequence > got.sequence]


def _why_not(candidate: Candidate, requirements: Requirements, boot_id: str, *, is_held: bool, lends: bool) -> str:
    found, data = candidate.state, candidate.state.data
    assert data is not None
    misfit = why_incompatible(found, requirements)
    if misfit:
        return misfit
    if found.nothing_new:
        return "not worth a lease (its job left nothing new)"
    if is_held:
        return HELD
    is_lent = candidate.kind is Kind.SLOT and (lends or found.scope != requirements.scope)
    if is_lent and not clone.is_possible(data):
        return f"of a driver whose layers cannot be shared ({data.driver})"
    if not (found.is_trusted(boot_id) if is_lent else found.is_likely(boot_id)):
        doubted = doubt.find(data, boot_id)
        return f"not to be trusted yet ({doubted.why if doubted else doubt.NEVER_READY})"
    if data.engine.release != requirements.engine.release:
        return f"of an older engine ({data.engine})"
    return PASSED_OVER


def newest_clones(golden: SlotState, candidates: list[Candidate]) -> list[Candidate]:
    """A golden's clones on which a start was, the last one first. Pure."""
    clones = [c for c in candidates if c.kind is Kind.SLOT and golden.id and c.state.parent == golden.id]
    started = [c for c in clones if c.state.data is not None]
    return sorted(started, key=lambda c: c.state.data.started_at if c.state.data else 0.0, reverse=True)


def needs_promotion(slot: SlotState, goldens: list[Candidate], boot_id: str) -> bool:
    """Whether a free slot's state should become the golden: it is good, and newer than its scope's of its class."""
    if slot.read_only or slot.nothing_new or not slot.is_trusted(boot_id) or not clone.is_possible(slot.data):
        return False
    return is_newest(slot, goldens)


def is_newest(slot: SlotState, goldens: list[Candidate]) -> bool:
    """Whether a state is newer than each golden of its scope and class."""
    return slot.sequence > _newest(slot, goldens)


def superseded(slot: SlotState, goldens: list[Candidate]) -> bool:
    """Whether no start would prefer this slot, free as it is: it is a throw-away, has nothing new in it, or a golden of
    its scope and class is newer."""
    if slot.read_only or slot.nothing_new:
        return True
    if slot.data is None:
        return any(golden.state.scope == slot.scope for golden in goldens)
    newest = _newest(slot, goldens)
    return slot.sequence < newest or (newest >= 0 and slot.never_ready and slot.pure)


def may_come_back(slot: SlotState, now: float) -> bool:
    """Whether a slot's container may be starting again: its daemon was asked to end, and did, a moment ago."""
    ended = slot.data.ended if slot.data is not None else None
    is_recent = ended is not None and now - COMES_BACK_S <= ended.at <= now
    return is_recent and bool(slot.container) and not slot.read_only


def _newest(slot: SlotState, goldens: list[Candidate]) -> int:
    same = [g.state for g in goldens if g.state.scope == slot.scope and class_name(g.state) == class_name(slot)]
    return max((found.sequence for found in same), default=-1)
