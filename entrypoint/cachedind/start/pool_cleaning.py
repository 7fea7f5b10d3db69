"""Cleaning a pool's slot for the next job: what the last one left, and what the pool has no room for."""

from __future__ import annotations

import contextlib
import os
import time

from cachedind.base import releases
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot import facts
from cachedind.engine import fresh_images, image_uses, remapping
from cachedind.pool import clock, key_directory
from cachedind.pool.slot_request import TakenSlot, Warmth
from cachedind.seeds import ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.base.log import Log
    from cachedind.base.model import StoragePlan
    from cachedind.dataroot.lease import Lease
    from cachedind.engine.cleaning import Cleaned, Pruning
    from cachedind.engine.hiding import Wish
    from cachedind.engine.leftovers import Leftovers
    from cachedind.seeds.seeding import Found
    from cachedind.start.context import StartContext


def clean(context: StartContext, storage: StoragePlan, lease: Lease, taken: TakenSlot, seeds: Found | None) -> Cleaned:
    """Remove what the last job left in the slot before this one's job can see it, all but `seeds`. Where the pool is
    over its budget with nothing left to evict, the slot is pruned too. Does nothing where the last job was this one.

    Raises CleaningError when no daemon comes up on the slot, or leaves something: then it is not fit for a job.
    """
    from cachedind.engine import cleaning
    from cachedind.engine.leftovers import Leftovers, find_leftovers

    settings = context.settings
    writer = [taken.found.data.engine] if taken.found.data is not None else []
    tested = releases.are_tested([*writer, facts.read_engine_version(settings.path)])
    root = remapping.make(lease.data_root, storage.remap)
    if taken.is_same_job:
        kept = find_leftovers(root, frozenset(), tested=tested)
        return cleaning.Cleaned(Leftovers(), kept=bool(kept))
    unusable = _find_unusable_networks(root, settings.keep, context.log) if tested else frozenset()
    leftovers = find_leftovers(root, settings.keep, tested=tested, unusable=unusable)
    _tell_of_volumes(leftovers, settings.keep, context.log)
    with _key_uses(taken) as uses_fd:
        job = cleaning.Job(
            lease.data_root,
            storage,
            settings.keep,
            lease.fd,
            context.environ,
            context.log,
            taken.pool.trace,
            tested=tested,
            unusable=unusable,
            images=_wish(context, root, storage, taken, seeds, leftovers, uses_fd),
            wanted=None if settings.read_only else _wanted_pruning(context, root, taken),
        )
        cleaned = cleaning.clean(job, leftovers)
        if cleaned.hidden and job.images is not None and uses_fd is not None:
            with contextlib.suppress(OSError):
                image_uses.note_in(uses_fd, cleaned.hidden, job.images.used_at)
    return cleaned


def _tell_of_volumes(going: Leftovers, keep: frozenset[str], log: Log) -> None:
    """Those that were to be kept by their names, and are too many."""
    from cachedind.engine import kept_volumes

    names = kept_volumes.over_the_limit(going.volumes, keep)
    if names:
        shown = ", ".join(names[:3]) + ", …" * (len(names) > 3)
        most = kept_volumes.MAX_KEPT
        log.info(f"CACHEDIND_KEEP: of each volumes:PATTERN the {most} volumes that were used last stay; gone: {shown}")


@contextlib.contextmanager
def _key_uses(taken: TakenSlot) -> Iterator[int | None]:
    """The directory in which a key's uses of images are noted down."""
    fd = key_directory.open_key(taken.pool, taken.key, create=False)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _wish(
    context: StartContext,
    root: str,
    storage: StoragePlan,
    taken: TakenSlot,
    seeds: Found | None,
    found: Leftovers,
    uses_fd: int | None,
) -> Wish:
    from cachedind.engine import hiding, leftovers

    keeps_containers = leftovers.CONTAINERS in context.settings.keep
    with leftovers.opened_root(root) as root_fd:
        entries, _ = ledger.read(root_fd) if seeds is not None else ({}, None)
        there = [entries[seed.identity] for seed in (seeds.seeds if seeds else ()) if seed.identity in entries]
        ids = leftovers.images_of_containers(root_fd, found.containers) if keeps_containers else ()
        last_change = hiding.read_last_change(root_fd, storage)
    now = time.time()
    with contextlib.suppress(OSError):
        now = clock.read_now(taken.pool.fd, now)
    data = taken.found.data
    ended_at = 0.0 if data is None or data.ended is None else data.ended.at
    used_at = now if data is None else min(now, max(data.started_at, ended_at, last_change))
    keeps_images = leftovers.IMAGES in context.settings.keep
    return hiding.Wish(
        None if keeps_images else fresh_images.view_of((record for entry in there for record in entry.images), ids),
        {} if uses_fd is None else image_uses.read_in(uses_fd),
        used_at,
        now,
        context.settings.unused_max_age_s,
    )


def _find_unusable_networks(root: str, keep: frozenset[str], log: Log) -> frozenset[str]:
    """Ids and names of networks that this container's own addresses forbid to keep, each told in a line."""
    from cachedind.engine.leftovers import CONTAINERS, NETWORKS

    if not keep & {CONTAINERS, NETWORKS}:
        return frozenset()
    from cachedind.engine import network_overlaps

    overlaps = network_overlaps.read_overlaps(root)
    for overlap in overlaps:
        log.warn(str(overlap))
    return frozenset(word for overlap in overlaps for word in (overlap.identity, overlap.name))


def _wanted_pruning(context: StartContext, root: str, taken: TakenSlot) -> Pruning | None:
    """What this slot has to give up, if the pool says so. The note is taken with that: one slot for each."""
    from cachedind.engine import image_names, leftovers, pruning
    from cachedind.engine.cleaning import Pruning

    if taken.warmth is Warmth.FRESH:
        return None
    try:
        wanted_bytes = pruning.take_note(taken.pool.fd)
    except OSError:
        return None
    if wanted_bytes <= 0:
        return None
    with leftovers.opened_root(root) as root_fd:
        entries, _ = ledger.read(root_fd)
    seeded = (name for entry in entries.values() for record in entry.images for name in record.names)
    return Pruning(wanted_bytes, context.settings.cache_max_bytes, frozenset(map(image_names.familiar, seeded)))
