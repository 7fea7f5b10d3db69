"""Cleaning a pool's slot for the next job: what the last one left, and what the pool has no room for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cachedind.dataroot import facts
from cachedind.engine import remapping
from cachedind.pool.slot_request import TakenSlot, Warmth

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.base.model import StoragePlan
    from cachedind.dataroot.lease import Lease
    from cachedind.engine.cleaning import Cleaned, Pruning
    from cachedind.settings.config import Config


def clean(
    settings: Config, environ: dict[str, str], storage: StoragePlan, lease: Lease, taken: TakenSlot, log: Log
) -> Cleaned:
    """Remove what the last job left in the slot, with a private daemon, before this one's job can see it. Where the
    pool is over its budget with nothing left to evict, the slot is pruned too.

    Raises CleaningError when no daemon comes up on the slot, or leaves something: then it is not fit for a job.
    """
    from cachedind.engine import cleaning, damage
    from cachedind.engine.leftovers import find_leftovers

    writer = [taken.found.data.engine] if taken.found.data is not None else []
    tested = damage.are_tested([*writer, facts.read_engine_version(settings.path)])
    root = remapping.make(lease.data_root, storage.remap)
    unusable = _find_unusable_networks(root, settings.keep, log) if tested else frozenset()
    leftovers = find_leftovers(root, settings.keep, tested=tested, unusable=unusable)
    wanted = None if settings.read_only else _wanted_pruning(settings, storage, lease, taken)
    return cleaning.clean(
        lease.data_root,
        storage,
        leftovers,
        settings.keep,
        lock_fd=lease.fd,
        environ=environ,
        log=log,
        trace=taken.pool.trace,
        wanted=wanted,
        tested=tested,
        unusable=unusable,
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


def _wanted_pruning(settings: Config, storage: StoragePlan, lease: Lease, taken: TakenSlot) -> Pruning | None:
    """What this slot has to give up, if the pool says so. The note is taken with that: one slot for each."""
    from cachedind.engine import pruning

    if taken.warmth is Warmth.FRESH:
        return None
    try:
        wanted_bytes = pruning.take_note(taken.pool.fd)
    except OSError:
        return None
    if wanted_bytes <= 0:
        return None
    from cachedind.engine import image_names
    from cachedind.engine.cleaning import Pruning
    from cachedind.seeds import ledger

    root_fd = remapping.open_root(lease.data_root, storage.remap)
    try:
        entries, _ = ledger.read(root_fd)
    finally:
        os.close(root_fd)
    seeded = (name for entry in entries.values() for record in entry.images for name in record.names)
    return Pruning(wanted_bytes, settings.cache_max_bytes, frozenset(map(image_names.familiar, seeded)))
