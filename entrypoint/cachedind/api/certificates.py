"""Keys and certificates: ECDSA P-256, issued by an authority of the directory's own. Imported only where some are made.

cryptography takes 30 ms to import, which the start spends in a child beside everything else.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cachedind.base.errors import CertificateError

PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey

VALID_DAYS = 825
_MARK = ".new-"
_CLOCK_SKEW = datetime.timedelta(minutes=5)


def load_or_make_key(path: str, mode: int) -> PrivateKey:
    """The key in a file, or a new one written there. Raises CertificateError for a file that holds another thing."""
    existing = _read(path)
    if existing:
        try:
            loaded = serialization.load_pem_private_key(existing, password=None)
        except (ValueError, TypeError) as error:
            raise CertificateError(
                f"{path} is not a private key: {error}", "remove it to have a new one made"
            ) from error
        if not isinstance(loaded, (EllipticCurvePrivateKey, RSAPrivateKey)):
            raise CertificateError(f"{path} is neither an RSA nor an EC key", "remove it to have a new one made")
        os.chmod(path, mode)
        return loaded
    key = generate_private_key(SECP256R1())
    write_key(path, key, mode)
    return key


def write_key(path: str, key: PrivateKey, mode: int) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_file(path, pem, mode)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def is_of_key(path: str, key: PrivateKey) -> bool:
    """Whether the certificate in a file is that key's."""
    try:
        return x509.load_pem_x509_certificate(_read(path)).public_key() == key.public_key()
    except ValueError:
        return False


def issue_ca(key: PrivateKey, now: datetime.datetime) -> x509.Certificate:
    """The authority's certificate, signed by itself."""
    name = _common_name("docker:dind CA")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _builder(name, name, key, now)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(identifier.digest, None, None), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_ca_usage(), critical=True)
    return builder.sign(key, hashes.SHA256())


def _ca_usage() -> x509.KeyUsage:
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


def issue_leaf(
    authority: x509.Certificate,
    ca_key: PrivateKey,
    key: PrivateKey,
    common_name: str,
    now: datetime.datetime,
    names: tuple[str, ...] | None,
) -> x509.Certificate:
    """A server certificate for `names`, or a client certificate where there are none."""
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if names is None else ExtendedKeyUsageOID.SERVER_AUTH
    builder = _builder(_common_name(common_name), authority.subject, key, now)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    issuer = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    builder = builder.add_extension(x509.AuthorityKeyIdentifier(issuer.digest, None, None), critical=False)
    if names is not None:
        alternatives = x509.SubjectAlternativeName([general_name(entry) for entry in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime.datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def general_name(entry: str) -> x509.GeneralName:
    """A subject alternative name of openssl's spelling, "DNS:docker"."""
    kind, _, value = entry.partition(":")
    if kind == "IP":
        return x509.IPAddress(ipaddress.ip_address(value))
    if kind == "URI":
        return x509.UniformResourceIdentifier(value)
    return x509.RFC822Name(value) if kind == "email" else x509.DNSName(value)


def write_certificate(path: str, certificate: x509.Certificate) -> None:
    """Write it as PEM, readable by everybody."""
    write_file(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def write_file(path: str, content: bytes, mode: int) -> None:
    """Replace a file at once: who reads it sees the old content or the new one, never a part. Links are not
    followed.
    """
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}{_MARK}{os.urandom(4).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def tidy(directory: str) -> None:
    """Remove what killed writers have left in a directory whose lock is held."""
    for name in os.listdir(directory):
        if name.startswith(".") and _MARK in name:
            with contextlib.suppress(OSError):
                os.unlink(f"{directory}/{name}")
