"""The certificates: docker:dind's file names, modes and rules, with keys that take no time to make."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from helpers.certificates import (
    FILES,
    MAKE_LIKE_DOCKER_DIND,
    MAKE_USER_MANAGED,
    Set,
    fingerprint,
    names,
    purposes,
    read_set,
)
from helpers.clients import run_once
from helpers.engine import on
from helpers.flavours import SUITES
from helpers.prober import Companion

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Done, Engine, Volume

SAN = "DNS:one.example.test,IP:192.0.2.7 DNS:two.example.test\nIP:2001:db8::7, ,\n"
SAN_NAMES = {"DNS:one.example.test", "IP:192.0.2.7", "DNS:two.example.test", "IP:2001:db8::7"}


class Served(NamedTuple):
    """A daemon with fresh certificates, known as `docker` on a network."""

    engine: Engine
    suite: str
    dind: Dind
    network: str
    certificates: Volume
    set: Set


@pytest.fixture(scope="module", params=SUITES)
def served(request: pytest.FixtureRequest, session_engine: Engine) -> Iterator[Served]:
    engine, suite = session_engine.scope(), str(request.param)
    try:
        network, certificates = engine.network(), engine.volume()
        dind = engine.dind(
            suite,
            hostname="box",
            domainname="example.test",
            network=network,
            aliases=["docker"],
            volumes=on(certificates, "/certs"),
            env={"DOCKER_TLS_SAN": SAN},
        )
        dind.wait_ready()
        yield Served(engine, suite, dind, network, certificates, read_set(dind))
    finally:
        engine.close()


def ask_as_client(served: Served, files: dict[str, bytes]) -> Done:
    """`docker version` from another container, with the given certificates."""
    return run_once(
        served.engine,
        served.suite,
        "version",
        "--format",
        "{{.Server.Version}}",
        files=files,
        network=served.network,
        env={"DOCKER_HOST": "tcp://docker:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/files"},
    )


# ---- a fresh set -----------------------------------------------------------------------------------------------


def test_files_and_modes(served: Served) -> None:
    found = served.dind.sh("cd /certs; find . -type f -printf '%P %m %U\\n' | sort").splitlines()
    modes = {name: "600" if name in ("ca/key.pem", "server/key.pem") else "644" for name in FILES}
    assert found == sorted(f"{name} {modes[name]} 0" for name in FILES)


def test_keys_are_p256(served: Served) -> None:
    for name in ("ca/key", "server/key", "client/key"):
        key = served.set.key(name)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp256r1"
    assert len(set(served.set.keys.values())) == 3


def test_certificates_are_of_one_authority(served: Served) -> None:
    certificates = served.set
    authority = certificates.certificate("ca/cert")
    authority.verify_directly_issued_by(authority)
    assert authority.public_key() == certificates.key("ca/key").public_key()
    now = datetime.datetime.now(datetime.UTC)
    for part in ("server", "client"):
        assert certificates.certificate(f"{part}/ca") == authority
        leaf = certificates.certificate(f"{part}/cert")
        leaf.verify_directly_issued_by(authority)
        assert leaf.public_key() == certificates.key(f"{part}/key").public_key()
        assert purposes(leaf) == {part}
        assert leaf.not_valid_before_utc <= now
        assert now + datetime.timedelta(days=800) < leaf.not_valid_after_utc < now + datetime.timedelta(days=830)


def test_subject_alternative_names(served: Served) -> None:
    lines = served.dind.sh("ip -oneline address").splitlines()
    addresses = {str(ipaddress.ip_interface(line.split()[3]).ip) for line in lines}
    # The bridge of the inner daemon came after the certificates.
    addresses -= {str(ipaddress.ip_interface(line.split()[3]).ip) for line in lines if line.split()[1] == "docker0"}
    assert "127.0.0.1" in addresses
    expected = {f"IP:{address}" for address in addresses} | SAN_NAMES
    expected |= {"DNS:docker", "DNS:localhost", "DNS:box", "DNS:box.example.test"}
    assert names(served.set.certificate("server/cert")) == expected


def test_the_daemon_serves_them(served: Served) -> None:
    source = """if True:
        import hashlib, socket, ssl
        context = ssl.create_default_context(cafile="/certs/client/ca.pem")
        context.load_cert_chain("/certs/client/cert.pem", "/certs/client/key.pem")
        for name in ("docker", "box", "127.0.0.1", "two.example.test"):
            with socket.create_connection(("127.0.0.1", 2376)) as plain:
                with context.wrap_socket(plain, server_hostname=name) as secure:
                    print(hashlib.sha256(secure.getpeercert(True)).hexdigest())
    """
    expected = fingerprint(served.set.certificate("server/cert"))
    assert served.dind.python(source).split() == [expected] * 4


def test_a_client_finds_everything_by_itself(served: Served) -> None:
    """The way of GitLab's documentation: the certificates' directory read-only, and the image's own client side."""
    options: dict[str, Any] = {"network": served.network, "volumes": on(served.certificates, "/certs", "ro")}
    script = 'echo "$DOCKER_HOST $DOCKER_TLS_VERIFY $DOCKER_CERT_PATH"'
    found = run_once(served.engine, served.suite, "sh", "-c", script, check=True, **options)
    assert found.stdout.strip() == "tcp://docker:2376 1 /certs/client"
    version = run_once(served.engine, served.suite, "version", "--format", "{{.Server.Version}}", check=True, **options)
    assert version.stdout.startswith(served.engine.engine_version(served.suite))


