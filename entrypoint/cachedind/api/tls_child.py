"""The child process that makes certificates beside the start. It is forked before anything else is imported, so that
its own import of cryptography, three quarters of its work, goes on beside all that comes before the work is known.
"""

from __future__ import annotations

import contextlib
import os
import sys

from cachedind.base.typed import TYPE_CHECKING
from cachedind.host.children import Ahead, leave_out

if TYPE_CHECKING:
    from collections.abc import Mapping

_HURRY = -15
"""Niceness of what clients wait for."""
_NOT_NEEDED = (
    "cryptography.hazmat.primitives.serialization.ssh",
    "cryptography.hazmat.primitives.ciphers",
    "cryptography.hazmat.primitives.ciphers.algorithms",
    "cryptography.hazmat.primitives.ciphers.modes",
    "email.utils",
)
"""What cryptography imports for keys, names and purposes that no certificate of ours has: a third of its import."""


def expect(words: list[str], environ: Mapping[str, str]) -> Ahead | None:
    """The child, if this start looks as if it wanted certificates. `words` are the container's arguments."""
    if words[:1] == ["dockerd"] or not environ.get("DOCKER_TLS_CERTDIR"):
        return None
    return Ahead(_get_ready, _work)


def _get_ready() -> None:
    # Clients may be kept out until this is done, so it goes before the rest of the start for the CPU.
    _change_niceness(_HURRY)
    leave_out(_NOT_NEEDED)
    # hashlib has its own SHA-1 then, which is all that is asked of it, and loads no second OpenSSL.
    sys.modules["_hashlib"] = None  # type: ignore[assignment]
    import cachedind.api.certificates  # noqa: F401


def _work(wanted: dict[str, object], descriptors: list[int]) -> None:
    """Certificates in a directory, and the ports opened when the client's are there."""
    import socket

    from cachedind.api import listen_plan, listeners, tls
    from cachedind.base.log import Level, Log

    ports = [socket.socket(fileno=fd) for fd in descriptors]
    log = Log(level=Level[str(wanted["log_level"])], as_json=bool(wanted["log_json"]))
    if wanted["is_open"]:
        _change_niceness(-_HURRY)

    def clients_ready() -> None:
        if not wanted["is_open"]:
            for port in ports:
                listeners.open_port(port)

    tls.prepare(str(wanted["directory"]), listen_plan.SERVER_SET, str(wanted["names"]), clients_ready, log)


def _change_niceness(by: int) -> None:
    with contextlib.suppress(PermissionError):
        os.nice(by)
