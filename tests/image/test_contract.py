"""Promise 6: what the image docker:dind promises, this one keeps. Judged from outside, as its users would."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from cachedind.base.model import parse_engine_version
from cachedind.engine import damage
from helpers.certificates import MAKE_USER_MANAGED
from helpers.clients import docker_archive, run_once, wait_ready_at
from helpers.dind import DATA_ROOT, Dind
from helpers.flavours import SUITES
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.engine import Done, Engine, Volume

LOCK = f"{DATA_ROOT}/.cachedind/lock"
LEGACY_FARM = "/usr/local/sbin/.iptables-legacy"
OURS = "/run/cachedind/daemon.json"
NEEDED = (
    # what docker:dind has
    *("docker", "dockerd", "containerd", "ctr", "containerd-shim-runc-v2", "runc", "docker-init", "docker-proxy"),
    *("dind", "docker-compose", "modprobe", "docker-entrypoint.sh", "dockerd-entrypoint.sh"),
    *("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"),
    *("git", "ssh", "openssl", "pigz", "unpigz", "xz", "newuidmap", "newgidmap"),
    *("mkfs.btrfs", "btrfs", "mkfs.xfs", "xfs_repair", "mkfs.ext4", "e2fsck"),
    # and what its rootless variant has
    *("fuse-overlayfs", "ip"),
    # and what scripts use of its base, which is Alpine's busybox
    *("ash", "arp", "arping", "bc", "free", "hostname", "ifconfig", "killall", "less", "nc", "netstat"),
    *("nslookup", "pgrep", "pidof", "ping", "ps", "route", "time", "top", "traceroute", "unzip"),
    *("vi", "watch", "wget", "which", "xxd"),
)


def on(volume: Volume, path: str, mode: str = "rw") -> dict[str, dict[str, str]]:
    return {volume.name: {"bind": path, "mode": mode}}


@pytest.fixture(scope="module", params=SUITES)
def bench(request: pytest.FixtureRequest, session_engine: Engine) -> Iterator[Dind]:
    """The image without privileges and without a daemon: for its files and its client side."""
    engine = session_engine.scope()
    try:
        yield engine.dind(str(request.param), entrypoint=["sleep", "infinity"], privileged=False, init=True)
    finally:
        engine.close()


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


def daemon_argv(dind: Dind) -> list[str]:
    [daemon] = dind.daemons()
    return list(daemon.argv)


def daemon_environment(dind: Dind) -> dict[str, str]:
    [daemon] = dind.daemons()
    text = dind.sh(f"cat /proc/{daemon.pid}/environ | tr '\\0' '\\n'")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def listening_ports(dind: Dind) -> set[int]:
    text = dind.sh("cat /proc/net/tcp /proc/net/tcp6")
    rows = [line.split() for line in text.splitlines()]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def mount_line(dind: Dind, mount_point: str) -> str:
    """The line of mountinfo for what is on top at a mount point, or nothing."""
    lines = dind.sh("cat /proc/1/mountinfo").splitlines()
    return next((line for line in reversed(lines) if line.split()[4] == mount_point), "")


# ---- the image (drop-in: a1) -------------------------------------------------------------------------------------


def test_metadata(engine: Engine, suite: str) -> None:
    config = engine.client.images.get(engine.images[suite]).attrs["Config"]
    assert config["Entrypoint"] == ["dockerd-entrypoint.sh"]
    assert not config["Cmd"]
    assert set(config["ExposedPorts"]) == {"2375/tcp", "2376/tcp"}
    assert set(config["Volumes"]) == {DATA_ROOT}
    check = config["Healthcheck"]
    assert check["Test"] == ["CMD", "cachedind", "healthcheck", "--timeout=30"]
    assert check["StartPeriod"] == 24 * 3600 * 10**9, "a long start is not unhealthy"
    assert not config.get("StopSignal")
    assert config["User"] in ("", "0", "root")
    assert config["WorkingDir"] in ("", "/")
    environment = dict(pair.split("=", 1) for pair in config["Env"])
    assert environment["DOCKER_TLS_CERTDIR"] == "/certs"
    # A client's settings would be taken for the daemon's.
    assert not {"DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_DRIVER"} & set(environment)


def test_versions_are_what_the_environment_says(bench: Dind) -> None:
    said = dict(line.split("=", 1) for line in bench.sh("env").splitlines() if line.startswith("DOCKER_"))
    for name, command in (
        ("DOCKER_VERSION", "dockerd --version"),
        ("DOCKER_VERSION", "docker --version"),
        ("DOCKER_BUILDX_VERSION", "docker buildx version"),
        ("DOCKER_COMPOSE_VERSION", "docker compose version"),
        ("DOCKER_COMPOSE_VERSION", "docker-compose version"),
    ):
        found = re.search(r"\d+\.\d+\.\d+", bench.sh(command))
        assert found, command
        assert found[0] == said[name], command


def test_programs_on_path(bench: Dind) -> None:
    script = 'for name; do command -v "$name" >/dev/null || echo "$name"; done'
    assert bench.exec("sh", "-c", script, "sh", *NEEDED).stdout.split() == []


def test_programs_where_docker_dind_has_them(bench: Dind) -> None:
    names = [f"/usr/local/bin/{name}" for name in NEEDED[:13]]
    names += [f"/usr/local/libexec/docker/cli-plugins/docker-{plugin}" for plugin in ("buildx", "compose")]
    names += [f"{LEGACY_FARM}/{name}" for name in NEEDED if "tables" in name]
    script = 'for name; do test -x "$name" || echo "$name"; done'
    assert bench.exec("sh", "-c", script, "sh", *names).stdout.split() == []


def test_iptables_and_its_legacy_farm(bench: Dind) -> None:
    for name in ("iptables", "ip6tables", "iptables-save", "ip6tables-restore"):
        assert "nf_tables" in bench.sh(f"{name} --version")
        assert "legacy" in bench.sh(f"PATH={LEGACY_FARM}:$PATH {name} --version")


def test_no_apparmor_parser(bench: Dind) -> None:
    """With it an inner engine could load a profile over the host's of the same name."""
    assert bench.sh("find / -xdev -name 'apparmor_parser*'") == ""


