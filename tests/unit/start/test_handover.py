"""How a start ends: as the supervisor of dockerd, its child."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from cachedind.api import listeners
from cachedind.base.errors import ProgramMissingError
from cachedind.dataroot.lease import Lease
from cachedind.start import handover, supervisor


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is done to signals, of which a test wants none itself."""
    done: list[object] = []
    monkeypatch.setattr(supervisor, "block_signals", lambda: {1})
    monkeypatch.setattr(supervisor, "become_child", done.append)
    return done


def test_dockerd_gets_its_sockets_and_its_own_pid(
    executed: type[Exception], lease: Lease, signals: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[object] = []
    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(listeners, "hand_over", lambda sockets: handed.append((sockets, os.get_inheritable(lease.fd))))
    with pytest.raises(executed) as caught:
        handover.hand_over(["--host", "fd://"], ["socket"], lease, 7, {"PATH": "/bin"})  # type: ignore[list-item]
    argv, environ = caught.value.args
    assert argv == ["dockerd", "--host", "fd://"]
    assert environ == {"PATH": "/bin", "LISTEN_PID": str(os.getpid())}
    assert handed == [(["socket"], True)], "the sockets go last, and the lock survives exec"
    assert signals == [{1}], "the mask of before is dockerd's"
    assert not os.get_inheritable(lease.directory_fd)


def test_without_sockets_dockerd_hears_of_none(
    executed: type[Exception], lease: Lease, signals: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", lambda: 0)
    with pytest.raises(executed) as caught:
        handover.hand_over(["-D"], [], lease, 7, {})
    assert caught.value.args == (["dockerd", "-D"], {})
    assert os.get_inheritable(lease.fd)


@pytest.mark.usefixtures("signals")
def test_the_start_becomes_the_supervisor(
    executed: type[Exception], lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", lambda: 42)
    with pytest.raises(executed) as caught:
        handover.hand_over(["-D"], [], lease, 7, {})
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
        handover.execute(["docker-init"], {})