def test_a_client_with_the_set_is_let_in(served: Served) -> None:
    # What the next tests refuse is refused for its certificates, then, and not for anything else.
    done = ask_as_client(served, served.set.client)
    assert done.status == 0, done.output


def test_a_client_of_another_authority_is_refused(served: Served) -> None:
    script = MAKE_LIKE_DOCKER_DIND.replace("$1", "/volume/x")
    volume = served.engine.volume()
    served.engine.in_volume(volume, script)
    stranger = {
        f"{name}.pem": served.engine.in_volume(volume, f"cat /volume/x/client/{name}.pem").encode()
        for name in ("cert", "key")
    }
    done = ask_as_client(served, {**stranger, "ca.pem": served.set.client["ca.pem"]})
    assert done.status != 0
    assert "certificate" in done.stderr


def test_a_client_without_a_certificate_is_refused(served: Served) -> None:
    source = """if True:
        import socket, ssl
        def ask(stream):
            stream.sendall(b"GET /_ping HTTP/1.1\\r\\nHost: docker\\r\\nConnection: close\\r\\n\\r\\n")
            return b"".join(iter(lambda: stream.recv(4096), b""))
        with socket.create_connection(("127.0.0.1", 2376)) as plain:
            print(ask(plain).split(b"\\r\\n")[0])
        context = ssl.create_default_context(cafile="/certs/client/ca.pem")
        try:
            with socket.create_connection(("127.0.0.1", 2376)) as plain:
                with context.wrap_socket(plain, server_hostname="docker") as secure:
                    print(ask(secure))
        except ssl.SSLError as error:
            print("refused:", error.reason)
    """
    without_tls, without_certificate = served.dind.python(source).splitlines()
    assert "400 Bad Request" in without_tls
    assert without_certificate.startswith("refused: "), without_certificate
    assert "CERTIFICATE_REQUIRED" in without_certificate


# ---- kept and renewed ------------------------------------------------------------------------------------------


def test_keys_are_kept_and_certificates_renewed(engine: Engine, suite: str) -> None:
    certificates, network = engine.volume(), engine.network()

    def start() -> Dind:
        return engine.dind(suite, network=network, aliases=["docker"], volumes=on(certificates, "/certs"))

    first = start()
    first.wait_ready()
    before = read_set(first)
    first.kill()
    first.remove()

    second = start()
    second.wait_ready()
    after = read_set(second)
    assert after.keys == before.keys
    for name in ("ca/cert", "server/cert", "client/cert"):
        assert after.certificate(name).serial_number != before.certificate(name).serial_number
    # A new address of the container is in the new certificate.
    assert f"IP:{second.address}" in names(after.certificate("server/cert"))

    # A job's container that read its certificates before the restart: they still are good, on both sides.
    served = Served(engine, suite, second, network, certificates, after)
    done = ask_as_client(served, before.client)
    assert done.status == 0, done.output


