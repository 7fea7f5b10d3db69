"""One start, from the container's first instruction to dockerd's. Reads like the list in docs/architecture.md."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NoReturn

from cachedind.api import listeners
from cachedind.base.errors import PoolUnusableError, ProgramMissingError, SettingsError
from cachedind.base.log import Log
from cachedind.base.model import Degradation
from cachedind.settings import config, daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.start import daemon_plan
from cachedind.start.summary import Stopwatch

if TYPE_CHECKING:
    import socket

    from cachedind.api.listeners import Api, ListenPlan
    from cachedind.dataroot.lease import Lease
    from cachedind.dataroot.witness import Witness
    from cachedind.host.processes import Ahead
    from cachedind.pool.slot_lease import TakenSlot
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings
    from cachedind.start.furnish import Prepared, Seeds, StartContext


def boot(words: list[str], environ: dict[str, str], certificates: Ahead | None = None) -> NoReturn:
    """Start dockerd and become its supervisor. `words` are the container's arguments: flags, or `dockerd` and flags.

    `certificates` is the child that makes them (tls_child.expect).

    Raises CachedindError when that is not possible. Needs --privileged.
    """
    stopwatch = Stopwatch()
    explicit = words[:1] == ["dockerd"]
    arguments = parse_daemon_arguments(words[1:] if explicit else words)
    if arguments.is_informational:
        execute_engine(arguments.words, environ)
    settings = config.load(environ)
    log = make_log(settings)
    if settings.strangers:
        log.warn(f"no variables of cachedind, and left to whoever set them: {', '.join(settings.strangers)}")
    daemon = daemon_json.read_settings(arguments)
    await_other(settings, daemon, log)

    with listeners.Api(plan_listen(settings, daemon, log, explicit=explicit)) as api:
        open_ports(api)
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
    lease, taken = move_in(settings, daemon, log)
    take_place(settings, daemon, api, certificates, log)
    stopwatch.lap("lease")
    from cachedind.dataroot import facts
    from cachedind.seeds import files
    from cachedind.start import furnish

    plan, sockets = api.plan, api.sockets
    context = furnish.StartContext(settings, daemon, environ, log)
    prepared = furnish.settle(context, lease, taken)
    stopwatch.lap("storage")
    if taken is not None:
        prepared = furnish.clean(context, prepared)
        stopwatch.lap("maintain")
    late_seeds = None
    if files.wants_seeds(settings):
        prepared, late_seeds = furnish.seed(context, prepared)
        stopwatch.lap("seed")
    observer = post_witness(context, plan, prepared, late_seeds, stopwatch, sockets)
    path = prepare_container(settings, daemon, plan, log)
    stopwatch.lap("prepare")
    if certificates is not None:
        certificates.join()
    stopwatch.lap("certificates")

    from cachedind.settings import build_cache
    from cachedind.start import reload

    pool_bytes = None if prepared.taken is None else prepared.place.total_bytes
    wanted_bytes = settings.cache_max_bytes if prepared.cache_max_bytes is None else prepared.cache_max_bytes
    engine = facts.read_engine_version(settings.path)
    limit = build_cache.plan_limit(wanted_bytes, pool_bytes, engine)
    final = daemon_plan.plan_daemon(daemon, prepared.storage, plan, reload.MERGED_CONFIG, engine, cache_limit=limit)
    for degradation in final.degradations:
        log.degraded(degradation)
    if final.is_merged:
        reload.write_merged(final.file_text, daemon, prepared.storage, limit, engine)
    listeners.note_way_in(plan)
    log.debug(f"dockerd {daemon_plan.describe(final.arguments)}")
    if prepared.taken is not None:
        from cachedind.start import pool_mode

        pool_mode.hide(prepared.taken, observer, log)
    report(prepared, stopwatch, log)
    environment = config.daemon_environment(environ, path=path, listen_fds=len(sockets))
    hand_over(final.arguments, sockets, prepared.lease, observer.pid, environment)


def make_log(settings: Config) -> Log:
    return Log(level=settings.log_level, as_json=settings.log_json, strict=settings.strict)


def plan_listen(settings: Config, daemon: DaemonSettings, log: Log, *, explicit: bool) -> ListenPlan:
    """Which addresses to bind, with the warning that plain TCP deserves (dockerd would print it after a 15 s pause)."""
    plan = daemon_plan.plan_listen(settings, daemon, explicit=explicit)
    bare = [] if plan.tls_dir or daemon.has_tls else [host for host in plan.tcp if not host.is_local]
    if bare:
        log.warn(
            f"the API at {', '.join(map(str, bare))} has neither encryption nor authentication: whoever reaches it is "
            "root on this container's host; set DOCKER_TLS_CERTDIR=/certs, CACHEDIND_LISTEN=127.0.0.1, or use the unix "
            "socket on a shared volume"
        )
    return plan


def open_ports(api: Api) -> None:
    """Let clients connect by TCP: at once, but where the certificates are ours to make, when the client's fit.

    They fit at once where they are kept, else the moment they are written (decisions/0006). GitLab, which keeps
    /certs/client alone, starts the job when the port opens; it must not find the last job's certificates, or none.
    """
    from cachedind.api import tls

    directory = api.plan.tls_dir
    if directory is None or tls.clients_are_ready(directory):
        api.open_tcp()


def take_place(settings: Config, daemon: DaemonSettings, api: Api, certificates: Ahead | None, log: Log) -> None:
    """What other instances may use as well is touched now that the lease is held, and not before: the files of the
    sockets, and the certificates, which are made beside the rest of the start (decisions/0018)."""
    from cachedind.start import leftovers

    leftovers.check_free(daemon.exec_root)
    for path in api.publish():
        log.warn(
            f"another daemon answers at {path}, and its clients reach this one from now on; give each container a "
            "directory of its own for the socket"
        )
    if api.plan.tls_dir is not None:
        assert certificates is not None
        slot_request = {
            "directory": api.plan.tls_dir,
            "names": settings.tls_san,
            "is_open": api.is_open,
            "log_level": settings.log_level.name,
            "log_json": settings.log_json,
        }
        certificates.begin(slot_request, [listener.fileno() for listener in api.tcp])


def await_other(settings: Config, daemon: DaemonSettings, log: Log) -> None:
    """Before anything is touched that a daemon in this very container may use: wait for its end, or be refused."""
    from cachedind.start import leftovers

    pidfile = os.path.realpath(daemon.pidfile)
    leftovers.wait_for_daemon(os.path.realpath(daemon.data_root), pidfile, settings.lock_timeout_s, log)


def move_in(settings: Config, daemon: DaemonSettings, log: Log) -> tuple[Lease, TakenSlot | None]:
    """Lease a slot of the pool and put it in the data-root's place; without a (good) pool, lease the data-root."""
    from cachedind.dataroot import facts
    from cachedind.pool import directory
    from cachedind.start import pool_mode, restart

    facts.check_privileges()
    data_root = os.path.realpath(daemon.data_root)
    try:
        restart.make_way(directory.DEFAULT_POOL if settings.pool is None else settings.pool, data_root)
        path = directory.wanted_path(settings)
        if path is not None:
            slot_request = pool_mode.make_slot_request(settings, daemon)
            return pool_mode.move_in(path, slot_request, data_root, settings, log)
    except PoolUnusableError as bad:
        cost = f"this start uses {data_root} as it is, without the pool's cache"
        log.degraded(Degradation("no pool", bad.cause, cost, bad.hint))
    return lease_data_root(settings, daemon, log), None


