"""What containers share besides a data-root or a pool: the sockets' directory, /run, certificates.

A start that is refused leaves no trace in them, and one that has the lease takes over what a killed one has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.certificates import names, read_set
from helpers.clients import run_once, wait_ready_at
from helpers.engine import on

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume

SOCKET = "/shared/docker.sock"
NO_WAIT = {"CACHEDIND_LOCK_TIMEOUT": "100ms"}
LISTING = "cd /volume; find . -printf '%p %i %m\\n' | sort; find . -type f | sort | xargs -r sha256sum"


def test_a_refused_start_leaves_no_trace(engine: Engine, suite: str) -> None:
    data, shared, certificates = engine.volume(), engine.volume(), engine.volume()
    network = engine.network()

    def start(env: dict[str, str]) -> Dind:
        env = {"DOCKER_HOST": f"unix://{SOCKET}", **env}
        volumes = {**on(shared, "/shared"), **on(certificates, "/certs")}
        return engine.dind(suite, volume=data, volumes=volumes, env=env, network=network)

    first = start({})
    wait_ready_at(first, f"unix://{SOCKET}")
    # As where only the client's directory is shared: a new CA would be made.
    engine.in_volume(certificates, "rm -r /volume/ca /volume/server")
    before = [engine.in_volume(volume, LISTING) for volume in (shared, certificates)]
    refused = start(NO_WAIT)
    assert refused.wait_exit() == 75, refused.describe()
    assert [engine.in_volume(volume, LISTING) for volume in (shared, certificates)] == before
    first.docker_host = f"unix://{SOCKET}"
    assert first.docker_status("version") == 0
    assert ask(engine, suite, first, certificates, network) == 0

    first.kill()
    next_one = start({})
    wait_ready_at(next_one, f"unix://{SOCKET}")
    assert engine.in_volume(shared, "ls -A /volume") == "docker.sock\n"
    assert [text for text in next_one.messages if "certificates of a new CA" in text]
    assert ask(engine, suite, next_one, certificates, network) == 0


def ask(engine: Engine, suite: str, dind: Dind, certificates: Volume, network: str) -> int:
    """The status of a client that has the shared certificates, and the daemon's address."""
    env = {"DOCKER_HOST": f"tcp://{dind.address}:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs/client"}
    return run_once(engine, suite, "version", env=env, network=network, volumes=on(certificates, "/certs")).status


def test_a_shared_run_directory(engine: Engine, suite: str) -> None:
    """Two daemons cannot work in one exec-root, whatever their data-roots: containerd's sockets have fixed places."""
    data, run = engine.volume(), engine.volume()
    first = engine.dind(suite, volume=data, volumes=on(run, "/run"))
    first.wait_ready()
    before = engine.in_volume(run, LISTING)
    for volume in (data, engine.volume()):
        refused = engine.dind(suite, volume=volume, volumes=on(run, "/run"), env=NO_WAIT)
        assert refused.wait_exit() == 75, refused.describe()
        [error] = refused.errors
        assert "unharmed" in error
        assert engine.in_volume(run, LISTING) == before
    first.load_base()
    assert first.docker("run", "--rm", "--network=none", "base", "cat", "/proc/self/uid_map").split()[0] == "0"

    first.kill()
    engine.dind(suite, volume=data, volumes=on(run, "/run")).wait_ready()


def test_another_daemons_socket_is_taken_over_with_a_word(engine: Engine) -> None:
    """With data-roots of their own both may run; docker:dind takes the socket too."""
    shared = engine.volume()
    env = {"DOCKER_HOST": f"unix://{SOCKET}"}
    first = engine.dind("forky", volume=engine.volume(), volumes=on(shared, "/shared"), env=env)
    wait_ready_at(first, f"unix://{SOCKET}")
    second = engine.dind("forky", volume=engine.volume(), volumes=on(shared, "/shared"), env=env)
    second.wait_log("another daemon answers at /shared/docker.sock")
    wait_ready_at(second, f"unix://{SOCKET}")
    second.docker_host = f"unix://{SOCKET}"
    assert second.docker("info", "--format", "{{.Name}}") == second.id[:12]


def test_certificates_that_many_share(engine: Engine, suite: str) -> None:
    """All starts at once with one /certs: each has a server certificate of its own, all of one CA."""
    certificates, network = engine.volume(), engine.network()
    dinds = [engine.dind(suite, network=network, volumes=on(certificates, "/certs")) for _ in range(4)]
    for dind in dinds:
        dind.wait_ready()
    for dind in dinds:
        served = read_set(dind, "/run/cachedind/tls").certificate("cert")
        assert f"IP:{dind.address}" in names(served)
        assert ask(engine, suite, dind, certificates, network) == 0
    assert "new-" not in engine.in_volume(certificates, "find /volume")
