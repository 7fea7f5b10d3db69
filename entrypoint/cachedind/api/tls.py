"""The certificates of the API, by docker:dind's rules and file names, with ECDSA P-256 keys.

    <dir>/ca/{key,cert}.pem  server/{key,cert,ca}.pem  client/{key,cert,ca}.pem

Keys are kept where the directory is kept; certificates are renewed at every start, since addresses and names change and
time passes. An RSA key that docker:dind left is used as it is. A fresh set takes milliseconds, where three RSA keys
took seconds.
"""

from __future__ import annotations

import contextlib
import os
from enum import Enum

from cachedind.base.errors import CertificateError
from cachedind.base.typed import TYPE_CHECKING
from cachedind.host.flock import locked

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterator, Mapping

    from cryptography import x509

    from cachedind.api.certificate_names import Names
    from cachedind.api.certificates import PrivateKey
    from cachedind.base.log import Log

SERVER_FILES = ("ca.pem", "cert.pem", "key.pem")


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
    return case is Case.RENEW and whole and _have_same_content(f"{client}/ca.pem", f"{directory}/ca/cert.pem")


def _have_same_content(one: str, other: str) -> bool:
    try:
        return _read_bytes(one) == _read_bytes(other)
    except OSError:
        return False


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def prepare(directory: str, served: str, extra_names: str, clients_ready: Callable[[], None], log: Log) -> Case:
    """Make `directory` hold what clients need, and `served`, which is this container's own, what the server needs.
    `clients_ready` is called when the clients' set is there.

    Other starts may share the directory, or parts of it: what is read and written there is so under the locks of those
    parts. Raises CertificateError. Imports cryptography (35 ms) here and not before; boot runs this in a child beside
    everything else.
    """
    from cachedind.api import certificate_names

    case = plan_case(read_present(directory))
    if case is Case.NOTHING:
        raise CertificateError(
            f"{directory}/ca/cert.pem is there without {directory}/ca/key.pem, so no server certificate can be issued",
            f"add the key, or a full set in {directory}/server, or remove ca/cert.pem, or set DOCKER_TLS_CERTDIR= "
            f"for plain TCP",
        )
    try:
        if case is Case.USER_MANAGED:
            _check_user_managed(directory)
            clients_ready()
            _serve(served, {name: _read_bytes(f"{directory}/server/{name}") for name in SERVER_FILES})
        else:
            now = _now()
            ca_key, authority = issue_clients(directory, now, log)
            # Clients wait for these alone; names, which ask programs and perhaps DNS, and the server's set come after.
            clients_ready()
            names = certificate_names.find_names(extra_names)
            _serve(served, issue_server(directory, ca_key, authority, names, now))
    except OSError as error:
        raise CertificateError(
            f"{error.filename or directory} cannot be written: {error.strerror}",
            f"mount a writable directory at {directory}, or set DOCKER_TLS_CERTDIR= for plain TCP",
        ) from error
    return case


def _serve(served: str, files: Mapping[str, bytes]) -> None:
    from cachedind.api import certificates

    try:
        os.makedirs(served, mode=0o700, exist_ok=True)
        for name, content in files.items():
            certificates.write_file(f"{served}/{name}", content, 0o600)
    except OSError as error:
        raise CertificateError(
            f"{served} cannot be written: {error.strerror}", "the container needs a writable /run: --tmpfs /run"
        ) from error


@contextlib.contextmanager
def _parts(directory: str, *names: str) -> Iterator[None]:
    """Parts of the directory, made where they are missing, each under its lock: any of them may be a mount."""
    from cachedind.api import certificates

    with contextlib.ExitStack() as stack:
        for name in names:
            os.makedirs(f"{directory}/{name}", exist_ok=True)
            if stack.enter_context(locked(f"{directory}/{name}")):
                certificates.tidy(f"{directory}/{name}")
        yield


def _now() -> datetime.datetime:
    import datetime

    return datetime.datetime.now(datetime.UTC)


def _check_user_managed(directory: str) -> None:
    """As docker:dind does it, with openssl, for which ca.pem may hold intermediate authorities; so may cert.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    from cachedind.host.processes import run

    authority, path = f"{directory}/server/ca.pem", f"{directory}/server/cert.pem"
    why = ""
    verified = run(["openssl", "verify", "-CAfile", authority, "-untrusted", path, path], timeout_s=10)
    if not verified.ok:
        said = f"{verified.stderr}\n{verified.stdout}".splitlines()
        why = "; ".join(line.strip() for line in said if line.strip()) or f"status {verified.status}"
    else:
        try:
            key = serialization.load_pem_private_key(_read_bytes(f"{directory}/server/key.pem"), password=None)
            if key.public_key() != x509.load_pem_x509_certificate(_read_bytes(path)).public_key():
                why = "server/key.pem does not belong to it"
        except (ValueError, TypeError) as error:
            why = f"server/key.pem: {error}"
    if why:
        raise CertificateError(
            f"{path} is not a valid certificate of {authority}: {why}",
            f"renew it, or remove {directory}/server to have a new one made",
        )


def _read_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def issue_clients(directory: str, now: datetime.datetime, log: Log) -> tuple[PrivateKey, x509.Certificate]:
    """Write the authority and the clients' set; returns the authority's key and certificate."""
    from cachedind.api import certificates

    with _parts(directory, "ca", "client"):
        ca_key = certificates.load_or_make_key(f"{directory}/ca/key.pem", 0o600)
        authority = certificates.issue_ca(ca_key, now)
        known = f"{directory}/client/ca.pem"
        if _size(known) > 0 and not certificates.is_of_key(known, ca_key):
            log.info(
                f"{directory}/client gets certificates of a new CA, as the old CA's key is gone: clients that have "
                f"read the old ones must read them again; keep {directory}/ca on a volume to avoid this"
            )
        client_key = certificates.load_or_make_key(f"{directory}/client/key.pem", 0o644)
        client = certificates.issue_leaf(authority, ca_key, client_key, "docker:dind client", now, None)
        certificates.write_certificate(f"{directory}/ca/cert.pem", authority)
        # A client that waits for its three files has a set that fits as soon as the last is there.
        certificates.write_certificate(f"{directory}/client/cert.pem", client)
        certificates.write_certificate(known, authority)
    return ca_key, authority


def issue_server(
    directory: str, ca_key: PrivateKey, authority: x509.Certificate, names: Names, now: datetime.datetime
) -> dict[str, bytes]:
    """Write the server's set, where people look for it; returns it for the daemon of this container."""
    from cachedind.api import certificates

    part = f"{directory}/server"
    with _parts(directory, "server"):
        server_key = certificates.load_or_make_key(f"{part}/key.pem", 0o600)
        server = certificates.issue_leaf(authority, ca_key, server_key, "docker:dind server", now, names.entries)
        certificates.write_certificate(f"{part}/ca.pem", authority)
        certificates.write_certificate(f"{part}/cert.pem", server)
        return {name: _read_bytes(f"{part}/{name}") for name in SERVER_FILES}
