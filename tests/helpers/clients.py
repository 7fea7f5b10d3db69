"""Client containers: one docker command (or any other) through the image's entrypoint, as a CI job would run it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from helpers.dind import Dind
from helpers.engine import Done
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.engine import Engine


def run_once(
    engine: Engine,
    suite: str,
    *args: str,
    files: Mapping[str, bytes] | None = None,
    check: bool = False,
    timeout_s: float = 60,
    **options: Any,
) -> Done:
    """Run a container of the image without privileges to its end; `options` are those of `Dind.create`.

    `files` are laid into /files first.
    """
    dind = engine.dind(suite, args=args, start=False, **{"privileged": False, **options})
    if files:
        dind.put("/files", files)
    dind.start()
    status = dind.wait_exit(timeout_s)
    done = Done(
        status,
        dind.container.logs(stdout=True, stderr=False).decode("utf-8", "replace"),
        dind.container.logs(stdout=False, stderr=True).decode("utf-8", "replace"),
    )
    engine.dinds.remove(dind)
    dind.remove()
    assert not check or status == 0, f"{' '.join(args)}: status {status}\n{done.output[-4000:]}"
    return done


def docker_archive(root: bytes, tag: str, command: Sequence[str], *, architecture: str = "amd64") -> bytes:
    """An image of one layer, from a root filesystem's tar, as `docker save` would write it; always the same bytes."""
    digest = hashlib.sha256(root).hexdigest()
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": list(command), "Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "files"}],
    }
    encoded = json.dumps(config).encode()
    name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": [f"{digest}/layer.tar"]}]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, data in (
            (name, encoded),
            (f"{digest}/layer.tar", root),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def wait_ready_at(dind: Dind, docker_host: str) -> None:
    """As `Dind.wait_ready`, for a daemon whose Unix socket is not at the usual place."""
    dind.docker_host = docker_host
    wait_until(
        lambda: dind.docker_status("version", timeout_s=5) == 0,
        what=f"{dind.name} to answer at {docker_host}",
        timeout_s=60,
        hopeless=dind.why_not_running,
        diagnose=dind.describe,
    )
