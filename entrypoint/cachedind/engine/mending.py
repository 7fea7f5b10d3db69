"""Mending: what a start does about data that is damaged or doubted. Nothing is ever deleted.

    restore     a small file of which a good copy was kept; what was in its place lies aside
    set aside   layers that a crash of the host has emptied, where a list proves it (hollow.py)
    write again files that a crash has emptied, where the packed layer has them (unpacked.py)
    prove       a private daemon. One that comes up ends the doubt. One that ends by itself speaks against the data,
                if another comes up on an empty directory beside them; one that is silent, or killed, says nothing:
                then the data are used as they are, and the doubt stays
    move        what was found to be damaged, out of the engine's sight; prove again
    rebuild     everything away that an engine can make anew from images and layers; prove again
    empty       images and build cache away: cold, and working

In direct mode nothing is moved before a daemon has failed on it, but what a list has proven to be empty, and what no
daemon could tell of although none can use it: a record of what is gone, a pipe in the place of a file. In a pool, where
a slot is a cache, another good state is better than anything below `prove`, and what was found is moved at once.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.errors import DaemonEnd, PrivateDaemonError
from cachedind.base.model import ImageStore, Loss
from cachedind.engine import aside, damage, databases, hollow, kept, paths
from cachedind.engine.damage import Damage
from cachedind.engine.private_daemon import private_daemon
from cachedind.engine.remapping import engine_root
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cachedind.base.model import EngineVersion, StoragePlan
    from cachedind.base.trace import Trace
    from cachedind.engine.aside import Aside
    from cachedind.engine.doubt import Doubt
    from cachedind.engine.hollow import Found

CONTROL = "control"
PROOF_S = 60.0
"""How long a private daemon may be silent on a small data-root. A healthy one takes 0.1 s; one that replays a journal,
or is on a slow disk, more."""
MAX_PROOF_S = 600.0
_BYTES_EACH_S = 4 << 20
_LAYERS_EACH_S = 20
"""What a slow disk may need for databases that are read, and for layers that are looked at one by one."""
_NOT_OF_THE_DATA = ("no space left", "disk quota", "read-only file system", "too many open files", "cannot allocate")
"""Words of a daemon that ended for want of something that data cannot give it."""

_COSTS = {
    Loss.NOTHING: "nothing is lost",
    Loss.RECORDS: "build history, networks, labels of volumes or a container may be gone",
    Loss.NAMES: "images may have lost their names",
    Loss.LAYERS: "images that have these layers have to be pulled, loaded or built again",
    Loss.CACHE: "the build cache starts anew, images stay",
    Loss.IMAGES: "images and build cache start anew",
}


class Subject(NamedTuple):
    """A data-root whose lease is held: its path, the engine's root in it, open, and the lock that a private daemon
    inherits. `engines` are the one that wrote it last, where that is known, and the one that is to start."""

    data_root: str
    root_fd: int
    storage: StoragePlan
    lock_fd: int
    engines: tuple[EngineVersion | None, ...] = ()


class Proof(NamedTuple):
    """What a private daemon said: `problem` is None when it came up, `end` how it ended else."""

    problem: str | None = None
    end: DaemonEnd | None = None

    @property
    def speaks_against_data(self) -> bool:
        words = (self.problem or "").lower()
        return self.end is DaemonEnd.BY_ITSELF and not any(word in words for word in _NOT_OF_THE_DATA)


class Mended(NamedTuple):
    """How it went. `fit` is false when something else should be taken; `loss` is the worst that was lost, None when
    nothing was; `why` says what was wrong, for people. `unproven` is why no private daemon could tell, `left` what was
    found and is left where it is, `refused` that CACHEDIND_STRICT forbids to go on."""

    fit: bool
    loss: Loss | None = None
    why: str = ""
    moved: tuple[Aside, ...] = ()
    unproven: str = ""
    left: str = ""
    refused: bool = False
    unchecked: tuple[str, ...] = ()
    rewritten: int = 0
    """How many files were written again."""

    @property
    def cost(self) -> str:
        return _COSTS[self.loss or Loss.NOTHING]


# ---- planning: pure --------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What to do: put these copies back, set these aside at once, these when a daemon has failed on them; `leave` it,
    because there is something better to take. `at_once` and `later` are what these moves cost."""

    restore: tuple[str, ...] = ()
    move: tuple[str, ...] = ()
    if_it_fails: tuple[str, ...] = ()
    leave: bool = False
    at_once: Loss | None = None
    later: Loss | None = None


