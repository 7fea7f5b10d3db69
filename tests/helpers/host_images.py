"""Images of another daemon: as it lists, shows and sends them, and as a store here holds the same."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from typing import Any, NamedTuple

from hypothesis import strategies as st

from cachedind.engine.images import Record, chain_ids
from cachedind.seeds.model import Seed, SeedKind

ID, OTHER_ID = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
LIST = "/images/json"
INSPECT = f"/images/{ID}/json"


# ---- its list --------------------------------------------------------------------------------------------------------


def listed(**more: object) -> dict[str, object]:
    """An image as moby 28 lists it."""
    return {
        "Containers": -1,
        "Created": 1714557600,
        "Id": ID,
        "Labels": None,
        "ParentId": "",
        "RepoDigests": [f"redis@{OTHER_ID}"],
        "RepoTags": ["redis:7", "registry.example:5000/team/tool:1.2"],
        "SharedSize": -1,
        "Size": 1234,
        **more,
    }


def seed(tag: str, full: str, image_id: str = ID, size_bytes: int = 9) -> Seed:
    """What an image of that daemon is for us, by one of its names and by the same in full."""
    return Seed(SeedKind.HOST, tag, f"host:{image_id} {full}", size_bytes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([ID, "redis:7"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["Id", "RepoTags", "RepoDigests", "Size", "Os"]), inner, max_size=4)
    ),
    max_leaves=12,
)


# ---- an image, and its configuration ---------------------------------------------------------------------------------


Values = Mapping[str, Any]
FULL_RUN: Values = {
    "Env": ["PATH=/usr/bin:/bin", "A=1"],
    "Cmd": ["redis-server"],
    "Entrypoint": ["docker-entrypoint.sh"],
    "WorkingDir": "/data",
    "User": "redis",
    "Labels": {"org.example.a": "", "org.example.b": "2"},
    "StopSignal": "SIGINT",
    "OnBuild": ["RUN x"],
    "Shell": ["/bin/bash", "-c"],
    "ExposedPorts": {"6379/tcp": {}, "80/tcp": {}},
    "Volumes": {"/data": {}},
    "Healthcheck": {"Test": ["CMD", "ping"], "Interval": 30_000_000_000, "Retries": 3},
}
EMPTY: Values = {
    **{field: [] for field in ("Env", "Cmd", "Entrypoint", "OnBuild", "Shell")},
    **dict.fromkeys(("WorkingDir", "User", "StopSignal"), ""),
    **{field: {} for field in ("Labels", "ExposedPorts", "Volumes")},
    "Healthcheck": {"Test": [], "Interval": 0, "Retries": 0},
}
OF_CONTAINERS: Values = {
    "Hostname": "",
    "Domainname": "",
    "Image": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
}
STYLES = ("left out", "null", "empty")
LAYERS = [f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"]
MOMENT = "2024-05-01T10:00:00.123456789Z"


def spell(run: Values, style: str) -> dict[str, Any]:
    """What containers get from an image as one engine or another writes it down."""
    if style == "left out":
        return dict(run)
    empty = dict.fromkeys(EMPTY) if style == "null" else EMPTY
    return {**OF_CONTAINERS, **empty, **run}


def configuration_of(run: Values, style: str = "left out", **more: Any) -> dict[str, Any]:
    """OCI image specification, config.md."""
    found = {
        "architecture": "arm64",
        "variant": "v8",
        "os": "linux",
        "created": MOMENT,
        "author": "",
        "config": spell(run, style),
        "rootfs": {"type": "layers", "diff_ids": LAYERS},
        "history": [{"created": MOMENT, "created_by": "RUN x"}],
        **more,
    }
    return {field: value for field, value in found.items() if value is not ...}


def inspection_of(run: Values, style: str = "left out", **more: Any) -> dict[str, Any]:
    """As GET /images/…/json shows the same image."""
    found = {
        "Id": OTHER_ID,
        "RepoTags": ["redis:7"],
        "RepoDigests": [f"redis@{OTHER_ID}"],
        "Parent": "",
        "Comment": "buildkit.dockerfile.v0",
        "Created": MOMENT,
        "DockerVersion": "",
        "Config": spell(run, style),
        "Architecture": "arm64",
        "Variant": "v8",
        "Os": "linux",
        "Size": 100,
        "GraphDriver": {"Data": None, "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": LAYERS},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
        **more,
    }
    return {field: value for field, value in found.items() if value is not ...}


# ---- an image of a store ---------------------------------------------------------------------------------------------


REPO_DIGEST = f"docker.io/library/redis@{ID}"


class Local(NamedTuple):
    """The image of FULL_RUN, with IDs that the other daemon does not know."""

    names: tuple[str, ...] = ("docker.io/library/redis:7",)
    target: str = f"sha256:{'8' * 64}"
    config_digest: str = f"sha256:{'9' * 64}"
    config: bytes = json.dumps(configuration_of(FULL_RUN)).encode()
    repo_digests: tuple[str, ...] = ()


REDIS = seed("redis:7", "docker.io/library/redis:7")
HELD = {REDIS.identity: Record(("docker.io/library/redis:7",), f"sha256:{'9' * 64}", chain_ids(LAYERS)[-1])}


# ---- archives --------------------------------------------------------------------------------------------------------


def archive(**files: int) -> bytes:
    """A tar with so many bytes in each."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, size in files.items():
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(os.urandom(size)))
    return out.getvalue()


TAR = archive(layer=2_500_000, manifest=1000)
SMALL = archive(manifest=1000)


def get(*names: str) -> str:
    """The path at which they are asked for in one archive."""
    return "/images/get?" + "&".join(f"names={name.replace('/', '%2F').replace(':', '%3A')}" for name in names)
