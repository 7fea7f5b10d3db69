"""The user's daemon.json: honoured, left alone, read again on SIGHUP; one that is missing or broken is told of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from helpers.certificates import MAKE_USER_MANAGED
from helpers.daemons import listening_ports
from helpers.engine import on
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.engine import Engine

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
