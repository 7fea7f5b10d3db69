"""From a leased data-root to its storage plan: what is in it, and the image store and storage driver chosen for it."""

from __future__ import annotations

import os
import time

from cachedind.base import state
from cachedind.base.model import Degradation
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot import contents, decision, facts, ground, stale_trials
from cachedind.engine import remapping
from cachedind.host import procfs

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.base.model import DataRootState, ExistingData, Remap, StoragePlan
    from cachedind.dataroot.facts import Place
    from cachedind.dataroot.lease import Lease
    from cachedind.engine.doubt import Doubt
    from cachedind.pool.slot_request import TakenSlot
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


def observe(
    lease: Lease, taken: TakenSlot | None, log: Log, remap: Remap | None = None
) -> tuple[Place, ExistingData, DataRootState | None, bool]:
    """Look at the data-root, now that it is ours: where it is, what is in it, what its last start noted down, and
    whether there was such a note beside the data, and is lost."""
    lost_note = False
    try:
        noted = contents.read_data_root_state(lease.directory_fd, lease.state_name)
        if noted is None and taken is None:
            lost_note = contents.had_a_start(lease.directory_fd, lease.state_name, lease.previous)
    except (ValueError, OSError) as error:  # OSError: a link or a directory in its place
        aside = state.set_aside(lease.directory_fd, lease.state_name)
        path = f"{lease.data_root}/.cachedind/{lease.state_name}" if taken is None else lease.state_name
        log.warn(f"{path} is unreadable ({error}) and was renamed to {aside}")
        noted, lost_note = None, True
    # First of all: in a driver's own directory, what a killed trial has left would pass for layers.
    if [name for directory in facts.probe_directories(lease.data_root) for name in stale_trials.sweep(directory)]:
        log.debug("removed what killed trials of a storage driver had left")
    place = facts.read_place(lease.data_root)
    existing = contents.read_existing(remapping.make(lease.data_root, remap), noted)
    found = [facts.check_room(place, fresh=not existing.pairs)]
    if taken is None:
        found.append(facts.persistence(place))
    for degradation in found:
        if degradation is not None:
            log.degraded(degradation)
    return place, existing, noted, lost_note and bool(existing.pairs)


def decide(
    settings: Config,
    daemon: DaemonSettings,
    lease: Lease,
    taken: TakenSlot | None,
    place: Place,
    existing: ExistingData,
    log: Log,
    doubted: Doubt | None = None,
    noted: DataRootState | None = None,
) -> StoragePlan:
    """Choose store and driver, say what was passed over, and note the decision and this start down. `noted` is what the
    last start has noted: where its daemon came up, and nothing has changed since, no driver is tried again."""
    request = decision.build_request(settings, daemon, in_pool=taken is not None)
    engine = facts.read_engine_version(settings.path)
    containerd = facts.read_containerd_version(settings.path, daemon) if existing.database else ""
    here = ground.read(lease.data_root, place.mount, engine)
    is_proven = doubted is None and ground.is_proven(noted, here)
    plan, asked = decision.decide(
        lease.data_root, place.fstype, engine, existing, request, containerd, proven=is_proven
    )
    log.debug(f"overlay was {'found to work by an earlier start, on the same ground' if is_proven else 'tried'}")
    for note in plan.notes:
        log.warn(note)
    for degradation in plan.degradations:
        log.degraded(degradation)
    more = {} if taken is None else _of_a_slot(taken, plan, log)
    if more and not existing.pairs:
        more["asked"] = asked
    try:
        before = contents.read_data_root_state(lease.directory_fd, lease.state_name)
        state = contents.next_state(
            before,
            plan,
            engine=engine,
            fstype=place.fstype,
            boot_id=procfs.read_boot_id(),
            now=time.time(),
            doubt="" if doubted is None else doubted.why,
            ground=here if plan.driver in ground.DRIVERS else None,
        )
        contents.write_data_root_state(lease.directory_fd, lease.state_name, state, more)
    except OSError as error:
        if is_proven:  # but not that anything can be written here: a trial says so better
            decision.try_drivers(lease.data_root, existing, request)
        why = f"{lease.state_name} of {lease.data_root}: {error.strerror}"
        cost = "the next start has to guess the driver from the data"
        log.degraded(Degradation("the storage decision cannot be noted down", why, cost, "free space on the volume"))
    return plan


def _of_a_slot(taken: TakenSlot, plan: StoragePlan, log: Log) -> dict[str, object]:
    """What is noted down of a pool's slot besides."""
    from cachedind.pool import clone

    if not clone.is_possible_with(plan):
        log.warn(
            f"layers of {plan.driver} cannot be shared: slots with it are leased, one job after the other, and an "
            "instance beside another one starts cold; with overlay2 (the default) none does"
        )
    return {
        "arch": os.uname().machine,
        "begun": taken.sequence,
        "before": taken.before,
        "read_only": taken.is_throwaway,
        "holder": facts.read_holder_of_now(time.time())._asdict(),
    }
