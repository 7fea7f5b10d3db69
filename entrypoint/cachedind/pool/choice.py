"""Which state of a pool a start wants, and which replaces which. Pure.

Of the own scope's free slots and golden the newest; else the newest of the key's other scopes, which is cloned. A state
replaces others of its own scope and class only.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.model import ImageStore
from cachedind.pool import clone
from cachedind.pool.slot_state import Candidate, Kind, SlotState, class_name

if TYPE_CHECKING:
    from cachedind.base.model import DataRootState, EngineVersion
    from cachedind.dataroot.storage_facts import StorageRequest


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
        return f"with other remapped users ({data.remap or 'none'})"
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


def describe_misfits(candidates: list[Candidate], requirements: Requirements) -> str:
    """Why none of a key's states is used that have something in them; an empty word where there is none."""
    full = [c.state for c in candidates if c.state.data and not c.state.read_only and not c.state.nothing_new]
    reasons = sorted({reason for found in full if (reason := why_incompatible(found, requirements))})
    if not reasons:
        return ""
    return f"none that fits of {len(full)}: {', '.join(reasons)}" if len(full) > 1 else f"what is there is {reasons[0]}"


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


def _newest(slot: SlotState, goldens: list[Candidate]) -> int:
    same = [g.state for g in goldens if g.state.scope == slot.scope and class_name(g.state) == class_name(slot)]
    return max((found.sequence for found in same), default=-1)