def test_certificate_directories(bench: Dind) -> None:
    assert bench.sh("stat -c '%a %U %F' /certs /certs/client").splitlines() == ["1777 root directory"] * 2


def test_groups_and_users(bench: Dind) -> None:
    assert bench.sh("getent group docker").startswith("docker:x:2375:")
    assert bench.sh("id -un dockremap; id -gn dockremap").split() == ["dockremap"] * 2
    assert bench.sh("cat /etc/subuid /etc/subgid").splitlines().count("dockremap:165536:65536") == 2


# ---- the client side (drop-in: a2, a8) ---------------------------------------------------------------------------

SHOW = 'echo "$DOCKER_HOST|${DOCKER_TLS_VERIFY:-}|${DOCKER_CERT_PATH:-}"'
MAKE_CLIENT_SIDE = """
mkdir -p /client/some/client /client/empty/client /client/run
for name in ca cert key; do echo x >/client/some/client/$name.pem; : >/client/empty/client/$name.pem; done
"""
MAKE_SOCKET = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "tcp://docker:2375||"),
        ({"DOCKER_TLS_CERTDIR": ""}, "tcp://docker:2375||"),
        ({"DOCKER_TLS_CERTDIR": "/client/empty"}, "tcp://docker:2375||"),
        ({"DOCKER_TLS_CERTDIR": "/client/some"}, "tcp://docker:2376|1|/client/some/client"),
        ({"DOCKER_TLS_VERIFY": "1"}, "tcp://docker:2376|1|"),
        ({"DOCKER_HOST": "tcp://other:1"}, "tcp://other:1||"),
        (
            {"DOCKER_HOST": "tcp://other:1", "DOCKER_TLS_CERTDIR": "/client/some"},
            "tcp://other:1|1|/client/some/client",
        ),
        (
            {"DOCKER_HOST": "tcp://other:1", "DOCKER_TLS_CERTDIR": "/client/some", "DOCKER_CERT_PATH": "/mine"},
            "tcp://other:1||/mine",
        ),
        ({"DOCKER_HOST": "unix:///my.sock", "DOCKER_TLS_CERTDIR": "/client/some"}, "unix:///my.sock||"),
        (
            {"XDG_RUNTIME_DIR": "/client/run", "DOCKER_TLS_CERTDIR": "/client/some"},
            "unix:///client/run/docker.sock||",
        ),
    ],
)
def test_client_finds_its_daemon(bench: Dind, environment: Mapping[str, str], expected: str) -> None:
    bench.sh(MAKE_CLIENT_SIDE)
    bench.sh(f"test -S /client/run/docker.sock || python3 -c '{MAKE_SOCKET}' /client/run/docker.sock")
    assert bench.exec("docker-entrypoint.sh", "sh", "-c", SHOW, env=environment).stdout.strip() == expected


