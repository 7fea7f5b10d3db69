"""The images of a docker-archive, the older format of `docker save`: manifest.json is [{Config, RepoTags, Layers}].

Source: moby, image/tarexport.
"""

from __future__ import annotations

import hashlib
import re

from cachedind.base.typed import TYPE_CHECKING
from cachedind.seeds.compression import sniff
from cachedind.seeds.contents import Verified
from cachedind.seeds.documents import DIGEST, mapping, read_small, short, strings
from cachedind.seeds.listing import MAX_IMAGES, ListedImage, label_of
from cachedind.seeds.members import clean_path
from cachedind.seeds.model import Layer, SeedError, SeedImage
from cachedind.seeds.platforms import read_diff_ids
from cachedind.seeds.quoting import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cachedind.seeds.members import Blob, Members

_PLAIN_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_OTHER_PACKINGS = (b"BZh", b"\xfd7zXZ\x00", b"\x04\x22\x4d\x18")
"""bzip2, xz, lz4."""
_BLOB_PATH = re.compile(r"blobs/sha256/([0-9a-f]{64})")


def list_images(members: Members, manifest: object, known: Mapping[str, SeedImage]) -> Iterator[ListedImage]:
    """The images of a manifest.json. One in `known`, by its configuration's digest, is not read again."""
    if not isinstance(manifest, list):
        raise SeedError("its manifest.json is not a list of images")
    if len(manifest) > MAX_IMAGES:
        raise SeedError(f"it has more than {MAX_IMAGES} images")
    for number, value in enumerate(manifest, 1):
        entry = mapping(value)
        names: tuple[str, ...] = ()
        label = label_of(names, number)
        try:
            names = tuple(dict.fromkeys(strings(entry.get("RepoTags"), "RepoTags")))
            label = label_of(names, number)
            yield ListedImage(label, names, (), True, _docker_image(members, entry, known))
        except SeedError as error:
            if not error.lasting:
                raise
            yield ListedImage(label, names, (), True, None, str(error))


def _docker_image(members: Members, entry: Mapping[str, object], known: Mapping[str, SeedImage]) -> SeedImage:
    """Raises SeedError."""
    path = entry.get("Config")
    if not isinstance(path, str):
        raise SeedError("its manifest.json names no configuration")
    config = read_small(_need(members, path), "its configuration")
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    # "HEX.json" of `docker save`, "blobs/sha256/HEX" of newer ones, "sha256:HEX" of go-containerregistry.
    stated = path.rpartition("/")[2].removesuffix(".json").removeprefix("sha256:")
    if DIGEST.fullmatch(f"sha256:{stated}") and f"sha256:{stated}" != digest:
        raise SeedError("its configuration does not match its digest")
    if digest in known:
        return known[digest]
    paths = strings(entry.get("Layers"), "Layers")
    diff_ids = read_diff_ids(config, len(paths))
    layers = tuple(_docker_layer(members, *each) for each in zip(paths, diff_ids, strict=True))
    return SeedImage((), config, digest, layers)


def _docker_layer(members: Members, path: str, diff_id: str) -> Layer:
    content = _need(members, path)
    media_type = _sniff_layer(content, path)
    match = _BLOB_PATH.fullmatch(clean_path(path))
    if match is None:
        return Layer(diff_id, None, media_type, content)
    digest = f"sha256:{match[1]}"
    return Layer(diff_id, digest, media_type, Verified(content, digest, f"layer {short(digest)}"))


def _sniff_layer(content: Blob, path: str) -> str:
    head = content.head(6)
    packing = sniff(head)
    if head.startswith(_OTHER_PACKINGS):
        raise SeedError(f"layer {shown(path)} is compressed in a way that is not supported")
    return _PLAIN_LAYER_TYPE if packing is None else f"{_PLAIN_LAYER_TYPE}+{packing}"


def _need(members: Members, path: str) -> Blob:
    content = members.find(path)
    if content is None:
        raise SeedError(f"its manifest.json names {shown(path)}, which is not in it")
    return content
