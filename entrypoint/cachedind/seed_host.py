"""Images of another daemon as seeds: which it has, which of them a store has too, and their transfer.

Whoever can reach that daemon's socket is root on its host, and so is every job in a container that has it mounted.

The docker SDK is left out here, on purpose. Its import takes 0.1 s and that of http.client 0.02 s, which is all that a
start may spend on finding that nothing is missing: so the list is asked for with one HTTP/1.0 request on a socket
(tried: 1 ms). And its `get_image` asks for one image at a time and takes the timeout off the socket (docker-py,
api/client.py, _stream_raw_result): so the transfer goes through http.client.

An image's ID is the digest of its configuration where graph drivers keep it, and that of its manifest or index where
containerd does (moby, daemon/containerd/image.go), so that IDs alone do not tell whether two stores have the same.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cachedind.image_names import canonical, familiar
from cachedind.seed_spool import open_spool
from cachedind.seeds import BadSeed, Record, Seed, SeedError, SeedKind, chain_ids

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from http.client import HTTPResponse

CONNECT_S = 5.0
ANSWER_S = 10.0
"""How long the list of images may take, or a look at one of them, with all that belongs to it."""
BEGIN_S = 600.0
"""How long a transfer may take to begin: an engine writes all layers to its own disk before it sends the first byte
(moby, image/tarexport/save.go)."""
STALL_S = 120.0
"""How long a transfer may go without a byte."""
OWN_SOCKET = "/var/run/docker.sock"

_MAX_LIST_BYTES = 32 << 20
_MAX_INSPECT_BYTES = 4 << 20
_MAX_SIZE_BYTES = (1 << 63) - 1
_CHUNK_BYTES = 1 << 20
_ERROR_TAIL_BYTES = 4096
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._/:\[\]-]{0,511}:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b[^\r\n]*\r?\n")
_ENGINE_ERROR = re.compile(rb'\{"error(?:Detail)?":.*\}\s*\Z', re.DOTALL)
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)")


class HostImage(NamedTuple):
    """An image as the other daemon lists it. `tags` are its names as that daemon spells them."""

    id: str
    tags: tuple[str, ...]
    size_bytes: int


class LocalImage(Protocol):
    """An image of the store that is compared with. `names` are canonical, `target` is what they point to: the image's
    ID there. `config` is the configuration's bytes, and `repo_digests` are names with a digest.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def target(self) -> str: ...

    @property
    def config_digest(self) -> str: ...

    @property
    def config(self) -> bytes: ...

    @property
    def repo_digests(self) -> tuple[str, ...]: ...


class Fetched(NamedTuple):
    """A docker-archive in an unlinked file, open for reading at its start, with the images of these seeds.

    Whoever has it closes the descriptor.
    """

    fd: int
    size_bytes: int
    seeds: tuple[Seed, ...]


class PartError(SeedError):
    """What may be the fault of one of several images that were asked for at once."""


# ---- which images it has ---------------------------------------------------------------------------------------------


def list_host(
    host: str, patterns: Sequence[str], certs: str = "", own_sockets: Sequence[str] = (OWN_SOCKET,)
) -> tuple[list[Seed], list[BadSeed]]:
    """A seed for each name of an image that a pattern matches, and what is wrong. One request; raises nothing.

    `host` is "unix:///…" or "tcp://…:port", `certs` a directory with ca.pem, cert.pem and key.pem (none: no TLS),
    `own_sockets` are those of our own daemon, which does not answer yet. Takes at most ANSWER_S seconds, and what the
    resolver takes for a name. Needs the right to connect to the socket.
    """
    try:
        images = parse_images(_ask(host, certs, "/images/json", _MAX_LIST_BYTES, own_sockets))
    except SeedError as error:
        return [], [BadSeed(shown(host), str(error))]
    return choose(images, patterns, shown(host))


