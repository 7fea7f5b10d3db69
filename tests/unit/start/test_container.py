"""What is prepared for the firewall that the engine was told to use."""

from __future__ import annotations

import pytest

from cachedind.base.errors import StrictError
from cachedind.base.log import Log
from cachedind.host import forwarding
from cachedind.settings.daemon_json import DaemonSettings
from cachedind.start import container
from helpers.daemon_settings import settings_of

NFTABLES = "--firewall-backend=nftables"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which parameters were to be set."""
    names: list[str] = []

    def switch_on(wanted: tuple[str, ...]) -> list[str]:
        names.extend(wanted)
        return []

    monkeypatch.setattr(forwarding, "switch_on", switch_on)
    return names


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (settings_of(NFTABLES), forwarding.IPV4),
        (settings_of(firewall_backend="nftables"), forwarding.IPV4),
        (settings_of(f"{NFTABLES} --ipv6"), forwarding.IPV4 + forwarding.IPV6),
        (settings_of(firewall_backend="nftables", ipv6=True), forwarding.IPV4 + forwarding.IPV6),
        (settings_of(f"{NFTABLES} --ipv6=false", ipv6=True), forwarding.IPV4),
        (settings_of(f"{NFTABLES} --ip-forward=false"), ()),
        (settings_of(NFTABLES, ip_forward=False), ()),
    ],
)
def test_forwarding_is_what_the_engine_will_insist_on(
    asked: list[str], settings: DaemonSettings, names: tuple[str, ...]
) -> None:
    assert settings.has_nftables
    container.forward(settings, Log(fd=2))
    assert tuple(asked) == names


def test_who_cannot_set_it_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(wanted: tuple[str, ...]) -> list[str]:
        raise PermissionError(1, "Operation not permitted", wanted[0])

    monkeypatch.setattr(forwarding, "switch_on", refuse)
    container.forward(settings_of(NFTABLES), Log(fd=2))
    [line] = capfd.readouterr().err.splitlines()
    assert "net.ipv4.ip_forward cannot be set to 1: Operation not permitted" in line
    assert "--sysctl net.ipv4.ip_forward=1" in line
    with pytest.raises(StrictError):
        container.forward(settings_of(NFTABLES), Log(fd=2, strict=True))


def test_iptables_is_not_asked_then(asked: list[str]) -> None:
    """Which would be a program that is run: a unit test refuses that."""
    from cachedind.settings import config

    settings = config.load({"PATH": "/bin"})
    firewall = container.begin(settings, settings_of(NFTABLES))
    assert container.finish(settings, settings_of(NFTABLES), firewall, Log(fd=2)) == f"/bin:{container.NFT_DIRECTORY}"
    with pytest.raises(AssertionError, match="a unit test called"):
        container.begin(settings, settings_of())