def test_client_prefers_the_socket(bench: Dind) -> None:
    bench.sh(MAKE_CLIENT_SIDE)
    bench.sh(f"python3 -c '{MAKE_SOCKET}' /var/run/docker.sock")
    try:
        environment = {"DOCKER_TLS_CERTDIR": "/client/some"}
        found = bench.exec("docker-entrypoint.sh", "sh", "-c", SHOW, env=environment).stdout.strip()
        assert found == "unix:///var/run/docker.sock||"
    finally:
        bench.sh("rm /var/run/docker.sock")


def test_data_of_the_engine_under_test_is_judged_by_its_bytes(engine: Engine, suite: str) -> None:
    """Databases are read only for releases in that table: one that is left out of it shares less, and mends less."""
    assert parse_engine_version(engine.engine_version(suite)).release in damage.TESTED


def test_commands_go_to_the_client(engine: Engine, suite: str) -> None:
    def run(*words: str, **options: Any) -> Done:
        # Without a network there is no name server to be waited for.
        return run_once(engine, suite, *words, network_mode="none", **options)

    shell = run("sh", "-c", f"{SHOW}; exit 7")
    assert (shell.status, shell.stdout) == (7, "tcp://docker:2375||\n")
    # docker has help for these, so they are docker's.
    assert engine.engine_version(suite) in run("version", "--format", "{{.Client.Version}}").output
    for word in ("version", "ps"):
        asked = run(word)
        assert asked.status == 1
        assert "docker:2375" in asked.output
    assert "127.0.0.1:9" in run("ps", env={"DOCKER_HOST": "tcp://127.0.0.1:9"}).output


def test_commands_reach_a_daemon_beside_them(engine: Engine, running: Dind) -> None:
    suite = next(suite for suite in SUITES if suite in str(running.container.image))
    sharing: dict[str, Any] = {"network_mode": f"container:{running.id}", "volumes_from": [f"{running.id}:ro"]}
    host = {"DOCKER_HOST": "tcp://localhost:2376", "DOCKER_TLS_VERIFY": "1"}
    certificates = {
        f"{name}.pem": running.sh(f"cat /certs/client/{name}.pem").encode() + b"\n" for name in ("ca", "cert", "key")
    }
    environment = {**host, "DOCKER_CERT_PATH": "/files"}
    listed = run_once(engine, suite, "ps", "--quiet", files=certificates, env=environment, **sharing)
    assert (listed.status, listed.stdout) == (0, ""), listed.output


# ---- a daemon as it is by default (drop-in: a2, a3, a5, a7) ------------------------------------------------------


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


def test_dockerd_s_arguments(running: Dind) -> None:
    words = daemon_argv(running)
    assert words[0] == "dockerd"
    for name in ("ca", "cert", "key"):
        flag = {"ca": "--tlscacert", "cert": "--tlscert", "key": "--tlskey"}[name]
        assert words[words.index(flag) + 1] == f"/run/cachedind/tls/{name}.pem"
    assert "--tlsverify" in words
    assert words[words.index("--storage-driver") + 1] == "overlay2"
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


def test_securityfs_that_cannot_be_mounted_is_a_line_and_no_end(bench: Dind, engine: Engine) -> None:
    """As under a rootless host, where the container's root is not the machine's."""
    suite = next(suite for suite in SUITES if suite in str(bench.container.image))
    inside = ["unshare", "--user", "--map-root-user", "--mount", "--propagation=unchanged", "dind", "echo", "went on"]
    done = run_once(engine, suite, *inside[1:], entrypoint=inside[:1], privileged=True)
    assert (done.status, done.stdout) == (0, "went on\n"), done.output
    [line] = [line for line in done.stderr.splitlines() if "securityfs" in line]
    assert "/sys/kernel/security" in line
    assert "not permitted" in line


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


# ---- with settings and arguments (drop-in: a2, a3, a5) -----------------------------------------------------------


