"""Certificates: whose they are, what is in them, and that TLS really works with them."""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from cachedind.api import certificate_names, tls
from cachedind.api.certificate_names import Names
from cachedind.api.tls import Case, plan_case
from cachedind.base.errors import CertificateError
from cachedind.base.log import Log
from cachedind.host.processes import Result

SERVER = frozenset({"server/ca.pem", "server/cert.pem", "server/key.pem"})


CA_KEY, CA_CERT = frozenset({"ca/key.pem"}), frozenset({"ca/cert.pem"})


@pytest.mark.parametrize(
    ("present", "case"),
    [
        (frozenset(), Case.CREATE),
        (SERVER, Case.USER_MANAGED),
        (SERVER | CA_CERT, Case.USER_MANAGED),
        (CA_KEY, Case.RENEW),
        (CA_KEY | CA_CERT, Case.RENEW),
        (CA_KEY | CA_CERT | SERVER, Case.RENEW),
        (CA_CERT, Case.NOTHING),
        (CA_CERT | {"server/key.pem"}, Case.NOTHING),
        (frozenset({"server/key.pem", "server/cert.pem"}), Case.CREATE),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, frozenset) else "",
)
def test_plan_case(present: frozenset[str], case: Case) -> None:
    assert plan_case(present) is case


def test_an_empty_file_is_not_there(tmp_path: Path) -> None:
    for name in ("ca/key.pem", "ca/cert.pem"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "ca" / "cert.pem").write_text("x")
    assert tls.read_present(str(tmp_path)) == CA_CERT


NOW = datetime.datetime.now(datetime.UTC)


SERVED: list[str] = []
"""Where the daemon's own copies were put, the last one last."""


def prepare(directory: str, extra_names: str, ready: Callable[[], None] = lambda: None) -> Case:
    SERVED.append(f"{directory}-served")
    return tls.prepare(directory, SERVED[-1], extra_names, ready, Log())


def issue_all(directory: Path, now: datetime.datetime) -> None:
    ca_key, authority = tls.issue_clients(str(directory), now, Log())
    tls.issue_server(str(directory), ca_key, authority, NAMES, now)


