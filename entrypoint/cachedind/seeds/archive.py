"""What images a seed has, an archive or a layout: read and understood, with their layers still where they are.

Two formats, and often both in one file (`docker save` since 25 writes the second one for older readers):

OCI layout        index.json → manifests → blobs/sha256/… (OCI image specification, image-layout.md)
docker-archive    manifest.json: [{Config, RepoTags, Layers}] (moby, image/tarexport)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from cachedind.engine.image_names import canonical, familiar, is_name
from cachedind.seeds import spool
from cachedind.seeds.members import File, LayoutMembers, TarMembers, Verified, clean_path, shown
from cachedind.seeds.model import Layer, SeedError, SeedImage, SeedKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from cachedind.seeds.members import Blob, Members
    from cachedind.seeds.model import Content, Seed

MAX_JSON_BYTES = 8 << 20
MAX_IMAGES = 1000
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
_PLAIN_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_OTHER_PACKINGS = (b"BZh", b"\xfd7zXZ\x00", b"\x04\x22\x4d\x18")
"""bzip2, xz, lz4."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BLOB_PATH = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_NAME_ANNOTATION = "io.containerd.image.name"
_REF_ANNOTATION = "org.opencontainers.image.ref.name"
_SUFFIX = re.compile(r"\.(?:tar|tar\.gz|tgz|tar\.zst|tzst|tar\.xz|txz|oci)$", re.IGNORECASE)

_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv8l": "arm/v8",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "i686": "386",
    "i386": "386",
    "loongarch64": "loong64",
}
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm/v7", "armel": "arm/v6"}


class OpenSeed:
    """The images of a seed, whose layers can be read until it is closed.

    `bad` are images in it that cannot be used, by name or position, and why.
    """

    def __init__(self, images: tuple[SeedImage, ...], bad: tuple[tuple[str, str], ...], members: Members) -> None:
        self.images = images
        self.bad = bad
        self._members = members

    def close(self) -> None:
        self._members.close()

    def __enter__(self) -> OpenSeed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ---- opening ---------------------------------------------------------------------------------------------------------


def open_seed(seed: Seed, *, spool_directory: str, room_bytes: int, on_read: Callable[[int], None]) -> OpenSeed:
    """Open an archive or a layout. A compressed archive is decompressed into `spool_directory`, to at most
    `room_bytes`.

    `on_read` hears of bytes of the file as they are read for that, or for the checksum. Raises SeedError when nothing
    of it can be used.
    """
    if seed.kind is SeedKind.LAYOUT:
        return _open_layout(seed, on_read)
    with contextlib.ExitStack() as stack:
        fd = spool.open_file(seed.name)
        original = File(fd)
        stack.callback(original.close)
        packing = spool.sniff(spool.pread(fd, 6, 0))
        if packing is not None:
            unpacked = spool.decompress(
                fd,
                packing,
                name=seed.name,
                checksum=seed.checksum,
                spool_directory=spool_directory,
                room_bytes=room_bytes,
                on_read=on_read,
            )
            return open_archive(unpacked, fallback_name=_fallback(seed.name))
        if seed.checksum is not None:
            spool.verify(fd, seed.checksum, seed.name, on_read)
        stack.pop_all()
        return open_archive(fd, fallback_name=_fallback(seed.name))


def open_archive(fd: int, *, fallback_name: str = "") -> OpenSeed:
    """Open an archive that is in a file, uncompressed. Takes the descriptor over, also when it raises SeedError.

    `fallback_name` is the repository of an image in an OCI layout that has none.
    """
    return _open(TarMembers(File(fd)), fallback_name)


def _open_layout(seed: Seed, on_read: Callable[[int], None]) -> OpenSeed:
    members = LayoutMembers(seed.name)
    with contextlib.ExitStack() as on_error:
        on_error.callback(members.close)
        index = members.find("index.json")
        if index is None:
            raise SeedError("it has no index.json: it is no OCI layout")
        if seed.checksum is not None:
            raw = _read_small(index, "index.json")
            on_read(len(raw))
            spool.compare(hashlib.sha256(raw).hexdigest(), seed.checksum, seed.name)
        on_error.pop_all()
    return _open(members, _fallback(seed.name))


