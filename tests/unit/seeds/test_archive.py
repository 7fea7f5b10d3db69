"""What is in archives and layouts of every kind, good and bad: archives are built here, member by member."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachedind.seeds import archive, members
from cachedind.seeds.model import Seed, SeedError, SeedImage, SeedKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from cachedind.seeds.archive import OpenSeed

OCI = "application/vnd.oci.image."
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
PLAIN, GZIP = f"{OCI}layer.v1.tar", f"{OCI}layer.v1.tar+gzip"
NAME, REF = "io.containerd.image.name", "org.opencontainers.image.ref.name"

Files = dict[str, Any]


@pytest.fixture(autouse=True)
def amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_here", lambda: "linux/amd64")


# ---- building --------------------------------------------------------------------------------------------------------


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


# ---- opening ---------------------------------------------------------------------------------------------------------


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


# ---- good ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_an_archive_of_an_old_docker(tmp_path: Path, tar_format: int) -> None:
    with open_bytes(tmp_path, tar(docker_archive(), tar_format)) as opened:
        [image] = opened.images
        assert image.names == ("docker.io/library/app:1",)
        assert (image.config, image.config_digest) == (CONFIG, sha(CONFIG))
        assert (image.manifest, image.manifest_type) == (None, "")
        assert [(layer.diff_id, layer.digest, layer.media_type) for layer in image.layers] == [
            (sha(layer), None, PLAIN) for layer in LAYERS
        ]
        assert contents(image) == LAYERS
        assert opened.bad == ()


def test_an_archive_of_a_new_docker(tmp_path: Path) -> None:
    with open_bytes(tmp_path, tar(new_docker_archive(("app:1", "ghcr.io/x/app:2")))) as opened:
        [image] = opened.images
        assert image.names == ("docker.io/library/app:1", "ghcr.io/x/app:2")
        assert image.manifest is not None
        assert (
            sha(image.manifest) == json.loads(tar_member(new_docker_archive(), "index.json"))["manifests"][0]["digest"]
        )
        assert image.manifest_type == f"{OCI}manifest.v1+json"
        assert [(layer.digest, layer.media_type) for layer in image.layers] == [(sha(raw), PLAIN) for raw in LAYERS]
        assert contents(image) == LAYERS


def tar_member(files: Files, name: str) -> bytes:
    raw = files[name]
    assert isinstance(raw, bytes)
    return raw


def test_an_oci_archive_with_compressed_layers(tmp_path: Path) -> None:
    packed = [gzip.compress(layer) for layer in LAYERS]
    files = oci_archive({NAME: "ghcr.io/x/app:2"}, packed=packed, layer_type=GZIP)
    image = the_image(tmp_path, files)
    assert image.names == ("ghcr.io/x/app:2",)
    assert [(layer.diff_id, layer.digest, layer.media_type) for layer in image.layers] == [
        (sha(raw), sha(small), GZIP) for raw, small in zip(LAYERS, packed, strict=True)
    ]


def test_dockers_own_types_go_on_as_they_are(tmp_path: Path) -> None:
    own = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    files, manifest = oci_image(media_type=DOCKER_MANIFEST, layer_type=own)
    image = the_image(tmp_path, {**files, "index.json": index_of(describe(manifest, DOCKER_MANIFEST))})
    assert (image.manifest, image.manifest_type) == (manifest, DOCKER_MANIFEST)
    assert {layer.media_type for layer in image.layers} == {own}


def test_layers_of_a_docker_archive_are_what_they_begin_with(tmp_path: Path) -> None:
    from backports import zstd

    packed = [gzip.compress(LAYERS[0]), zstd.compress(LAYERS[1])]
    paths = ["a.tar.gz", blob(packed[1])]
    files = {**dict(zip(paths, packed, strict=True)), "c.json": CONFIG}
    files["manifest.json"] = dump(
        [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": [f"./{path}" for path in paths]}]
    )
    image = the_image(tmp_path, files)
    assert [(layer.digest, layer.media_type) for layer in image.layers] == [
        (None, GZIP),
        (sha(packed[1]), f"{OCI}layer.v1.tar+zstd"),
    ]
    files["a.tar.gz"] = lzma.compress(LAYERS[0])
    assert the_fault(tmp_path, files) == "layer ./a.tar.gz is compressed in a way that is not known here"


def zstd_compress(raw: bytes) -> bytes:
    from backports import zstd

    return zstd.compress(raw)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd_compress], ids=["gzip", "xz", "zstd"])
def test_compressed_archives_by_what_they_are_and_not_by_name(tmp_path: Path, pack: Any) -> None:
    packed = pack(tar(docker_archive()))
    told: list[int] = []
    checksum = hashlib.sha256(packed).hexdigest()
    with open_bytes(tmp_path, packed, checksum=checksum, on_read=told.append) as opened:
        assert contents(opened.images[0]) == LAYERS
    assert sum(told) == len(packed)
    with pytest.raises(SeedError, match="SHA-256"):
        open_bytes(tmp_path, packed, checksum="0" * 64)
    with pytest.raises(SeedError, match="no tar archive"):
        open_bytes(tmp_path, pack(b"text " * 500))
    with pytest.raises(SeedError, match="nothing in it"):
        open_bytes(tmp_path, pack(b""))


def test_a_plain_archive_is_read_whole_for_its_checksum_alone(tmp_path: Path) -> None:
    raw = tar(docker_archive())
    told: list[int] = []
    open_bytes(tmp_path, raw, on_read=told.append).close()
    assert told == []
    open_bytes(tmp_path, raw, checksum=hashlib.sha256(raw).hexdigest(), on_read=told.append).close()
    assert sum(told) == len(raw)
    with pytest.raises(SeedError, match=r"in my-app\.tar\.sha256") as caught:
        open_bytes(tmp_path, raw, checksum="1" * 64)
    assert caught.value.lasting


def test_several_images_that_share_a_layer(tmp_path: Path) -> None:
    first, second = docker_archive(), docker_archive([LAYERS[0]], tags=["other:1"])
    both = json.loads(first["manifest.json"]) + json.loads(second["manifest.json"])
    images, bad = read_files(tmp_path, {**first, **second, "manifest.json": dump(both)})
    assert [image.names[0] for image in images] == ["docker.io/library/app:1", "docker.io/library/other:1"]
    assert images[0].layers[0] == images[1].layers[0]._replace(content=images[0].layers[0].content)
    assert bad == []


def test_names_of_one_image_come_together(tmp_path: Path) -> None:
    files, manifest = oci_image()
    kind = f"{OCI}manifest.v1+json"
    named = [describe(manifest, kind, annotations={NAME: name}) for name in ("docker.io/x/a:1", "docker.io/x/b:1")]
    image = the_image(tmp_path, {**files, "index.json": index_of(*named)})
    assert image.names == ("docker.io/x/a:1", "docker.io/x/b:1")


def test_a_layer_that_occurs_twice_is_a_link_to_the_first_one(tmp_path: Path) -> None:
    layers = [LAYERS[0], LAYERS[1], LAYERS[0], LAYERS[1]]
    paths = ["a/layer.tar", "b/layer.tar", "c/layer.tar", "d/layer.tar"]
    files: Files = {
        "./a/layer.tar": LAYERS[0],
        "b/layer.tar": LAYERS[1],
        "c/layer.tar": link("../a/layer.tar"),
        "d/layer.tar": link("b/layer.tar", tarfile.LNKTYPE),
        "config.json": config_of(layers),
        "manifest.json": dump([{"Config": "config.json", "RepoTags": ["app:1"], "Layers": paths}]),
    }
    with open_bytes(tmp_path, tar(files)) as opened:
        assert contents(opened.images[0]) == layers


def test_an_image_without_layers(tmp_path: Path) -> None:
    files = docker_archive([], tags=["app:1"])
    assert the_image(tmp_path, files).layers == ()
    entry = {**json.loads(files["manifest.json"])[0], "Layers": None}
    assert the_image(tmp_path, {**files, "manifest.json": dump([entry])}).top_chain == ""


def test_a_later_member_of_the_same_name_counts(tmp_path: Path) -> None:
    first = tar({"manifest.json": b"[]"})
    raw = first[: len(first) // 10240 * 10240 - 10240 + 1024] + tar(docker_archive())
    images, _ = read(open_bytes(tmp_path, raw))
    assert len(images) == 1


def test_layers_beyond_8_gib_are_found_without_being_read(tmp_path: Path) -> None:
    size = 9 << 30
    info = tarfile.TarInfo("a/layer.tar")
    info.size = size
    path = tmp_path / "big.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(size, os.SEEK_CUR)
        entry = {"Config": "c.json", "RepoTags": ["big:1"], "Layers": ["a/layer.tar"]}
        file.write(tar({"c.json": config_of([b""]), "manifest.json": dump([entry])}))
    with archive.open_archive(os.open(path, os.O_RDONLY)) as opened:
        assert opened.images[0].layers[0].content.size_bytes == size


def test_the_same_bytes_are_the_same_twice(tmp_path: Path) -> None:
    raw = tar(new_docker_archive())

    def bare(opened: OpenSeed) -> list[object]:
        images, bad = read(opened)
        return [*[(image._replace(layers=()), [each[:3] for each in image.layers]) for image in images], bad]

    assert bare(open_bytes(tmp_path, raw)) == bare(open_bytes(tmp_path, raw))


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotations", "names"),
    [
        ({NAME: "ghcr.io/x/app:2", REF: "2"}, ("ghcr.io/x/app:2",)),
        ({NAME: "ghcr.io/x/app:2", REF: "docker.io/y/app:3"}, ("ghcr.io/x/app:2", "docker.io/y/app:3")),
        ({REF: "redis:7"}, ("docker.io/library/redis:7",)),
        ({REF: "7-alpine"}, ("docker.io/library/my-app:7-alpine",)),
        ({}, ("docker.io/library/my-app:latest",)),
        ({NAME: f"docker.io/library/redis@{sha(b'')}"}, ("docker.io/library/my-app:latest",)),
        ({NAME: "ghcr.io/x/app:2", REF: "No Such:Name"}, ("ghcr.io/x/app:2",)),
    ],
)
def test_names_in_an_oci_archive(tmp_path: Path, annotations: dict[str, str], names: tuple[str, ...]) -> None:
    assert the_image(tmp_path, oci_archive(annotations)).names == names


@pytest.mark.parametrize(
    "name", ["My-App.tar", "my-app.TAR.GZ", "my-app.tgz", "my-app.oci", "my-app.tar.zst", "my-app"]
)
def test_names_from_a_file(tmp_path: Path, name: str) -> None:
    assert the_image(tmp_path, oci_archive(), name).names == ("docker.io/library/my-app:latest",)


def test_a_files_name_that_is_none_for_an_image(tmp_path: Path) -> None:
    images, [(label, why)] = read_files(tmp_path, oci_archive(), "Über.tar")
    assert (images, label) == ([], "image 1")
    assert why == "it has no name, and its file's does not make one: über:latest"


def test_only_one_image_gets_the_files_name(tmp_path: Path) -> None:
    first, one = oci_image()
    second, two = oci_image([LAYERS[1]])
    kind = f"{OCI}manifest.v1+json"
    images, bad = read_files(
        tmp_path, {**first, **second, "index.json": index_of(describe(one, kind), describe(two, kind))}
    )
    assert [image.names for image in images] == [("docker.io/library/my-app:latest",), ()]
    assert bad == []


@pytest.mark.parametrize("files", [docker_archive(tags=None), new_docker_archive(None, {})], ids=["old", "new"])
def test_an_image_of_a_docker_archive_without_names_has_none(tmp_path: Path, files: Files) -> None:
    assert the_image(tmp_path, files).names == ()


def test_an_archive_of_another_daemon_has_no_file_to_be_named_for(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.write_bytes(tar(oci_archive({REF: "1"})))
    with archive.open_archive(os.open(path, os.O_RDONLY)) as opened:
        assert opened.images[0].names == ()


def test_names_that_are_none(tmp_path: Path) -> None:
    images, bad = read_files(tmp_path, docker_archive(tags=["UPPER/case:1"]))
    assert images == []
    assert bad == [("UPPER/case:1", "none of its names is one: UPPER/case:1")]
    assert the_image(tmp_path, docker_archive(tags=["UPPER/case:1", "app:2"])).names == ("docker.io/library/app:2",)


# ---- platforms -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("outer", [True, False])
def test_of_several_platforms_this_machines_is_taken(tmp_path: Path, outer: bool) -> None:
    files = platforms("linux/arm64/v8", "linux/amd64", "windows/amd64", outer=outer)
    image = the_image(tmp_path, files)
    assert json.loads(image.config)["architecture"] == "amd64"
    assert image.names == ("docker.io/x/app:1" if outer else "docker.io/library/my-app:latest",)


def test_blobs_of_other_platforms_need_not_be_there(tmp_path: Path) -> None:
    assert the_image(tmp_path, platforms("linux/arm64", "linux/amd64", lacking="linux/arm64"))
    why = the_fault(tmp_path, platforms("linux/arm64", "linux/amd64", lacking="linux/amd64"))
    assert why.startswith("its manifest sha256:")
    assert why.endswith(" is not in it")


@pytest.mark.parametrize("outer", [True, False])
def test_none_for_this_machine(tmp_path: Path, outer: bool) -> None:
    why = the_fault(tmp_path, platforms("linux/arm64", "linux/arm/v7", outer=outer))
    assert why == "it is for linux/arm64, linux/arm/v7, and this machine is linux/amd64"


@pytest.mark.parametrize("build", [docker_archive, oci_archive])
def test_a_single_image_for_another_machine(tmp_path: Path, build: Any) -> None:
    why = the_fault(tmp_path, build(architecture="arm64", os="linux"))
    assert why == "it is for linux/arm64, and this machine is linux/amd64"


@pytest.mark.parametrize(
    ("platform", "here", "fits"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/amd64/v3", "linux/amd64", True),
        ("windows/amd64", "linux/amd64", False),
        ("linux/386", "linux/amd64", False),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm/v6", "linux/arm/v7", True),
        ("linux/arm", "linux/arm/v7", True),
        ("linux/arm", "linux/arm/v6", False),
        ("linux/arm/v8", "linux/arm/v7", False),
        ("linux/arm/v7", "linux/arm64", False),
        ("linux/s390x", "linux/s390x", True),
    ],
)
def test_what_runs_where(platform: str, here: str, fits: bool) -> None:
    assert bool(archive.rank(platform, here)) is fits


def test_the_best_variant() -> None:
    def best(here: str, *names: str) -> str:
        return max(names, key=lambda name: archive.rank(name, here))

    assert best("linux/arm/v7", "linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm/v8") == "linux/arm/v7"
    assert best("linux/amd64", "linux/amd64/v4", "linux/amd64", "linux/amd64/v2") == "linux/amd64"
    assert best("linux/arm64", "linux/arm64/v9", "linux/arm64/v8") == "linux/arm64/v8"


@pytest.mark.parametrize(
    ("machine", "platform"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7"), ("riscv64", "linux/riscv64")],
)
def test_machines(machine: str, platform: str) -> None:
    assert archive.machine_platform(machine) == platform


def test_indexes_in_indexes_in_indexes(tmp_path: Path) -> None:
    files = platforms("linux/amd64")
    for depth in range(2, 5):
        inner = files["index.json"]
        files |= {blob(inner): inner, "index.json": index_of(describe(inner, f"{OCI}index.v1+json"))}
        if depth <= 3:
            assert the_image(tmp_path, files)
    assert the_fault(tmp_path, files) == "its indexes lie in more than 3 others"


# ---- both formats in one ---------------------------------------------------------------------------------------------


def test_without_its_blobs_the_index_gives_way_to_the_old_format(tmp_path: Path) -> None:
    files = new_docker_archive()
    digest = json.loads(files["index.json"])["manifests"][0]["digest"]
    del files[f"blobs/sha256/{digest[7:]}"]
    image = the_image(tmp_path, files)
    assert image.manifest is None
    assert image.names == ("docker.io/library/app:1",)
    assert [layer.digest for layer in image.layers] == [sha(layer) for layer in LAYERS]


def test_a_platform_that_the_old_format_left_out(tmp_path: Path) -> None:
    files = platforms("linux/arm64", "linux/amd64")
    other = docker_archive(tags=["x/app:1"], architecture="arm64")
    assert json.loads(the_image(tmp_path, {**other, **files}).config)["architecture"] == "amd64"


def test_one_bad_image_leaves_the_others(tmp_path: Path) -> None:
    good, bad = docker_archive(), docker_archive([LAYERS[1]], tags=["broken:1"], architecture="s390x")
    both = json.loads(bad["manifest.json"]) + json.loads(good["manifest.json"])
    images, faults = read_files(tmp_path, {**bad, **good, "manifest.json": dump(both)})
    assert [image.names for image in images] == [("docker.io/library/app:1",)]
    assert faults == [("broken:1", "it is for linux/s390x, and this machine is linux/amd64")]


# ---- bad images ------------------------------------------------------------------------------------------------------


def test_a_member_that_is_not_there(tmp_path: Path) -> None:
    files = docker_archive()
    gone = next(name for name in files if name.endswith("layer.tar"))
    del files[gone]
    assert the_fault(tmp_path, files) == f"its manifest.json names {gone}, which is not in it"


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "x/../../y", "x/../config.json"])
@pytest.mark.parametrize("key", ["Config", "Layers"])
def test_paths_that_lead_out(tmp_path: Path, path: str, key: str) -> None:
    files = docker_archive()
    entry = json.loads(files["manifest.json"])[0]
    entry[key] = path if key == "Config" else [path, path]
    assert the_fault(tmp_path, {**files, "manifest.json": dump([entry])}) == f"it names a path outside of it: {path}"


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd"])
def test_members_that_lead_out(tmp_path: Path, path: str) -> None:
    with pytest.raises(SeedError, match=f"it names a path outside of it: {path}") as caught:
        open_bytes(tmp_path, tar({**docker_archive(), path: b"root"}))
    assert caught.value.lasting


@pytest.mark.parametrize(
    ("links", "why"),
    [
        ({"a": link("b"), "b": link("a")}, "its links lead in a circle: a"),
        ({"a": link("a")}, "its links lead in a circle: a"),
        ({"a": link("a", tarfile.LNKTYPE)}, "its links lead in a circle: a"),
        ({"a": link("../../../etc/passwd")}, "it names a path outside of it: ../../../etc/passwd"),
        ({"a": link("/etc/passwd")}, "it names a path outside of it: /etc/passwd"),
        ({"a": link("nowhere")}, "its manifest.json names a, which is not in it"),
        ({"a": link("", tarfile.FIFOTYPE)}, "its manifest.json names a, which is not in it"),
    ],
)
def test_links_that_lead_nowhere(tmp_path: Path, links: Files, why: str) -> None:
    entry = {"Config": "a", "RepoTags": ["app:1"], "Layers": []}
    assert the_fault(tmp_path, {**copy.deepcopy(links), "manifest.json": dump([entry])}) == why


def test_configurations_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    files = docker_archive()
    path = json.loads(files["manifest.json"])[0]["Config"]
    assert the_fault(tmp_path, {**files, path: CONFIG + b" "}) == "its configuration is not what its digest says"
    for config, why in (
        (b"{", "its configuration is no JSON"),
        (b"[" * 100_000, "its configuration is no JSON"),
        (b"[]", "it has 2 layers, and its configuration has 0"),
        (config_of(LAYERS[:1]), "it has 2 layers, and its configuration has 1"),
        (
            dump({"rootfs": {"diff_ids": ["sha256:x", "md5:y"]}}),
            "its configuration has a digest that is none: sha256:x",
        ),
        (dump({"rootfs": {"diff_ids": "sha256:x"}}), "its diff_ids are no list of texts"),
    ):
        entry = {**json.loads(files["manifest.json"])[0], "Config": "c.json"}
        assert the_fault(tmp_path, {**files, "c.json": config, "manifest.json": dump([entry])}) == why


def test_blobs_of_an_index_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    files = oci_archive()
    for what, name in (
        ("manifest", json.loads(files["index.json"])["manifests"][0]["digest"]),
        ("configuration", sha(CONFIG)),
    ):
        path = f"blobs/sha256/{name[7:]}"
        changed = files[path].replace(b"a", b"b", 1)
        assert the_fault(tmp_path, {**files, path: changed}) == f"its {what} is not what its digest says"
        assert the_fault(tmp_path, {**files, path: b""}).startswith(f"its {what} is cut short: 0 of")
        assert the_fault(tmp_path, {**files, path: files[path] + b" "}).startswith(f"its {what} has ")


def test_layers_of_an_index_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    files = oci_archive()
    path = blob(LAYERS[0])
    short = f"layer {sha(LAYERS[0])[:19]}…"
    size = len(LAYERS[0])
    assert (
        the_fault(tmp_path, {**files, path: LAYERS[0][:-1]})
        == f"{short} is cut short: {size - 1} of {size} bytes are there"
    )
    assert the_fault(tmp_path, {key: value for key, value in files.items() if key != path}) == f"{short} is not in it"


@pytest.mark.parametrize(
    ("layer_type", "why"),
    [
        (f"{OCI}layer.v1.tar+gzip+encrypted", "is encrypted"),
        (f"{OCI}layer.v1.tar+lz4", "is of an unknown kind: application/vnd.oci.image.layer.v1.tar+lz4"),
        ("application/vnd.in-toto+json", "is of an unknown kind: application/vnd.in-toto+json"),
    ],
)
def test_kinds_of_layers_that_nobody_can_unpack(tmp_path: Path, layer_type: str, why: str) -> None:
    assert the_fault(tmp_path, oci_archive(layer_type=layer_type)) == f"layer {sha(LAYERS[0])[:19]}… {why}"


@pytest.mark.parametrize(
    "layer_type",
    [f"{OCI}layer.nondistributable.v1.tar+gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"],
)
def test_layers_that_may_not_be_distributed(tmp_path: Path, layer_type: str) -> None:
    files = oci_archive(layer_type=layer_type)
    assert the_image(tmp_path, files).layers[0].media_type == layer_type
    del files[blob(LAYERS[0])]
    assert the_fault(tmp_path, files).endswith("is elsewhere: it may not be distributed")


def test_what_is_no_image(tmp_path: Path) -> None:
    config = dump({})
    manifest = dump({"config": describe(config, "application/vnd.cncf.helm.config.v1+json"), "layers": []})
    kind = f"{OCI}manifest.v1+json"
    files = {blob(config): config, blob(manifest): manifest, "index.json": index_of(describe(manifest, kind))}
    assert the_fault(tmp_path, files) == "it is no image but application/vnd.cncf.helm.config.v1+json"
    for descriptor, why in (
        (describe(manifest, "text/plain"), "it is of an unknown kind: text/plain"),
        (describe(manifest, kind, digest="sha512:" + "0" * 128), "a digest is none that is known here: sha512:"),
        (
            describe(manifest, kind, digest="sha256:../../../etc/passwd"),
            "a digest is none that is known here: sha256:..",
        ),
        (describe(manifest, kind, size="1"), "nothing says how long its manifest is"),
    ):
        assert the_fault(tmp_path, {**files, "index.json": index_of({**descriptor})}).startswith(why)


def test_what_a_seed_says_goes_into_one_line(tmp_path: Path) -> None:
    entry = {"Config": "a\n\x1b[31mb" + "c" * 500, "RepoTags": ["evil\nname\ud800:1"], "Layers": []}
    _, [(label, why)] = read_files(tmp_path, {"manifest.json": dump([entry])})
    assert label.isprintable()
    assert why.isprintable()
    assert len(why) < 250


# ---- bad archives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "it is empty"),
        (bytes(10240), "it is no tar archive: it begins with zeros"),
        (b"<html>" * 500, "it is no tar archive"),
        (b"short", "it is no tar archive"),
        (tar({"a": b"x"})[:1024], "it is cut short: a tar archive has an end"),
        (tar({"a": b"x" * 5000})[:4000], "it ends early: 4000 of 5512 bytes are there"),
        (tar({"a": b"x"})[:1024] + b"garbage" * 100 + bytes(1024), "it is damaged at byte 1024"),
        (tar({"readme": b"x"}), "it has neither manifest.json nor index.json: it is no image archive"),
        (tar({"repositories": b"{}", "x/layer.tar": b""}), "it was saved by a Docker before 1.10"),
        (tar({"bin": link("usr/bin"), "etc/passwd": b""}), "it is a root filesystem and no image, as `docker export`"),
        (tar({"manifest.json": b"[]"}), "there is no image in it"),
        (tar({"index.json": b"{}"}), "there is no image in it"),
        (tar({"manifest.json": b"{}"}), "its manifest.json is no list of images"),
        (tar({"manifest.json": b"{"}), "its manifest.json is no JSON"),
        (tar({"index.json": b'{"manifests": [1]}'}), "index.json has no proper list of manifests"),
        (tar({"index.json": b" " * (archive.MAX_JSON_BYTES + 1)}), "index.json has 8388609 bytes"),
        (tar({"manifest.json": dump([{}] * 1001)}), "it has more than 1000 images"),
    ],
)
def test_archives_that_are_none(tmp_path: Path, raw: bytes, why: str) -> None:
    with pytest.raises(SeedError) as caught:
        open_bytes(tmp_path, raw)
    assert str(caught.value).startswith(why)
    assert caught.value.lasting


def test_a_sparse_member(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": "9",
    }
    with pytest.raises(SeedError, match="it has a sparse file: a"):
        open_bytes(tmp_path, tar({"a": info}))


def test_an_endless_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5 << 30
    with pytest.raises(SeedError, match="it has a header of 5368709120 bytes"):
        open_bytes(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def test_headers_of_headers_of_headers(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    with pytest.raises(SeedError, match="it is damaged at byte 0"):
        open_bytes(tmp_path, info.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(4096))


def test_more_files_than_an_image_archive_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = docker_archive()
    monkeypatch.setattr(members, "MAX_MEMBERS", len(files))
    assert the_image(tmp_path, files)
    monkeypatch.setattr(members, "MAX_MEMBERS", len(files) - 1)
    with pytest.raises(SeedError, match="files: it is no image archive"):
        open_bytes(tmp_path, tar(files))


@pytest.mark.parametrize("raw", [b"", tar({"a": b""})])
def test_a_descriptor_that_was_taken_over_is_closed(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "spool").write_bytes(raw)
    fd = os.open(tmp_path / "spool", os.O_RDONLY)
    with pytest.raises(SeedError):
        archive.open_archive(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# ---- reading layers --------------------------------------------------------------------------------------------------


def test_the_last_piece_of_a_wrong_layer_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "CHUNK_BYTES", 1000)
    files = oci_archive()
    wrong = LAYERS[1][:-1] + b"x"
    with open_bytes(tmp_path, tar({**files, blob(LAYERS[1]): wrong})) as opened:
        layer = opened.images[0].layers[1]
        got = b""
        chunks = layer.content.chunks()
        for _ in range((len(wrong) - 1) // 1000):
            got += next(chunks)
        with pytest.raises(SeedError, match=f"layer {sha(LAYERS[1])[:19]}… is not what its digest says") as caught:
            next(chunks)
        assert caught.value.lasting
        assert got == wrong[: (len(wrong) - 1) // 1000 * 1000]
        assert b"".join(opened.images[0].layers[0].content.chunks()) == LAYERS[0]


def test_a_wrong_layer_of_the_old_format_whose_path_is_its_digest(tmp_path: Path) -> None:
    files = {**new_docker_archive(), blob(LAYERS[0]): LAYERS[0][:-1] + b"x"}
    del files["index.json"]
    with open_bytes(tmp_path, tar(files)) as opened, pytest.raises(SeedError, match="not what its digest says"):
        contents(opened.images[0])


@pytest.mark.parametrize("build", [docker_archive, oci_archive])
def test_a_disk_that_fails_is_no_fault_of_an_image(tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: members.File, offset: int, size_bytes: int) -> Iterator[bytes]:
        if offset > where:
            raise SeedError("it cannot be read (Input/output error)", lasting=False)
        yield os.pread(file.fd, size_bytes, offset)

    # The configuration lies behind the first layer, and what names it at the beginning.
    files = build()
    first = "manifest.json" if "manifest.json" in files else "index.json"
    files = {first: files.pop(first), **files}
    where = 512
    monkeypatch.setattr(members, "_read", fail)
    with pytest.raises(SeedError, match="Input/output error") as caught:
        open_bytes(tmp_path, tar(files))
    assert not caught.value.lasting


@pytest.mark.parametrize("build", [docker_archive, oci_archive])
def test_a_file_that_becomes_shorter(tmp_path: Path, build: Any) -> None:
    raw = tar(build())
    path = tmp_path / "a.tar"
    path.write_bytes(raw)
    with archive.open_archive(os.open(path, os.O_RDWR)) as opened:
        os.truncate(path, 1024)
        with pytest.raises(SeedError, match="it has become shorter while it was read") as caught:
            [list(layer.content.chunks()) for layer in opened.images[0].layers]
    assert not caught.value.lasting


def test_after_the_end_nothing_is_read_from_another_file(tmp_path: Path) -> None:
    opened = open_bytes(tmp_path, tar(docker_archive()))
    opened.close()
    opened.close()
    with (tmp_path / "other").open("wb+") as other:
        other.write(b"x" * 100_000)
        with pytest.raises(SeedError, match="cannot be read"):
            list(opened.images[0].layers[0].content.chunks())


# ---- layouts ---------------------------------------------------------------------------------------------------------


def lay_out(path: Path, files: Files) -> Seed:
    for name, raw in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(raw)
    return Seed(SeedKind.LAYOUT, str(path), "identity", 0)


def open_layout(seed: Seed, told: list[int] | None = None) -> OpenSeed:
    on_read = (told if told is not None else []).append
    before = fds()
    try:
        opened = archive.open_seed(seed, spool_directory="/nowhere", room_bytes=0, on_read=on_read)
    except BaseException:
        assert fds() == before
        raise
    assert len(fds() - before) == 1
    return opened


def test_a_layout(tmp_path: Path) -> None:
    seed = lay_out(tmp_path / "my-app", oci_archive())
    with open_layout(seed) as opened:
        [image] = opened.images
        assert image.names == ("docker.io/library/my-app:latest",)
        assert contents(image) == LAYERS
        assert contents(image) == LAYERS
        assert opened.bad == ()


def test_the_checksum_of_a_layout_is_that_of_its_index(tmp_path: Path) -> None:
    files = oci_archive()
    seed = lay_out(tmp_path / "my-app", files)
    told: list[int] = []
    open_layout(seed._replace(checksum=hashlib.sha256(files["index.json"]).hexdigest()), told).close()
    assert sum(told) == len(files["index.json"])
    with pytest.raises(SeedError, match=r"SHA-256 is .* in my-app\.sha256"):
        open_layout(seed._replace(checksum="0" * 64))


def test_layouts_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SeedError, match=r"it has no index\.json: it is no OCI layout"):
        open_layout(lay_out(tmp_path / "a", {"x": b""}))
    with pytest.raises(SeedError, match="not there any longer") as caught:
        open_layout(Seed(SeedKind.LAYOUT, str(tmp_path / "gone"), "", 0))
    assert not caught.value.lasting
    with pytest.raises(SeedError, match="it is no directory"):
        open_layout(Seed(SeedKind.LAYOUT, str(tmp_path / "a" / "x"), "", 0))


@pytest.mark.parametrize("what", ["file", "directory"])
def test_symbolic_links_in_a_layout_are_not_followed(tmp_path: Path, what: str) -> None:
    path = tmp_path / "my-app"
    seed = lay_out(path, oci_archive())
    moved = path / (blob(LAYERS[0]) if what == "file" else "blobs/sha256")
    moved.rename(tmp_path / "outside")
    moved.symlink_to(tmp_path / "outside")
    with open_layout(seed) as opened:
        assert opened.images == ()
        assert "symbolic link" in opened.bad[0][1]


def test_what_is_no_file_in_a_layout(tmp_path: Path) -> None:
    path = tmp_path / "my-app"
    seed = lay_out(path, oci_archive())
    (path / blob(LAYERS[0])).unlink()
    os.mkfifo(path / blob(LAYERS[0]))
    with open_layout(seed) as opened:
        assert opened.bad[0][1].endswith("is no regular file")


def test_a_layout_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "my-app"
    with open_layout(lay_out(path, oci_archive())) as opened:
        first, second = (layer.content for layer in opened.images[0].layers)
        os.truncate(path / blob(LAYERS[0]), 10)
        with pytest.raises(SeedError, match="become shorter") as caught:
            list(first.chunks())
        assert not caught.value.lasting
        (path / blob(LAYERS[1])).unlink()
        with pytest.raises(SeedError, match="not there any longer") as caught:
            list(second.chunks())
        assert not caught.value.lasting


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 300, ".", "", "index.json/x"])
def test_paths_that_no_file_has(tmp_path: Path, path: str) -> None:
    files = {**oci_archive(), "manifest.json": dump([{"Config": path, "RepoTags": ["app:1"], "Layers": []}])}
    with open_layout(lay_out(tmp_path / "my-app", files)) as opened:
        assert [label for label, _ in opened.bad] == ["app:1"]


# ---- whatever there may be -------------------------------------------------------------------------------------------


GOOD = {
    "docker": tar(docker_archive(), tarfile.GNU_FORMAT),
    "new docker": tar(new_docker_archive()),
    "platforms": tar({**platforms("linux/amd64", "linux/arm64"), "link": link("index.json")}),
    "gzip": gzip.compress(tar(docker_archive())),
    "xz": lzma.compress(tar(docker_archive())),
    "zstd": zstd_compress(tar(docker_archive())),
}


def survive(path: Path, raw: bytes) -> None:
    """Nothing but SeedError comes of it, and no layer whose digest is known is wrong."""
    why = ""
    try:
        opened = open_bytes(path, raw)
    except SeedError as error:
        why = str(error)
    if why:
        assert why.isprintable()
        return
    with opened:
        for name, why in opened.bad:
            assert (name + why).isprintable()
        for image in opened.images:
            for layer in image.layers:
                try:
                    content = b"".join(layer.content.chunks())
                except SeedError:
                    continue
                assert layer.digest in (None, sha(content))


FUZZ = settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", GOOD)
@FUZZ
@given(data=st.data())
def test_flipped_bytes(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    raw = bytearray(GOOD[kind])
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=8)):
        raw[place] = data.draw(st.integers(0, 255))
    survive(tmp_path, bytes(raw))


@pytest.mark.parametrize("kind", GOOD)
@FUZZ
@given(data=st.data())
def test_cut_anywhere(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    raw = GOOD[kind]
    survive(tmp_path, raw[: data.draw(st.integers(0, len(raw)))])


@pytest.mark.parametrize("kind", ["docker", "new docker", "platforms"])
def test_cut_at_every_block(tmp_path: Path, kind: str) -> None:
    """All of the images, or an error: a cut archive never passes for one with fewer."""
    raw = GOOD[kind]
    end = len(raw.rstrip(b"\0"))
    for cut in range(0, end, 512):
        with pytest.raises(SeedError):
            open_bytes(tmp_path, raw[:cut]).close()


KEYS = ["Config", "Layers", "RepoTags", "manifests", "digest", "mediaType", "size", "config", "layers", "platform"]
KEYS += ["annotations", "os", "architecture", "variant", "rootfs", "diff_ids"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([sha(CONFIG), PLAIN, "c.json"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@FUZZ
@given(index=JSON, manifest=JSON, config=JSON)
def test_any_json(tmp_path: Path, index: object, manifest: object, config: object) -> None:
    raw = dump(config)
    entries = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": []}, manifest]
    inner = dump({"config": config, "layers": [index], "manifests": [manifest]})
    descriptors = [index, describe(inner, f"{OCI}index.v1+json"), describe(inner, f"{OCI}manifest.v1+json")]
    files = {"c.json": raw, blob(raw): raw, blob(inner): inner}
    survive(tmp_path, tar({**files, "index.json": index_of(*descriptors), "manifest.json": dump(entries)}))
    survive(tmp_path, tar({**files, "index.json": dump(index)}))
    survive(tmp_path, tar({**files, "manifest.json": dump(manifest)}))