def test_users_arguments_come_last(engine: Engine, suite: str) -> None:
    args = ["--mtu=1400", "--label", "one=1", "--storage-driver", "overlay2", "-D", "--insecure-registry", "reg:5000"]
    dind = engine.dind(
        suite,
        volume=engine.volume(),
        volumes=on(engine.volume(), "/tmp"),
        args=args,
        env={"DOCKER_DRIVER": "overlay2", "DOCKER_IPTABLES_LEGACY": "1", "DOCKER_TMPDIR": "/var/lib/docker/tmp"},
    )
    dind.wait_ready()
    words = daemon_argv(dind)
    assert words[-len(args) :] == args
    assert [word for word in words if word.startswith("--storage-driver")] == ["--storage-driver"]
    assert (
        json.loads(dind.docker("network", "inspect", "--format", "{{json .Options}}", "bridge"))[
            "com.docker.network.driver.mtu"
        ]
        == "1400"
    )
    info = json.loads(dind.docker("info", "--format", "{{json .}}"))
    assert info["Labels"] == ["one=1"]
    assert info["Debug"]
    assert "reg:5000" in info["RegistryConfig"]["IndexConfigs"]
    assert info["Driver"] == "overlay2"
    # DOCKER_DRIVER would have the last word in dockerd; it agrees here, and is gone all the same.
    environment = daemon_environment(dind)
    assert "DOCKER_DRIVER" not in environment
    assert environment["DOCKER_TMPDIR"] == "/var/lib/docker/tmp"
    assert dind.warnings == []

    # DOCKER_IPTABLES_LEGACY=1, by PATH alone.
    assert environment["PATH"].startswith(f"{LEGACY_FARM}:/")
    assert [text for text in dind.messages if re.match(r"iptables v[\d.]+ \(legacy\)$", text)]
    assert "DOCKER" in dind.sh(f"{LEGACY_FARM}/iptables -nL")

    # A /tmp of the user's stays his.
    assert " - tmpfs " not in mount_line(dind, "/tmp")


def test_users_arguments_win(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, args=["--tlscert", "/mine/cert.pem"])
    assert dind.wait_exit() not in (0, 73)
    assert "/mine/cert.pem" in dind.log()


def test_iptables_set_but_empty_is_nf_tables(engine: Engine, suite: str) -> None:
    """Empty is a choice, not "not set": it holds even where the kernel has legacy rules."""
    rule = f"{LEGACY_FARM}/iptables -t nat -nL >/dev/null"
    entrypoint = ["sh", "-c", f'{rule}; exec dockerd-entrypoint.sh "$@"', "entrypoint"]
    unset = engine.dind(suite, entrypoint=entrypoint)
    empty = engine.dind(suite, entrypoint=entrypoint, env={"DOCKER_IPTABLES_LEGACY": ""})
    for dind, flavour in ((unset, "legacy"), (empty, "nf_tables")):
        dind.wait_ready()
        assert dind.sh("cat /proc/net/ip_tables_names") != ""
        assert [text for text in dind.messages if re.match(rf"iptables v[\d.]+ \({flavour}\)$", text)]
        assert daemon_environment(dind)["PATH"].startswith(LEGACY_FARM) == (flavour == "legacy")


def test_explicit_dockerd_binds_only_what_it_names(engine: Engine, suite: str) -> None:
    """ARC starts it so: `dockerd --host=unix:///var/run/docker.sock --group=$GID`."""
    dind = engine.dind(suite, volume=engine.volume(), args=["dockerd", "--host=unix:///run/other.sock", "--group=1234"])
    wait_ready_at(dind, "unix:///run/other.sock")
    words = daemon_argv(dind)
    # The socket is bound before anything slow, and handed over.
    assert [word for word in words if "host" in word or "://" in word] == ["--host", "fd://"]
    assert words[-1] == "--group=1234"
    assert not [word for word in words if word.startswith("--tls")]
    assert listening_ports(dind) == set()
    assert dind.sh("stat -c '%a %g' /run/other.sock") == "660 1234"
    assert dind.sh("ls /var/run/docker.sock", check=False) == ""
    assert dind.sh("find /certs -type f") == ""
    # But it leases and decides as ever.
    [daemon] = dind.daemons()
    assert daemon.has_open(LOCK)
    assert words[words.index("--storage-driver") + 1] == "overlay2"
    assert dind.summary is not None
    assert daemon_environment(dind)["container"] == "docker"


