"""Mending: what a start does about data that is damaged or doubted. Nothing is ever deleted.

    restore     a small file of which a good copy was kept (kept.py); what was in its place is set aside
    set aside   layers whose files a crash of the host has emptied, where the list of their files shows it (hollow.py)
    rewrite     files that a crash has emptied, where the packed layer still has them (unpacked.py), or that are our own
                (pins.py)
    prove       a private daemon comes up, and the doubt is over; or it speaks against the data; or it says nothing, and
                the data is used as it is while the doubt stays (proof.py)
    move        what was found to be damaged is set aside; prove again
    rebuild     all that an engine can make anew from images and layers is set aside; prove again
    empty       images and build cache are set aside: the start is cold, and works

In direct mode nothing is moved before a daemon has failed on it, with two exceptions: layers that are shown to have
lost files, and what no daemon can use although none would say so (a record of a layer that is gone, a pipe in the place
of a file). In a pool, where a slot is a cache, what was found is moved at once, and another good state is taken rather
than anything below `prove`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.model import ImageStore, Loss
from cachedind.engine import aside, blobs, damage, hollow, kept, looked, mending_plan, proof

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cachedind.base.model import StoragePlan
    from cachedind.base.trace import Trace
    from cachedind.engine.aside import Aside
    from cachedind.engine.damage import Damage
    from cachedind.engine.doubt import Doubt
    from cachedind.engine.hollow import Found
    from cachedind.engine.mending_plan import Plan
    from cachedind.engine.proof import Subject

_COSTS = {
    Loss.NOTHING: "nothing is lost",
    Loss.RECORDS: "build history, networks, labels of volumes or a container may be gone",
    Loss.NAMES: "images may have lost their names",
    Loss.LAYERS: "images that have these layers have to be pulled, loaded or built again",
    Loss.CACHE: "the build cache starts anew, images stay",
    Loss.IMAGES: "images and build cache start anew",
}


class Mended(NamedTuple):
    """How it went. `fit` is false when something else should be taken; `loss` is the worst that was lost, None when
    nothing was; `why` says what was wrong, for people. `unproven` is why no private daemon could tell, `left` the
    damage that was found and stays where it is, `refused` is true where CACHEDIND_STRICT forbids to go on."""

    fit: bool
    loss: Loss | None = None
    why: str = ""
    moved: tuple[Aside, ...] = ()
    unproven: str = ""
    left: str = ""
    refused: bool = False
    unchecked: tuple[str, ...] = ()
    late: bool = False
    """Whether there was no time to look at all layers after a crash."""
    rewritten: int = 0
    """How many emptied files got their content back."""
    unpinned: str = ""
    """Why layers of images that no job sees may be without their pins, which a crash has emptied."""

    @property
    def cost(self) -> str:
        return _COSTS[self.loss or Loss.NOTHING]


def mend(
    subject: Subject,
    doubt: Doubt | None,
    *,
    has_better: bool,
    in_pool: bool,
    strict: bool,
    environ: Mapping[str, str],
    trace: Trace,
) -> Mended:
    """Make a data-root fit, if there is anything wrong with it. With `strict` damage is reported and nothing changed.

    Raises OSError when something cannot be moved (a full or read-only disk). Needs --privileged, and a single thread.
    """
    root_fd, storage = subject.root_fd, subject.storage
    found = damage.find(root_fd, storage, thorough=doubt is not None, engines=subject.engines)
    found += kept.find_lost_name(root_fd, storage)
    if not found and doubt is None:
        return Mended(True)
    emptied = _find_emptied(subject) if doubt is not None and doubt.crashed else hollow.Found()
    copies = kept.find(root_fd, storage)
    plan = mending_plan.plan_mending(found, emptied, storage, copies, in_pool=in_pool, has_better=has_better)
    why = _describe(found, emptied, doubt)
    left = "; ".join(f"{path}: {reason}" for path, reason in list(emptied.held.items())[:3])
    if plan.leave:
        return Mended(False, why=why)
    if strict and (found or emptied.bad or emptied.held or emptied.short):
        return Mended(False, _worst(plan.at_once, plan.later), why, refused=True)
    moved = aside.move(root_fd, (*plan.restore, *plan.move), why, in_pool=in_pool)
    for path in plan.restore:
        kept.put_back(root_fd, path)
    rewritten = _rewrite(root_fd, emptied)
    unpinned = _mend_pins(subject) if doubt is not None and doubt.crashed else ""
    trace.reach("mend.moved")
    result = Mended(True, plan.at_once, why, tuple(moved), left=left, unchecked=emptied.unchecked, late=emptied.late)
    result = result._replace(rewritten=rewritten, unpinned=unpinned)
    return _prove_and_move(subject, plan, result, environ, trace, has_better=has_better, in_pool=in_pool, strict=strict)


def _find_emptied(subject: Subject) -> Found:
    """What the start before this one has looked at in this boot is whole. When neither of the two came to an end with
    anything new, what is left cannot be looked at in the time that a start has."""
    before = looked.read(subject.root_fd)
    found = _look(subject, before or frozenset())
    found = found._replace(late=found.late and found.looked != before)
    looked.note(subject.root_fd, found.looked if found.late else None)
    return found


def _look(subject: Subject, before: frozenset[str]) -> Found:
    root_fd, driver = subject.root_fd, subject.storage.driver
    if subject.storage.store is ImageStore.GRAPHDRIVER:
        return hollow.find_layers(root_fd, driver, time_s=hollow.TIME_S, looked=before)
    until = time.monotonic() + hollow.TIME_S
    found = blobs.find(root_fd, time_s=hollow.TIME_S, looked=before)
    if damage.are_tested(subject.engines):
        from cachedind.engine import unpacked

        return unpacked.compare(root_fd, driver, found, until=until, looked=before)
    return found._replace(unchecked=(*found.unchecked, "unpacked layers (an engine that this version does not know)"))


def _rewrite(root_fd: int, emptied: Found) -> int:
    """Give emptied files their content back; returns how many. Raises OSError."""
    if emptied.short:
        from cachedind.engine import unpacked

        for layer in emptied.short:
            unpacked.write_again(root_fd, layer)
    return sum(len(layer.files) for layer in emptied.short)


def _mend_pins(subject: Subject) -> str:
    """Returns what stands in the way: that costs layers when a job prunes, and speaks against no data."""
    if subject.storage.store is not ImageStore.GRAPHDRIVER:
        return ""
    from cachedind.engine.graph_view import GraphView

    try:
        GraphView(subject.root_fd, subject.storage.driver).mend_pins()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _prove_and_move(
    subject: Subject,
    plan: Plan,
    so_far: Mended,
    environ: Mapping[str, str],
    trace: Trace,
    *,
    has_better: bool,
    in_pool: bool,
    strict: bool,
) -> Mended:
    """What the private daemon says, and what follows from it."""
    first = [(plan.later or Loss.NOTHING, plan.if_it_fails)] if plan.if_it_fails else []
    moved, loss, why = list(so_far.moved), so_far.loss, so_far.why
    for number, (next_loss, places) in enumerate((*first, *_rungs(subject.storage))):
        said = proof.prove(subject, environ)
        trace.reach("mend.proven")
        if said.problem is None:
            left = why if number == 0 and plan.if_it_fails else so_far.left
            return so_far._replace(loss=loss, why=why, moved=tuple(moved), left=left)
        if not said.speaks_against_data:
            return so_far._replace(loss=loss, why=why, moved=tuple(moved), unproven=said.problem)
        if number == 0:
            if not proof.is_to_blame(subject, environ):
                unproven = f"no private daemon comes up here, not even on an empty directory: {said.problem}"
                return so_far._replace(unproven=unproven)
            why = f"{why}; {said.problem}" if why else said.problem
            if has_better or strict:
                return so_far._replace(fit=False, loss=_worst(loss, next_loss), why=why, refused=not has_better)
        gone = aside.move(subject.root_fd, places, why, in_pool=in_pool)
        trace.reach("mend.settled")
        moved += gone
        loss = _worst(loss, next_loss) if gone else loss
    said = proof.prove(subject, environ)
    if said.problem is None or not said.speaks_against_data:
        return so_far._replace(loss=loss, why=why, moved=tuple(moved), unproven=said.problem or "")
    return so_far._replace(fit=False, loss=loss, why=f"{why}; {said.problem}", moved=tuple(moved))


def _rungs(storage: StoragePlan) -> tuple[tuple[Loss, tuple[str, ...]], ...]:
    """The last rungs, for when nothing was found, or moving it was not enough."""
    return (Loss.CACHE, mending_plan.everything_remakeable(storage)), (
        Loss.IMAGES,
        mending_plan.everything_but_volumes(storage),
    )


def _worst(*losses: Loss | None) -> Loss | None:
    return max((loss for loss in losses if loss is not None), default=None)


def _describe(found: Sequence[Damage], emptied: Found, doubt: Doubt | None) -> str:
    short = {layer.path: layer.why for layer in emptied.short}
    reasons = {**emptied.bad, **short, **{one.path: one.why for one in found}}
    if not reasons:
        return "" if doubt is None else doubt.why
    path, reason = next(iter(reasons.items()))
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{path}: {reason}{more}" + (f", after this: {doubt.why}" if (emptied.bad or short) and doubt else "")
