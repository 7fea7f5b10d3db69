"""Promise 6: the acceptance test that the official images have to pass."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from helpers.clients import docker_archive, run_once
from helpers.engine import on

if TYPE_CHECKING:
    from helpers.engine import Engine


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
