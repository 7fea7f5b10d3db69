"""The steps of a start, as far as they act on nothing but a directory. Whole starts are tested in tests/image."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachedind.api import listeners
from cachedind.base.errors import CachedindError, DaemonConfigError, ProgramMissingError, SettingsError
from cachedind.base.log import Log
from cachedind.base.model import ImageStore, StoragePlan
from cachedind.dataroot import storage
from cachedind.dataroot.lease import Lease
from cachedind.host import processes
from cachedind.settings import config, daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.start import boot, supervisor

OVERLAY2 = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "it works")


class Executed(Exception):
    """What os.execvpe was called with, instead of replacing this process."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> type[Executed]:
    def execvpe(program: str, argv: list[str], environ: dict[str, str]) -> None:
        assert program == ("/real/dockerd" if argv[0] == "dockerd" else argv[0])
        raise Executed(argv, environ)

    monkeypatch.setattr(os, "execvpe", execvpe)
    monkeypatch.setattr(processes, "engine_program", lambda path: "/real/dockerd")
    monkeypatch.setattr(processes, "engine_environment", lambda program: {})
    return Executed


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    """As of a data-root whose lease is held, though nothing is locked here."""
    directory = tmp_path / "data" / ".cachedind"
    directory.mkdir(parents=True)
    (directory / "lock").touch()
    fd, directory_fd = os.open(directory / "lock", os.O_RDWR), os.open(directory, os.O_RDONLY)
    yield Lease(fd, directory_fd, str(tmp_path / "data"), None, 0.0)
    os.close(fd)
    os.close(directory_fd)


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["--version"], ["dockerd", "--version"]),
        (["dockerd", "--help"], ["dockerd", "--help"]),
        (["-D", "-v"], ["dockerd", "-D", "-v"]),
        (["dockerd", "--validate", "--config-file=/x"], ["dockerd", "--validate", "--config-file=/x"]),
    ],
)
def test_questions_go_to_dockerd_untouched(executed: type[Executed], words: list[str], argv: list[str]) -> None:
    environ = {"PATH": "/bin", "DOCKER_DRIVER": "vfs", "CACHEDIND_STRICT": "perhaps"}
    with pytest.raises(executed) as caught:
        boot.boot(words, environ)
    assert caught.value.args == (argv, environ)


@pytest.mark.parametrize(
    ("words", "environ", "error"),
    [
        ([], {"CACHEDIND_STRICT": "perhaps"}, SettingsError),
        (["--data-root"], {}, DaemonConfigError),
        ([], {"DOCKER_HOST": "unix://relative.sock"}, DaemonConfigError),
    ],
)
def test_what_cannot_be_understood_ends_the_start_before_anything_is_bound(
    monkeypatch: pytest.MonkeyPatch, words: list[str], environ: dict[str, str], error: type[CachedindError]
) -> None:
    monkeypatch.setattr(listeners, "Api", lambda plan: pytest.fail("bound"))
    monkeypatch.setattr(daemon_json, "DEFAULT_CONFIG_FILE", "/no-such/daemon.json")
    with pytest.raises(error):
        boot.boot(words, environ)


# ---- handing over ----


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is done to signals, of which a test wants none itself."""
    done: list[object] = []
    monkeypatch.setattr(supervisor, "block_signals", lambda: {1})
    monkeypatch.setattr(supervisor, "become_child", done.append)
    return done


def test_dockerd_gets_its_sockets_and_its_own_pid(
    executed: type[Executed], lease: Lease, signals: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[object] = []
    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(listeners, "hand_over", lambda sockets: handed.append((sockets, os.get_inheritable(lease.fd))))
    with pytest.raises(executed) as caught:
        boot.hand_over(["--host", "fd://"], ["socket"], lease, 7, {"PATH": "/bin"})  # type: ignore[list-item]
    argv, environ = caught.value.args
    assert argv == ["dockerd", "--host", "fd://"]
    assert environ == {"PATH": "/bin", "LISTEN_PID": str(os.getpid())}
    assert handed == [(["socket"], True)], "the sockets go last, and the lock survives exec"
    assert signals == [{1}], "the mask of before is dockerd's"
    assert not os.get_inheritable(lease.directory_fd)


def test_without_sockets_dockerd_hears_of_none(
    executed: type[Executed], lease: Lease, signals: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", lambda: 0)
    with pytest.raises(executed) as caught:
        boot.hand_over(["-D"], [], lease, 7, {})
    assert caught.value.args == (["dockerd", "-D"], {})
    assert os.get_inheritable(lease.fd)


@pytest.mark.usefixtures("signals")
def test_the_start_becomes_the_supervisor(
    executed: type[Executed], lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", lambda: 42)
    with pytest.raises(executed) as caught:
        boot.hand_over(["-D"], [], lease, 7, {})
    argv, _ = caught.value.args
    assert argv[0] == sys.executable
    assert argv[3:] == ["42", "7", str(lease.fd), str(lease.directory_fd), "state.json", lease.data_root]
    assert os.get_inheritable(lease.fd)
    assert os.get_inheritable(lease.directory_fd)


def test_a_program_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def execvpe(program: str, argv: list[str], environ: dict[str, str]) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)

    monkeypatch.setattr(os, "execvpe", execvpe)
    with pytest.raises(ProgramMissingError, match="docker-init cannot be run: No such file or directory"):
        boot.execute(["docker-init"], {})


def test_dind_without_a_command() -> None:
    with pytest.raises(SettingsError, match="no command"):
        boot.dind([], {})


@pytest.mark.parametrize(
    ("flags", "file", "certdir", "warned"),
    [
        ("", {}, "", True),
        ("", {}, "/certs", False),
        ("--tls=false", {}, "", True),
        ("--tls", {}, "", False),
        ("--tlsverify", {}, "", False),
        ("", {"tlsverify": True}, "", False),
    ],
    ids=["plain", "TLS", "the common way to be rid of the pause", "own", "own, clients checked", "own in the file"],
)
def test_plain_tcp_is_warned_of(
    capfd: pytest.CaptureFixture[str], flags: str, file: dict[str, object], certdir: str, warned: bool
) -> None:
    daemon = daemon_json.DaemonSettings(parse_daemon_arguments(flags.split()), file, "daemon.json")
    boot.plan_listen(config.load({"DOCKER_TLS_CERTDIR": certdir}), daemon, Log(), explicit=False)
    assert ("neither encryption nor authentication" in capfd.readouterr().err) is warned


def test_the_hint_for_want_of_privileges_is_a_command_that_works() -> None:
    assert storage.PRIVILEGED_RUN == "docker run --privileged -v cachedind:/var/lib/docker cachedind"
