"""Loading: images go into a daemon through its API, each as an archive of just what the store lacks.

The engine's own loaders need no more (tried on 26.1 and 28.5, both stores): with graph drivers a layer whose chain ID
the store has is never looked for in the archive (moby, image/tarexport/load.go); containerd takes what it lacks from an
OCI archive, and finds the rest in its content store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re

from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.seeds.model import SeedError
from cachedind.seeds.quoting import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Set

    import docker

    from cachedind.seeds.model import Content, Layer, SeedImage

_BLOCK = 512
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_PLAIN_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_UNPACK_FAILED = "Error unpacking image"
_PASSING = re.compile(
    "no space left|quota exceeded|cannot allocate memory|too many open files|input/output error|context canceled"
    "|NotFound"
)
"""Errors of an engine that may not occur the next time."""


class HalfLoadedError(SeedError):
    """An image that has its names in the store, but not all of its layers."""


class _Bytes(NamedTuple):
    """Something small, in memory."""

    raw: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.raw)

    def chunks(self) -> Iterator[bytes]:
        yield self.raw


# ---- the archive -----------------------------------------------------------------------------------------------------


def archive(
    image: SeedImage, send: frozenset[int], store: ImageStore, on_bytes: Callable[[int], None]
) -> Iterator[bytes]:
    """A tar that has an image's names and configuration, and of its layers those whose numbers are in `send`.

    `on_bytes` is told the number of bytes of layers as they are sent. Raises SeedError, while it is read, when a layer
    is not there any longer.
    """
    entries = _oci_entries(image, send) if store is ImageStore.CONTAINERD else _docker_entries(image, send)
    for name, content, counts in entries:
        yield _header(name, content.size_bytes)
        for chunk in content.chunks():
            yield chunk
            if counts:
                on_bytes(len(chunk))
        yield bytes(-content.size_bytes % _BLOCK)
    yield bytes(2 * _BLOCK)


def bytes_to_send(image: SeedImage, send: frozenset[int]) -> int:
    return sum(image.layers[number].content.size_bytes for number in send)


def _header(name: str, size_bytes: int) -> bytes:
    import tarfile

    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info.tobuf(tarfile.GNU_FORMAT)  # whose sizes go beyond 8 GiB


def _docker_entries(image: SeedImage, send: frozenset[int]) -> Iterator[tuple[str, Content, bool]]:
    """`docker save`'s format of old, which graph drivers need."""
    config = f"{_hex(image.config_digest)}.json"
    paths = [f"{number}-{_hex(layer.diff_id)}.tar" for number, layer in enumerate(image.layers)]
    manifest = [{"Config": config, "RepoTags": list(image.names) or None, "Layers": paths}]
    yield "manifest.json", _Bytes(json.dumps(manifest).encode()), False
    yield config, _Bytes(image.config), False
    for number in sorted(send):
        yield paths[number], image.layers[number].content, True


def _oci_entries(image: SeedImage, send: frozenset[int]) -> Iterator[tuple[str, Content, bool]]:
    manifest, media_type = image.manifest, image.manifest_type
    if manifest is None:
        manifest, media_type = make_manifest(image), _MANIFEST_TYPE
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    target = {"mediaType": media_type, "digest": digest, "size": len(manifest)}
    named = [{**target, "annotations": _annotations(name)} for name in image.names]
    index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": named or [target]}
    yield "oci-layout", _Bytes(b'{"imageLayoutVersion":"1.0.0"}'), False
    yield "index.json", _Bytes(json.dumps(index).encode()), False
    yield _blob(digest), _Bytes(manifest), False
    yield _blob(image.config_digest), _Bytes(image.config), False
    for number in sorted(send):
        layer = image.layers[number]
        yield _blob(layer.digest or layer.diff_id), layer.content, True


def make_manifest(image: SeedImage) -> bytes:
    """The OCI manifest of an image from an archive that has none. Every layer needs its digest.

    It is the same for the same image whenever it is made, so that an image's ID does not change with the day.
    """
    layers = [
        {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.content.size_bytes}
        for layer in image.layers
    ]
    config = {"mediaType": _CONFIG_TYPE, "digest": image.config_digest, "size": len(image.config)}
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "config": config, "layers": layers}
    return json.dumps(manifest, separators=(",", ":")).encode()


