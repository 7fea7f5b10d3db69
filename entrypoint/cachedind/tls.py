"""The certificates of the API, by docker:dind's rules and file names, with ECDSA P-256 keys.

    <dir>/ca/{key,cert}.pem  server/{key,cert,ca}.pem  client/{key,cert,ca}.pem

Keys are kept where the directory is kept; certificates are renewed at every start, since addresses and names change and
time passes. An RSA key that docker:dind left is used as it is. A fresh set takes milliseconds, where three RSA keys
took seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from cachedind.errors import CachedindError, CertificateError

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey

VALID_DAYS = 825
_CLOCK_SKEW_MINUTES = 5
_ADDRESS = re.compile(r"\sinet6? ([0-9a-fA-F.:]+)")


class Case(Enum):
    """What docker:dind's four-case rule says for the files that are there."""

    USER_MANAGED = "the user's server certificates are only checked"
    RENEW = "certificates are issued by the CA key that is there"
    CREATE = "a CA is made first"
    NOTHING = "a CA certificate without its key: nothing can be issued"


def plan_case(present: frozenset[str]) -> Case:
    """`present` are the non-empty files among ca/key.pem, ca/cert.pem, server/{ca,cert,key}.pem."""
    if "ca/key.pem" in present:
        return Case.RENEW
    if {"server/ca.pem", "server/cert.pem", "server/key.pem"} <= present:
        return Case.USER_MANAGED
    return Case.NOTHING if "ca/cert.pem" in present else Case.CREATE


def read_present(directory: str) -> frozenset[str]:
    names = ("ca/key.pem", "ca/cert.pem", "server/ca.pem", "server/cert.pem", "server/key.pem")
    return frozenset(name for name in names if _size(f"{directory}/{name}") > 0)


def clients_are_ready(directory: str) -> bool:
    """Whether the client's set that lies there fits already, before anything is renewed.

    It does where the CA's key is kept, which keeps its old certificates good, and the client's set is that CA's; and
    where the user manages the server's certificates, as the clients' are then his business too.
    """
    case = plan_case(read_present(directory))
    if case is Case.USER_MANAGED:
        return True
    client = f"{directory}/client"
    whole = all(_size(f"{client}/{name}.pem") > 0 for name in ("ca", "cert", "key"))
    return case is Case.RENEW and whole and _read_text(f"{client}/ca.pem") == _read_text(f"{directory}/ca/cert.pem")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


class Names(NamedTuple):
    """What the server certificate is valid for, each as openssl writes it: "DNS:docker", "IP:127.0.0.1"."""

    entries: tuple[str, ...]


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
            f"DOCKER_TLS_SAN has the entry {entry!r}", "write DNS:name or IP:address, with commas between"
        )


def parse_addresses(text: str) -> list[str]:
    """The addresses in the output of `ip -oneline address`, of IPv4 and IPv6 and every scope."""
    return sorted({match.group(1) for match in _ADDRESS.finditer(text)})


def read_addresses() -> list[str]:
    from cachedind.processes import run

    return parse_addresses(run(["ip", "-oneline", "address"], timeout_s=5).stdout)


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
    from cachedind.processes import run
    from cachedind.procfs import hostname

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


def prepare(directory: str, extra_names: str, clients_ready: Callable[[], None]) -> Case:
    """Make `directory` hold what the server and its clients need. `clients_ready` is called when the clients' set is.

    Raises CertificateError. Imports cryptography (35 ms) here and not before; boot runs this in a child beside
    everything else.
    """
    case = plan_case(read_present(directory))
    if case is Case.NOTHING:
        raise CertificateError(
            f"{directory}/ca/cert.pem is there without {directory}/ca/key.pem, so no server certificate can be issued",
            f"add the key, or a full set in {directory}/server, or remove ca/cert.pem, or set DOCKER_TLS_CERTDIR= "
            f"for none",
        )
    try:
        if case is Case.USER_MANAGED:
            _check_user_managed(directory)
            clients_ready()
        else:
            now = _now()
            ca_key, authority = _issue_clients(directory, now)
            # Clients wait for these alone; names, which ask programs and perhaps DNS, and the server's set come after.
            clients_ready()
            names = plan_names(read_addresses(), read_hostnames(), extra_names)
            _issue_server(directory, ca_key, authority, names, now)
    except OSError as error:
        raise CertificateError(
            f"{error.filename or directory} cannot be written: {error.strerror}",
            f"mount a writable directory at {directory}, or set DOCKER_TLS_CERTDIR= for plain TCP",
        ) from error
    return case


def _now() -> datetime.datetime:
    import datetime

    return datetime.datetime.now(datetime.UTC)


