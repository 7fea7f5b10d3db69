"""The unit lane: no program is run, nothing is mounted, nothing replaces this process. Needs no root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

import cachedind.host.linux
import cachedind.host.netfilter
import cachedind.host.processes
from helpers.fake_daemon import Daemon, issue, listen_tcp, listen_unix
from helpers.spools import Spool

# No file of examples in the tree, and no judgement about the speed of a busy machine.
settings.register_profile(
    "cachedind", parent=settings(), database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("cachedind")


@pytest.fixture(autouse=True)
def no_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tests one of these functions itself imports it at the top of the file, before it is replaced."""

    def refuse(name: str) -> Callable[..., NoReturn]:
        def refused(*args: object, **kwargs: object) -> NoReturn:
            raise AssertionError(f"a unit test called {name}{args}")

        return refused

    monkeypatch.setattr(cachedind.host.processes, "run", refuse("cachedind.host.processes.run"))
    monkeypatch.setattr(cachedind.host.processes, "Question", refuse("cachedind.host.processes.Question"))
    monkeypatch.setattr(cachedind.host.netfilter, "has_no_tables", refuse("cachedind.host.netfilter.has_no_tables"))
    monkeypatch.setattr(cachedind.host.linux, "mount", refuse("cachedind.host.linux.mount"))
    # All of os.exec* end in one of these two.
    monkeypatch.setattr(os, "execv", refuse("os.execv"))
    monkeypatch.setattr(os, "execve", refuse("os.execve"))


# ---- another daemon --------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_stays_open() -> Iterator[None]:
    """Whatever a test does: no socket and no spool is left, once the daemon of the test is gone."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def daemon(tmp_path: Path, nothing_stays_open: None) -> Iterator[Daemon]:
    with contextlib.closing(Daemon(*listen_unix(tmp_path / "d.sock"))) as found:
        yield found


@pytest.fixture
def tcp_daemon(nothing_stays_open: None) -> Iterator[Daemon]:
    with contextlib.closing(Daemon(*listen_tcp())) as found:
        yield found


@pytest.fixture(params=["unix", "tcp"])
def any_daemon(request: pytest.FixtureRequest) -> Daemon:
    return request.getfixturevalue("daemon" if request.param == "unix" else "tcp_daemon")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates of a daemon on this machine."""
    return issue(tmp_path_factory.mktemp("certs"), "IP:127.0.0.1")


@pytest.fixture
def spool(tmp_path: Path, nothing_stays_open: None) -> Iterator[Spool]:
    found = Spool(tmp_path / "spool")
    yield found
    os.close(found.fd)
    assert os.listdir(found.directory) == []
