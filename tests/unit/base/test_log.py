"""Lines for people and for machines: one per event, whatever is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.errors import DataRootBusyError, StrictError
from cachedind.base.log import Level, Log
from cachedind.base.model import Degradation

DEGRADATION = Degradation("storage driver vfs", "overlay2 does not work", "each layer is a copy", "mount a volume")


class Pipe:
    """Where a log writes to; `read` returns what came since the last time."""

    def __init__(self) -> None:
        self.read_fd, self.fd = os.pipe()
        os.set_blocking(self.read_fd, False)

    def read(self) -> str:
        try:
            return os.read(self.read_fd, 1 << 16).decode()
        except BlockingIOError:
            return ""


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.read_fd)
    os.close(pipe.fd)


def test_text_lines(pipe: Pipe) -> None:
    log = Log(level=Level.DEBUG, fd=pipe.fd)
    log.debug("d")
    log.info("i", field=1)
    log.warn("w")
    log.error(DataRootBusyError("it is busy", "wait longer"))
    log.degraded(DEGRADATION)
    assert pipe.read().splitlines() == [
        "cachedind: d",
        "cachedind: i",
        "cachedind: warning: w",
        "cachedind: error: it is busy; wait longer",
        "cachedind: warning: storage driver vfs: overlay2 does not work; each layer is a copy; mount a volume",
    ]


def test_json_lines(pipe: Pipe) -> None:
    log = Log(as_json=True, fd=pipe.fd)
    log.info("i", layers=3, age=None)
    log.degraded(DEGRADATION)
    log.error(DataRootBusyError("it is busy", "wait longer"))
    info, degraded, error = map(json.loads, pipe.read().splitlines())
    assert info.pop("time").endswith("Z")
    assert info == {"level": "info", "msg": "i", "layers": 3, "age": None}
    assert (degraded["level"], degraded["what"], degraded["mend"]) == ("warn", DEGRADATION.what, DEGRADATION.mend)
    assert error["level"] == "error"
    assert (error["cause"], error["hint"], error["exit_code"]) == ("it is busy", "wait longer", 75)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(
    "message",
    [
        "two\nlines",
        "carriage\rreturn",
        "\x1b[31mred",
        "line\u2028separator",
        "\x85",
        "\ud800 half a character",
        "ümlaut …",
    ],
    ids=ascii,
)
def test_a_message_stays_on_its_line(pipe: Pipe, message: str, as_json: bool) -> None:
    Log(as_json=as_json, fd=pipe.fd).warn(message)
    written = pipe.read()
    assert written.endswith("\n")
    assert len(written.splitlines()) == 1
    assert "\x1b" not in written
    if as_json:
        assert json.loads(written)["msg"] == message


@given(st.text(st.characters()), st.booleans())
def test_any_message_is_one_line(message: str, as_json: bool) -> None:
    pipe = Pipe()
    try:
        Log(as_json=as_json, fd=pipe.fd).info(message)
        assert len(pipe.read().splitlines()) == 1
    finally:
        os.close(pipe.read_fd)
        os.close(pipe.fd)


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        (Level.DEBUG, "debug info warn error"),
        (Level.INFO, "info warn error"),
        (Level.WARN, "warn error"),
        (Level.ERROR, "error"),
    ],
)
def test_levels(pipe: Pipe, level: Level, heard: str) -> None:
    log = Log(level=level, as_json=True, fd=pipe.fd)
    log.debug("")
    log.info("")
    log.warn("")
    log.error(DataRootBusyError("", ""))
    assert [json.loads(line)["level"] for line in pipe.read().splitlines()] == heard.split()


def test_strict_turns_a_degradation_into_the_end_of_the_start(pipe: Pipe) -> None:
    with pytest.raises(StrictError, match="CACHEDIND_STRICT is set") as caught:
        Log(strict=True, fd=pipe.fd).degraded(DEGRADATION)
    assert caught.value.hint == DEGRADATION.mend
    assert "overlay2 does not work" in caught.value.cause
    Log(strict=True, fd=pipe.fd).warn("a warning is none")
    assert pipe.read() == "cachedind: warning: a warning is none\n"


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "JSON"])
def test_credentials_in_an_address_are_not_said(pipe: Pipe, as_json: bool) -> None:
    log = Log(fd=pipe.fd, as_json=as_json)
    log.info("dockerd --registry-mirror=https://user:se:cret@mirror.example/a@b http://token@host", url="tcp://u:se@h")
    said = pipe.read()
    assert "https://***@mirror.example/a@b http://***@host" in said
    assert "se:cret" not in said
    assert "token" not in said
    assert ("tcp://***@h" in said) == as_json