def test_only_the_client_s_directory_is_kept(engine: Engine, suite: str) -> None:
    """GitLab: `volumes = ["/certs/client", …]`, so the authority's key is lost with each job."""
    client, network = engine.volume(), engine.network()

    def start() -> Served:
        dind = engine.dind(suite, network=network, aliases=["docker"], volumes=on(client, "/certs/client"))
        dind.wait_ready()
        return Served(engine, suite, dind, network, client, read_set(dind))

    first = start()
    first.dind.kill()
    first.dind.remove()
    second = start()
    assert second.set.keys["ca/key.pem"] != first.set.keys["ca/key.pem"]
    assert second.set.keys["client/key.pem"] == first.set.keys["client/key.pem"]
    options: dict[str, Any] = {"network": network, "volumes": on(client, "/certs/client", "ro")}
    run_once(engine, suite, "version", check=True, **options)
    # What the job before could read opens nothing any more.
    assert ask_as_client(second, first.set.client).status != 0


@pytest.mark.parametrize("job", ["first", "next"])
def test_who_finds_the_port_open_finds_certificates_that_fit(engine: Engine, suite: str, job: str) -> None:
    """GitLab keeps only /certs/client and starts the job once the port accepts; by then docker:dind's files are new.

    With none there, the image's client side would even turn to port 2375; with the last job's, the handshake fails.
    """
    client = engine.volume()
    if job == "next":
        before = engine.dind(suite, volumes=on(client, "/certs/client"))
        before.wait_log("API listen on .*2376")
        before.kill()
    companion = Companion(engine, suite, volumes=on(client, "/certs/client"))
    probe = companion.probe(port=2376, tls="/certs/client")
    engine.dind(suite, volumes=on(client, "/certs/client"), network_mode=companion.network)
    probe.wait_for("info", "broken")
    findings = probe.finish()
    assert findings.answer("_ping").status == 200
    late = findings.story["certificates_at"] - findings.story["connected_at"]
    assert late < 0.02, f"the port took connections {late:.3f} s before the client's certificates were there"


def test_another_directory(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, env={"DOCKER_TLS_CERTDIR": "/other/dir/"})
    dind.wait_ready()
    assert set(read_set(dind, "/other/dir").files) == set(FILES)
    assert dind.sh("find /certs -type f") == ""
    done = dind.exec(
        "docker", "version",
        env={"DOCKER_HOST": "tcp://localhost:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/other/dir/client"},
    )  # fmt: skip
    assert "Server" in done.stdout


# ---- what others left there ------------------------------------------------------------------------------------


def test_rsa_keys_of_docker_dind_are_kept_and_used(engine: Engine, suite: str) -> None:
    certificates, network = engine.volume(), engine.network()
    engine.in_volume(certificates, MAKE_LIKE_DOCKER_DIND.replace("$1", "/volume"))
    hashes = "cd /volume; sha256sum */key.pem"
    before = engine.in_volume(certificates, hashes)
    dind = engine.dind(suite, network=network, aliases=["docker"], volumes=on(certificates, "/certs"))
    dind.wait_ready()
    assert engine.in_volume(certificates, hashes) == before
    found = read_set(dind)
    assert all(isinstance(found.key(name), rsa.RSAPrivateKey) for name in ("ca/key", "server/key", "client/key"))
    found.certificate("server/cert").verify_directly_issued_by(found.certificate("ca/cert"))
    assert f"IP:{dind.address}" in names(found.certificate("server/cert"))
    done = ask_as_client(Served(engine, suite, dind, network, certificates, found), found.client)
    assert done.status == 0, done.output


def test_certificates_that_the_user_manages_are_not_touched(engine: Engine, suite: str) -> None:
    certificates, network = engine.volume(), engine.network()
    engine.in_volume(certificates, MAKE_USER_MANAGED.replace("$1", "/volume"))
    listing = "cd /volume; find . -printf '%p %m %T@ %C@\\n' | sort; sha256sum */*"
    before = engine.in_volume(certificates, listing)
    dind = engine.dind(suite, network=network, aliases=["docker"], volumes=on(certificates, "/certs"))
    dind.wait_ready()
    assert engine.in_volume(certificates, listing) == before
    found = read_set(dind)
    done = ask_as_client(Served(engine, suite, dind, network, certificates, found), found.client)
    assert done.status == 0, done.output


def test_certificates_that_the_user_manages_may_be_read_only(engine: Engine) -> None:
    certificates = engine.volume()
    engine.in_volume(certificates, MAKE_USER_MANAGED.replace("$1", "/volume"))
    dind = engine.dind("forky", volumes=on(certificates, "/certs", "ro"))
    dind.wait_ready()