NAMES = Names(("DNS:docker", "DNS:localhost", "IP:127.0.0.1", "IP:::1", "URI:spiffe://x"))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(certificate_names, "read_addresses", lambda: ["127.0.0.1"])
    monkeypatch.setattr(certificate_names, "read_hostnames", lambda: ["box"])
    return tmp_path / "certs"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def handshake(server_side: Path, client_side: Path, hostname: str = "docker") -> None:
    """A TLS handshake in memory, both sides proving who they are. Raises ssl.SSLError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(server_side / "server/cert.pem", server_side / "server/key.pem")
    server.load_verify_locations(server_side / "server/ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(client_side / "client/ca.pem"))
    # As strict as Python 3.13 is by default.
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(client_side / "client/cert.pem", client_side / "client/key.pem")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=hostname),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        unfinished = []
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                unfinished.append(side)
        if not unfinished:
            # TLS 1.3 tells the client of a refused certificate only when it reads.
            with pytest.raises(ssl.SSLWantReadError):
                sides[0].read()
            return
    raise AssertionError("the handshake does not end")


def test_a_full_set_has_dinds_names_and_modes(directory: Path) -> None:
    assert prepare(str(directory), "DNS:extra") is Case.CREATE
    found = {str(path.relative_to(directory)): path.stat().st_mode & 0o777 for path in directory.glob("*/*")}
    assert found == {
        "ca/key.pem": 0o600,
        "ca/cert.pem": 0o644,
        "server/key.pem": 0o600,
        "server/cert.pem": 0o644,
        "server/ca.pem": 0o644,
        "client/key.pem": 0o644,
        "client/cert.pem": 0o644,
        "client/ca.pem": 0o644,
    }
    authority = (directory / "ca/cert.pem").read_bytes()
    assert (directory / "server/ca.pem").read_bytes() == (directory / "client/ca.pem").read_bytes() == authority


def test_server_and_client_authenticate_each_other(directory: Path) -> None:
    prepare(str(directory), "DNS:extra.example,IP:192.0.2.7")
    for hostname in ("docker", "localhost", "box", "extra.example", "127.0.0.1", "192.0.2.7"):
        handshake(directory, directory, hostname)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(directory, directory, "another.example")


def test_a_client_of_another_authority_is_refused(directory: Path, tmp_path: Path) -> None:
    prepare(str(directory), "")
    prepare(str(tmp_path / "others"), "")
    with pytest.raises(ssl.SSLError):
        handshake(directory, tmp_path / "others")


def test_what_is_in_the_certificates(directory: Path) -> None:
    issue_all(directory, NOW)
    authority, server, client = (certificate(directory / f"{part}/cert.pem") for part in ("ca", "server", "client"))
    assert authority.subject.rfc4514_string() == "CN=docker:dind CA"
    assert server.subject.rfc4514_string() == "CN=docker:dind server"
    assert client.subject.rfc4514_string() == "CN=docker:dind client"
    server.verify_directly_issued_by(authority)
    client.verify_directly_issued_by(authority)

    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert authority.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    usage = x509.ExtendedKeyUsage
    assert list(server.extensions.get_extension_for_class(usage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert list(client.extensions.get_extension_for_class(usage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]

    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["docker", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://x"]
    with pytest.raises(x509.ExtensionNotFound):
        client.extensions.get_extension_for_class(x509.SubjectAlternativeName)

    for found in (authority, server, client):
        assert found.not_valid_before_utc <= NOW - datetime.timedelta(minutes=4), "invalid for a clock that is behind"
        assert found.not_valid_after_utc - NOW <= datetime.timedelta(days=825), "macOS refuses a longer validity"
    assert len({found.serial_number for found in (authority, server, client)}) == 3


def test_a_second_start_keeps_the_keys_and_renews_the_certificates(directory: Path) -> None:
    prepare(str(directory), "")
    before = {path: path.read_bytes() for path in directory.glob("*/*.pem")}
    assert prepare(str(directory), "DNS:new") is Case.RENEW
    for path, content in before.items():
        assert (path.read_bytes() == content) is (path.name == "key.pem"), path
    handshake(directory, directory, "new")


def test_a_client_with_the_set_of_an_earlier_start_is_served(directory: Path, tmp_path: Path) -> None:
    prepare(str(directory), "")
    old = tmp_path / "old"
    for path in directory.glob("client/*.pem"):
        (old / "client").mkdir(parents=True, exist_ok=True)
        (old / "client" / path.name).write_bytes(path.read_bytes())
    prepare(str(directory), "")
    handshake(directory, old)


def test_only_the_ca_key_is_needed_to_renew_the_rest(directory: Path) -> None:
    prepare(str(directory), "")
    key = (directory / "ca/key.pem").read_bytes()
    for path in directory.glob("*/*.pem"):
        if path != directory / "ca/key.pem":
            path.unlink()
    assert prepare(str(directory), "") is Case.RENEW
    assert (directory / "ca/key.pem").read_bytes() == key
    handshake(directory, directory)


AnyKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


def pem_of(
    key: AnyKey, password: bytes = b"", layout: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8
) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, layout, encryption)


def put_ca_key(directory: Path, content: bytes) -> Path:
    path = directory / "ca/key.pem"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    path.chmod(0o640)
    return path


def test_an_rsa_key_that_docker_dind_left_is_used(directory: Path) -> None:
    pem = pem_of(rsa.generate_private_key(65537, 2048), layout=serialization.PrivateFormat.TraditionalOpenSSL)
    path = put_ca_key(directory, pem)
    assert prepare(str(directory), "") is Case.RENEW
    assert path.read_bytes() == pem
    assert path.stat().st_mode & 0o777 == 0o600
    handshake(directory, directory)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no key at all", "is not a private key"),
        (pem_of(ed25519.Ed25519PrivateKey.generate()), "is neither an RSA nor an EC key"),
        (pem_of(ec.generate_private_key(ec.SECP256R1()), b"secret"), "is not a private key"),
    ],
    ids=["garbage", "Ed25519", "with a password"],
)
def test_a_key_that_cannot_be_used_is_left_alone_and_named(directory: Path, content: bytes, said: str) -> None:
    path = put_ca_key(directory, content)
    with pytest.raises(CertificateError, match=said) as caught:
        prepare(str(directory), "")
    assert str(path) in caught.value.cause
    assert path.read_bytes() == content


def test_an_authority_without_its_key_issues_nothing(directory: Path) -> None:
    prepare(str(directory), "")
    for path in (*directory.glob("*/key.pem"), *directory.glob("server/*.pem")):
        path.unlink(missing_ok=True)
    with pytest.raises(CertificateError, match=r"ca/cert\.pem is there without") as caught:
        prepare(str(directory), "")
    assert "DOCKER_TLS_CERTDIR=" in caught.value.hint


def user_managed(directory: Path, now: datetime.datetime = NOW) -> Path:
    issue_all(directory, now)
    for path in (directory / "ca").iterdir():
        path.unlink()
    return directory


@pytest.fixture
def openssl(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """What openssl says about the user's certificates, the next answer last; what it does is tried in tests/image."""
    answers = [Result(0, "server/cert.pem: OK", "")]

    def run(argv: list[str], timeout_s: float) -> Result:
        assert argv[:2] == ["openssl", "verify"]
        return answers[-1]

    monkeypatch.setattr("cachedind.host.processes.run", run)
    return answers


