"""The names and addresses that go into the server's certificate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.api import certificate_names, certificates
from cachedind.api.certificate_names import check_name, parse_addresses, parse_canonical_name, plan_names
from cachedind.base.errors import CertificateError
from cachedind.host.processes import Result


def test_names_are_sorted_unique_and_have_the_usual_ones() -> None:
    names = plan_names(["::1", "127.0.0.1", "127.0.0.1"], ["box", "", "box.example"], "DNS:x, IP:10.0.0.1\nDNS:x")
    assert names.entries == (
        "DNS:box",
        "DNS:box.example",
        "DNS:docker",
        "DNS:localhost",
        "DNS:x",
        "IP:10.0.0.1",
        "IP:127.0.0.1",
        "IP:::1",
    )


def test_a_host_name_that_no_certificate_can_hold_is_left_out() -> None:
    assert plan_names([], ["bücher", "box"], "").entries == ("DNS:box", "DNS:docker", "DNS:localhost")


@pytest.mark.parametrize("entry", ["DNS:x", "DNS:*.x", "IP:1.2.3.4", "IP:fd00::1", "URI:spiffe://x", "email:a@b.c"])
def test_good_names(entry: str) -> None:
    check_name(entry)
    certificates.general_name(entry)


@pytest.mark.parametrize(
    "entry", ["x", "DNS:", "dns:x", "IP:x", "IP:1.2.3.4/24", "DNS:bücher", "RID:1.2", ":x", "email:a<b", "email:<>"]
)
def test_bad_names_are_told_before_anything_is_issued(entry: str) -> None:
    with pytest.raises(CertificateError, match="DOCKER_TLS_SAN has the bad entry") as caught:
        plan_names([], [], f"DNS:good,{entry}")
    assert caught.value.exit_code == 73


@given(st.text(max_size=30))
def test_any_setting_is_names_or_a_documented_error(extra: str) -> None:
    try:
        names = plan_names([], [], extra)
    except CertificateError:
        return
    for entry in names.entries:
        certificates.general_name(entry)


# What `ip -oneline address` of iproute2 6.15 prints.
ADDRESSES = r"""1: lo    inet 127.0.0.1/8 scope host lo\       valid_lft forever preferred_lft forever
1: lo    inet6 ::1/128 scope host proto kernel_lo \       valid_lft forever preferred_lft forever
4: eth0    inet 192.0.2.2/24 brd 192.0.2.255 scope global eth0\       valid_lft forever preferred_lft forever
4: eth0    inet6 fd00::2/64 scope global nodad \       valid_lft forever preferred_lft forever
4: eth0    inet6 fe80::fc:ff:fe00:1/64 scope link \       valid_lft forever preferred_lft forever
9: tun0    inet 10.8.0.2 peer 10.8.0.1/32 scope global tun0\       valid_lft forever preferred_lft forever
"""


def test_parse_addresses() -> None:
    assert parse_addresses(ADDRESSES) == ["10.8.0.2", "127.0.0.1", "192.0.2.2", "::1", "fd00::2", "fe80::fc:ff:fe00:1"]
    assert parse_addresses("") == []


HOSTS = """127.0.0.1\tlocalhost
# 10.0.0.9 commented box
10.0.0.2  box.example.org box  # the container
10.0.0.2  later box
"""


@pytest.mark.parametrize(
    ("hostname", "full"),
    [
        ("box", "box.example.org"),
        ("box.example.org", "box.example.org"),
        ("localhost", "localhost"),
        ("commented", None),
        ("bo", None),
        ("", None),
    ],
)
def test_parse_canonical_name(hostname: str, full: str | None) -> None:
    assert parse_canonical_name(HOSTS, hostname) == full


def test_dns_is_asked_only_when_hosts_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(argv: list[str], timeout_s: float) -> Result:
        asked.append((argv, timeout_s))
        return Result(0, "box.dns.example\n", "")

    texts = {"/etc/hostname": "box\n", "/etc/hosts": HOSTS}
    monkeypatch.setattr("cachedind.host.processes.run", run)
    monkeypatch.setattr("cachedind.host.procfs.hostname", lambda: "box")
    monkeypatch.setattr(certificate_names, "_read_text", lambda path: texts[path])
    assert "box.example.org" in certificate_names.read_hostnames()
    assert asked == []
    texts["/etc/hosts"] = ""
    assert "box.dns.example" in certificate_names.read_hostnames()
    assert asked == [(["hostname", "-f"], 1)]