def _open(members: Members, fallback_name: str) -> OpenSeed:
    with contextlib.ExitStack() as on_error:
        on_error.callback(members.close)
        images, bad = _settle(_read_entries(members), fallback_name)
        if not images and not bad:
            raise SeedError("there is no image in it")
        on_error.pop_all()
        return OpenSeed(images, bad, members)


def _fallback(path: str) -> str:
    """A repository's name from a file's: "/seeds/my-app.tar.gz" → "my-app"."""
    return _SUFFIX.sub("", os.path.basename(path.rstrip("/"))).lower()


# ---- what the archive says it has ------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    """An image as an archive lists it, with names as they stand there: `tags` are names without a repository.

    `image` is None where something is wrong with it: `why`. `listed` tells that manifest.json has it.
    """

    label: str
    names: tuple[str, ...]
    tags: tuple[str, ...]
    listed: bool
    image: SeedImage | None
    why: str = ""


def _read_entries(members: Members) -> list[_Entry]:
    index = _find_json(members, "index.json")
    manifest = _find_json(members, "manifest.json")
    if index is None and manifest is None:
        raise SeedError(_what_it_is(members.top_names()))
    entries = [] if index is None else list(_oci_entries(members, index))
    if manifest is not None:
        known = {entry.image.config_digest: entry.image for entry in reversed(entries) if entry.image is not None}
        entries += _docker_entries(members, manifest, known)
    return entries


def _what_it_is(names: frozenset[str]) -> str:
    if "repositories" in names:
        return "it was saved by a Docker before 1.10, which nobody reads any longer: save it again with a newer one"
    if {"bin", "etc"} <= names:
        return "it is a root filesystem and no image, as `docker export` writes them: use `docker save`"
    return "it has neither manifest.json nor index.json: it is no image archive"


def _settle(entries: list[_Entry], fallback_name: str) -> tuple[tuple[SeedImage, ...], tuple[tuple[str, str], ...]]:
    """Each image once, with all its names, and what is wrong with the others. Pure."""
    merged: dict[tuple[str, bytes | None], list[_Entry]] = {}
    for entry in entries:
        if entry.image is not None:
            merged.setdefault((entry.image.config_digest, entry.image.manifest), []).append(entry)
    images: list[SeedImage] = []
    bad: list[tuple[str, str]] = []
    taken: set[str] = set()
    for same in merged.values():
        names, why = _names(same, fallback_name, taken)
        taken.update(names)
        if why:
            bad.append((same[0].label, why))
        elif same[0].image is not None:
            images.append(same[0].image._replace(names=names))
    complete = any(entry.listed for entry in entries) and all(entry.image for entry in entries if entry.listed)
    for entry in entries:
        if entry.image is None and not _is_made_up_for(entry, entries, complete):
            bad.append((entry.label, entry.why))
    return tuple(images), tuple(bad)


def _is_made_up_for(bad: _Entry, entries: list[_Entry], complete: bool) -> bool:
    """Whether an image that cannot be used as one format has it is there as the other one has it."""
    if not bad.names:
        return complete and not bad.listed
    others = [entry for entry in entries if entry.image is not None and entry.listed != bad.listed]
    names = {canonical(name) for entry in others for name in entry.names}
    return not names.isdisjoint(map(canonical, bad.names))


def _names(entries: list[_Entry], fallback_name: str, taken: set[str]) -> tuple[tuple[str, ...], str]:
    """The canonical names of one image, and what is wrong with all of them."""
    given = dict.fromkeys(name for entry in entries for name in entry.names)
    if not given and fallback_name and not any(entry.listed for entry in entries):
        tags = dict.fromkeys(tag for entry in entries for tag in entry.tags) or {"latest": None}
        made = [canonical(f"{fallback_name}:{tag}") for tag in tags]
        if not any(map(is_name, made)):
            return (
                (),
                f"it has no name, and its file's does not make one: {shown(f'{fallback_name}:{next(iter(tags))}')}",
            )
        # Only one of several images without a name can have the file's.
        return tuple(name for name in made if is_name(name) and name not in taken), ""
    good = tuple(dict.fromkeys(name for name in map(canonical, given) if is_name(name)))
    if given and not good:
        return (), f"none of its names is one: {', '.join(map(shown, given))}"
    return good, ""


def _label(names: Iterable[str], number: int) -> str:
    shorter = [shown(familiar(canonical(name))) for name in names]
    return ", ".join(shorter) if shorter else f"image {number}"


# ---- an OCI layout ---------------------------------------------------------------------------------------------------


def _oci_entries(members: Members, index: object) -> Iterator[_Entry]:
    """The images of an index.json: those that have the same name are for several platforms, and one is taken."""
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Mapping[str, object]]] = {}
    for descriptor in _descriptors(index, "manifests", "index.json"):
        if not _is_attestation(descriptor):
            groups.setdefault(_names_of(descriptor), []).append(descriptor)
    number = 0
    for (names, tags), descriptors in groups.items():
        try:
            chosen = _choose(descriptors)
        except SeedError as error:
            yield _Entry(_label(names, number + 1), names, tags, False, None, str(error))
            chosen = []
        for descriptor in chosen:
            number += 1
            label = _label(names, number)
            if number > MAX_IMAGES:
                raise SeedError(f"it has more than {MAX_IMAGES} images")
            try:
                yield _Entry(label, names, tags, False, _oci_image(members, descriptor))
            except SeedError as error:
                if not error.lasting:
                    raise
                yield _Entry(label, names, tags, False, None, str(error))


def _names_of(descriptor: Mapping[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names with a repository, and those that are just a tag."""
    annotations = _mapping(descriptor.get("annotations"))
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
    if "vnd.docker.reference.type" in _mapping(descriptor.get("annotations")):
        return True
    platform = _mapping(descriptor.get("platform"))
    return platform.get("os") == "unknown" and platform.get("architecture") == "unknown"