def plan_mending(
    found: Sequence[Damage],
    emptied: Found,
    storage: StoragePlan,
    copies: frozenset[str],
    *,
    in_pool: bool,
    has_better: bool,
) -> Plan:
    """`emptied` is what a crash has emptied, `copies` are the files of which there is a good copy, `has_better` tells
    that a pool has another state of the kind."""
    restore = tuple(one.path for one in found if one.path in copies)
    lost = [one for one in found if one.path not in copies and one.path not in emptied.bad]
    if has_better and (emptied.bad or emptied.held or emptied.short or any(one.loss >= Loss.NAMES for one in lost)):
        return Plan(leave=True)
    surely = [one for one in lost if one.silent or in_pool]
    others = [one for one in lost if one not in surely]
    proven = [*emptied.bad, *(_build_cache(storage) if emptied.cached else [])]
    proven += [path for one in surely for path in _goes_with(one, storage)]
    costs = (
        [Loss.NOTHING] * bool(restore or emptied.short)
        + [Loss.LAYERS] * bool(emptied.bad)
        + [Loss.CACHE] * emptied.cached
    )
    return Plan(
        restore,
        _unique(proven),
        _unique([path for one in others for path in _goes_with(one, storage)]),
        at_once=max([*costs, *(one.loss for one in surely)], default=None),
        later=max((one.loss for one in others), default=None),
    )


def _unique(places: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(places))


def _goes_with(one: Damage, storage: StoragePlan) -> list[str]:
    """What has no meaning without the damaged thing, and would mislead an engine: BuildKit's records of layers, say."""
    if one.loss is Loss.IMAGES:
        if storage.store is ImageStore.CONTAINERD:
            return ["containerd", *_build_cache(storage)]
        # One layer that is gone takes what lies on it; the build cache may refer to it, too.
        return [one.path, *_build_cache(storage)]
    return [one.path, *(_build_cache(storage) if one.loss is Loss.CACHE else [])]


def _build_cache(storage: StoragePlan) -> list[str]:
    """Everything in which BuildKit refers to results and to each other. One of them alone would speak of what the
    others do not have. The worker's name stays: it is what makes the next build cache this one's."""
    names = [path for path, loss in databases.known(storage).items() if loss is Loss.CACHE]
    return [*names, "buildkit/content"] if storage.store is ImageStore.GRAPHDRIVER else names


def everything_remakeable(storage: StoragePlan) -> tuple[str, ...]:
    """What an engine makes anew while images and layers stay: all databases but those that list them."""
    names = [path for path, loss in databases.known(storage).items() if loss < Loss.IMAGES]
    return (*names, "buildkit", "network/files", "swarm", "runtimes", "plugins", "content")


def everything_but_volumes(storage: StoragePlan) -> tuple[str, ...]:
    """All that dockerd reads at its start, but the content of volumes."""
    more = ("image", "containers", "containerd", "rootfs", "engine-id", "volumes/metadata.db", storage.driver)
    return (*everything_remakeable(storage), *more)


# ---- doing -----------------------------------------------------------------------------------------------------------


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
    """Make a data-root fit, if there is anything wrong with it. With `strict` nothing is changed that would have to be
    told as a loss.

    Raises OSError when something cannot be moved (a full or read-only disk). Needs --privileged, and a single thread.
    """
    root_fd, storage = subject.root_fd, subject.storage
    found = damage.find(root_fd, storage, thorough=doubt is not None, engines=subject.engines)
    found += kept.find_lost_words(root_fd, storage)
    if not found and doubt is None:
        return Mended(True)
    emptied = _find_emptied(subject) if doubt is not None and doubt.crashed else hollow.Found()
    plan = plan_mending(found, emptied, storage, kept.find(root_fd, storage), in_pool=in_pool, has_better=has_better)
    why = _describe(found, emptied, doubt)
    left = "; ".join(f"{path}: {reason}" for path, reason in list(emptied.held.items())[:3])
    if plan.leave:
        return Mended(False, why=why)
    if strict and (found or emptied.bad or emptied.held or emptied.short):
        return Mended(False, _worst(plan.at_once, plan.later), why, refused=True)
    moved = aside.move(root_fd, (*plan.restore, *plan.move), why, in_pool=in_pool)
    for path in plan.restore:
        kept.put_back(root_fd, path)
    rewritten = _write_again(root_fd, emptied)
    trace.reach("mend.moved")
    result = Mended(True, plan.at_once, why, tuple(moved), left=left, unchecked=emptied.unchecked, rewritten=rewritten)
    return _prove_and_move(subject, plan, result, environ, trace, has_better=has_better, in_pool=in_pool, strict=strict)


