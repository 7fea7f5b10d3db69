"""The commands for people."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cachedind.base.errors import PoolMissingError, SettingsError
from cachedind.commands.cli import cli
from cachedind.host import procfs


def invoke(*words: str, **environ: str) -> Result:
    return CliRunner().invoke(cli, words, env={"DOCKER_HOST": None, **environ})


@pytest.mark.parametrize(
    ("environ", "code", "said"),
    [
        ({"CACHEDIND_STRICT": "perhaps"}, 64, "CACHEDIND_STRICT='perhaps' is not 1 or 0"),
        ({"PATH": "/no-such-directory"}, 69, "there is no dockerd"),
    ],
    ids=["a bad setting", "no dockerd"],
)
def test_doctor_ends_as_a_start_would(environ: dict[str, str], code: int, said: str) -> None:
    text = invoke("doctor", **environ)
    assert text.exit_code == code
    assert said in text.output.replace("\n", " ")
    machine = invoke("doctor", "--json", **environ)
    assert machine.exit_code == code
    assert json.loads(machine.output)["error"]["exit_code"] == code
    assert said in json.loads(machine.output)["error"]["cause"]


def test_dockerds_arguments_come_after_two_dashes() -> None:
    found = invoke("doctor", "--json", "--", "--data-root")
    assert json.loads(found.output)["error"]["cause"] == "dockerd's argument --data-root needs a value"


def test_help_lists_each_command_with_a_line() -> None:
    lines = invoke("--help").output.partition("Commands:\n")[2].splitlines()
    found = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ") and line[2] != " "}
    assert set(found) == {"doctor", "gc", "healthcheck", "ls", "promote", "rm", "seed", "status"}
    assert all(found.values())


@pytest.mark.parametrize("name", ["gc", "ls", "promote", "rm", "status"])
def test_each_command_of_the_pool_takes_its_place(name: str) -> None:
    assert "--pool PATH" in invoke(name, "--help").output
    key = ["k"] if name in ("promote", "rm") else []
    found = invoke(name, *key, "--pool", "/no-such-directory")
    assert isinstance(found.exception, PoolMissingError)
    assert found.exception.exit_code == 66
    assert isinstance(invoke(name, *key, CACHEDIND_POOL="").exception, PoolMissingError)
    assert isinstance(invoke(name, *key, CACHEDIND_POOL="relative").exception, SettingsError)


class Daemon(http.server.BaseHTTPRequestHandler):
    """Answers as dockerd does, as far as healthcheck asks."""

    def do_GET(self) -> None:
        body = b'{"ApiVersion": "1.45", "MinAPIVersion": "1.24"}' if "version" in self.path else b"OK"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[object, tuple[str, int]]:  # type: ignore[override]
        return super().get_request()[0], ("client", 0)


@pytest.fixture
def daemon_socket(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "docker.sock"
    with UnixServer(str(path), Daemon) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_healthcheck_of_a_daemon_that_answers(daemon_socket: Path) -> None:
    assert invoke("healthcheck", DOCKER_HOST=f"unix://{daemon_socket}").exit_code == 0


def test_healthcheck_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "read_argv", lambda pid: ["docker-init", "--", "python"])
    found = invoke("healthcheck", "--timeout", "0", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert found.exit_code == 1
    assert f"the daemon behind {tmp_path}/none.sock does not answer: No such file" in found.output


@pytest.mark.parametrize("words", [["--tiemout=5"], ["--timeout=soon"], ["now"]], ids=" ".join)
def test_healthcheck_never_ends_with_the_code_that_engines_reserve(words: list[str]) -> None:
    assert invoke("healthcheck", *words).exit_code == 1
    assert invoke("status", *words).exit_code == 2
