"""Another docker daemon: connections to its address, its answers, and what its failures mean.

Whoever can reach that daemon's socket is root on its host, and so is every job in a container that has it mounted.

The docker SDK is left out here, on purpose. Its import takes 0.1 s and that of http.client 0.02 s, which is all that a
start may spend on finding that nothing is missing: so its list of images is asked for with one HTTP/1.0 request on
a socket (tried: 1 ms).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import time

from cachedind.base.typed import TYPE_CHECKING
from cachedind.seeds.model import SeedError
from cachedind.seeds.quoting import one_line

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

CONNECT_S = 5.0
ANSWER_S = 10.0
"""How long the list of images may take, or a look at one of them, with all that belongs to it."""
OWN_SOCKET = "/var/run/docker.sock"
MAX_ERROR_BYTES = 4096
"""How much is read of what the daemon says about an error."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b[^\r\n]*\r?\n")
_WANTS_TLS = "it wants TLS: set CACHEDIND_SEED_HOST_CERT_PATH to a directory with ca.pem, cert.pem and key.pem"


class PartError(SeedError):
    """An error that may be due to just one of several images that were asked for at once."""


# ---- a request -------------------------------------------------------------------------------------------------------


def ask(host: str, certs: str, path: str, limit_bytes: int, own_sockets: Sequence[str] = (OWN_SOCKET,)) -> bytes:
    """The body of an answer, whole in memory, within ANSWER_S. Raises SeedError.

    HTTP/1.0, so that the answer ends with the connection and has no chunks.
    """
    deadline = time.monotonic() + ANSWER_S
    raw = bytearray()
    try:
        with connect(host, certs, own_sockets) as connection:
            connection.settimeout(_left_s(deadline))
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
            while chunk := connection.recv(1 << 16):
                raw += chunk
                if len(raw) > limit_bytes:
                    raise passing(f"its answer has more than {limit_bytes >> 20} MiB")
                connection.settimeout(_left_s(deadline))
    except OSError as error:
        raise passing(reason(error, host, certs)) from None
    return _body(bytes(raw))


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _body(raw: bytes) -> bytes:
    match = _STATUS.match(raw)
    if match is None:
        # A TLS alert (RFC 8446, 5.1), which is all that some servers answer to a client without TLS.
        tls = raw[:2] == b"\x15\x03"
        raise passing(_WANTS_TLS if tls else "its answer is not HTTP: is it a docker daemon?")
    head, separator, body = raw.partition(b"\r\n\r\n")
    if match[1] != b"200":
        raise refusal(int(match[1]), body[:MAX_ERROR_BYTES])
    length = re.search(rb"(?i)\r\ncontent-length: *([0-9]{1,18}) *(?:\r\n|\Z)", head)
    if not separator or (length is not None and int(length[1]) != len(body)):
        raise passing("its answer ended early")
    return body


def parse_json(raw: bytes) -> object:
    """The value in an answer's body. Raises SeedError."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise passing("its answer is not JSON: is it a docker daemon?") from None


# ---- a connection ----------------------------------------------------------------------------------------------------


def connect(host: str, certs: str, own_sockets: Sequence[str]) -> socket.socket:
    """A connection with a timeout of CONNECT_S. Raises SeedError or OSError."""
    scheme, _, rest = host.partition("://")
    if scheme == "unix":
        return _connect_unix(rest, own_sockets)
    if scheme != "tcp":
        raise passing("it is not a docker host such as unix:///host/docker.sock or tcp://host:2376")
    name, _, port = rest.rstrip("/").rpartition(":")
    if not name or not port.isdecimal() or int(port) > 65535:
        raise passing("it needs a name and a port from 1 to 65535")
    name = name.strip("[]")
    context = _tls_context(certs) if certs else None
    try:
        plain = socket.create_connection((name, int(port)), timeout=CONNECT_S)
    except UnicodeError:  # from IDNA: a label is empty, too long, or of characters that it has no place for
        raise passing("its name is not a valid host name") from None
    if context is None:
        return plain
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def _connect_unix(path: str, own_sockets: Sequence[str]) -> socket.socket:
    for own in own_sockets:
        with contextlib.suppress(OSError):
            if os.path.samefile(path, own):
                raise passing("that is our own daemon's socket: mount the other one, for example at /host/docker.sock")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(CONNECT_S)
        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                connection.connect(path)
            except BlockingIOError:  # its backlog is full
                _left_s(deadline)
                time.sleep(0.02)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def _tls_context(certs: str) -> ssl.SSLContext:
    """Raises SeedError. Certificates are checked as by Docker's own client: RFC 5280 to the letter, which newer Pythons
    demand, would refuse those of many daemons."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(f"{certs}/ca.pem")
        # A key with a password must not ask for it on a terminal.
        context.load_cert_chain(f"{certs}/cert.pem", f"{certs}/key.pem", password=lambda: "")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise passing(f"ca.pem, cert.pem and key.pem in {certs} cannot be used ({one_line(what)})") from None
    return context


def without_password(host: str) -> str:
    """The address as it may stand in a log: without a password."""
    return re.sub(r"//[^/]*@", "//", host)


# ---- what a failure means --------------------------------------------------------------------------------------------


def reason(error: OSError, host: str, certs: str) -> str:
    """Why a connection failed, and what to do about it."""
    if certs and host.startswith("tcp:"):
        import ssl

        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not valid with {certs}/ca.pem ({one_line(error.verify_message)})"
        if isinstance(error, ssl.SSLError):
            return f"TLS with it fails ({one_line(error.reason or error)}): are {certs} and the port right?"
    if isinstance(error, TimeoutError):
        return "it does not answer in time: is that daemon running, and is it not our own?"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved ({one_line(error.strerror)})"
    if isinstance(error, FileNotFoundError):
        return "there is no such socket: mount the other daemon's there"
    if isinstance(error, PermissionError):
        return "this user may not use the socket"
    if isinstance(error, ConnectionRefusedError):
        if host.startswith("unix:"):
            return (
                "nobody listens there: start that daemon; a socket that was mounted before its daemon's restart is "
                "dead, so restart this container too, or mount the socket's directory"
            )
        return "nobody listens there: start that daemon, or correct the port"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return (
            "it hangs up" if certs or host.startswith("unix:") else "it hangs up: does it want TLS, with certificates?"
        )
    if error.errno == errno.ENAMETOOLONG or "too long" in str(error):
        return "the socket's path is too long (108 bytes are the limit)"
    return f"it cannot be reached ({one_line(error.strerror or error)})"


def refusal(status: int, body: bytes) -> SeedError:
    """The error for an answer with another status than 200, with the beginning of its body."""
    # What Go's server answers to a client without TLS (net/http, server.go).
    if status == 400 and b"HTTPS server" in body:
        return passing(_WANTS_TLS)
    return PartError(f"it refuses ({status}): {error_message(body)}", lasting=False)


def error_message(body: bytes) -> str:
    """The message in an engine's error: {"message": …}, or {"errorDetail": …, "error": …} in the middle of a stream."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return one_line(body.decode("utf-8", "replace")) or "no reason is given"
    found = value if isinstance(value, dict) else {}
    return one_line(found.get("message") or found.get("error") or "no reason is given")


def passing(why: str) -> SeedError:
    """An error that the next start may not meet: unlike a file, a daemon may answer differently."""
    return SeedError(why, lasting=False)