def parse_images(raw: bytes) -> list[HostImage]:
    """The images in an answer to GET /images/json. What makes no sense in it is left out. Raises SeedError."""
    found: list[HostImage] = []
    value = _parse_json(raw)
    if not isinstance(value, list):
        raise _passing("its list of images is none: is it a docker daemon?")
    for item in value:
        if not isinstance(item, dict):
            continue
        image_id, tags, size = item.get("Id"), item.get("RepoTags"), item.get("Size")
        if not isinstance(image_id, str) or not _DIGEST.fullmatch(image_id) or not isinstance(tags, list):
            continue
        known = tuple(tag for tag in tags if isinstance(tag, str) and _TAG.fullmatch(tag))
        size_bytes = size if isinstance(size, int) and 0 <= size <= _MAX_SIZE_BYTES else 0
        found.append(HostImage(image_id, known, size_bytes))
    return found


def choose(images: Iterable[HostImage], patterns: Iterable[str], host: str) -> tuple[list[Seed], list[BadSeed]]:
    """The seeds in the order of the patterns, and the patterns that nothing matches. Pure."""
    tags = sorted((tag, image) for image in images for tag in image.tags)
    seeds: dict[str, Seed] = {}
    bad: list[BadSeed] = []
    for pattern in patterns:
        if "@" in pattern:
            bad.append(BadSeed(pattern, "an image is seeded by its tag, for a digest is lost on the way: name it so"))
            continue
        matching = [(tag, image) for tag, image in tags if matches(tag, pattern)]
        for tag, image in matching:
            name = canonical(tag)
            seeds.setdefault(name, Seed(SeedKind.HOST, tag, f"host:{image.id} {name}", image.size_bytes))
        if not matching:
            bad.append(BadSeed(pattern, f"{host} has no such image: pull or build it there, or do not ask for it"))
    return list(seeds.values()), bad


def matches(tag: str, pattern: str) -> bool:
    """Whether a name is meant by a pattern, both with or without docker.io/library/. `*` also stands for `/` and `:`;
    a pattern without one that has no tag means :latest."""
    from fnmatch import fnmatchcase

    if not any(character in pattern for character in "*?["):
        return canonical(tag) == canonical(pattern)
    full = canonical(tag)
    return any(fnmatchcase(name, pattern) for name in {tag, full, full.removeprefix("docker.io/"), familiar(full)})


def shown(host: str) -> str:
    """The address as it may stand in a log: without a password."""
    return re.sub(r"//[^/]*@", "//", host)


# ---- which of them a store has ---------------------------------------------------------------------------------------


def find_held(host: str, seeds: Iterable[Seed], local: Iterable[LocalImage], certs: str = "") -> dict[str, Record]:
    """Those of `seeds` that a store has although its ledger does not know them, by identity: it pulled or built them.

    Held is only what has the seed's name there. Asks about each image that is not known by its ID, so it is not for the
    way on which nothing is missing; an image that the other daemon does not tell about is not held. Raises nothing of
    its own: what `local` raises is passed on.
    """
    wanted = {canonical(seed.name): seed for seed in seeds}
    found: dict[str, Record] = {}
    for image in local:
        for name in image.names:
            seed = wanted.get(name)
            if seed is None:
                continue
            configuration = _parse_configuration(image.config)
            if _is_held(host, certs, id_of(seed), image, configuration):
                diff_ids = _diff_ids(configuration)
                top_chain = chain_ids(diff_ids)[-1] if diff_ids else ""
                found[seed.identity] = Record((name,), image.config_digest, top_chain)
    return found


def _is_held(host: str, certs: str, image_id: str, image: LocalImage, configuration: Mapping[str, object]) -> bool:
    if image_id in (image.target, image.config_digest):
        return True
    try:
        inspected = _parse_json(_ask(host, certs, f"/images/{image_id}/json", _MAX_INSPECT_BYTES))
    except SeedError:
        return False
    if not isinstance(inspected, dict):
        return False
    return shares_digest(inspected, image.repo_digests, configuration) or is_same_image(inspected, configuration)


def id_of(seed: Seed) -> str:
    """The ID of a seed's image at the other daemon."""
    return seed.identity.removeprefix("host:").partition(" ")[0]


