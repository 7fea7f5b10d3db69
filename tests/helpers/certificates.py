"""Certificates as the tests see them: PEM files out of a container or volume, read by a library of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

if TYPE_CHECKING:
    from helpers.dind import Dind

FILES = (
    "ca/cert.pem",
    "ca/key.pem",
    "client/ca.pem",
    "client/cert.pem",
    "client/key.pem",
    "server/ca.pem",
    "server/cert.pem",
    "server/key.pem",
)


class Set(NamedTuple):
    """The PEM files below a certificate directory, by their relative names."""

    files: dict[str, bytes]

    def certificate(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.files[f"{name}.pem"])

    def key(self, name: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
        key = serialization.load_pem_private_key(self.files[f"{name}.pem"], password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
        return key

    @property
    def keys(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if name.endswith("/key.pem")}

    @property
    def client(self) -> dict[str, bytes]:
        """What a client needs, under the names that the docker client looks for."""
        return {name: self.files[f"client/{name}"] for name in ("ca.pem", "cert.pem", "key.pem")}


def read_set(dind: Dind, directory: str = "/certs") -> Set:
    """All PEM files of the directory, read from a running container."""
    script = 'cd "$1"; for file in $(find . -name "*.pem" | sort); do echo "FILE $file"; cat "$file"; done'
    text = dind.exec("sh", "-euc", script, "sh", directory).stdout
    parts = [part.partition("\n") for part in text.split("FILE ./")[1:]]
    return Set({name: body.encode() for name, _, body in parts})


def names(certificate: x509.Certificate) -> set[str]:
    """The subject alternative names as openssl writes them."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {f"DNS:{name}" for name in extension.get_values_for_type(x509.DNSName)} | {
        f"IP:{address}" for address in extension.get_values_for_type(x509.IPAddress)
    }


def purposes(certificate: x509.Certificate) -> set[str]:
    """What a leaf certificate may be used for: "server", "client"."""
    known = {ExtendedKeyUsageOID.SERVER_AUTH: "server", ExtendedKeyUsageOID.CLIENT_AUTH: "client"}
    return {known[usage] for usage in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value}


def fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


# What docker:dind's script leaves: the same openssl calls, with keys of 2048 bits to save time. argv[1]: the directory.
MAKE_LIKE_DOCKER_DIND = r"""
umask 022
mkdir -p "$1/ca" "$1/server" "$1/client"
cd "$1"
openssl genrsa -out ca/key.pem 2048
openssl req -new -key ca/key.pem -out ca/cert.pem -subj '/CN=docker:dind CA' -x509 -days 825 \
  -addext keyUsage=critical,digitalSignature,keyCertSign
for part in server client; do
  openssl genrsa -out $part/key.pem 2048
  openssl req -new -key $part/key.pem -out $part/csr.pem -subj "/CN=docker:dind $part"
  { echo '[ x509_exts ]'; echo "extendedKeyUsage = ${part}Auth"
    [ $part = client ] || echo 'subjectAltName = DNS:docker,DNS:localhost,IP:127.0.0.1'; } >$part/openssl.cnf
  openssl x509 -req -in $part/csr.pem -CA ca/cert.pem -CAkey ca/key.pem -CAcreateserial -out $part/cert.pem \
    -days 825 -extfile $part/openssl.cnf -extensions x509_exts
  cp ca/cert.pem $part/ca.pem
done
chmod 0644 client/key.pem
"""

# The same as an administrator would lay it in: a server set without the CA's key.
MAKE_USER_MANAGED = f"{MAKE_LIKE_DOCKER_DIND}\nrm -rf ca server/csr.pem server/openssl.cnf client/csr.pem\n"
