"""Images of another daemon, fetched: all that are wanted in one archive, or one for each, in files without a name.

The transfer goes through http.client. The docker SDK's `get_image` asks for one image at a time and takes the timeout
off the socket (docker-py, api/client.py, _stream_raw_result).
"""

from __future__ import annotations

import contextlib
import os
import re

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.seeds import host_daemon
from cachedind.seeds.host_daemon import PartError, passing
from cachedind.seeds.model import Seed, SeedError
from cachedind.seeds.quoting import one_line
from cachedind.seeds.spool import open_spool

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from http.client import HTTPResponse

BEGIN_S = 600.0
"""How long a transfer may take to begin: an engine writes all layers to its own disk before it sends the first byte
(moby, image/tarexport/save.go)."""
STALL_S = 120.0
"""How long a transfer may go without a byte."""

_CHUNK_BYTES = 1 << 20
_ENGINE_ERROR = re.compile(rb'\{"error(?:Detail)?":.*\}\s*\Z', re.DOTALL)


class Fetched(NamedTuple):
    """A docker-archive in an unlinked file, open for reading at its start, with the images of these seeds.

    Whoever has it closes the descriptor.
    """

    fd: int
    size_bytes: int
    seeds: tuple[Seed, ...]


def fetch_each(
    host: str,
    seeds: Sequence[Seed],
    spool_directory_fd: int,
    room_bytes: int,
    on_read: Callable[[int], None],
    certs: str = "",
) -> tuple[list[Fetched], dict[str, SeedError]]:
    """All of them in one archive, so that shared layers come once; where that fails, one archive for each.

    Also returns what is wrong with a seed, by its identity. Raises no SeedError; otherwise as `fetch`.
    """
    try:
        return [_fetch_seeds(host, seeds, spool_directory_fd, room_bytes, on_read, certs)], {}
    except PartError as error:
        if len(seeds) == 1:
            return [], {seeds[0].identity: error}
    except SeedError as error:
        return [], {seed.identity: error for seed in seeds}
    found: list[Fetched] = []
    bad: dict[str, SeedError] = {}
    for seed in seeds:
        left_bytes = room_bytes - sum(each.size_bytes for each in found)
        more, worse = fetch_each(host, [seed], spool_directory_fd, left_bytes, on_read, certs)
        found += more
        bad |= worse
        if not all(isinstance(error, PartError) for error in worse.values()):
            # The daemon is gone: do not wait for it with each of the others.
            bad |= {later.identity: worse[seed.identity] for later in seeds[seeds.index(seed) + 1 :]}
            break
    return found, bad


def _fetch_seeds(
    host: str,
    seeds: Sequence[Seed],
    spool_directory_fd: int,
    room_bytes: int,
    on_read: Callable[[int], None],
    certs: str,
) -> Fetched:
    fd = fetch(host, [seed.name for seed in seeds], spool_directory_fd, room_bytes, on_read, certs)
    return Fetched(fd, os.fstat(fd).st_size, tuple(seeds))


def fetch(
    host: str,
    names: Sequence[str],
    spool_directory_fd: int,
    room_bytes: int,
    on_read: Callable[[int], None],
    certs: str = "",
) -> int:
    """Ask the other daemon for images in one archive, and return a descriptor of it: an unlinked file in the spool
    directory, at its start. The caller closes it.

    `on_read` is told the number of bytes as they come. Raises SeedError when the archive takes more than `room_bytes`,
    does not begin within BEGIN_S, stops for STALL_S, or is not complete: PartError where fewer names may do better.
    """
    from http.client import HTTPException

    with contextlib.ExitStack() as on_error:
        fd = open_spool(f"/proc/self/fd/{spool_directory_fd}")
        on_error.callback(os.close, fd)
        try:
            with host_daemon.connect(host, certs, (host_daemon.OWN_SOCKET,)) as connection:
                connection.settimeout(BEGIN_S)
                with _request(connection, _path_of(names)) as response:
                    connection.settimeout(STALL_S)
                    _receive(response, fd, room_bytes, on_read)
        except HTTPException as error:
            what = one_line(error) or type(error).__name__
            raise passing(f"its answer is not valid HTTP ({what})") from None
        except OSError as error:
            raise passing(host_daemon.reason(error, host, certs)) from None
        _check_end(fd)
        os.lseek(fd, 0, os.SEEK_SET)
        on_error.pop_all()
        return fd


def _path_of(names: Sequence[str]) -> str:
    from urllib.parse import urlencode

    return f"/images/get?{urlencode([('names', name) for name in names])}"


def _request(connection: socket.socket, path: str) -> HTTPResponse:
    from http.client import HTTPConnection

    http = HTTPConnection("docker")
    http.auto_open = 0  # it would connect to a host of that name
    http.sock = connection
    http.request("GET", path)
    response = http.getresponse()
    if response.status != 200:
        with response:
            raise host_daemon.refusal(response.status, response.read(host_daemon.MAX_ERROR_BYTES))
    return response


def _receive(response: HTTPResponse, fd: int, room_bytes: int, on_read: Callable[[int], None]) -> None:
    """Write a body to a file. Raises SeedError."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    total = 0
    while count := _read(response, buffer):
        total += count
        if total > room_bytes:
            raise PartError(f"it would take more than the {room_bytes / 1e9:.1f} GB that are free", lasting=False)
        _write(fd, buffer[:count])
        on_read(count)
    # http.client says nothing about a body that is shorter than announced when it is read into a buffer.
    if response.length:
        raise passing("its answer ended early")


def _read(response: HTTPResponse, buffer: memoryview) -> int:
    from http.client import HTTPException

    try:
        return response.readinto(buffer)
    except TimeoutError:
        raise passing(f"not a byte came for {STALL_S:g} s") from None
    except (HTTPException, OSError):
        raise passing("its answer ended early") from None


def _write(fd: int, chunk: memoryview) -> None:
    try:
        while chunk:
            chunk = chunk[os.write(fd, chunk) :]
    except OSError as error:
        raise passing(f"it cannot be written to disk ({error.strerror})") from None


def _check_end(fd: int) -> None:
    """Check that the archive has a tar's end. An engine that fails midway appends the error, and ends the response
    regularly (moby, api/server/router/image/image_routes.go, getImagesGet)."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, host_daemon.MAX_ERROR_BYTES, max(0, size - host_daemon.MAX_ERROR_BYTES))
    match = _ENGINE_ERROR.search(tail)
    if match is not None:
        raise PartError(f"it cannot send the image: {host_daemon.error_message(match[0])}", lasting=False)
    if size % 512 or len(tail) < 1024 or any(tail[-1024:]):
        raise PartError("its archive ends early", lasting=False)
