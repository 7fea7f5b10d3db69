"""The images of an OCI layout, in a directory or in a tar: index.json → manifests → blobs/sha256/….

Source: OCI image specification, image-layout.md.
"""

from __future__ import annotations

import re

from cachedind.base.typed import TYPE_CHECKING
from cachedind.seeds.contents import Verified
from cachedind.seeds.documents import descriptors_in, digest_of, mapping, parse, read_small, short
from cachedind.seeds.listing import MAX_IMAGES, ListedImage, label_of
from cachedind.seeds.model import Layer, SeedError, SeedImage
from cachedind.seeds.platforms import choose_fitting, read_diff_ids
from cachedind.seeds.quoting import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cachedind.seeds.members import Blob, Members
    from cachedind.seeds.model import Content

_MAX_DEPTH = 3
"""Indexes in indexes."""

_INDEX_TYPES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
_MANIFEST_TYPES = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(nondistributable\.)?v1\.tar(?:\+(?:gzip|zstd))?"
    r"|docker\.image\.rootfs\.(foreign\.)?diff\.tar(?:\.(?:gzip|zstd))?)"
)
_NAME_ANNOTATION = "io.containerd.image.name"
_REF_ANNOTATION = "org.opencontainers.image.ref.name"


def list_images(members: Members, index: object) -> Iterator[ListedImage]:
    """The images of an index.json: those that have the same name are for several platforms, and one is taken."""
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Mapping[str, object]]] = {}
    for descriptor in descriptors_in(index, "manifests", "index.json"):
        if not _is_attestation(descriptor):
            groups.setdefault(_names_of(descriptor), []).append(descriptor)
    number = 0
    for (names, tags), descriptors in groups.items():
        try:
            chosen = choose_fitting(descriptors)
        except SeedError as error:
            yield ListedImage(label_of(names, number + 1), names, tags, False, None, str(error))
            chosen = []
        for descriptor in chosen:
            number += 1
            label = label_of(names, number)
            if number > MAX_IMAGES:
                raise SeedError(f"it has more than {MAX_IMAGES} images")
            try:
                yield ListedImage(label, names, tags, False, _oci_image(members, descriptor))
            except SeedError as error:
                if not error.lasting:
                    raise
                yield ListedImage(label, names, tags, False, None, str(error))


def _names_of(descriptor: Mapping[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names with a repository, and those that are just a tag."""
    annotations = mapping(descriptor.get("annotations"))
    names: list[str] = []
    tags: list[str] = []
    for key in (_NAME_ANNOTATION, _REF_ANNOTATION):
        name = annotations.get(key)
        if not isinstance(name, str) or not name or "@" in name:  # one with a digest is no name to keep
            continue
        is_tag = key == _REF_ANNOTATION and not {"/", ":"} & set(name)
        (tags if is_tag else names).append(name)
    return tuple(dict.fromkeys(names)), tuple(tags)


def _is_attestation(descriptor: Mapping[str, object]) -> bool:
    """What BuildKit knows about an image, beside it (buildkit, docs/attestations/attestation-storage.md)."""
    if "vnd.docker.reference.type" in mapping(descriptor.get("annotations")):
        return True
    platform = mapping(descriptor.get("platform"))
    return platform.get("os") == "unknown" and platform.get("architecture") == "unknown"


def _oci_image(members: Members, descriptor: Mapping[str, object]) -> SeedImage:
    """Raises SeedError."""
    descriptor = _descend(members, descriptor)
    media_type = str(descriptor.get("mediaType"))
    raw = _read_blob(members, descriptor, "manifest")
    manifest = mapping(parse(raw, "its manifest"))
    config = mapping(manifest.get("config"))
    if str(config.get("mediaType")) not in _CONFIG_TYPES:
        raise SeedError(f"it is not an image but {shown(config.get('mediaType') or 'something unknown')}")
    config_raw = _read_blob(members, config, "configuration")
    descriptors = descriptors_in(manifest, "layers", "its manifest")
    diff_ids = read_diff_ids(config_raw, len(descriptors))
    layers = tuple(_oci_layer(members, *each) for each in zip(descriptors, diff_ids, strict=True))
    return SeedImage((), config_raw, digest_of(config), layers, raw, media_type)


def _descend(members: Members, descriptor: Mapping[str, object]) -> Mapping[str, object]:
    """From an index to the manifest for this machine. Raises SeedError."""
    for _ in range(_MAX_DEPTH + 1):
        media_type = str(descriptor.get("mediaType"))
        if media_type in _MANIFEST_TYPES:
            return descriptor
        if media_type not in _INDEX_TYPES:
            raise SeedError(f"its media type is unknown: {shown(media_type)}")
        index = parse(_read_blob(members, descriptor, "index"), "its index")
        children = [each for each in descriptors_in(index, "manifests", "its index") if not _is_attestation(each)]
        descriptor = choose_fitting(children)[0]
    raise SeedError(f"its indexes are nested more than {_MAX_DEPTH} deep")


def _oci_layer(members: Members, descriptor: Mapping[str, object], diff_id: str) -> Layer:
    digest = digest_of(descriptor)
    media_type = str(descriptor.get("mediaType"))
    what = f"layer {short(digest)}"
    match = _LAYER_TYPE.fullmatch(media_type)
    if match is None:
        raise SeedError(
            f"{what} is encrypted"
            if "encrypted" in media_type
            else f"{what} has an unknown media type: {shown(media_type)}"
        )
    content = _find_blob(members, digest)
    if content is None and (match[1] or match[2]):
        raise SeedError(f"{what} is not in it, because it may not be distributed")
    if content is None:
        raise SeedError(f"{what} is not in it")
    _check_size(content, descriptor, what)
    return Layer(diff_id, digest, media_type, Verified(content, digest, what))


def _check_size(content: Content, descriptor: Mapping[str, object], what: str) -> None:
    size_bytes = descriptor.get("size")
    if not isinstance(size_bytes, int):
        raise SeedError(f"no size is given for {what}")
    if content.size_bytes < size_bytes:
        raise SeedError(f"{what} is cut short: {content.size_bytes} of {size_bytes} bytes are there")
    if content.size_bytes > size_bytes:
        raise SeedError(f"{what} has {content.size_bytes} bytes instead of {size_bytes}")


def _read_blob(members: Members, descriptor: Mapping[str, object], what: str) -> bytes:
    digest = digest_of(descriptor)
    content = _find_blob(members, digest)
    if content is None:
        raise SeedError(f"its {what} {short(digest)} is not in it")
    _check_size(content, descriptor, f"its {what}")
    return read_small(Verified(content, digest, f"its {what}"), f"its {what}")


def _find_blob(members: Members, digest: str) -> Blob | None:
    return members.find(f"blobs/{digest.replace(':', '/')}")