def _oci_image(members: Members, descriptor: Mapping[str, object]) -> SeedImage:
    """Raises SeedError."""
    descriptor = _descend(members, descriptor)
    media_type = str(descriptor.get("mediaType"))
    raw = _read_blob(members, descriptor, "manifest")
    manifest = _mapping(_parse(raw, "its manifest"))
    config = _mapping(manifest.get("config"))
    if str(config.get("mediaType")) not in _CONFIG_TYPES:
        raise SeedError(f"it is no image but {shown(config.get('mediaType') or 'something unknown')}")
    config_raw = _read_blob(members, config, "configuration")
    descriptors = _descriptors(manifest, "layers", "its manifest")
    diff_ids = _check_config(config_raw, len(descriptors))
    layers = tuple(_oci_layer(members, *each) for each in zip(descriptors, diff_ids, strict=True))
    return SeedImage((), config_raw, _digest(config), layers, raw, media_type)


def _descend(members: Members, descriptor: Mapping[str, object]) -> Mapping[str, object]:
    """From an index to the manifest for this machine. Raises SeedError."""
    for _ in range(_MAX_DEPTH + 1):
        media_type = str(descriptor.get("mediaType"))
        if media_type in _MANIFEST_TYPES:
            return descriptor
        if media_type not in _INDEX_TYPES:
            raise SeedError(f"it is of an unknown kind: {shown(media_type)}")
        index = _parse(_read_blob(members, descriptor, "index"), "its index")
        children = [each for each in _descriptors(index, "manifests", "its index") if not _is_attestation(each)]
        descriptor = _choose(children)[0]
    raise SeedError(f"its indexes lie in more than {_MAX_DEPTH} others")


def _oci_layer(members: Members, descriptor: Mapping[str, object], diff_id: str) -> Layer:
    digest = _digest(descriptor)
    media_type = str(descriptor.get("mediaType"))
    what = f"layer {_short(digest)}"
    match = _LAYER_TYPE.fullmatch(media_type)
    if match is None:
        raise SeedError(
            f"{what} is encrypted"
            if "encrypted" in media_type
            else f"{what} is of an unknown kind: {shown(media_type)}"
        )
    content = _find_blob(members, digest)
    if content is None and (match[1] or match[2]):
        raise SeedError(f"{what} is elsewhere: it may not be distributed")
    if content is None:
        raise SeedError(f"{what} is not in it")
    _check_size(content, descriptor, what)
    return Layer(diff_id, digest, media_type, Verified(content, digest, what))