def with_digests(image: SeedImage) -> SeedImage:
    """The image with the digest of every layer. Reads the compressed ones without; a plain one's is its diff ID, which
    the engine compares. Raises SeedError."""
    return image._replace(layers=tuple(map(_with_digest, image.layers)))


def _with_digest(layer: Layer) -> Layer:
    if layer.digest is not None:
        return layer
    if layer.media_type == _PLAIN_LAYER_TYPE:
        return layer._replace(digest=layer.diff_id)
    digest = hashlib.sha256()
    for chunk in layer.content.chunks():
        digest.update(chunk)
    return layer._replace(digest=f"sha256:{digest.hexdigest()}")


def _annotations(name: str) -> dict[str, str]:
    return {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}


def _blob(digest: str) -> str:
    return f"blobs/sha256/{_hex(digest)}"


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


# ---- the daemon -----------------------------------------------------------------------------------------------------


def load(api: docker.APIClient, chunks: Iterator[bytes]) -> None:
    """Send an archive to a daemon and wait until it has it all.

    Raises SeedError when it refuses. An engine with the containerd store reports success for a layer that it could not
    unpack, and mentions that in its output: this is an error, too.
    """
    from docker.errors import DockerException
    from requests import RequestException

    try:
        for event in api.load_image(chunks, quiet=True):  # type: ignore[no-untyped-call]
            _check(event)
    except (DockerException, RequestException) as error:
        _raise_cause(error)
        why = f"the daemon refuses it: {one_line(getattr(error, 'explanation', None) or error)}"
        raise SeedError(why, lasting=False) from None


def read_targets(api: docker.APIClient, names: Iterable[str]) -> dict[str, str | None]:
    """What names stand for now, None for one that is free."""
    from docker.errors import DockerException
    from requests import RequestException

    found: dict[str, str | None] = {}
    for name in names:
        found[name] = None
        with contextlib.suppress(DockerException, RequestException):
            found[name] = str(api.inspect_image(name)["Id"])  # type: ignore[no-untyped-call]
    return found


def restore_targets(api: docker.APIClient, targets: dict[str, str | None]) -> None:
    """Point names at what they stood for before an image that could not be unpacked took them."""
    from docker.errors import DockerException
    from requests import RequestException

    for name, target in targets.items():
        with contextlib.suppress(DockerException, RequestException):
            if target is None:
                api.remove_image(name, force=True)
            else:
                half = str(api.inspect_image(name)["Id"])  # type: ignore[no-untyped-call]
                repository, _, tag = name.rpartition(":")
                api.tag(target, repository, tag, force=True)
                if half != target:  # the store keeps it without a name
                    api.remove_image(half)


def remove_nameless(api: docker.APIClient, digests: Set[str], config_of: Callable[[str], str | None]) -> None:
    """Remove those images whose configuration's digest is among these, that have no name any longer and are not used.

    `config_of` tells the digest for an image's ID.
    """
    from docker.errors import DockerException
    from requests import RequestException

    with contextlib.suppress(DockerException, RequestException):
        for image in api.images(filters={"dangling": True}):
            if config_of(str(image["Id"])) in digests:
                with contextlib.suppress(DockerException, RequestException):  # a container or a child needs it
                    api.remove_image(image["Id"])


def _check(event: object) -> None:
    if not isinstance(event, dict):
        return
    if "error" in event:
        why = one_line(event["error"])
        raise SeedError(f"the daemon refuses it: {why}", lasting=not _PASSING.search(why))
    text = event.get("stream")
    if isinstance(text, str) and _UNPACK_FAILED in text:
        why = one_line(text.partition(_UNPACK_FAILED)[2])
        raise HalfLoadedError(f"the daemon cannot unpack it: {why}", lasting=not _PASSING.search(why))


def _raise_cause(error: BaseException) -> None:
    """Raise the SeedError of the archive's reader that ended the request, if it was that."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SeedError):
            raise seen
        seen = seen.__cause__ or seen.__context__