# An authority, one between, and a server's certificate of the latter; what they are for is as docker:dind has it.
MAKE_INTERMEDIATE = r"""
mkdir -p "$1/server"
cd "$1/server"
printf 'basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign\n' >/tmp/ca.cnf
printf 'subjectAltName=DNS:docker\nextendedKeyUsage=serverAuth\n' >/tmp/leaf.cnf
openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/root.key -subj /CN=root -days 30 -out /tmp/root.pem
openssl req -newkey rsa:2048 -nodes -keyout /tmp/mid.key -subj /CN=between -out /tmp/mid.csr
openssl x509 -req -in /tmp/mid.csr -CA /tmp/root.pem -CAkey /tmp/root.key -CAcreateserial -days 30 \
  -extfile /tmp/ca.cnf -out /tmp/mid.pem
openssl req -newkey rsa:2048 -nodes -keyout key.pem -subj /CN=server -out /tmp/leaf.csr
openssl x509 -req -in /tmp/leaf.csr -CA /tmp/mid.pem -CAkey /tmp/mid.key -CAcreateserial -days 30 \
  -extfile /tmp/leaf.cnf -out /tmp/leaf.pem
"""
CHAINS = {
    "in ca.pem": "cat /tmp/root.pem /tmp/mid.pem >ca.pem; cat /tmp/leaf.pem >cert.pem",
    "the one between first": "cat /tmp/mid.pem /tmp/root.pem >ca.pem; cat /tmp/leaf.pem /tmp/mid.pem >cert.pem",
    "in cert.pem": "cat /tmp/root.pem >ca.pem; cat /tmp/leaf.pem /tmp/mid.pem >cert.pem",
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_certificate_of_an_intermediate_authority(engine: Engine, chain: str) -> None:
    certificates = engine.volume()
    engine.in_volume(certificates, MAKE_INTERMEDIATE.replace("$1", "/volume") + CHAINS[chain])
    dind = engine.dind("trixie", volumes=on(certificates, "/certs", "ro"))
    dind.wait_ready()
    assert "BEGIN CERTIFICATE" in dind.sh("cat /run/cachedind/tls/cert.pem")


_STRANGER = "openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -subj /CN=stranger -out"
_EXPIRED = MAKE_USER_MANAGED.replace(
    "-days 825 -extfile", "-not_before 20240101000000Z -not_after 20240201000000Z -extfile"
)
UNUSABLE = {
    "another authority": (f"{MAKE_USER_MANAGED}{_STRANGER} server/ca.pem", "server/cert.pem"),
    "expired": (_EXPIRED, "server/cert.pem"),
    "garbage": (f"{MAKE_USER_MANAGED}echo garbage >server/cert.pem", "server/cert.pem"),
    "another key": (f"{MAKE_USER_MANAGED}openssl genrsa -out server/key.pem 2048", "server/"),
    "authority without its key": (f"mkdir -p $1/ca; {_STRANGER} $1/ca/cert.pem", "ca/key.pem"),
    "authority's key is garbage": ("mkdir -p $1/ca; echo garbage >$1/ca/key.pem", "ca/key.pem"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_certificates_end_the_start(engine: Engine, case: str) -> None:
    make, culprit = UNUSABLE[case]
    certificates = engine.volume()
    engine.in_volume(certificates, make.replace("$1", "/volume"))
    dind = engine.dind("forky", volumes=on(certificates, "/certs"))
    assert dind.wait_exit() == 73, dind.describe()
    [error] = dind.errors
    assert f"/certs/{culprit}" in error
    # Never plain TCP instead, not even for a moment.
    assert dind.summary is None


@pytest.mark.parametrize(
    "entry", ["two.example.test", "IP:not.an.address", "DNS:", "DNS:b\u00fccher.example.test", "IP:10.0.0.0/8"]
)
def test_a_bad_san_ends_the_start(engine: Engine, entry: str) -> None:
    dind = engine.dind("forky", env={"DOCKER_TLS_SAN": f"DNS:good.example.test,{entry}"})
    assert dind.wait_exit() == 73, dind.describe()
    [error] = dind.errors
    assert "DOCKER_TLS_SAN" in error
    assert entry.encode("ascii", "replace").decode()[:5].rstrip("?") in error


def test_a_directory_that_cannot_be_written_ends_the_start(engine: Engine, suite: str) -> None:
    dind = engine.dind(suite, volumes=on(engine.volume(), "/certs", "ro"))
    assert dind.wait_exit() == 73, dind.describe()
    [error] = dind.errors
    assert "/certs" in error
    assert "ead-only" in error