def test_explicit_dockerd_alone_has_dockerd_s_own_socket(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, args=["dockerd"], env={"DOCKER_HOST": "unix:///run/ignored.sock"})
    dind.wait_ready()
    assert listening_ports(dind) == set()
    assert dind.sh("stat -c '%a %g' /var/run/docker.sock") == "660 2375"


def test_plain_tcp_without_encryption_is_warned_of(engine: Engine, suite: str) -> None:
    """Both known ways out of dockerd's pause: neither keeps the warning from being given."""
    for args in ([], ["--tls=false"]):
        dind = engine.dind(suite, args=args, env={"DOCKER_TLS_CERTDIR": ""})
        dind.wait_ready()
        assert listening_ports(dind) == {2375}
        assert len(dind.warnings) == 2, dind.warnings  # the other one: an anonymous volume
        assert any("2375" in text for text in dind.warnings)


def test_a_projects_own_variables_cost_one_line(engine: Engine, suite: str) -> None:
    """`services: [{name: $CACHEDIND_IMAGE}]` is how a team names the image, and GitLab tells services all variables."""
    env = {"CACHEDIND_IMAGE": "registry.example.com/cachedind:1", "CACHEDIND_VERSION": "1"}
    dind = engine.dind(suite, volume=engine.volume(), env=env)
    dind.wait_ready()
    [warning] = dind.warnings
    assert "CACHEDIND_IMAGE, CACHEDIND_VERSION" in warning


def test_a_read_only_container_is_told_what_it_needs_and_works_with_that(engine: Engine, suite: str) -> None:
    options: dict[str, Any] = {"volume": engine.volume(), "read_only": True}
    bare = engine.dind(suite, **options)
    assert bare.wait_exit() == 71
    [error] = bare.errors
    needed = re.findall(r"--tmpfs (/\w+)", error)
    assert needed == ["/run", "/certs"]
    engine.dind(suite, tmpfs=dict.fromkeys(needed, ""), **options).wait_ready()


def test_userns_remap(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, volume=engine.volume(), args=["--userns-remap=default"])
    dind.wait_ready()
    seen = dind.docker("run", "--rm", "--network=none", *_base(dind), "cat", "/proc/self/uid_map").split()
    assert seen == ["0", "165536", "65536"]


@pytest.mark.parametrize("words", [["--version"], ["-v"], ["--help"], ["dockerd", "--version"]], ids=" ".join)
def test_informational_arguments_need_nothing(engine: Engine, suite: str, words: list[str]) -> None:
    volume = engine.volume()
    done = run_once(engine, suite, *words, volume=volume, read_only_volume=True, read_only=True, network_mode="none")
    assert done.status == 0, done.output
    assert ("Usage:" if "--help" in words else engine.engine_version(suite)) in done.stdout
    assert engine.in_volume(volume, "ls -A /volume") == ""


def test_validate_needs_nothing(engine: Engine, suite: str) -> None:
    files = {"good.json": b'{"debug": true}', "bad.json": b'{"no-such-directive": true}'}
    good = run_once(engine, suite, "--validate", "--config-file=/files/good.json", files=files)
    assert good.status == 0, good.output
    bad = run_once(engine, suite, "--validate", "--config-file=/files/bad.json", files=files)
    assert bad.status != 0
    assert "no-such-directive" in bad.output


# ---- the user's daemon.json (drop-in: a9) ------------------------------------------------------------------------

DAEMON_JSON = {
    "hosts": ["tcp://127.0.0.1:9998", "unix:///var/run/docker.sock"],
    "storage-driver": "overlay2",
    "features": {"buildkit": True},
    "registry-mirrors": ["https://mirror.example.test"],
    "labels": ["from=file"],
    # As 28 calls it. 26.1 passes over what it does not know, and ends when a rule is without a size.
    "builder": {"gc": {"enabled": True, "policy": [{"all": True, "reservedSpace": "10GB"}]}},
    "tls": True,
    "tlsverify": True,
    "tlscacert": "/mine/server/ca.pem",
    "tlscert": "/mine/server/cert.pem",
    "tlskey": "/mine/server/key.pem",
}


RELOADED = "Got signal to reload configuration"