def _find_emptied(subject: Subject) -> Found:
    root_fd, driver = subject.root_fd, subject.storage.driver
    if subject.storage.store is ImageStore.GRAPHDRIVER:
        return hollow.find_layers(root_fd, driver)
    until = time.monotonic() + hollow.TIME_S
    blobs = hollow.find_blobs(root_fd, time_s=hollow.TIME_S)
    if damage.are_tested(subject.engines):
        from cachedind.engine import unpacked

        return unpacked.compare(root_fd, driver, blobs, until=until)
    return blobs._replace(unchecked=(*blobs.unchecked, "unpacked layers, as this version does not know the engine"))


def _write_again(root_fd: int, emptied: Found) -> int:
    """How many files. Raises OSError."""
    if emptied.short:
        from cachedind.engine import unpacked

        for layer in emptied.short:
            unpacked.write_again(root_fd, layer)
    return sum(len(layer.files) for layer in emptied.short)


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
        proof = prove(subject, environ)
        trace.reach("mend.proven")
        if proof.problem is None:
            left = why if number == 0 and plan.if_it_fails else so_far.left
            return so_far._replace(loss=loss, why=why, moved=tuple(moved), left=left)
        if not proof.speaks_against_data:
            return so_far._replace(loss=loss, why=why, moved=tuple(moved), unproven=proof.problem)
        if number == 0:
            if not is_to_blame(subject, environ):
                unproven = f"no private daemon comes up here, not even on an empty directory: {proof.problem}"
                return so_far._replace(unproven=unproven)
            why = f"{why}; {proof.problem}" if why else proof.problem
            if has_better or strict:
                return so_far._replace(fit=False, loss=_worst(loss, next_loss), why=why, refused=not has_better)
        gone = aside.move(subject.root_fd, places, why, in_pool=in_pool)
        trace.reach("mend.settled")
        moved += gone
        loss = _worst(loss, next_loss) if gone else loss
    proof = prove(subject, environ)
    if proof.problem is None or not proof.speaks_against_data:
        return so_far._replace(loss=loss, why=why, moved=tuple(moved), unproven=proof.problem or "")
    return so_far._replace(fit=False, loss=loss, why=f"{why}; {proof.problem}", moved=tuple(moved))


def _rungs(storage: StoragePlan) -> tuple[tuple[Loss, tuple[str, ...]], ...]:
    """The last ones: nothing was found, or what was found was not all."""
    return (Loss.CACHE, everything_remakeable(storage)), (Loss.IMAGES, everything_but_volumes(storage))


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


# ---- proof -----------------------------------------------------------------------------------------------------------


def prove(subject: Subject, environ: Mapping[str, str]) -> Proof:
    """What a private daemon says of the data, within a time that grows with their size."""
    until = time.monotonic() + proof_s(*measure(subject))
    try:
        with private_daemon(
            subject.data_root, subject.storage, lock_fd=subject.lock_fd, environ=environ, deadline=until
        ):
            return Proof()
    except PrivateDaemonError as error:
        return Proof(error.cause, error.end)


def proof_s(database_bytes: int, layers: int) -> float:
    """How long a private daemon may be silent, in seconds."""
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
    """Whether a private daemon comes up on an empty directory beside the data. Where it does not, something else is
    wrong, and no data must go for that. Raises OSError."""
    from cachedind.host import trees

    with beneath.made_directory(subject.root_fd, aside.HOME) as home_fd:
        trees.remove(home_fd, CONTROL)
        os.mkdir(CONTROL, 0o710, dir_fd=home_fd)
        try:
            root = engine_root(subject.data_root, subject.storage.remap)
            empty = subject._replace(data_root=f"{root}/{aside.HOME}/{CONTROL}")
            if subject.storage.remap is not None:
                os.fchmod(home_fd, 0o711)  # an engine looks whether its remapped root gets there
            return prove(empty, environ).problem is None
        finally:
            trees.remove(home_fd, CONTROL)
