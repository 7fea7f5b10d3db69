"""One start, from the container's first instruction to dockerd's. Reads like the list in docs/architecture.md."""

from __future__ import annotations

import time

from cachedind.api import listeners, way_in
from cachedind.base.errors import PoolUnusableError, SettingsError
from cachedind.base.log import Level
from cachedind.base.typed import TYPE_CHECKING
from cachedind.settings import config, daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.settings.environment import daemon_environment
from cachedind.start import daemon_plan, handover, leasing, listening
from cachedind.start.context import StartContext, make_log
from cachedind.start.summary import Stopwatch

if TYPE_CHECKING:
    from typing import NoReturn

    from cachedind.api.listen_plan import ListenPlan
    from cachedind.api.listeners import Api
    from cachedind.base.log import Log
    from cachedind.dataroot.lease import Lease
    from cachedind.dataroot.witness import Witness
    from cachedind.host.children import Ahead
    from cachedind.pool.slot_request import TakenSlot
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings
    from cachedind.start.context import Prepared
    from cachedind.start.reload import Copied
    from cachedind.start.seed import Seeds


def boot(words: list[str], environ: dict[str, str], certificates: Ahead | None = None) -> NoReturn:
    """Start dockerd and become its supervisor. `words` are the container's arguments: flags, or `dockerd` and flags.

    `certificates` is the child that makes them (tls_child.expect).

    Raises CachedindError when that is not possible. Needs --privileged.
    """
    stopwatch = Stopwatch()
    explicit = words[:1] == ["dockerd"]
    arguments = parse_daemon_arguments(words[1:] if explicit else words)
    if arguments.is_informational:
        handover.execute_engine(arguments.words, environ)
    settings = config.load(environ)
    log = make_log(settings)
    if settings.unrelated:
        log.warn(f"not variables of cachedind, ignored: {', '.join(settings.unrelated)}")
    daemon = daemon_json.read_settings(arguments)
    leasing.await_other(settings, daemon, log)

    with listeners.Api(listening.plan_listen(settings, daemon, log, explicit=explicit)) as api:
        listening.open_ports(api)
        stopwatch.lap("listen")
        start(settings, daemon, environ, log, api, certificates, stopwatch)


def start(
    settings: Config,
    daemon: DaemonSettings,
    environ: dict[str, str],
    log: Log,
    api: Api,
    certificates: Ahead | None,
    stopwatch: Stopwatch,
) -> NoReturn:
    """Everything from the lease on. Until it is held, nothing was touched that another instance may use."""
    lease, taken = leasing.move_in(settings, daemon, log)
    listening.publish(settings, daemon, api, certificates, log)
    way_in.note(api.plan.sockets)
    stopwatch.lap("lease")
    from cachedind.start import container, untested

    firewall = container.begin(settings, daemon)
    context = StartContext(settings, daemon, environ, log)
    untested.tell(context)
    try:
        prepared, late_seeds = make_ready(context, lease, taken, stopwatch)
    except PoolUnusableError as bad:
        if taken is None:
            raise
        # A slot was given up, and no other can be had: a full disk, say.
        lease = leasing.go_without_pool(settings, daemon, bad, log)
        prepared, late_seeds = make_ready(context, lease, None, stopwatch)
    path = container.finish(settings, daemon, firewall, log)
    observer = post_witness(context, api, prepared, late_seeds, stopwatch)
    container.prepare(daemon, log)
    stopwatch.lap("prepare")
    if certificates is not None:
        certificates.join()
    stopwatch.lap("certificates")
    arguments, copied = write_configuration(context, prepared, api.plan)
    if prepared.taken is not None:
        from cachedind.start import pool_mode

        pool_mode.note_beginning(prepared.taken, prepared.storage, context.settings, log)
        pool_mode.hide(prepared.taken, observer, log)
    report(prepared, stopwatch, log)
    environment = daemon_environment(environ, path=path, listen_fds=len(api.sockets))
    handover.hand_over(arguments, api.sockets, prepared.lease, observer.pid, environment, copied)


def make_ready(
    context: StartContext, lease: Lease, taken: TakenSlot | None, stopwatch: Stopwatch
) -> tuple[Prepared, Seeds | None]:
    """Mend, clean and seed what was leased. Raises PoolUnusableError where a slot was given up, and there is no
    other."""
    from cachedind.seeds import wanted
    from cachedind.start import furnish

    prepared = furnish.settle(context, lease, taken)
    stopwatch.lap("storage")
    seeds = None
    if wanted.wants_seeds(context.settings):
        from cachedind.seeds import seeding

        seeds = seeding.find(context.settings)
    if taken is not None:
        prepared = furnish.clean(context, prepared, seeds, stopwatch)
    if seeds is None:
        return prepared, None
    from cachedind.start import seed

    prepared, late_seeds = seed.put_in_missing(context, prepared, seeds)
    stopwatch.lap("seed")
    return prepared, late_seeds


