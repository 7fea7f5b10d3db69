"""One start, from the container's first instruction to exec of dockerd. Reads like the list in docs/architecture.md."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NoReturn

from cachedind import config, daemon_config, listeners
from cachedind.arguments import parse_daemon_arguments
from cachedind.errors import HostPreparationError, ProgramMissingError, SettingsError
from cachedind.log import Log
from cachedind.model import Degradation
from cachedind.processes import Background
from cachedind.summary import Stopwatch

if TYPE_CHECKING:
    import socket

    from cachedind.config import Config
    from cachedind.daemon_config import DaemonSettings
    from cachedind.facts import Place
    from cachedind.lease import Lease
    from cachedind.listeners import ListenPlan
    from cachedind.model import ExistingData, StoragePlan

RUN_DIRECTORY = "/run/cachedind"
MERGED_CONFIG = f"{RUN_DIRECTORY}/daemon.json"
# LISTEN_PID must be dockerd's own PID, which only a process that execs it can know.
_WITH_LISTEN_PID = ["sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh"]


def boot(words: list[str], environ: dict[str, str]) -> NoReturn:
    """Become dockerd. `words` are the container's arguments: dockerd's flags, or `dockerd` and its flags.

    Raises CachedindError when that is not possible. Needs --privileged.
    """
    stopwatch = Stopwatch()
    settings = config.load(environ)
    log = make_log(settings)
    explicit = words[:1] == ["dockerd"]
    arguments = parse_daemon_arguments(words[1:] if explicit else words)
    if arguments.is_informational:
        execute(["dockerd", *arguments.words], environ)
    daemon = daemon_config.read_settings(arguments)

    plan = None if explicit else plan_listen(settings, daemon, log)
    sockets, certificates = ([], None) if plan is None else open_api(plan, settings)
    stopwatch.lap("listen")

    lease = take_lease(settings, daemon, log)
    stopwatch.lap("lease")
    place, existing = observe(lease, log)
    storage = decide(settings, daemon, lease, place, existing, log)
    stopwatch.lap("storage")
    path = prepare_container(settings, daemon, plan, log)
    stopwatch.lap("prepare")
    if certificates is not None:
        certificates.join()
    stopwatch.lap("certificates")

    final = daemon_config.plan_daemon(daemon, storage, plan, MERGED_CONFIG)
    write_merged_config(final.file_text)
    log.debug(f"dockerd {daemon_config.describe(final.arguments)}")
    report(storage, place, lease, stopwatch, log)
    hand_over(final.arguments, sockets, lease, config.daemon_environment(environ, path=path, listen_fds=len(sockets)))


def make_log(settings: Config) -> Log:
    return Log(level=settings.log_level, as_json=settings.log_json, strict=settings.strict)


def plan_listen(settings: Config, daemon: DaemonSettings, log: Log) -> ListenPlan:
    """Which addresses to bind, with the warning that plain TCP deserves (dockerd would print it after a 15 s pause)."""
    plan = listeners.plan_listen(settings.docker_host, settings.tls_certdir, daemon.text("group"))
    if plan.tls_dir is None and not daemon.has_tls:
        log.warn(
            f"the API on TCP port {plan.tcp_port} has neither encryption nor authentication: whoever reaches it is "
            f"root "
            "on this container's host; set DOCKER_TLS_CERTDIR=/certs, or use the unix socket on a shared volume"
        )
    return plan


def open_api(plan: ListenPlan, settings: Config) -> tuple[list[socket.socket], Background | None]:
    """Bind the API's sockets, and start the work on certificates beside the rest of the start.

    The TLS port opens when the client's certificates fit: at once where they are kept, else the moment they are
    written (decisions/0006). GitLab, which keeps /certs/client alone, starts the job when the port opens; it must not
    find the last job's certificates, or none.
    """
    from cachedind import tls

    sockets = [listeners.bind_unix(plan), listeners.bind_tcp(plan)]
    directory, port = plan.tls_dir, sockets[1]
    is_open = directory is None or tls.clients_are_ready(directory)
    if is_open:
        listeners.open_port(port, plan)
    if directory is None:
        return sockets, None

    def work() -> None:
        if not is_open:
            # Clients are kept out until this is done, so it goes before the rest of the start for the CPU.
            with contextlib.suppress(PermissionError):
                os.nice(-15)
        tls.prepare(directory, settings.tls_san, lambda: None if is_open else listeners.open_port(port, plan))

    return sockets, Background(work)


def take_lease(settings: Config, daemon: DaemonSettings, log: Log) -> Lease:
    """Lease the data-root; from here on nobody else touches it."""
    from cachedind import facts, lease

    facts.check_privileges()
    data_root = os.path.realpath(daemon.data_root)
    degradation = facts.check_lock_filesystem(facts.read_mount(data_root), data_root, allowed=settings.allow_network_fs)
    if degradation is not None:
        log.degraded(degradation)
    return lease.acquire(
        data_root,
        facts.read_holder_of_now(time.time()),
        settings.lock_timeout_s,
        lambda holder: log.info(
            f"waiting up to {settings.lock_timeout_s:g} s for {data_root}, in use by {lease.describe_holder(holder)}"
        ),
    )


def observe(lease: Lease, log: Log) -> tuple[Place, ExistingData]:
    """Look at the data-root, now that it is ours."""
    from cachedind import dataroot, facts, probes, state

    try:
        noted = dataroot.read_data_root_state(lease.directory_fd)
    except (ValueError, OSError) as error:  # OSError: a link or a directory in its place
        aside = state.set_aside(lease.directory_fd, dataroot.STATE_NAME)
        log.warn(f"{lease.data_root}/.cachedind/{dataroot.STATE_NAME} is unreadable ({error}); it is now {aside}")
        noted = None
    # First of all: in a driver's own directory, what a killed trial has left would pass for layers.
    if [
        name for directory in facts.probe_directories(lease.data_root) for name in probes.sweep_stale_probes(directory)
    ]:
        log.debug("removed what killed trials of a storage driver had left")
    place = facts.read_place(lease.data_root)
    existing = dataroot.read_existing(lease.data_root, noted)
    for degradation in (facts.check_room(place, fresh=not existing.pairs), facts.persistence(place)):
        if degradation is not None:
            log.degraded(degradation)
    return place, existing


def decide(
    settings: Config, daemon: DaemonSettings, lease: Lease, place: Place, existing: ExistingData, log: Log
) -> StoragePlan:
    """Choose store and driver, say what was passed over, and note the decision down in the data-root."""
    from cachedind import dataroot, decision, facts, procfs

    request = decision.build_request(settings, daemon)
    engine = facts.read_engine_version(settings.path)
    plan = decision.decide(lease.data_root, place.fstype, engine, existing, request)
    for note in plan.notes:
        log.warn(note)
    for degradation in plan.degradations:
        log.degraded(degradation)
    try:
        before = dataroot.read_data_root_state(lease.directory_fd)
        state = dataroot.next_state(
            before, plan, engine=engine, fstype=place.fstype, boot_id=procfs.read_boot_id(), now=time.time()
        )
        if state is not None:
            dataroot.write_data_root_state(lease.directory_fd, state)
    except OSError as error:
        why = f"{lease.data_root}/.cachedind: {error.strerror}"
        cost = "the next start has to guess the driver from the data"
        log.degraded(Degradation("the storage decision cannot be noted down", why, cost, "free space on the volume"))
    return plan


def prepare_container(settings: Config, daemon: DaemonSettings, plan: ListenPlan | None, log: Log) -> str:
    """What moby's hack/dind and docker:dind's entrypoint do for a nested daemon. Returns the PATH for dockerd."""
    from cachedind import cgroups, iptables, leftovers

    removed = leftovers.sweep(daemon.exec_root, daemon.pidfile, None if plan is None else plan.socket_path)
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
    from cachedind import mounts, procfs

    points = frozenset(mount.mount_point for mount in procfs.read_mounts())
    operations = mounts.plan_mounts(points, has_securityfs_directory=mounts.has_securityfs_directory())
    for line in mounts.apply_mounts(operations):
        log.info(line)


def dind(command: list[str], environ: dict[str, str]) -> NoReturn:
    """`dind COMMAND…`: what hack/dind is for, a container made fit for a nested daemon, then the command.

    Raises CachedindError. Needs --privileged.
    """
    from cachedind import cgroups

    if not command:
        raise SettingsError("dind was given no command", "write dind dockerd …, or any other program")
    nest(make_log(config.load(environ)))
    cgroups.prepare()
    execute(command, {**environ, "container": "docker"})


def write_merged_config(text: str) -> None:
    """The user's daemon.json is never changed: what dockerd reads is a merged copy in /run."""
    try:
        os.makedirs(RUN_DIRECTORY, mode=0o755, exist_ok=True)
        fd = os.open(MERGED_CONFIG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HostPreparationError(
            f"{MERGED_CONFIG} cannot be written: {error.strerror}", "the container needs a writable /run"
        ) from error


def report(storage: StoragePlan, place: Place, lease: Lease, stopwatch: Stopwatch, log: Log) -> None:
    from cachedind import dataroot, summary

    layers = dataroot.count_layers(lease.data_root, storage.store, storage.driver)
    last_used_s = None if lease.previous is None else time.time() - lease.previous.since
    line, fields = summary.summarise(storage, place, layers=layers, last_used_s=last_used_s, stopwatch=stopwatch)
    log.info(line, **fields)


def hand_over(arguments: list[str], sockets: list[socket.socket], lease: Lease, environ: dict[str, str]) -> NoReturn:
    """exec docker-init -- dockerd, with the API's sockets at 3, 4 and the lock open above them."""
    from cachedind.lease import share_with_daemon

    wrapper = _WITH_LISTEN_PID if sockets else []
    share_with_daemon(lease)
    if sockets:
        listeners.hand_over(sockets)
    execute(["docker-init", "-s", "--", *wrapper, "dockerd", *arguments], environ)


def execute(argv: list[str], environ: dict[str, str]) -> NoReturn:
    """Replace this process. Raises ProgramMissingError."""
    try:
        os.execvpe(argv[0], argv, environ)
    except OSError as error:
        raise ProgramMissingError(
            f"{argv[0]} cannot be run: {error.strerror}", "use an image built from image/Dockerfile"
        ) from error
