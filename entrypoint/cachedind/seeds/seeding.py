"""Seeding: which seeds a data-root lacks, and putting them in, with a private daemon or with the job's own.

Looking costs milliseconds and needs no daemon: the ledger in the data says what was put in, the store whether it is
still there. Only what is missing is opened, and only what its store lacks is loaded.
"""

from __future__ import annotations

import contextlib
import os
import time

from cachedind.base import sizes
from cachedind.base.model import Degradation, ImageStore
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.dataroot import facts
from cachedind.engine import image_stores, remapping
from cachedind.engine.images import Record, chain_ids
from cachedind.seeds import attempts, files, host_images, ledger, planning, wanted
from cachedind.seeds.model import BadSeed, Entry, SeedKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import docker

    from cachedind.base.log import Log
    from cachedind.base.model import StoragePlan
    from cachedind.base.trace import Trace
    from cachedind.dataroot.lease import Lease
    from cachedind.engine.image_stores import Store
    from cachedind.seeds.fetching import Fetched
    from cachedind.seeds.model import Seed, SeedError, SeedImage
    from cachedind.seeds.pipeline import Outcome
    from cachedind.seeds.planning import Plan
    from cachedind.settings.config import Config

STALL_S = 600
"""How long the daemon may be silent about a load."""


class Found(NamedTuple):
    """The seeds that the settings name, and bad ones. `host` is the other daemon, `certs` the directory for its TLS."""

    seeds: tuple[Seed, ...] = ()
    bad: tuple[BadSeed, ...] = ()
    host: str = ""
    certs: str = ""


class PutIn(NamedTuple):
    """The result of a run. `clean` tells that the store has no image of which only a part was loaded."""

    images: int
    bad: tuple[BadSeed, ...]
    clean: bool


# ---- looking ---------------------------------------------------------------------------------------------------------


def find(settings: Config) -> Found:
    """Every seed that the settings name. Asks the other daemon, if there is one, for at most a few seconds."""
    seeds, bad = files.find(wanted.read_patterns(settings))
    if settings.seed_host:
        more, worse = host_images.list_host(settings.seed_host, settings.seed_images, settings.seed_host_certs)
        seeds, bad = [*seeds, *more], [*bad, *worse]
    return Found(tuple(seeds), tuple(bad), settings.seed_host, settings.seed_host_certs)


def compare(found: Found, root_fd: int, storage: StoragePlan, log: Log) -> Plan:
    """Which of them the data-root that `root_fd` is open on lacks. No engine may run there."""
    entries, problem = ledger.read(root_fd)
    if problem is not None:
        log.debug(f"the ledger of seeds counts as empty: {problem}")
    store = image_stores.open_store(root_fd, storage)
    return planning.plan_seeding(found.seeds, entries, store.keeps)


def report_bad(bad: tuple[BadSeed, ...], log: Log) -> None:
    """A line for each. Raises StrictError with CACHEDIND_STRICT."""
    for seed in bad:
        cost = "its images are missing, everything else is there"
        log.degraded(Degradation(f"the seed {seed.name} is not loaded", seed.why, cost, "replace or remove it"))


# ---- putting in ------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """Where seeds go: a data-root on its path, and open, whose lease is held with `lease`."""

    data_root: str
    storage: StoragePlan
    lease: Lease


def put_in(
    plan: Plan, found: Found, target: Target, *, environ: Mapping[str, str], log: Log, bars: bool, trace: Trace
) -> PutIn:
    """Load what is missing with a private daemon, check that the store has it, and note it down.

    Raises CleaningError when no daemon comes up on the data-root. If this process is killed, the next start puts in
    what is still missing. Needs --privileged, and a single thread.
    """
    from cachedind.engine.private_daemon import private_daemon

    size_bytes = sum(seed.size_bytes for seed in plan.missing)
    seeds = "1 seed" if len(plan.missing) == 1 else f"{len(plan.missing)} seeds"
    log.info(f"putting in {seeds} ({sizes.format_bytes(size_bytes)}); clients wait until that is done")
    attempts.mark(target.lease, attempts.count(target.lease) + 1)
    root_fd = remapping.open_root(target.data_root, target.storage.remap)
    try:
        with contextlib.ExitStack() as stack:

            def connect() -> docker.APIClient:
                client = stack.enter_context(
                    private_daemon(target.data_root, target.storage, lock_fd=target.lease.fd, environ=environ)
                )
                client.api.timeout = STALL_S
                trace.reach("seed.started")
                return client.api

            outcome = _run(plan, found, target, root_fd, connect, log, bars=bars)
            trace.reach("seed.loaded")
        trace.reach("seed.stopped")
        store = image_stores.open_store(root_fd, target.storage)
        outcome = _check(outcome, store)
        result = _note(plan, outcome, root_fd, clean=not _has_halves(outcome, store))
        trace.reach("seed.recorded")
    finally:
        os.close(root_fd)
    attempts.mark(target.lease, 0)
    return result