def shares_digest(
    inspected: Mapping[str, object], repo_digests: Iterable[str], configuration: Mapping[str, object]
) -> bool:
    """Whether both came from the same manifest or index of a registry, and are for the same platform. Pure."""
    theirs = inspected.get("RepoDigests")
    digests = {item.rpartition("@")[2] for item in theirs if isinstance(item, str)} if isinstance(theirs, list) else ()
    if not any(item.rpartition("@")[2] in digests for item in repo_digests):
        return False
    *theirs_basic, their_variant = _platform(inspected, "Os", "Architecture", "Variant")
    *ours_basic, our_variant = _platform(configuration, "os", "architecture", "variant")
    # An index may have an image for each of arm's variants; not every image names its own.
    return theirs_basic == ours_basic and (their_variant == our_variant or None in (their_variant, our_variant))


def is_same_image(inspected: Mapping[str, object], configuration: Mapping[str, object]) -> bool:
    """Whether an answer to GET /images/…/json and an image's configuration (OCI image specification, config.md) are of
    the same image, whatever stores the two are in. Pure; two images that differ in what a container sees never are.

    Engines show the same configuration differently: 28 and later leave empty fields out, older ones have them as null,
    "" or [], and those that containers have but images have not as well.
    """
    try:
        theirs, ours = _of_inspection(inspected), _of_configuration(configuration)
        return bool(inspected.get("Os") and inspected.get("Architecture")) and theirs == ours
    except RecursionError:
        return False


def _of_inspection(inspected: Mapping[str, object]) -> tuple[object, ...]:
    layers = _mapping(inspected.get("RootFS")).get("Layers")
    platform = _platform(inspected, "Os", "Architecture", "Variant")
    return layers or None, _moment(inspected.get("Created")), platform, _run_fields(inspected.get("Config"))


def _of_configuration(configuration: Mapping[str, object]) -> tuple[object, ...]:
    layers = _mapping(configuration.get("rootfs")).get("diff_ids")
    platform = _platform(configuration, "os", "architecture", "variant")
    return layers or None, _moment(configuration.get("created")), platform, _run_fields(configuration.get("config"))


def _platform(values: Mapping[str, object], *fields: str) -> tuple[object, ...]:
    return tuple(values.get(field) or None for field in fields)


_RUN_FIELDS = ("Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Labels", "StopSignal", "OnBuild", "Shell")
_SET_FIELDS = ("ExposedPorts", "Volumes")


def _run_fields(value: object) -> dict[str, object]:
    """What containers get from an image, without what is empty."""
    config = _mapping(value)
    found = {field: config.get(field) for field in _RUN_FIELDS}
    # Sets in the guise of an object whose values mean nothing: {"80/tcp": {}}.
    found.update({field: sorted(_mapping(config.get(field))) for field in _SET_FIELDS})
    found["Healthcheck"] = {field: item for field, item in _mapping(config.get("Healthcheck")).items() if item}
    return {field: item for field, item in found.items() if item}


def _moment(value: object) -> object:
    """A time of RFC 3339 so that two spellings of one are equal. The year 1 is Go's word for none."""
    match = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value or None
    from datetime import datetime

    try:
        seconds = datetime.fromisoformat(match[1].upper() + match[3].upper()).timestamp()
    except (ValueError, OverflowError, OSError):
        return value
    fraction = (match[2] or "").rstrip("0")
    return None if match[1].startswith("0001-01-01") and not fraction else (seconds, fraction)


def _parse_configuration(raw: bytes) -> Mapping[str, object]:
    try:
        return _mapping(json.loads(raw))
    except (ValueError, RecursionError):
        return {}


def _diff_ids(configuration: Mapping[str, object]) -> tuple[str, ...]:
    layers = _mapping(configuration.get("rootfs")).get("diff_ids")
    return tuple(item for item in layers if isinstance(item, str)) if isinstance(layers, list) else ()


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


# ---- the transfer ----------------------------------------------------------------------------------------------------