def write_configuration(context: StartContext, prepared: Prepared, plan: ListenPlan) -> tuple[list[str], Copied | None]:
    """Decide what dockerd gets, and write its configuration file where the user's own does not do. Returns dockerd's
    arguments, and how that copy is watched."""
    from cachedind.dataroot import facts
    from cachedind.settings import build_cache
    from cachedind.start import reload

    settings, daemon, log = context.settings, context.daemon, context.log
    pool_bytes = None if prepared.taken is None else prepared.place.total_bytes
    wanted_bytes = settings.cache_max_bytes if prepared.cache_max_bytes is None else prepared.cache_max_bytes
    engine = facts.read_engine_version(settings.path)
    limit = build_cache.plan_limit(wanted_bytes, pool_bytes, engine)
    final = daemon_plan.plan_daemon(daemon, prepared.storage, plan, reload.MERGED_CONFIG, engine, cache_limit=limit)
    for degradation in final.degradations:
        log.degraded(degradation)
    copied = None
    if final.is_merged:
        reload.write_merged(final.file_text, daemon, prepared.storage, limit, engine)
        try:
            copied = reload.watch(daemon.file_path)
        except OSError as error:
            log.warn(
                f"who reads {reload.MERGED_CONFIG} cannot be watched: {error.strerror}; after an edit of "
                f"{daemon.file_path} send SIGHUP to the container, not to dockerd"
            )
    if log.tells(Level.DEBUG):
        log.debug(f"dockerd {daemon_plan.describe(final.arguments)}")
    return final.arguments, copied


def post_witness(
    context: StartContext,
    api: Api,
    prepared: Prepared,
    late_seeds: Seeds | None,
    stopwatch: Stopwatch,
) -> Witness:
    """Fork the child that notes down when the daemon answers, and does what may come late."""
    from cachedind.dataroot import witness
    from cachedind.start import untested

    addresses = [f"unix://{path}" for path in api.plan.sockets]

    def late() -> None:
        if late_seeds is not None:
            from cachedind.start import seed

            seed.put_in_late(context, prepared, late_seeds, addresses)
        if prepared.taken is not None:
            from cachedind.pool import upkeep

            witness.step_back()
            pool = prepared.taken.pool
            upkeep.run(pool, context.settings, prepared.taken.key, time.time()).tell(pool.path, context.log)

    close = [sock.fileno() for sock in api.sockets]
    return witness.fork(
        prepared.lease,
        addresses,
        stopwatch.started,
        close=close,
        late=late,
        log=context.log,
        planned=untested.store_to_check(context, prepared.storage),
    )


def report(prepared: Prepared, stopwatch: Stopwatch, log: Log) -> None:
    """One line: where did the cache go?"""
    from cachedind.dataroot import contents
    from cachedind.engine.remapping import engine_root
    from cachedind.start import summary

    lease, taken = prepared.lease, prepared.taken
    root = engine_root(lease.data_root, prepared.storage.remap)
    layers = contents.count_layers(root, prepared.storage.store, prepared.storage.driver)
    if taken is None:
        last_used_s = None if lease.previous is None else time.time() - lease.previous.since
        origin = summary.Origin.of_data_root(lease.data_root, layers, last_used_s, seeded=prepared.seeded)
    else:
        data = taken.found.data
        last_used_s = None if data is None else time.time() - data.started_at
        origin = summary.Origin.of_slot(
            summary.Lender(taken.key, taken.scope, taken.source_key, taken.found.scope, taken.passed_over),
            taken.slot.id,
            taken.warmth.value,
            layers,
            last_used_s,
            prepared.seeded,
        )
    line, fields = summary.summarise(prepared.storage, prepared.place, origin, layers=layers, stopwatch=stopwatch)
    log.info(line, **fields)


def dind(command: list[str], environ: dict[str, str]) -> NoReturn:
    """`dind COMMAND…`: what hack/dind is for, a container made fit for a nested daemon, then the command.

    Raises CachedindError. Needs --privileged.
    """
    from cachedind.host import cgroups
    from cachedind.start import container

    if not command:
        raise SettingsError("dind was given no command", "write dind dockerd …, or any other program")
    container.nest(make_log(config.load(environ)))
    cgroups.prepare()
    handover.execute(command, {**environ, "container": "docker"})