def put_in_running(plan: Plan, found: Found, target: Target, addresses: list[str], log: Log) -> PutIn:
    """Load what is missing into the job's own daemon, which answers at one of `addresses` and holds the lease itself.

    With the containerd store each image is sent whole: only that daemon could tell what its store has.
    """
    import docker

    address = next((address for address in addresses if address.startswith("unix://")), addresses[0])
    root_fd = remapping.open_root(target.data_root, target.storage.remap)
    try:
        with contextlib.closing(docker.APIClient(address, version="auto", timeout=STALL_S)) as api:
            outcome = _run(plan, found, target, root_fd, lambda: api, log, bars=False, running=True)
        return _note(plan, outcome, root_fd, clean=not outcome.failed)
    finally:
        os.close(root_fd)


def _run(
    plan: Plan,
    found: Found,
    target: Target,
    root_fd: int,
    connect: Callable[[], docker.APIClient],
    log: Log,
    *,
    bars: bool,
    running: bool = False,
) -> Outcome:
    from cachedind.seeds import fetching
    from cachedind.seeds.pipeline import Runner
    from cachedind.seeds.progress import Reporter

    store = image_stores.open_store(root_fd, target.storage)
    # containerd's database cannot be read while containerd writes to it.
    knows_layers = not (running and target.storage.store is ImageStore.CONTAINERD)
    held = _find_held(plan, found, store) if knows_layers else {}
    connected: list[docker.APIClient] = []

    def connect_once() -> docker.APIClient:
        if not connected:
            connected.append(connect())
        return connected[0]

    def fetch(
        seeds: Sequence[Seed], room_bytes: int, on_read: Callable[[int], None]
    ) -> tuple[list[Fetched], dict[str, SeedError]]:
        return fetching.fetch_each(found.host, seeds, root_fd, room_bytes, on_read, found.certs)

    with contextlib.closing(Reporter(log, len(plan.missing), bars=bars)) as reporter:
        runner = Runner(
            target.storage.store,
            lambda image, number: knows_layers and _has_layer(store, target.storage.store, image, number),
            lambda record: knows_layers and store.has_image(record),
            connect_once,
            fetch,
            reporter,
            spool_directory=remapping.engine_root(target.data_root, target.storage.remap),
            min_free_bytes=facts.MIN_FREE_BYTES,
        )
        outcome = runner.run([seed for seed in plan.missing if seed.identity not in held])
        outcome.images.update({identity: [record] for identity, record in held.items()})
        if connected:
            _remove_superseded(plan, outcome, connected[0], image_stores.open_store(root_fd, target.storage))
    return outcome


def _remove_superseded(plan: Plan, outcome: Outcome, api: docker.APIClient, store: Store) -> None:
    """Remove the images that newer seeds have replaced."""
    from cachedind.seeds import loading

    new = {record.config_digest for records in outcome.images.values() for record in records}
    old = {record.config_digest for record in plan.superseded} - new
    if old:
        loading.remove_nameless(api, old, store.config_of)


def _find_held(plan: Plan, found: Found, store: Store) -> dict[str, Record]:
    """Images of the other daemon that a job has pulled or built here already."""
    wanted = [seed for seed in plan.missing if seed.kind is SeedKind.HOST]
    return host_images.find_held(found.host, wanted, store.images(), found.certs) if wanted else {}


def _has_layer(store: Store, kind: ImageStore, image: SeedImage, number: int) -> bool:
    if not store.has_chain(chain_ids([layer.diff_id for layer in image.layers])[number]):
        return False
    return kind is ImageStore.GRAPHDRIVER or store.has_blob(image.layers[number].digest or "")


def _check(outcome: Outcome, store: Store) -> Outcome:
    """Check that what the engine reports as loaded is in its store: it reports success too early."""
    images = {identity: list(records) for identity, records in outcome.images.items()}
    bad = {identity: list(faults) for identity, faults in outcome.bad.items()}
    failed = list(outcome.failed)
    for identity, records in images.items():
        for record in [record for record in records if not store.has_image(record)]:
            records.remove(record)
            failed.append(record)
            name = record.names[0] if record.names else record.config_digest
            why = "the daemon reports it as loaded, but its store does not have it"
            bad.setdefault(identity, []).append(BadSeed(name, why))
    return outcome._replace(images=images, bad=bad, failed=tuple(failed))


def _has_halves(outcome: Outcome, store: Store) -> bool:
    """Whether an image that could not be loaded has a name in the store nevertheless, but not all of its layers."""
    failed = {record.config_digest: record._replace(names=()) for record in outcome.failed}
    named = {image.config_digest for image in store.images() if image.names} if failed else set()
    return any(digest in named and not store.has_image(record) for digest, record in failed.items())


def _note(plan: Plan, outcome: Outcome, root_fd: int, *, clean: bool) -> PutIn:
    """Write the ledger: the seeds that are complete, and those that will be just as bad the next time."""
    now = round(time.time(), 3)
    entries = dict(plan.entries)
    for seed in plan.missing:
        bad = outcome.bad.get(seed.identity, [])
        if not bad or seed.identity in outcome.lasting:
            records = tuple(outcome.images.get(seed.identity, []))
            entries[seed.identity] = Entry(seed.name, now, records, tuple((one.name, one.why) for one in bad))
    with contextlib.suppress(OSError, ValueError):  # then the next start looks into each of them again
        ledger.write(root_fd, entries)
    all_bad = tuple(one for found in outcome.bad.values() for one in found)
    return PutIn(sum(map(len, outcome.images.values())), all_bad, clean)
