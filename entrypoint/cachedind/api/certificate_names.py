"""Names of the server certificate: this container's addresses and host names, and those of DOCKER_TLS_SAN."""

from __future__ import annotations

import re

from cachedind.base.errors import CachedindError, CertificateError
from cachedind.base.typed import NamedTuple

_ADDRESS = re.compile(r"\sinet6? ([0-9a-fA-F.:]+)")


class Names(NamedTuple):
    """What the server certificate is valid for, each as openssl writes it: "DNS:docker", "IP:127.0.0.1"."""

    entries: tuple[str, ...]


def find_names(extra: str) -> Names:
    """The names of this container, and `extra` as in DOCKER_TLS_SAN. Asks programs, and perhaps DNS.

    Raises CertificateError.
    """
    return plan_names(read_addresses(), read_hostnames(), extra)


def plan_names(addresses: list[str], hostnames: list[str], extra: str) -> Names:
    """The sorted, unique subject alternative names: addresses, host names, docker, localhost, and DOCKER_TLS_SAN.

    DOCKER_TLS_SAN's entries carry their own prefixes and are separated by commas or white space.
    Raises CertificateError for an entry without a known prefix.
    """
    entries = {f"IP:{address}" for address in addresses}
    # A host name that is not ASCII has no place in a certificate, and is no reason to have none.
    entries |= {f"DNS:{name}" for name in (*hostnames, "docker", "localhost") if name and name.isascii()}
    for entry in re.split(r"[,\s]+", extra.strip()):
        if entry:
            check_name(entry)
            entries.add(entry)
    return Names(tuple(sorted(entries)))


def check_name(entry: str) -> None:
    """Raises CertificateError when an entry is not DNS:name, IP:address, URI:uri or email:address."""
    import ipaddress

    kind, _, value = entry.partition(":")
    good = kind in ("DNS", "IP", "URI", "email") and bool(value) and value.isascii()
    if good and kind == "email":
        from email.utils import parseaddr  # 18 ms, for the one setting in a thousand that has such an entry

        good = parseaddr(value) == ("", value)
    if good and kind == "IP":
        try:
            ipaddress.ip_address(value)
        except ValueError:
            good = False
    if not good:
        raise CertificateError(
            f"DOCKER_TLS_SAN has the bad entry {entry!r}", "write DNS:name or IP:address, separated by commas"
        )


def parse_addresses(text: str) -> list[str]:
    """The addresses in the output of `ip -oneline address`, of IPv4 and IPv6 and every scope."""
    return sorted({match.group(1) for match in _ADDRESS.finditer(text)})


def read_addresses() -> list[str]:
    from cachedind.host.processes import Question  # which needs no subprocess: 5 ms that clients wait for

    return parse_addresses(Question(["ip", "-oneline", "address"]).answer(timeout_s=5).stdout)


def parse_canonical_name(hosts: str, hostname: str) -> str | None:
    """The first name of the line of /etc/hosts that has `hostname`: what `hostname -f` answers without asking DNS."""
    for line in hosts.splitlines():
        names = line.partition("#")[0].split()[1:]
        if hostname in names:
            return names[0]
    return None


def read_hostnames() -> list[str]:
    """/etc/hostname, the full name and the short name. DNS, which may be slow or absent, is asked for a second at
    most.
    """
    from cachedind.host.processes import run
    from cachedind.host.procfs import hostname

    name = hostname()
    found = [_read_text("/etc/hostname").strip(), name, name.partition(".")[0]]
    full = parse_canonical_name(_read_text("/etc/hosts"), name)
    if full is None:
        try:
            full = run(["hostname", "-f"], timeout_s=1).stdout.strip()
        except CachedindError:
            full = ""  # the short name is in; a full name that nobody can resolve helps no client
    return [entry for entry in (*found, full) if entry]


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
