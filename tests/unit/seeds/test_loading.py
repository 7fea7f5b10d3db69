"""The archives that are sent to a daemon: complete in what they say, and with no more bytes than were asked for."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cachedind.base.model import ImageStore
from cachedind.seeds import loading
from cachedind.seeds.model import Layer, SeedError, SeedImage

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = "application/vnd.oci.image.layer.v1.tar"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


class Bytes(NamedTuple):
    raw: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.raw)

    def chunks(self) -> Iterator[bytes]:
        yield self.raw[:700]
        yield self.raw[700:]


class Gone(NamedTuple):
    size_bytes: int = 1000

    def chunks(self) -> Iterator[bytes]:
        raise SeedError("it vanished")


def digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


LAYERS = tuple(Layer(digest(raw), digest(raw), PLAIN, Bytes(raw)) for raw in (b"a" * 1000, b"b" * 512, b"c" * 1024))
CONFIG = b'{"architecture": "amd64"}'
IMAGE = SeedImage(("docker.io/library/app:1", "ghcr.io/x/app:2"), CONFIG, digest(CONFIG), LAYERS)


def unpack(image: SeedImage, send: set[int], store: ImageStore) -> tuple[dict[str, bytes], int]:
    """Members of the archive, and how many bytes of layers were told of."""
    told: list[int] = []
    raw = b"".join(loading.archive(image, frozenset(send), store, told.append))
    assert len(raw) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        members = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in members.items() if file is not None}, sum(told)


def test_graph_drivers_get_the_format_of_old_with_the_layers_asked_for() -> None:
    members, told = unpack(IMAGE, {1}, ImageStore.GRAPHDRIVER)
    [entry] = json.loads(members.pop("manifest.json"))
    assert entry["RepoTags"] == list(IMAGE.names)
    assert members.pop(entry["Config"]) == CONFIG
    assert len(set(entry["Layers"])) == 3
    assert members == {entry["Layers"][1]: b"b" * 512}
    assert told == 512


def test_the_containerd_store_gets_an_oci_layout_with_the_blobs_asked_for() -> None:
    members, told = unpack(IMAGE, {0, 2}, ImageStore.CONTAINERD)
    assert json.loads(members.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    first, second = json.loads(members.pop("index.json"))["manifests"]
    assert first["digest"] == second["digest"]
    names = [entry["annotations"]["io.containerd.image.name"] for entry in (first, second)]
    assert names == list(IMAGE.names)
    assert [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in (first, second)] == ["1", "2"]
    blobs = {name.replace("blobs/sha256/", "sha256:"): raw for name, raw in members.items()}
    assert all(digest(raw) == name for name, raw in blobs.items())
    manifest = json.loads(blobs.pop(first["digest"]))
    assert manifest["config"]["digest"] == IMAGE.config_digest
    assert [layer["digest"] for layer in manifest["layers"]] == [layer.digest for layer in LAYERS]
    assert [layer["size"] for layer in manifest["layers"]] == [1000, 512, 1024]
    assert blobs == {IMAGE.config_digest: CONFIG, LAYERS[0].digest: b"a" * 1000, LAYERS[2].digest: b"c" * 1024}
    assert told == 2024


def test_a_manifest_of_its_own_goes_as_it_is() -> None:
    manifest = b'{"schemaVersion": 2,   "layers": []}'
    image = IMAGE._replace(manifest=manifest, manifest_type="application/vnd.docker.distribution.manifest.v2+json")
    members, _ = unpack(image, set(), ImageStore.CONTAINERD)
    entry = json.loads(members["index.json"])["manifests"][0]
    assert (entry["digest"], entry["size"]) == (digest(manifest), len(manifest))
    assert entry["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert members["blobs/sha256/" + digest(manifest)[7:]] == manifest


@pytest.mark.parametrize("store", ImageStore)
def test_an_image_without_names_has_none_in_the_archive(store: ImageStore) -> None:
    members, _ = unpack(IMAGE._replace(names=()), set(), store)
    if store is ImageStore.GRAPHDRIVER:
        assert json.loads(members["manifest.json"])[0]["RepoTags"] is None
    else:
        [entry] = json.loads(members["index.json"])["manifests"]
        assert "annotations" not in entry


def test_a_manifest_is_made_the_same_each_time() -> None:
    assert loading.make_manifest(IMAGE) == loading.make_manifest(IMAGE._replace(names=()))


def test_missing_digests_are_computed_for_compressed_layers_alone() -> None:
    plain = LAYERS[0]._replace(digest=None, content=Gone())
    packed = Layer(digest(b"unpacked"), None, GZIP, Bytes(b"z" * 900))
    image = loading.with_digests(IMAGE._replace(layers=(plain, packed, LAYERS[2])))
    assert [layer.digest for layer in image.layers] == [plain.diff_id, digest(b"z" * 900), LAYERS[2].digest]


@pytest.mark.parametrize("store", ImageStore)
def test_a_layer_that_vanishes_ends_the_archive_with_its_reason(store: ImageStore) -> None:
    image = IMAGE._replace(layers=(LAYERS[0], LAYERS[1]._replace(content=Gone())))
    with pytest.raises(SeedError, match="it vanished"):
        list(loading.archive(image, frozenset({0, 1}), store, lambda _: None))


def test_layers_beyond_what_old_headers_can_say() -> None:
    class Huge(NamedTuple):
        size_bytes: int = 9 << 30

        def chunks(self) -> Iterator[bytes]:
            yield b""

    layer = Layer(LAYERS[0].diff_id, LAYERS[0].digest, PLAIN, Huge())
    header = next(
        chunk
        for chunk in loading.archive(
            IMAGE._replace(layers=(layer,)), frozenset({0}), ImageStore.CONTAINERD, lambda _: None
        )
        if len(chunk) == 512 and tarfile.TarInfo.frombuf(chunk, "utf-8", "strict").name.endswith(layer.diff_id[7:])
    )
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == 9 << 30


@pytest.mark.parametrize(
    ("event", "error", "says"),
    [
        (
            {"errorDetail": {"message": "x"}, "error": "invalid diffID\nfor layer 1"},
            SeedError,
            "invalid diffID for layer 1",
        ),
        (
            {"stream": "Error unpacking image app:1: apply layer error: not found\n"},
            loading.HalfLoadedError,
            "app:1: apply layer error: not found",
        ),
    ],
)
def test_what_the_daemon_says_against_it_is_an_error(event: object, error: type[SeedError], says: str) -> None:
    with pytest.raises(error, match=says):
        loading._check(event)


@pytest.mark.parametrize("event", [{"stream": "Loaded image: app:1\n"}, {"status": "Loading layer"}, "text", {}])
def test_what_else_it_says_is_none(event: object) -> None:
    loading._check(event)