def _check_size(content: Content, descriptor: Mapping[str, object], what: str) -> None:
    size_bytes = descriptor.get("size")
    if not isinstance(size_bytes, int):
        raise SeedError(f"nothing says how long {what} is")
    if content.size_bytes < size_bytes:
        raise SeedError(f"{what} is cut short: {content.size_bytes} of {size_bytes} bytes are there")
    if content.size_bytes > size_bytes:
        raise SeedError(f"{what} has {content.size_bytes} bytes instead of {size_bytes}")


def _read_blob(members: Members, descriptor: Mapping[str, object], what: str) -> bytes:
    digest = _digest(descriptor)
    content = _find_blob(members, digest)
    if content is None:
        raise SeedError(f"its {what} {_short(digest)} is not in it")
    _check_size(content, descriptor, f"its {what}")
    return _read_small(Verified(content, digest, f"its {what}"), f"its {what}")


def _find_blob(members: Members, digest: str) -> Blob | None:
    return members.find(f"blobs/{digest.replace(':', '/')}")


# ---- a docker-archive ------------------------------------------------------------------------------------------------


def _docker_entries(members: Members, manifest: object, known: Mapping[str, SeedImage]) -> Iterator[_Entry]:
    """The images of a manifest.json. One in `known`, by its configuration's digest, is not read again."""
    if not isinstance(manifest, list):
        raise SeedError("its manifest.json is no list of images")
    if len(manifest) > MAX_IMAGES:
        raise SeedError(f"it has more than {MAX_IMAGES} images")
    for number, value in enumerate(manifest, 1):
        entry = _mapping(value)
        names: tuple[str, ...] = ()
        label = _label(names, number)
        try:
            names = tuple(dict.fromkeys(_strings(entry.get("RepoTags"), "RepoTags")))
            label = _label(names, number)
            yield _Entry(label, names, (), True, _docker_image(members, entry, known))
        except SeedError as error:
            if not error.lasting:
                raise
            yield _Entry(label, names, (), True, None, str(error))


def _docker_image(members: Members, entry: Mapping[str, object], known: Mapping[str, SeedImage]) -> SeedImage:
    """Raises SeedError."""
    path = entry.get("Config")
    if not isinstance(path, str):
        raise SeedError("its manifest.json names no configuration")
    config = _read_small(_need(members, path), "its configuration")
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    # "HEX.json" of `docker save`, "blobs/sha256/HEX" of newer ones, "sha256:HEX" of go-containerregistry.
    stated = path.rpartition("/")[2].removesuffix(".json").removeprefix("sha256:")
    if _DIGEST.fullmatch(f"sha256:{stated}") and f"sha256:{stated}" != digest:
        raise SeedError("its configuration is not what its digest says")
    if digest in known:
        return known[digest]
    paths = _strings(entry.get("Layers"), "Layers")
    diff_ids = _check_config(config, len(paths))
    layers = tuple(_docker_layer(members, *each) for each in zip(paths, diff_ids, strict=True))
    return SeedImage((), config, digest, layers)


def _docker_layer(members: Members, path: str, diff_id: str) -> Layer:
    content = _need(members, path)
    media_type = _sniff_layer(content, path)
    match = _BLOB_PATH.fullmatch(clean_path(path))
    if match is None:
        return Layer(diff_id, None, media_type, content)
    digest = f"sha256:{match[1]}"
    return Layer(diff_id, digest, media_type, Verified(content, digest, f"layer {_short(digest)}"))


def _sniff_layer(content: Blob, path: str) -> str:
    head = content.head(6)
    packing = spool.sniff(head)
    if head.startswith(_OTHER_PACKINGS):
        raise SeedError(f"layer {shown(path)} is compressed in a way that is not known here")
    return _PLAIN_LAYER_TYPE if packing is None else f"{_PLAIN_LAYER_TYPE}+{packing}"


def _need(members: Members, path: str) -> Blob:
    content = members.find(path)
    if content is None:
        raise SeedError(f"its manifest.json names {shown(path)}, which is not in it")
    return content


# ---- platforms -------------------------------------------------------------------------------------------------------


