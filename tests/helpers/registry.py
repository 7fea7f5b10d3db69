"""An image registry for inner daemons to pull from and push to, in a container on a network of the test's own."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from helpers.engine import exec_in
from helpers.seeds import PYTHON, oci_files
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.dind import Dind
    from helpers.engine import Done, Engine
    from helpers.seeds import Image

HOST = "registry:5000"
USER, PASSWORD = "user", "swordfish"

_LIBRARY = Path(__file__).resolve().parents[2] / "scripts" / "lib.sh"
_CONFIG = """
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /var/lib/docker/registry}}
http: {addr: ":5000"}
"""
_AUTH = "auth: {htpasswd: {realm: private, path: /registry/htpasswd}}\n"
_HTPASSWD = f"{USER}:$2y$05$cachedindcachedindcaceZQuW11QsoRfR2fEmfIGmVEXoEQQ6dQW\n"

# Run beside the registry. Arguments: user:password, and either a path to ask for, or where the files of an OCI layout
# are, a repository and a tag, to put that image there.
_CLIENT = r"""
import base64, json, sys, urllib.request
credentials, *rest = sys.argv[1:]
HOST = "http://127.0.0.1:5000"

def ask(method, url, data=None, kind="application/octet-stream"):
    request = urllib.request.Request(url, data, {"Content-Type": kind}, method=method)
    request.add_header("Authorization", "Basic " + base64.b64encode(credentials.encode()).decode())
    return urllib.request.urlopen(request)

def blob(digest):
    return open(f"{layout}/blobs/sha256/{digest[7:]}", "rb").read()

def put_blob(digest):
    place = ask("POST", f"{HOST}/v2/{repository}/blobs/uploads/").headers["Location"]
    ask("PUT", f"{place}&digest={digest}", blob(digest))

def put_manifest(reference, content):
    ask("PUT", f"{HOST}/v2/{repository}/manifests/{reference}", content, json.loads(content)["mediaType"])

if len(rest) == 1:
    ask("GET", HOST + rest[0])
    sys.exit()
layout, repository, tag = rest
index = open(f"{layout}/index.json", "rb").read()
digests = [entry["digest"] for entry in json.loads(index)["manifests"]]
for digest in digests:
    manifest = json.loads(blob(digest))
    for part in (manifest["config"], *manifest["layers"]):
        put_blob(part["digest"])
    put_manifest(digest, blob(digest))
put_manifest(tag, index if len(digests) > 1 else blob(digests[0]))
"""


def _program() -> bytes:
    """Debian's docker-registry, unpacked on demand."""
    script = f"source {_LIBRARY}; unpacked_program docker-registry usr/bin/docker-registry"
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).read_bytes()


class Published(NamedTuple):
    """An image in the registry, and the digests of its blobs there, of the first of its platforms."""

    name: str
    by_digest: str
    layers: frozenset[str]
    config: str


class Registry:
    """Daemons that are to use it need `network` and `arguments`. A `private` one wants USER and PASSWORD for all."""

    arguments = (f"--insecure-registry={HOST}",)

    def __init__(self, engine: Engine, *, private: bool = False) -> None:
        self.network = engine.network()
        self._count = itertools.count(1)
        # The image's own entrypoint makes way for the registry, which needs nothing of it but a C library.
        self._dind: Dind = engine.dind(
            "trixie",
            entrypoint=["/registry/serve", "serve", "/registry/config.yml"],
            network=self.network,
            aliases=["registry"],
            privileged=False,
            start=False,
        )
        config = _CONFIG + (_AUTH if private else "")
        self._dind.put("/registry", {"config.yml": config, "htpasswd": _HTPASSWD, "client.py": _CLIENT})
        self._dind.put("/registry", {"serve": _program()}, mode=0o755)
        self._dind.start()
        wait_until(
            lambda: self._client("/v2/", check=False).status == 0,
            what="the registry to answer",
            diagnose=self._dind.describe,
        )
        engine.dinds.remove(self._dind)

    def publish(self, repository: str, tag: str, *images: Image) -> Published:
        """Put an image there, past all daemons; several are the platforms of one, and make an index."""
        files = oci_files(*images, ref_names=False)
        layout = f"/layout/{next(self._count)}"
        self._dind.put(layout, files)
        self._client(layout, repository, tag)
        [first, *others] = json.loads(files["index.json"])["manifests"]
        manifest = json.loads(files[f"blobs/sha256/{first['digest'][7:]}"])
        digest = f"sha256:{hashlib.sha256(files['index.json']).hexdigest()}" if others else first["digest"]
        name = f"{HOST}/{repository}"
        layers = frozenset(layer["digest"] for layer in manifest["layers"])
        return Published(f"{name}:{tag}", f"{name}@{digest}", layers, manifest["config"]["digest"])

    @contextlib.contextmanager
    def listen(self) -> Iterator[list[tuple[str, str]]]:
        """What is asked of it meanwhile: method and path. The list is complete after the block."""
        heard: list[tuple[str, str]] = []
        before = len(self._requests())
        yield heard
        heard += self._requests()[before:]

    def _requests(self) -> list[tuple[str, str]]:
        """All that its log has, once it has a last one of our own."""
        mark = f"/v2/?mark={next(self._count)}"
        self._client(mark)

        def read() -> list[tuple[str, str]]:
            found = re.findall(r'"([A-Z]+) (/v2/\S*) HTTP/1\.1"', self._dind.log())
            return [one for one in found if "?mark=" not in one[1]] if ("GET", mark) in found else []

        return wait_until(read, what="the registry's log", diagnose=self._dind.describe)

    def _client(self, *words: str, check: bool = True) -> Done:
        argv = [PYTHON, "-I", "/registry/client.py", f"{USER}:{PASSWORD}", *words]
        return exec_in(self._dind.container, argv, check=check)


def blobs(heard: list[tuple[str, str]]) -> set[str]:
    """The digests of the blobs that were asked for."""
    asked = [re.search(r"/blobs/(sha256:[0-9a-f]{64})$", path) for method, path in heard if method in ("GET", "HEAD")]
    return {match[1] for match in asked if match}


def pushed_tags(heard: list[tuple[str, str]]) -> set[str]:
    """The tags that manifests were put under."""
    put = [path.rpartition("/")[2] for method, path in heard if method == "PUT" and "/manifests/" in path]
    return {name for name in put if not name.startswith("sha256:")}
