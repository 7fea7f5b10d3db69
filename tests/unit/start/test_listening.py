"""What is said about where the API listens."""

from __future__ import annotations

import pytest

from cachedind.base.log import Log
from cachedind.settings import config, daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.start import listening


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
    listening.plan_listen(config.load({"DOCKER_TLS_CERTDIR": certdir}), daemon, Log(), explicit=False)
    assert ("neither encryption nor authentication" in capfd.readouterr().err) is warned