def test_a_users_own_certificates_are_only_checked(directory: Path, openssl: list[Result]) -> None:
    before = {path: path.read_bytes() for path in user_managed(directory).glob("*/*.pem")}
    assert prepare(str(directory), "") is Case.USER_MANAGED
    assert {path: path.read_bytes() for path in directory.glob("*/*.pem")} == before
    served = {path.name: path.read_bytes() for path in Path(SERVED[-1]).iterdir()}
    assert served == {path.name: path.read_bytes() for path in (directory / "server").iterdir()}


def test_a_users_own_certificates_that_are_of_no_use(directory: Path, openssl: list[Result]) -> None:
    user_managed(directory)
    openssl.append(Result(2, "", "CN=docker:dind server\nerror 10 at 0 depth lookup: certificate has expired\n"))
    with pytest.raises(CertificateError, match=r"not a valid certificate.*: certificate has expired") as caught:
        prepare(str(directory), "")
    assert str(directory / "server/cert.pem") in caught.value.cause
    assert not Path(SERVED[-1]).exists()


def test_the_daemon_has_a_set_of_its_own(directory: Path) -> None:
    prepare(str(directory), "DNS:one")
    first = Path(SERVED[-1])
    before = (first / "cert.pem").read_bytes()
    assert {path.name: path.stat().st_mode & 0o777 for path in first.iterdir()} == dict.fromkeys(
        tls.SERVER_FILES, 0o600
    )
    tls.prepare(str(directory), str(directory / "other"), "DNS:two", lambda: None, Log())
    assert (first / "cert.pem").read_bytes() == before, "another start that shares the directory has changed it"
    assert (directory / "server/cert.pem").read_bytes() == (directory / "other/cert.pem").read_bytes() != before


def test_starts_that_share_a_directory_use_one_ca(directory: Path) -> None:
    """All at once, as the processes of a whole runner's jobs."""

    def start(number: int) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                tls.prepare(str(directory), str(directory / f"served-{number}"), f"DNS:n{number}", lambda: None, Log())
                os._exit(0)
            finally:
                os._exit(1)
        return pid

    starts = [start(number) for number in range(12)]
    assert [os.waitpid(pid, 0)[1] for pid in starts] == [0] * 12
    for number in range(12):
        served = directory / f"served-{number}"
        (served / "server").mkdir()
        for name in tls.SERVER_FILES:
            (served / name).rename(served / "server" / name)
        handshake(served, directory, f"n{number}")
    assert not list(directory.rglob(".*")), "temporary files are left"


