"""Image archives and layouts that are built member by member, opened, and looked into."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any

from cachedind.seeds import archive
from cachedind.seeds.model import Seed, SeedImage, SeedKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from cachedind.seeds.archive import OpenSeed

OCI = "application/vnd.oci.image."
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
PLAIN, GZIP = f"{OCI}layer.v1.tar", f"{OCI}layer.v1.tar+gzip"
NAME, REF = "io.containerd.image.name", "org.opencontainers.image.ref.name"
Files = dict[str, Any]


def sha(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def blob(raw: bytes) -> str:
    return f"blobs/sha256/{sha(raw)[7:]}"


def describe(raw: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha(raw), "size": len(raw), **more}


def tar(files: Mapping[str, bytes | tarfile.TarInfo], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive; what is a TarInfo goes in as it is, without data."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as made:
        for name, value in files.items():
            info = value if isinstance(value, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(value, bytes):
                info.size = len(value)
            made.addfile(info, io.BytesIO(value) if isinstance(value, bytes) else None)
    return out.getvalue()


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def layer_tar(text: str) -> bytes:
    return tar({"file": text.encode()})


def config_of(layers: Iterable[bytes], **more: Any) -> bytes:
    diff_ids = [sha(layer) for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    return dump({"architecture": "amd64", "os": "linux", "rootfs": rootfs, **more})


LAYERS = [layer_tar("one"), layer_tar("two " * 500)]
CONFIG = config_of(LAYERS)


def docker_archive(layers: list[bytes] = LAYERS, tags: object = ("app:1",), **more: object) -> Files:
    """As `docker save` before 25 wrote it."""
    config = config_of(layers, **more)
    paths = [f"{hashlib.sha256(layer).hexdigest()}/layer.tar" for layer in layers]
    files: Files = dict(zip(paths, layers, strict=True))
    entry: Files = {"Config": f"{sha(config)[7:]}.json", "RepoTags": tags, "Layers": paths}
    return {**files, entry["Config"]: config, "manifest.json": dump([entry]), "repositories": b"{}"}


def oci_image(
    layers: list[bytes] = LAYERS,
    media_type: str = f"{OCI}manifest.v1+json",
    layer_type: str = PLAIN,
    packed: list[bytes] | None = None,
    **more: object,
) -> tuple[Files, bytes]:
    """The blobs of an image, and its manifest."""
    config = config_of(layers, **more)
    blobs = layers if packed is None else packed
    manifest = dump(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": describe(config, f"{OCI}config.v1+json"),
            "layers": [describe(layer, layer_type) for layer in blobs],
        }
    )
    return {blob(raw): raw for raw in (*blobs, config, manifest)}, manifest


def index_of(*descriptors: object) -> bytes:
    return dump({"schemaVersion": 2, "mediaType": f"{OCI}index.v1+json", "manifests": descriptors})


def oci_archive(annotations: Mapping[str, str] | None = None, **more: Any) -> Files:
    files, manifest = oci_image(**more)
    descriptor = describe(manifest, f"{OCI}manifest.v1+json", annotations=dict(annotations or {}))
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index_of(descriptor), **files}


def new_docker_archive(tags: object = ("app:1",), annotations: Mapping[str, str] | None = None) -> Files:
    """As `docker save` writes it since 25: both formats."""
    files = oci_archive({NAME: "docker.io/library/app:1", REF: "1"} if annotations is None else annotations)
    entry = {"Config": blob(CONFIG), "RepoTags": tags, "Layers": [blob(layer) for layer in LAYERS]}
    return {**files, "manifest.json": dump([entry])}


def open_bytes(path: Path, raw: bytes, name: str = "my-app.tar", **more: Any) -> OpenSeed:
    """Whatever becomes of it, no descriptor stays open that is not the seed's, and nothing lies beside it."""
    source, spool = path / "source", path / "spool"
    source.mkdir(exist_ok=True)
    spool.mkdir(exist_ok=True)
    file = source / name
    file.write_bytes(raw)
    seed = Seed(SeedKind.ARCHIVE, str(file), "identity", len(raw), more.pop("checksum", None))
    on_read = more.pop("on_read", lambda _: None)
    before = fds()
    try:
        opened = archive.open_seed(seed, spool_directory=str(spool), room_bytes=1 << 30, on_read=on_read)
    except BaseException:
        assert fds() == before
        raise
    finally:
        assert (os.listdir(source), os.listdir(spool)) == ([name], [])
        file.unlink()
    assert fds() - before
    return opened


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def read(opened: OpenSeed) -> tuple[list[SeedImage], list[tuple[str, str]]]:
    """The images with their layers read, twice, and what is bad."""
    with opened:
        for image in opened.images:
            for layer in image.layers:
                raw = b"".join(layer.content.chunks())
                assert raw == b"".join(layer.content.chunks())
                assert len(raw) == layer.content.size_bytes
                assert layer.digest in (None, sha(raw))
        return list(opened.images), list(opened.bad)


def read_files(path: Path, files: Files, name: str = "my-app.tar") -> tuple[list[SeedImage], list[tuple[str, str]]]:
    return read(open_bytes(path, tar(files), name))


def the_image(path: Path, files: Files, name: str = "my-app.tar") -> SeedImage:
    images, bad = read_files(path, files, name)
    assert bad == []
    [image] = images
    return image


def the_fault(path: Path, files: Files) -> str:
    images, bad = read_files(path, files)
    assert images == []
    [(_, why)] = bad
    return why


def contents(image: SeedImage) -> list[bytes]:
    return [b"".join(layer.content.chunks()) for layer in image.layers]


def zstd_compress(raw: bytes) -> bytes:
    from backports import zstd

    return zstd.compress(raw)


def platforms(*names: str, lacking: str = "", outer: bool = True) -> Files:
    """An index of images for these platforms, within an index.json or as that."""
    files: Files = {}
    descriptors = []
    for name in names:
        system, architecture, variant = [*name.split("/"), ""][:3]
        platform: Files = {"os": system, "architecture": architecture, **({"variant": variant} if variant else {})}
        blobs, manifest = oci_image([layer_tar(name)], **platform)
        if name != lacking:
            files |= blobs
        descriptors.append(describe(manifest, f"{OCI}manifest.v1+json", platform=platform))
    attestation = describe(
        b"{}",
        f"{OCI}manifest.v1+json",
        platform={"os": "unknown", "architecture": "unknown"},
        annotations={"vnd.docker.reference.type": "attestation-manifest"},
    )
    inner = index_of(attestation, *descriptors)
    if not outer:
        return {**files, "index.json": inner}
    named = describe(inner, f"{OCI}index.v1+json", annotations={NAME: "docker.io/x/app:1"})
    return {**files, blob(inner): inner, "index.json": index_of(named)}