def lease_data_root(settings: Config, daemon: DaemonSettings, log: Log) -> Lease:
    """Lease the data-root itself; from here on nobody else touches it."""
    from cachedind.dataroot import facts, lease
    from cachedind.engine.remapping import read_remap
    from cachedind.start import restart

    data_root = os.path.realpath(daemon.data_root)
    restart.refuse_slot(data_root)
    degradation = facts.check_lock_filesystem(facts.read_mount(data_root), data_root, allowed=settings.allow_network_fs)
    if degradation is not None:
        log.degraded(degradation)
    remap = read_remap(daemon.text("userns-remap"))
    held = lease.acquire(
        data_root,
        facts.read_holder_of_now(time.time()),
        settings.lock_timeout_s,
        lambda holder: log.info(
            f"waiting up to {settings.lock_timeout_s:g} s for {data_root}, in use by {lease.describe_holder(holder)}"
        ),
    )
    wait_for_strangers(data_root, settings.lock_timeout_s - held.waited_s, log)
    return held._replace(state_name=lease.state_name(remap))


def wait_for_strangers(data_root: str, timeout_s: float, log: Log) -> None:
    """Wait for a daemon that takes no lock of ours. Raises DataRootBusyError."""
    from cachedind.base.errors import DataRootBusyError
    from cachedind.engine import in_use

    def tell(locked: str) -> None:
        log.info(f"waiting up to {timeout_s:g} s for {data_root}: a daemon of another image has {locked} open")

    locked = in_use.wait(data_root, timeout_s, tell)
    if locked is not None:
        raise DataRootBusyError(
            f"{data_root} is in use by a daemon that does not hold cachedind's lease: {locked} is locked; nothing was "
            "changed",
            "stop that daemon first (docker ps --filter volume=… names its container), or give this one its own volume",
        )