def test_what_a_killed_start_has_left_is_tidied(directory: Path) -> None:
    prepare(str(directory), "")
    (directory / "client/.ca.pem.new-0011aabb").write_text("half")
    prepare(str(directory), "")
    assert not (directory / "client/.ca.pem.new-0011aabb").exists()


@pytest.mark.parametrize("kept", [True, False], ids=["its key is kept", "GitLab: only the client's set is"])
def test_a_new_ca_is_told_where_clients_may_have_the_old_one(
    directory: Path, capfd: pytest.CaptureFixture[str], kept: bool
) -> None:
    prepare(str(directory), "")
    assert capfd.readouterr().err == ""
    if not kept:
        for name in ("ca", "server"):
            (directory / name).rename(directory / f"{name}-away")
    prepare(str(directory), "")
    assert ("certificates of a new CA" in capfd.readouterr().err) is not kept


def test_a_directory_that_cannot_be_written_is_named(directory: Path) -> None:
    directory.parent.mkdir(exist_ok=True)
    directory.write_text("a file")
    with pytest.raises(CertificateError, match="cannot be written") as caught:
        prepare(str(directory), "")
    assert str(directory) in caught.value.cause


def test_clients_are_ready_only_with_a_set_of_the_ca_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_names, "read_addresses", list)
    directory = str(tmp_path)
    assert not tls.clients_are_ready(directory), "nothing is there yet"
    prepare(directory, "")
    assert tls.clients_are_ready(directory)
    (tmp_path / "client" / "cert.pem").rename(tmp_path / "client" / "away")
    assert not tls.clients_are_ready(directory), "a client would find no certificate"
    (tmp_path / "client" / "away").rename(tmp_path / "client" / "cert.pem")
    for name in ("key.pem", "cert.pem"):
        (tmp_path / "ca" / name).unlink()
    for name in ("key.pem", "cert.pem", "ca.pem"):
        (tmp_path / "server" / name).unlink()
    assert not tls.clients_are_ready(directory), "GitLab's case: the client's set of a CA that is gone"
    prepare(directory, "")
    other = (tmp_path / "client" / "ca.pem").read_text()
    (tmp_path / "client" / "ca.pem").write_text(other.replace("MII", "MIJ", 1))
    assert not tls.clients_are_ready(directory), "the client's set is another CA's"


def test_clients_are_told_ready_when_their_set_is_and_before_names_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def read_addresses() -> list[str]:
        happened.append("addresses")
        return []

    monkeypatch.setattr(certificate_names, "read_addresses", read_addresses)

    def ready() -> None:
        happened.append("ready")
        ssl.create_default_context(cafile=tmp_path / "client" / "ca.pem").load_cert_chain(
            tmp_path / "client" / "cert.pem", tmp_path / "client" / "key.pem"
        )

    prepare(str(tmp_path), "", ready)
    assert happened == ["ready", "addresses"]


def test_a_user_managed_set_makes_clients_ready_when_it_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openssl: list[Result]
) -> None:
    monkeypatch.setattr(certificate_names, "read_addresses", list)
    monkeypatch.setattr(certificate_names, "read_hostnames", list)
    prepare(str(tmp_path / "made"), "")
    (tmp_path / "made" / "server").rename(tmp_path / "server")
    calls: list[str] = []
    assert prepare(str(tmp_path), "", lambda: calls.append("ready")) is Case.USER_MANAGED
    assert calls == ["ready"]
    (tmp_path / "server" / "key.pem").write_bytes((tmp_path / "made" / "ca" / "key.pem").read_bytes())
    with pytest.raises(CertificateError, match="does not belong to it"):
        prepare(str(tmp_path), "", lambda: calls.append("ready"))
    assert calls == ["ready"]