def fetch_each(
    host: str,
    seeds: Sequence[Seed],
    spool_directory_fd: int,
    room_bytes: int,
    on_read: Callable[[int], None],
    certs: str = "",
) -> tuple[list[Fetched], dict[str, SeedError]]:
    """All of them in one archive, so that layers that they share come once, or where that fails, in one for each.

    Also returns what was wrong with a seed, by its identity. Raises nothing of its own; all else is as with `fetch`.
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
            # The daemon is gone: the others need not wait for it, too.
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

    `on_read` hears of the bytes as they come. Raises SeedError when the archive takes more than `room_bytes`, does not
    begin within BEGIN_S, stops for STALL_S, or is not whole: PartError where fewer names could do better.
    """
    from http.client import HTTPException

    with contextlib.ExitStack() as on_error:
        fd = open_spool(f"/proc/self/fd/{spool_directory_fd}")
        on_error.callback(os.close, fd)
        try:
            with _connect(host, certs, (OWN_SOCKET,)) as connection:
                connection.settimeout(BEGIN_S)
                with _request(connection, _path_of(names)) as response:
                    connection.settimeout(STALL_S)
                    _receive(response, fd, room_bytes, on_read)
        except HTTPException as error:
            raise _passing(f"its answer is none ({_one_line(error) or type(error).__name__})") from None
        except OSError as error:
            raise _passing(_reason(error, host, certs)) from None
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
            raise _refusal(response.status, response.read(_ERROR_TAIL_BYTES))
    return response


def _receive(response: HTTPResponse, fd: int, room_bytes: int, on_read: Callable[[int], None]) -> None:
    """Write a body to a file. Raises SeedError."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    total = 0
    while count := _read(response, buffer):
        total += count
        if total > room_bytes:
            raise PartError(f"would take more than the {room_bytes / 1e9:.1f} GB that are free", lasting=False)
        _write(fd, buffer[:count])
        on_read(count)
    # http.client says nothing about a body that is shorter than announced when it is read into a buffer.
    if response.length:
        raise _passing("its answer ended early")


def _read(response: HTTPResponse, buffer: memoryview) -> int:
    from http.client import HTTPException

    try:
        return response.readinto(buffer)
    except TimeoutError:
        raise _passing(f"not a byte came for {STALL_S:g} s") from None
    except (HTTPException, OSError):
        raise _passing("its answer ended early") from None


def _write(fd: int, chunk: memoryview) -> None:
    try:
        while chunk:
            chunk = chunk[os.write(fd, chunk) :]
    except OSError as error:
        raise _passing(f"it cannot be written down ({error.strerror})") from None


def _check_end(fd: int) -> None:
    """Whether the archive has a tar's end. An engine that fails amid it appends the error, and ends it well for HTTP
    (moby, api/server/router/image/image_routes.go, getImagesGet)."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _ERROR_TAIL_BYTES, max(0, size - _ERROR_TAIL_BYTES))
    match = _ENGINE_ERROR.search(tail)
    if match is not None:
        raise PartError(f"it cannot give it: {_message(match[0])}", lasting=False)
    if size % 512 or len(tail) < 1024 or any(tail[-1024:]):
        raise PartError("its archive ends early", lasting=False)


# ---- talking to it ---------------------------------------------------------------------------------------------------


def _ask(host: str, certs: str, path: str, limit_bytes: int, own_sockets: Sequence[str] = (OWN_SOCKET,)) -> bytes:
    """The body of an answer, whole in memory, within ANSWER_S. Raises SeedError.

    HTTP/1.0, so that the answer ends with the connection and has no chunks.
    """
    deadline = time.monotonic() + ANSWER_S
    raw = bytearray()
    try:
        with _connect(host, certs, own_sockets) as connection:
            connection.settimeout(_left_s(deadline))
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
            while chunk := connection.recv(1 << 16):
                raw += chunk
                if len(raw) > limit_bytes:
                    raise _passing(f"its answer has more than {limit_bytes >> 20} MiB")
                connection.settimeout(_left_s(deadline))
    except OSError as error:
        raise _passing(_reason(error, host, certs)) from None
    return _body(bytes(raw))


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _body(raw: bytes) -> bytes:
    match = _STATUS.match(raw)
    if match is None:
        # A TLS alert (RFC 8446, 5.1), which is all that some servers say to whom does not speak it.
        tls = raw[:2] == b"\x15\x03"
        raise _passing(_WANTS_TLS if tls else "its answer is none: is it a docker daemon?")
    head, separator, body = raw.partition(b"\r\n\r\n")
    if match[1] != b"200":
        raise _refusal(int(match[1]), body[:_ERROR_TAIL_BYTES])
    length = re.search(rb"(?i)\r\ncontent-length: *([0-9]{1,18}) *(?:\r\n|\Z)", head)
    if not separator or (length is not None and int(length[1]) != len(body)):
        raise _passing("its answer ended early")
    return body