@pytest.mark.parametrize("told", ["container", "dockerd"])
@pytest.mark.parametrize("kind", ["direct", "pool"])
def test_an_edited_daemon_json_is_read_again_on_sighup(engine: Engine, suite: str, kind: str, told: str) -> None:
    """Without a pool dockerd reads the user's own file; with one a merged copy, which only its parent can make anew."""
    place = {"volume": engine.volume()} if kind == "direct" else {"pool": engine.volume()}
    dind = engine.dind(suite, start=False, **place)
    first = (
        {"labels": ["from=first"]} if kind == "direct" else {"labels": ["from=first"], "hosts": ["tcp://127.0.0.1:99"]}
    )
    dind.put("/etc/docker", {"daemon.json": json.dumps(first)})
    dind.start()
    dind.wait_ready()

    def edit(text: str) -> None:
        if told == "container":
            dind.put("/etc/docker", {"daemon.json": text})
            dind.container.kill("HUP")
        else:  # at once, as a script does it
            dind.sh(f"echo '{text}' >/etc/docker/daemon.json; kill -HUP {dind.daemons()[0].pid}")

    def info() -> tuple[object, ...]:
        found = json.loads(dind.docker("info", "--format", "{{json .}}"))
        return found["Debug"], found["Labels"], found["RegistryConfig"]["Mirrors"] or []

    assert info() == (False, ["from=first"], [])
    assert dind.log().count(RELOADED) == 0
    wanted = {"labels": ["from=second"], "debug": True, "registry-mirrors": ["https://mirror.example.test"]}
    edit(json.dumps({**first, **wanted}))
    seen = (True, ["from=second"], ["https://mirror.example.test/"])
    wait_until(lambda: info() == seen, what="the edit to be seen", timeout_s=10, diagnose=dind.describe)
    assert dind.log().count(RELOADED) <= 2
    edit("{")
    dind.wait_log("nable to configure|rror reconfiguring|nexpected end|invalid character")
    assert info() == seen, "a broken file undid what was read before"


@pytest.mark.parametrize("path", ["/etc/docker/daemon.json", "/somewhere/my.json"])
def test_users_daemon_json_is_honoured_and_left_alone(engine: Engine, suite: str, path: str) -> None:
    mine = engine.volume()
    engine.in_volume(mine, MAKE_USER_MANAGED.replace("$1", "/volume"))
    args = [] if path.startswith("/etc/docker/") else ["--config-file", path]
    dind = engine.dind(suite, args=[*args, "--label=from=flag"][: len(args)], volumes=on(mine, "/mine"), start=False)
    directory, _, name = path.rpartition("/")
    text = json.dumps(DAEMON_JSON, indent=3)
    dind.put(directory, {name: text})
    dind.start()
    dind.wait_ready()

    assert dind.exec("cat", path).stdout == text
    info = json.loads(dind.docker("info", "--format", "{{json .}}"))
    assert info["RegistryConfig"]["Mirrors"] == ["https://mirror.example.test/"]
    assert info["Labels"] == ["from=file"]
    assert info["Driver"] == "overlay2"
    assert listening_ports(dind) == {2376, 9998}
    # The daemon shows the user's certificate, and takes his client's, on our port and on his.
    tls = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/mine/client"}
    for port in (2376, 9998):
        dind.exec("docker", "version", env={"DOCKER_HOST": f"tcp://127.0.0.1:{port}", **tls})


def test_a_named_daemon_json_must_be_there(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, args=["--config-file=/nowhere/daemon.json"])
    assert dind.wait_exit() == 66
    [error] = dind.errors
    assert "/nowhere/daemon.json" in error


def test_a_broken_daemon_json_is_told_with_its_line(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, start=False)
    dind.put("/etc/docker", {"daemon.json": '{\n  "debug": true,\n  "mtu": 1400,,\n}\n'})
    dind.start()
    assert dind.wait_exit() == 78
    [error] = dind.errors
    assert "/etc/docker/daemon.json" in error
    assert "line 3" in error


# ---- what a killed daemon leaves (drop-in: a5, e7) ---------------------------------------------------------------

# PID 1 always lives, so whoever believes these files waits for a stranger.
STALE = {"docker.pid": "1", "docker/containerd/containerd.pid": "1", "DOCKER-other.PID": "1"}


def test_stale_pid_files_in_a_kept_container(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, volume=engine.volume())
    dind.wait_ready()
    for _ in range(2):
        dind.kill()
        dind.put("/run", STALE)
        dind.start()
        dind.wait_ready(timeout_s=10)
    assert dind.sh("ls /run/DOCKER-other.PID", check=False) == ""