def machine_platform(machine: str) -> str:
    """The platform of a machine as uname names it: "x86_64" → "linux/amd64", "armv7l" → "linux/arm/v7"."""
    return f"linux/{_MACHINES.get(machine, machine)}"


def _here() -> str:
    return machine_platform(os.uname().machine)


def _platform(value: Mapping[str, object]) -> str | None:
    """ "linux/arm/v7" of a descriptor's platform or a configuration; None if it does not say."""
    system, architecture, variant = (value.get(key) for key in ("os", "architecture", "variant"))
    if not isinstance(system, str) or not isinstance(architecture, str) or not system or not architecture:
        return None
    architecture = _ARCHITECTURES.get(architecture, architecture)
    parts = [system, architecture, variant if isinstance(variant, str) and "/" not in architecture else ""]
    return "/".join(filter(None, parts))


def rank(platform: str, here: str) -> int:
    """How well an image's platform fits a machine's: 0 is not at all, more is better. Pure.

    An arm machine runs what is for its own variant or an older one; one without a variant is v7 (containerd,
    platforms/database.go). Of others a plain one is the best, and a variant may do.
    """
    theirs, ours = ([*name.split("/"), ""][:3] for name in (platform, here))
    if theirs[:2] != ours[:2]:
        return 0
    if ours[1] == "arm":
        version, limit = (int(re.sub(r"\D", "", variant)[:3] or 7) for variant in (theirs[2], ours[2]))
        return version if version <= limit else 0
    return 2 if theirs[2] in ("", "v1" if ours[1] == "amd64" else "v8") else 1


def _choose(descriptors: list[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Of several those that fit best, at least one, and then those that do not say what they are for. Raises
    SeedError."""
    if not descriptors:
        raise SeedError("its index is empty")
    here = _here()
    platforms = [_platform(_mapping(descriptor.get("platform"))) for descriptor in descriptors]
    ranks = [0 if platform is None else rank(platform, here) for platform in platforms]
    best = max(ranks)
    chosen = [each for each, fits in zip(descriptors, ranks, strict=True) if fits == best > 0]
    chosen += [each for each, platform in zip(descriptors, platforms, strict=True) if platform is None]
    if not chosen:
        raise _other_platform(dict.fromkeys(filter(None, platforms)), here)
    return chosen


def _other_platform(platforms: Iterable[str], here: str) -> SeedError:
    return SeedError(f"it is for {shown(', '.join(platforms))}, and this machine is {here}")


# ---- values ----------------------------------------------------------------------------------------------------------


def _check_config(raw: bytes, layers: int) -> list[str]:
    """The diff IDs of an image's configuration, for so many layers. Raises SeedError, also for another platform."""
    config = _mapping(_parse(raw, "its configuration"))
    platform, here = _platform(config), _here()
    if platform is not None and not rank(platform, here):
        raise _other_platform([platform], here)
    diff_ids = _strings(_mapping(config.get("rootfs")).get("diff_ids"), "diff_ids")
    if len(diff_ids) != layers:
        raise SeedError(f"it has {layers} layers, and its configuration has {len(diff_ids)}")
    for diff_id in diff_ids:
        if not _DIGEST.fullmatch(diff_id):
            raise SeedError(f"its configuration has a digest that is none: {shown(diff_id)}")
    return diff_ids


def _find_json(members: Members, name: str) -> object | None:
    content = members.find(name)
    return None if content is None else _parse(_read_small(content, name), f"its {name}")


def _read_small(content: Content, what: str) -> bytes:
    if content.size_bytes > MAX_JSON_BYTES:
        raise SeedError(f"{what} has {content.size_bytes} bytes, and more than {MAX_JSON_BYTES} are not read")
    return b"".join(content.chunks())


def _parse(raw: bytes, what: str) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise SeedError(f"{what} is no JSON") from None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _descriptors(value: object, key: str, where: str) -> list[Mapping[str, object]]:
    found = _mapping(value).get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise SeedError(f"{where} has no proper list of {key}")
    return found


def _strings(value: object, what: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise SeedError(f"its {what} are no list of texts")
    return value


def _digest(descriptor: Mapping[str, object]) -> str:
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise SeedError(f"a digest is none that is known here: {shown(digest)}")
    return digest


def _short(digest: str) -> str:
    return f"{digest[:19]}…"
