"""A docker daemon for the unit lane: threads on a real socket, that say what a test lays into their mouths."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cachedind.api import certificate_names, tls
from cachedind.base.log import Log
from helpers.host_images import FULL_RUN, INSPECT, LIST, TAR, get, inspection_of, listed

NOW = datetime.datetime.now(datetime.UTC)
EARLY = "its answer ended early"
WANTS_TLS = "it wants TLS: set CACHEDIND_SEED_HOST_CERT_PATH"
GOES_ON = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
"""What Go's server says to whom speaks plainly."""
Answer = bytes | Callable[[socket.socket], None]
"""What is sent before the connection is closed, or what does that."""


class Daemon:
    """Answers GET requests by their path, each connection in a thread of its own. `lines` are the requests' first."""

    def __init__(self, listener: socket.socket, host: str, context: ssl.SSLContext | None = None) -> None:
        self.host = host
        self.answers: dict[str, Answer] = {}
        self.lines: list[str] = []
        self.over = threading.Event()
        self._listener = listener
        self._context = context
        self._threads = [threading.Thread(target=self._accept)]
        listener.listen()
        self._threads[0].start()

    @property
    def paths(self) -> list[str]:
        return [line.split(" ")[1] for line in self.lines]

    def hang(self, connection: socket.socket) -> None:
        """An answer that does not come."""
        self.over.wait()

    def stop_listening(self) -> None:
        """Who connects from now on is refused."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which also wakes who waits in accept()
        self._listener.close()

    def close(self) -> None:
        self.over.set()
        self.stop_listening()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=[connection]))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            connection.settimeout(5)
            if self._context is not None:
                connection = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                more = connection.recv(4096)
                if not more:
                    return
                head += more
            self.lines.append(head.partition(b"\r\n")[0].decode())
            answer = self.answers.get(self.paths[-1], http({"message": "page not found"}, "404 Not Found"))
            if isinstance(answer, bytes):
                connection.sendall(answer)
            else:
                answer(connection)


def listen_unix(path: Path) -> tuple[socket.socket, str]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener, f"unix://{path}"


def listen_tcp() -> tuple[socket.socket, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def serve_once(listener: socket.socket, act: Callable[[socket.socket], None]) -> Iterator[None]:
    """One connection, from its first byte on."""

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            act(connection)

    listener.listen()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


# ---- what it says ----------------------------------------------------------------------------------------------------


def http(body: object, status: str = "200 OK", length: int | None = None, version: str = "1.0") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/{version} {status}\r\nContent-Length: {len(raw) if length is None else length}\r\n\r\n".encode() + raw


def chunked(body: bytes, status: str = "200 OK", *, end: bool = True) -> bytes:
    """As Go's server sends what it does not know the length of."""
    pieces = [body[at : at + 300_000] for at in range(0, len(body), 300_000)]
    sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + sent + (b"0\r\n\r\n" if end else b"")


def reset(connection: socket.socket) -> None:
    """Hang up as who is killed does. On unix sockets what is left unread does it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# ---- with TLS --------------------------------------------------------------------------------------------------------


def issue(directory: Path, name: str) -> Path:
    """client/ and server/ with a set each, as this project's own daemons have them."""
    ca_key, certificate = tls.issue_clients(str(directory), NOW, Log())
    tls.issue_server(str(directory), ca_key, certificate, certificate_names.Names((name,)), NOW)
    return directory


def serve_tls(server: Path, clients: Path) -> contextlib.closing[Daemon]:
    """A daemon with the certificate of one authority that lets the clients of one in, as dockerd --tlsverify does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server/cert.pem", server / "server/key.pem")
    context.load_verify_locations(clients / "ca/cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    daemon = Daemon(*listen_tcp(), context)
    daemon.answers[LIST] = http([listed()])
    daemon.answers[INSPECT] = http(inspection_of(FULL_RUN))
    daemon.answers[get("redis:7")] = chunked(TAR)
    return contextlib.closing(daemon)