_WANTS_TLS = "it wants TLS: set CACHEDIND_SEED_HOST_CERT_PATH to a directory with ca.pem, cert.pem and key.pem"


def _refusal(status: int, body: bytes) -> SeedError:
    # What Go's server says to whom speaks plainly (net/http, server.go).
    if status == 400 and b"HTTPS server" in body:
        return _passing(_WANTS_TLS)
    return PartError(f"it refuses ({status}): {_message(body)}", lasting=False)


def _message(body: bytes) -> str:
    """What an engine has to say in an error's body: {"message": …}, or {"errorDetail": …, "error": …} amid a stream."""
    try:
        value = _mapping(json.loads(body))
    except (ValueError, RecursionError):
        return _one_line(body.decode("utf-8", "replace")) or "no reason is given"
    return _one_line(value.get("message") or value.get("error") or "no reason is given")


def _parse_json(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise _passing("its answer makes no sense: is it a docker daemon?") from None


def _connect(host: str, certs: str, own_sockets: Sequence[str]) -> socket.socket:
    """A connection with a timeout of CONNECT_S. Raises SeedError or OSError."""
    scheme, _, rest = host.partition("://")
    if scheme == "unix":
        return _connect_unix(rest, own_sockets)
    if scheme != "tcp":
        raise _passing("it is no docker host such as unix:///host/docker.sock or tcp://host:2376")
    name, _, port = rest.rstrip("/").rpartition(":")
    if not name or not port.isdecimal() or int(port) > 65535:
        raise _passing("it has no name with a port from 1 to 65535")
    name = name.strip("[]")
    context = _tls_context(certs) if certs else None
    try:
        plain = socket.create_connection((name, int(port)), timeout=CONNECT_S)
    except UnicodeError:  # from IDNA: a label is empty, too long, or of characters that it has no place for
        raise _passing("its name is none that could be resolved") from None
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
                raise _passing("that is our own daemon's socket: mount the other one, for example at /host/docker.sock")
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
    """Raises SeedError. Certificates are checked as Docker's own client does: RFC 5280 to the letter, which newer
    Pythons ask for, would refuse those that many a daemon has."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(f"{certs}/ca.pem")
        # A key with a password must not ask for it on a terminal.
        context.load_cert_chain(f"{certs}/cert.pem", f"{certs}/key.pem", password=lambda: "")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else _one_line(error)
        raise _passing(f"ca.pem, cert.pem and key.pem in {certs} cannot be used ({_one_line(what)})") from None
    return context


def _reason(error: OSError, host: str, certs: str) -> str:
    """What it means that a connection failed, and what to do about it."""
    if certs and host.startswith("tcp:"):
        import ssl

        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not good for {certs}/ca.pem ({_one_line(error.verify_message)})"
        if isinstance(error, ssl.SSLError):
            return f"no TLS with it ({_one_line(error.reason or error)}): are {certs} and the port right?"
    if isinstance(error, TimeoutError):
        return "it does not answer in time: is that daemon running, and is it another one than ours?"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved ({_one_line(error.strerror)})"
    if isinstance(error, FileNotFoundError):
        return "there is no such socket: mount the other daemon's there"
    if isinstance(error, PermissionError):
        return "the socket may not be used by this user"
    if isinstance(error, ConnectionRefusedError):
        if host.startswith("unix:"):
            return (
                "nobody listens there: start that daemon; a socket that was mounted before its restart is a dead one, "
                "so restart this container too, or mount the socket's directory"
            )
        return "nobody listens there: start that daemon, or mend the port"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return (
            "it hangs up" if certs or host.startswith("unix:") else "it hangs up: does it want TLS, with certificates?"
        )
    if error.errno == errno.ENAMETOOLONG or "too long" in str(error):
        return "the socket's path is too long (108 bytes are the limit)"
    return f"it cannot be reached ({_one_line(error.strerror or error)})"


def _passing(why: str) -> SeedError:
    """The next start may have better luck: a daemon is not bytes that stay as they are."""
    return SeedError(why, lasting=False)


def _one_line(text: object) -> str:
    printable = "".join(character if character.isprintable() else " " for character in str(text))
    return " ".join(printable.split())[:300]