def test_stale_files_on_a_kept_run_volume(engine: Engine, suite: str) -> None:
    """A pod's emptyDir over /run outlives its containers."""
    run, data = engine.volume(), engine.volume()
    options: dict[str, Any] = {"volume": data, "volumes": on(run, "/run")}
    first = engine.dind(suite, **options)
    first.wait_ready()
    first.kill()
    script = "\n".join(
        f"mkdir -p $(dirname /volume/{path}); echo {text} >/volume/{path}" for path, text in STALE.items()
    )
    # A socket at the system's address makes dockerd use a containerd that is not there.
    bind = f"mkdir -p /volume/containerd; python3 -c '{MAKE_SOCKET}' /volume/containerd/containerd.sock"
    engine.in_volume(run, f"{script}\n{bind}")
    second = engine.dind(suite, **options)
    second.wait_ready(timeout_s=10)
    assert second.docker("run", "--rm", "--network=none", *_base(second), "sh", "-c", "echo works") == "works"


def _base(dind: Dind) -> list[str]:
    dind.load_base()
    return ["base:latest"]


# ---- the acceptance test of the official images (drop-in: a10) ---------------------------------------------------


def test_official_acceptance(engine: Engine, suite: str) -> None:
    """official-images, test/tests/docker-dind: the same steps, with an image from a file for want of a registry."""
    server = engine.dind(
        suite,
        tty=True,
        env={"DOCKER_TLS_CERTDIR": "/certs"},
        volumes=on(engine.volume(), "/certs"),
        hostname=f"dind-{secrets.token_hex(3)}",
    )
    options: dict[str, Any] = {
        "links": {server.name: "docker"},
        "volumes_from": [f"{server.name}:ro"],
        "entrypoint": ["docker-entrypoint.sh"],
    }

    def client(*args: str, **more: Any) -> str:
        return run_once(engine, suite, *args, check=True, **options, **more).stdout.strip()

    # The original tries for 30 seconds; nothing has to be tried here once the certificates are there.
    server.wait_ready()
    assert engine.engine_version(suite) in client("version")
    assert client("images", "--quiet") == ""
    archive = docker_archive(engine.base_tar, "busybox:latest", ["sh"])
    assert "busybox:latest" in client("load", "--input", "/files/image.tar", files={"image.tar": archive})
    assert len(client("images", "--quiet").split()) == 1
    for number in range(3):
        assert client("run", "--rm", "busybox", "sh", "-c", f"echo run {number}") == f"run {number}"
    assert client("ps", "--all", "--quiet") == ""
    client("create", "--interactive", "--name=test1", "busybox", "cat")
    assert len(client("ps", "--all", "--quiet").split()) == 1
    assert client("ps", "--quiet") == ""
    client("start", "test1")
    assert len(client("ps", "--quiet").split()) == 1
    client("stop", "--time=1", "test1")
    assert client("ps", "--quiet") == ""
    client("rm", "test1")
    assert client("ps", "--all", "--quiet") == ""
    client("rmi", "busybox")
    assert client("images", "--quiet") == ""


# ---- docker stop -------------------------------------------------------------------------------------------------


def test_stop_with_an_inner_container_running(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    dind = engine.dind(suite, volume=volume)
    dind.wait_ready()
    dind.docker("run", "--detach", "--init", *_base(dind), "sleep", "1000")
    wait_until(lambda: _state(engine, volume)["ready_at"], what="the witness's note")
    assert _state(engine, volume)["ended"] is None
    assert dind.stop() < 9
    assert dind.state["ExitCode"] == 0
    assert "Daemon shutdown complete" in dind.log()
    ended = _state(engine, volume)["ended"]
    assert (ended["status"], ended["clean"]) == (0, True)

    # Another one: the end of the last does not speak for it; one that is killed is not clean.
    again = engine.dind(suite, volume=volume)
    again.wait_ready()
    assert _state(engine, volume)["ended"] is None
    [daemon] = again.daemons()
    again.exec("kill", "-KILL", str(daemon.pid), check=False)
    assert again.wait_exit(15) == 128 + 9
    ended = _state(engine, volume)["ended"]
    assert (ended["status"], ended["clean"]) == (128 + 9, False)


def _state(engine: Engine, volume: Volume) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(engine.in_volume(volume, "cat /volume/.cachedind/state.json"))
    return state
