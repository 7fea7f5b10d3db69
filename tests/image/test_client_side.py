"""Promise 6 for clients: they find their daemon, and whatever is not dockerd's goes to docker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from helpers.clients import run_once
from helpers.inside import MAKE_SOCKET

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Done, Engine

SHOW = 'echo "$DOCKER_HOST|${DOCKER_TLS_VERIFY:-}|${DOCKER_CERT_PATH:-}"'
MAKE_CLIENT_SIDE = """
mkdir -p /client/some/client /client/empty/client /client/run
for name in ca cert key; do echo x >/client/some/client/$name.pem; : >/client/empty/client/$name.pem; done
"""


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