def post_witness(
    context: StartContext,
    plan: ListenPlan,
    prepared: Prepared,
    late_seeds: Seeds | None,
    stopwatch: Stopwatch,
    sockets: list[socket.socket],
) -> Witness:
    """Fork the child that notes down when the daemon answers, and does what may come late."""
    from cachedind.dataroot import witness

    # Without a socket of ours the user's own are left, in ways that only dockerd understands.
    addresses = [f"unix://{path}" for path in plan.sockets] or [host for host in plan.left if host.startswith("unix:")]

    def late() -> None:
        if late_seeds is not None:
            from cachedind.start import furnish

            furnish.seed_late(context, prepared, late_seeds, addresses)
        if prepared.taken is not None:
            from cachedind.pool import upkeep

            witness.step_back()
            upkeep.run(prepared.taken.pool, context.settings, prepared.taken.key, time.time())

    close = [sock.fileno() for sock in sockets]
    return witness.fork(prepared.lease, addresses, stopwatch.started, close=close, late=late, log=context.log)


def prepare_container(settings: Config, daemon: DaemonSettings, plan: ListenPlan, log: Log) -> str:
    """What moby's hack/dind and docker:dind's entrypoint do for a nested daemon. Returns the PATH for dockerd."""
    from cachedind.host import cgroups, iptables
    from cachedind.start import leftovers

    removed = leftovers.sweep(daemon.exec_root, daemon.pidfile)
    if removed:
        log.debug(f"removed what a killed daemon had left: {', '.join(removed)}")
    flavour = iptables.choose(settings.iptables_legacy)
    log.info(iptables.read_version(flavour))
    nest(log)
    skipped = cgroups.prepare()
    if skipped:
        log.debug(f"no cgroup nesting: {skipped}")
    return iptables.apply_to_path(flavour, settings.path)


def nest(log: Log) -> None:
    """The mounts of moby's hack/dind."""
    from cachedind.host import mounts, procfs

    points = frozenset(mount.mount_point for mount in procfs.read_mounts())
    operations = mounts.plan_mounts(points, has_securityfs_directory=mounts.has_securityfs_directory())
    for line in mounts.apply_mounts(operations):
        log.info(line)


def dind(command: list[str], environ: dict[str, str]) -> NoReturn:
    """`dind COMMAND…`: what hack/dind is for, a container made fit for a nested daemon, then the command.

    Raises CachedindError. Needs --privileged.
    """
    from cachedind.host import cgroups

    if not command:
        raise SettingsError("dind was given no command", "write dind dockerd …, or any other program")
    nest(make_log(config.load(environ)))
    cgroups.prepare()
    execute(command, {**environ, "container": "docker"})


def report(prepared: Prepared, stopwatch: Stopwatch, log: Log) -> None:
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
            taken.key, taken.slot.id, taken.warmth.value, taken.source_key, layers, last_used_s, prepared.seeded
        )
    line, fields = summary.summarise(prepared.storage, prepared.place, origin, layers=layers, stopwatch=stopwatch)
    log.info(line, **fields)


def hand_over(
    arguments: list[str], sockets: list[socket.socket], lease: Lease, witness: int, environ: dict[str, str]
) -> NoReturn:
    """Have a child become dockerd, with the API's sockets at 3, 4 and the lock open above them, and become its
    supervisor (decisions/0016)."""
    from cachedind.dataroot.lease import share_with_daemon
    from cachedind.start import supervisor

    share_with_daemon(lease)
    mask = supervisor.block_signals()
    daemon = os.fork()
    if daemon == 0:
        supervisor.become_child(mask)
        if sockets:
            listeners.hand_over(sockets)
            environ = {**environ, "LISTEN_PID": str(os.getpid())}
        execute_engine(arguments, environ)
    # The sockets are closed by exec: when dockerd is gone, its clients are refused.
    os.set_inheritable(lease.directory_fd, True)
    argv = supervisor.command(daemon, witness, lease.fd, lease.directory_fd, lease.state_name, lease.data_root)
    execute(argv, environ)


def execute_engine(arguments: list[str], environ: dict[str, str]) -> NoReturn:
    """Become dockerd, the real one. Raises ProgramMissingError."""
    from cachedind.host.processes import engine_environment, engine_program

    program = engine_program(environ.get("PATH", os.defpath))
    execute(["dockerd", *arguments], {**environ, **engine_environment(program)}, program)


def execute(argv: list[str], environ: dict[str, str], program: str | None = None) -> NoReturn:
    """Replace this process by `program` (argv[0] on PATH). Raises ProgramMissingError."""
    try:
        os.execvpe(program or argv[0], argv, environ)
    except OSError as error:
        raise ProgramMissingError(
            f"{argv[0]} cannot be run: {error.strerror}", "use an image built from image/Dockerfile"
        ) from error
