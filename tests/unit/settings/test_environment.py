"""What of the environment dockerd gets."""

from __future__ import annotations

from cachedind.settings.environment import daemon_environment


def test_dockerd_gets_neither_our_variables_nor_what_would_override_the_decision() -> None:
    environ = {
        "HOME": "/root",
        "PATH": "/bin",
        "DOCKER_DRIVER": "vfs",
        "TEST_INTEGRATION_USE_SNAPSHOTTER": "1",
        "DOCKER_HOST": "unix:///x",
        "LISTEN_PID": "1",
        "LISTEN_FDS": "7",
        "LISTEN_FDNAMES": "a",
        "CACHEDIND_STRICT": "1",
    }
    assert daemon_environment(environ, path="/legacy:/bin", listen_fds=2) == {
        "HOME": "/root",
        "PATH": "/legacy:/bin",
        "DOCKER_HOST": "unix:///x",
        "container": "docker",
        "LISTEN_FDS": "2",
    }
    assert "LISTEN_FDS" not in daemon_environment(environ, path="/bin", listen_fds=0)
