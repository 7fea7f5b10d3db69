"""Promise 6 for a daemon as it is by default: its processes, arguments, environment, mounts and log, and its users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from cachedind.base import releases
from helpers.clients import run_once
from helpers.daemons import LEGACY_FARM, LOCK, daemon_argv, daemon_environment, listening_ports, mount_line
from helpers.dind import DATA_ROOT, Dind
from helpers.flavours import SUITES, own_overlay
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.engine import Engine


@pytest.fixture(scope="module", params=SUITES)
def running(request: pytest.FixtureRequest, session_engine: Engine) -> Iterator[Dind]:
    """A daemon as started by `docker run --privileged IMAGE`. Tests that use it leave it as it is."""
    engine = session_engine.scope()
    try:
        dind = engine.dind(str(request.param), volume=engine.volume())
        dind.wait_ready()
        yield dind
    finally:
        engine.close()


def suite_of(engine: Engine, dind: Dind) -> str:
    image = dind.container.image
    assert image is not None
    return next(suite for suite in SUITES if engine.images[suite] in image.tags)


def test_processes(running: Dind) -> None:
    """docker-init is first, so that it reaps; dockerd's parent passes signals on and exits with its code."""
    processes = {process.pid: process for process in running.processes()}
    assert processes[1].comm == "docker-init"
    [daemon] = running.daemons()
    supervisor = processes[daemon.ppid]
    assert supervisor.argv[2].endswith("/cachedind/start/supervisor.py")
    assert supervisor.ppid == 1
    assert daemon.has_open(LOCK)
    # Nothing else of ours stays (a HEALTHCHECK may be passing by, whose parent is outside), and it is small: what it
    # has for itself alone, in KiB.
    assert [p.pid for p in processes.values() if p.comm.startswith("python") and p.ppid] == [supervisor.pid]
    rollup = running.sh(f"cat /proc/{supervisor.pid}/smaps_rollup")
    [own] = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty:")]
    assert own < 5 << 10
    # It has the lock and the state file's directory; of the sockets nothing, or clients would wait for the dead.
    files = [target for number, target in supervisor.files if number > 2]
    assert sorted(files) == [f"{DATA_ROOT}/.cachedind", LOCK]


def test_dockerd_s_arguments(engine: Engine, running: Dind) -> None:
    words = daemon_argv(running)
    assert words[0] == "dockerd"
    for name in ("ca", "cert", "key"):
        flag = {"ca": "--tlscacert", "cert": "--tlscert", "key": "--tlskey"}[name]
        assert words[words.index(flag) + 1] == f"/run/cachedind/tls/{name}.pem"
    assert "--tlsverify" in words
    assert words[words.index("--storage-driver") + 1] == own_overlay(suite_of(engine, running))
    assert listening_ports(running) == {2376}


def test_dockerd_s_environment(running: Dind) -> None:
    environment = daemon_environment(running)
    assert environment["container"] == "docker"
    assert not environment["PATH"].startswith(LEGACY_FARM)
    # What the image and `docker run` set is handed on; ours and Python's own inventions are not.
    assert environment["DOCKER_TLS_CERTDIR"] == "/certs"
    allowed = {"container", "LISTEN_PID", "LISTEN_FDS", "HOSTNAME", "HOME", "PATH", "PWD", "OLDPWD", "SHLVL", "_"}
    assert {name for name in environment if not name.startswith("DOCKER_")} - allowed == set()


def test_mounts(running: Dind) -> None:
    tmp = mount_line(running, "/tmp")
    assert " - tmpfs " in tmp
    assert "noexec" not in tmp
    assert "nodev" not in tmp
    assert running.sh("stat -c %a /tmp") == "1777"
    assert " shared:" in mount_line(running, "/")
    assert " shared:" in mount_line(running, DATA_ROOT)
    assert " - securityfs " in mount_line(running, "/sys/kernel/security")


def test_log(running: Dind) -> None:
    assert running.errors == []
    assert running.warnings == []
    assert running.summary is not None
    assert [text for text in running.messages if re.match(r"iptables v[\d.]+ \((nf_tables|legacy)\)$", text)]
    # Said only where it cannot be mounted.
    assert "securityfs" not in running.log()
    assert "/sys/kernel/security" not in running.log()


def test_securityfs_that_cannot_be_mounted_is_a_line_and_no_end(engine: Engine, suite: str) -> None:
    """As under a rootless host, where the container's root is not the machine's."""
    inside = ["unshare", "--user", "--map-root-user", "--mount", "--propagation=unchanged", "dind", "echo", "went on"]
    done = run_once(engine, suite, *inside[1:], entrypoint=inside[:1], privileged=True)
    assert (done.status, done.stdout) == (0, "went on\n"), done.output
    [line] = [line for line in done.stderr.splitlines() if "securityfs" in line]
    assert "/sys/kernel/security" in line
    assert "not permitted" in line


def test_commands_reach_a_daemon_beside_them(engine: Engine, running: Dind) -> None:
    suite = suite_of(engine, running)
    sharing: dict[str, Any] = {"network_mode": f"container:{running.id}", "volumes_from": [f"{running.id}:ro"]}
    host = {"DOCKER_HOST": "tcp://localhost:2376", "DOCKER_TLS_VERIFY": "1"}
    certificates = {
        f"{name}.pem": running.sh(f"cat /certs/client/{name}.pem").encode() + b"\n" for name in ("ca", "cert", "key")
    }
    environment = {**host, "DOCKER_CERT_PATH": "/files"}
    listed = run_once(engine, suite, "ps", "--quiet", files=certificates, env=environment, **sharing)
    assert (listed.status, listed.stdout) == (0, ""), listed.output


def test_plugins_work(running: Dind) -> None:
    assert "default" in running.docker("buildx", "ls")
    running.put(
        "/compose", {"compose.yaml": "services: {app: {image: base:latest, command: [sh, -c, echo composed]}}\n"}
    )
    running.load_base()
    try:
        assert "composed" in running.docker("compose", "--project-directory", "/compose", "run", "--rm", "app")
    finally:
        running.docker("compose", "--project-directory", "/compose", "down")


def zombies(dind: Dind) -> list[str]:
    return [f"{process.pid} {process.comm}" for process in dind.processes() if process.state == "Z"]


def test_zombies_are_reaped(running: Dind) -> None:
    running.load_base()
    orphans = "for i in 1 2 3; do (sleep 0.2 &) ; done; exit 0"
    running.docker("run", "--detach", "--init", "--name=parent", "base:latest", "sleep", "1000")
    try:
        for _ in range(3):
            # Orphans of the container itself, of an exec by the outer engine, and of inner containers and execs.
            running.sh(orphans)
            running.docker("exec", "parent", "sh", "-c", orphans)
            running.docker("run", "--rm", "base:latest", "sh", "-c", orphans)
    finally:
        running.docker("rm", "--force", "parent")
    wait_until(
        lambda: not zombies(running),
        what="zombies to be reaped",
        timeout_s=5,
        diagnose=lambda: str(zombies(running)),
    )


def test_the_engine_knows_the_api_that_we_ask_in(running: Dind) -> None:
    said = running.docker("version", "--format", "{{.Server.MinAPIVersion}} {{.Server.APIVersion}}")
    least, newest, ours = (tuple(map(int, text.split("."))) for text in (*said.split(), releases.API_VERSION))
    assert least <= ours <= newest
