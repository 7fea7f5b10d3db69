"""The program: what goes where, and errors as one line and an exit code."""

from __future__ import annotations

import errno
import json
import sys

import pytest

from cachedind import __main__
from cachedind.base.errors import DataRootBusyError
from cachedind.start import boot


def run(monkeypatch: pytest.MonkeyPatch, *words: str, **environ: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cachedind", *words])
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return __main__.main()


@pytest.mark.parametrize("command", ["boot", "dind"])
def test_what_follows_the_command_is_its_own(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    got = []

    def stop(words: list[str], environ: dict[str, str], *_: object) -> None:
        got.append((words, environ["MARK"]))
        raise DataRootBusyError("it is busy", "wait longer")

    monkeypatch.setattr(boot, command, stop)
    assert run(monkeypatch, command, "--debug", "--help", "-H", "x", MARK="1") == 75
    assert got == [(["--debug", "--help", "-H", "x"], "1")]


def test_an_error_is_one_line_and_its_code(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "boot", CACHEDIND_LOCK_TIMEOUT="soon", CACHEDIND_STRICT="perhaps") == 64
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("cachedind: error: CACHEDIND_LOCK_TIMEOUT='soon' is not a time")
    assert "CACHEDIND_STRICT" in line


def test_an_error_is_json_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "boot", "--data-root", CACHEDIND_LOG_FORMAT="json") == 78
    assert json.loads(capfd.readouterr().err)["exit_code"] == 78


def test_people_get_the_commands(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--help")
    assert ended.value.code == 0
    assert "doctor" in capfd.readouterr().out


def test_a_disk_that_fails_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(words: list[str], environ: dict[str, str], *_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "/var/lib/docker/image")

    monkeypatch.setattr(boot, "boot", fail)
    assert run(monkeypatch, "boot") == 74
    [line] = capfd.readouterr().err.splitlines()
    assert "/var/lib/docker/image: Input/output error" in line