def _check_user_managed(directory: str) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    try:
        authority = x509.load_pem_x509_certificate(_read_bytes(f"{directory}/server/ca.pem"))
        server = x509.load_pem_x509_certificate(_read_bytes(f"{directory}/server/cert.pem"))
        server.verify_directly_issued_by(authority)
        key = serialization.load_pem_private_key(_read_bytes(f"{directory}/server/key.pem"), password=None)
        if key.public_key() != server.public_key():
            raise ValueError("server/key.pem is not its key")
        now = _now()
        if not server.not_valid_before_utc <= now <= server.not_valid_after_utc:
            raise ValueError(f"it is valid from {server.not_valid_before_utc} to {server.not_valid_after_utc}")
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateError(
            f"{directory}/server/cert.pem is not a valid certificate of {directory}/server/ca.pem: "
            f"{str(error) or type(error).__name__}",
            f"renew it, or remove {directory}/server to have one made",
        ) from error


def _read_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _issue_clients(directory: str, now: datetime.datetime) -> tuple[PrivateKey, x509.Certificate]:
    """Write the authority and the clients' set; returns the authority's key and certificate."""
    for part in ("ca", "client"):
        os.makedirs(f"{directory}/{part}", exist_ok=True)
    ca_key = _load_or_make_key(f"{directory}/ca/key.pem", 0o600)
    authority = _issue_ca(ca_key, now)
    client_key = _load_or_make_key(f"{directory}/client/key.pem", 0o644)
    client = _issue_leaf(authority, ca_key, client_key, "docker:dind client", now, None)
    _write_certificate(f"{directory}/ca/cert.pem", authority)
    # A client that waits for its three files has a set that fits as soon as the last is there.
    _write_certificate(f"{directory}/client/cert.pem", client)
    _write_certificate(f"{directory}/client/ca.pem", authority)
    return ca_key, authority


def _issue_server(
    directory: str, ca_key: PrivateKey, authority: x509.Certificate, names: Names, now: datetime.datetime
) -> None:
    os.makedirs(f"{directory}/server", exist_ok=True)
    server_key = _load_or_make_key(f"{directory}/server/key.pem", 0o600)
    server = _issue_leaf(authority, ca_key, server_key, "docker:dind server", now, names)
    _write_certificate(f"{directory}/server/ca.pem", authority)
    _write_certificate(f"{directory}/server/cert.pem", server)


def _load_or_make_key(path: str, mode: int) -> PrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if _size(path) > 0:
        try:
            loaded = serialization.load_pem_private_key(_read_bytes(path), password=None)
        except (ValueError, TypeError) as error:
            raise CertificateError(f"{path} is no private key: {error}", "remove it to have one made") from error
        if not isinstance(loaded, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
            raise CertificateError(f"{path} is neither an RSA nor an EC key", "remove it to have one made")
        os.chmod(path, mode)
        return loaded
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_file(path, pem, mode)
    return key


def _issue_ca(key: PrivateKey, now: datetime.datetime) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = _common_name("docker:dind CA")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _builder(name, name, key, now)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(identifier.digest, None, None), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_ca_usage(), critical=True)
    return builder.sign(key, hashes.SHA256())


def _ca_usage() -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issue_leaf(
    authority: x509.Certificate,
    ca_key: PrivateKey,
    key: PrivateKey,
    common_name: str,
    now: datetime.datetime,
    names: Names | None,
) -> x509.Certificate:
    """A server certificate for `names`, or a client certificate where there are none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    usage = ExtendedKeyUsageOID.CLIENT_AUTH if names is None else ExtendedKeyUsageOID.SERVER_AUTH
    builder = _builder(_common_name(common_name), authority.subject, key, now)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    issuer = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(issuer.digest, None, None), critical=False)
    if names is not None:
        alternatives = x509.SubjectAlternativeName([_general_name(entry) for entry in names.entries])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime.datetime) -> x509.CertificateBuilder:
    import datetime

    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=_CLOCK_SKEW_MINUTES))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _common_name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(entry: str) -> x509.GeneralName:
    import ipaddress

    from cryptography import x509

    kind, _, value = entry.partition(":")
    if kind == "IP":
        return x509.IPAddress(ipaddress.ip_address(value))
    if kind == "URI":
        return x509.UniformResourceIdentifier(value)
    return x509.RFC822Name(value) if kind == "email" else x509.DNSName(value)


def _write_certificate(path: str, certificate: x509.Certificate) -> None:
    from cryptography.hazmat.primitives import serialization

    write_file(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def write_file(path: str, content: bytes, mode: int) -> None:
    """Replace a file at once: who reads it sees the old content or the new one, never a part. Links are not
    followed.
    """
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
    os.rename(temporary, path)
