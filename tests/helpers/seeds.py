"""Seeds for the tests: ten real images in every format that counts, small ones made by hand, and where they lie.

The ten are built and saved by real daemons, once for a session. An image that comes out wrong somewhere says so when it
is run: it checks the sums of its data, and prints an id that was drawn when it was built.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import re
import secrets
import shlex
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from helpers.dind import Dind
from helpers.engine import NO_CHECK, exec_in
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from docker.models.containers import Container

    from helpers.engine import Engine, Volume

SEEDS = "/seeds"
PYTHON = "/opt/cachedind/bin/python"

# ---- where they lie --------------------------------------------------------------------------------------------------


class SeedVolume:
    """A volume for seeds, and a container in which it is at /seeds and can be written."""

    def __init__(self, engine: Engine) -> None:
        self.volume: Volume = engine.volume()
        self._container: Container = engine.client.containers.create(
            engine.workbench_image,
            entrypoint=["sleep", "infinity"],
            name=engine.new_name("seeds"),
            labels=engine.labels,
            healthcheck=NO_CHECK,
            volumes={self.volume.name: {"bind": SEEDS}},
            init=True,
        )
        engine.undo_later("a volume of seeds", lambda: self._container.remove(force=True, v=True))
        self._container.start()

    @property
    def mount(self) -> dict[str, dict[str, str]]:
        """As instances have it, for `Dind.create`: read-only, as docs/seeds.md says."""
        return {self.volume.name: {"bind": SEEDS, "mode": "ro"}}

    def sh(self, script: str, *, timeout_s: float = 60.0) -> str:
        """Run a script in the directory."""
        return exec_in(self._container, ["sh", "-euc", f"cd {SEEDS}\n{script}"], timeout_s=timeout_s).stdout

    def put(self, files: Mapping[str, bytes]) -> None:
        """Lay files in, as a careful person does: each is there as a whole, as a new file."""
        staged = {f".{name.replace('/', '_')}.part": data for name, data in files.items()}
        self._container.put_archive(SEEDS, tar_of(staged))
        moves = [
            f"mkdir -p $(dirname {shlex.quote(name)}); mv {shlex.quote(part)} {shlex.quote(name)}"
            for part, name in zip(staged, files, strict=True)
        ]
        self.sh("\n".join(moves))


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """The same files make the same bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


# ---- small ones, by hand ---------------------------------------------------------------------------------------------


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Image:
    """An image of a few layers, each a tar. `text` is what it prints when it is run, if `base.tar` is the lowest."""

    name: str
    layers: tuple[bytes, ...]
    text: str
    architecture: str = "amd64"

    @property
    def config(self) -> bytes:
        value = {
            "architecture": self.architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Cmd": ["cat", "/text"], "Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}" for layer in self.layers]},
            "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "hand"} for _ in self.layers],
        }
        return json.dumps(value).encode()

    @property
    def id(self) -> str:
        """The digest of the configuration."""
        return f"sha256:{_digest(self.config)}"


def small_image(engine: Engine, name: str, *, kilobytes: int = 64, architecture: str = "amd64") -> Image:
    """One that can be run, with a layer of its own that nothing compresses."""
    text = f"{name} {secrets.token_hex(8)}\n"
    own = tar_of({"text": text.encode(), "data": secrets.token_bytes(kilobytes << 10)})
    return Image(name, (engine.base_tar, own), text, architecture)


def docker_archive(*images: Image) -> bytes:
    """As `docker save` wrote it until engine 24."""
    return tar_of(docker_archive_files(*images))


def docker_archive_files(*images: Image) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    manifest = []
    for image in images:
        config = f"{_digest(image.config)}.json"
        files[config] = image.config
        paths = [f"{_digest(layer)}/layer.tar" for layer in image.layers]
        files.update(zip(paths, image.layers, strict=True))
        manifest.append({"Config": config, "RepoTags": [image.name], "Layers": paths})
    files["manifest.json"] = json.dumps(manifest).encode()
    return files


def oci_files(*images: Image, ref_names: bool = True) -> dict[str, bytes]:
    """The files of an OCI layout, with layers that are compressed with gzip."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    listed = []

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        files[f"blobs/sha256/{_digest(data)}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{_digest(data)}", "size": len(data)}

    for image in images:
        layers = [
            add(gzip.compress(layer, 1, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
            for layer in image.layers
        ]
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": add(image.config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        }
        target = add(json.dumps(manifest).encode(), kind)
        if ref_names:
            target["annotations"] = {"org.opencontainers.image.ref.name": image.name}
        target["platform"] = {"os": "linux", "architecture": image.architecture}
        listed.append(target)
    kind = "application/vnd.oci.image.index.v1+json"
    files["index.json"] = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": listed}).encode()
    return files


def xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)


def checksum(name: str, data: bytes) -> bytes:
    """What `sha256sum NAME` prints."""
    return f"{_digest(data)}  {name}\n".encode()


# ---- the ten ---------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """One of the ten: its name, what it is built on, how large its own layer is, the file it ends up in, and how what
    `docker save` wrote is converted for that."""

    name: str
    below: str
    megabytes: int
    file: str
    convert: str = ""


TEN = (
    Plan("ten/common:1", "base:latest", 100, "common.tar"),
    Plan("ten/old:1", "ten/common:1", 5, "old.tar", "old"),
    Plan("registry.example.com:5000/ten/gz:1.0", "ten/common:1", 20, "gz.tar.gz", "gz"),
    Plan("ten/zst:1", "base:latest", 40, "zst.tar.zst", "zst"),
    Plan("ten/xz:1", "base:latest", 5, "xz.tar.xz", "xz"),
    Plan("ten/oci:1", "base:latest", 30, "oci.oci", "oci"),
    Plan("ten/layout:1", "ten/common:1", 60, "layout", "layout"),
    Plan("ten/pair:one", "ten/common:1", 10, "pair.tar"),
    Plan("ten/pair:two", "ten/pair:one", 25, "pair.tar"),
    Plan("ten/big:latest", "base:latest", 400, "big.tar"),
)
NAMES = frozenset(plan.name for plan in TEN)
FILES = tuple(dict.fromkeys(plan.file for plan in TEN))
FEW = ("old.tar", "xz.tar.xz", "oci.oci", "layout")
"""Some of them, of every kind of source, for tests that load often."""
FEW_NAMES = frozenset(plan.name for plan in TEN if plan.file in FEW)


def setting(files: Iterable[str]) -> dict[str, str]:
    """CACHEDIND_SEED for some of the files in the volume of seeds."""
    return {"CACHEDIND_SEED": ",".join(f"{SEEDS}/{name}" for name in files)}


class Ten(NamedTuple):
    """The ten images: where they lie, and what each prints when it is run."""

    source: SeedVolume
    ids: dict[str, str]

    @property
    def mount(self) -> dict[str, dict[str, str]]:
        return self.source.mount


# Arguments: what to do, from, to. What `docker save` wrote becomes something else.
_CONVERT = r"""
import gzip, io, json, lzma, os, shutil, sys, tarfile
what, source, target = sys.argv[1:]

def copy(pack):
    with open(source, "rb") as reader, pack as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)

def old():
    with tarfile.open(source) as tar, tarfile.open(target, "w") as new:
        def add(name, stream, size):
            entry = tarfile.TarInfo(name)
            entry.size = size
            new.addfile(entry, stream)
        images = json.load(tar.extractfile("manifest.json"))
        done = set()
        for image in images:
            for number, layer in enumerate(image["Layers"]):
                name = f"{os.path.basename(layer)}/layer.tar"
                image["Layers"][number] = name
                if name not in done:
                    done.add(name)
                    add(name, tar.extractfile(layer), tar.getmember(layer).size)
            config = tar.extractfile(image["Config"]).read()
            image["Config"] = f"{os.path.basename(image['Config'])}.json"
            add(image["Config"], io.BytesIO(config), len(config))
            image.pop("LayerSources", None)
        manifest = json.dumps(images).encode()
        add("manifest.json", io.BytesIO(manifest), len(manifest))

def oci(into_directory):
    with tarfile.open(source) as tar:
        members = [member for member in tar if member.name not in ("manifest.json", "repositories")]
        if into_directory:
            tar.extractall(target, members, filter="data")
            return
        with tarfile.open(target, "w") as new:
            for member in members:
                new.addfile(member, tar.extractfile(member) if member.isfile() else None)

if what == "gz":
    from isal import igzip
    copy(igzip.open(target, "wb", compresslevel=1))
elif what == "zst":
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    copy(zstd.open(target, "wb", level=1))
elif what == "xz":
    copy(lzma.open(target, "wb", preset=0))
elif what == "old":
    old()
else:
    oci(what == "layout")
"""

_DOCKERFILE = """
FROM {below}
RUN head -c {megabytes}M /dev/urandom >/data-{tag} && sha256sum /data-{tag} >>/sums && echo '{name} {nonce}' >/id
CMD ["sh", "-c", "sha256sum --check --quiet /sums && cat /id"]
"""


def make_ten(engine: Engine) -> Ten:
    """Build them, save them, and convert what no engine writes (any longer)."""
    source = SeedVolume(engine)
    scope = engine.scope()
    try:
        ids = _build_ten(scope, source)
    finally:
        scope.close()
    return Ten(source, ids)


def _build_ten(engine: Engine, source: SeedVolume) -> dict[str, str]:
    nonce = secrets.token_hex(8)
    ids = {plan.name: f"{plan.name} {nonce}" for plan in TEN}
    options: dict[str, Any] = {"volumes": {source.volume.name: {"bind": "/source", "mode": "rw"}}}
    graph = engine.dind("forky", volume=engine.volume(), env={"CACHEDIND_SEED": ""}, **options)
    env = {"CACHEDIND_SEED": "", "CACHEDIND_IMAGE_STORE": "containerd"}
    containerd = engine.dind("forky", volume=engine.volume(), env=env, **options)
    # Of what is built with the containerd store the layers are compressed.
    makers = {plan.file: containerd if plan.file == "oci.oci" else graph for plan in TEN}
    for dind in (graph, containerd):
        dind.wait_ready()
        dind.load_base()
    for number, plan in enumerate(TEN):
        dind = makers[plan.file]
        values = {**plan._asdict(), "tag": f"{number}", "nonce": nonce}
        dind.put(f"/cachedind-test/{number}", {"Dockerfile": _DOCKERFILE.format(**values)})
        dind.docker("build", "--quiet", "--network=none", "--tag", plan.name, f"/cachedind-test/{number}")
    for file in FILES:
        names = [plan.name for plan in TEN if plan.file == file]
        what = next(plan.convert for plan in TEN if plan.file == file)
        dind = makers[file]
        saved = f"/var/lib/docker/saved-{file}" if what else f"/source/{file}"
        dind.docker("save", "--output", saved, *names, timeout_s=120)
        if what:
            dind.exec(PYTHON, "-I", "-c", _CONVERT, what, saved, f"/source/{file}", timeout_s=120)
            dind.sh(f"rm {saved}")
    graph.sh("sync -f /source; chmod -R a+rX /source")
    return ids


# ---- what became of them ---------------------------------------------------------------------------------------------

_LIST = ("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")


def first_images(dind: Dind, timeout_s: float = 120) -> frozenset[str]:
    """What the daemon's first answer has: asked from the start on, and answered as soon as there is a daemon."""

    def ask() -> list[frozenset[str]]:
        env = {"DOCKER_HOST": dind.docker_host, "DOCKER_TLS_VERIFY": "", "DOCKER_CERT_PATH": ""}
        done = dind.exec("docker", *_LIST, env=env, timeout_s=timeout_s, check=False)
        return [frozenset(done.stdout.split())] if done.status == 0 else []

    found = wait_until(
        ask, what="the first answer", timeout_s=timeout_s, hopeless=dind.why_not_running, diagnose=dind.describe
    )
    return found[0]


def images(dind: Dind) -> frozenset[str]:
    """The names of all images; one without is `<none>:<none>`."""
    return frozenset(dind.docker(*_LIST).split())


def nameless(dind: Dind) -> list[str]:
    """Images without a name, whole or not, by ID."""
    return dind.docker("image", "ls", "--all", "--quiet", "--filter", "dangling=true").split()


def halves(dind: Dind) -> set[str]:
    """What is nameless, and is not one of the named images once more.

    The containerd store keeps a second record of an image that is loaded when its name is there already, because the
    engine was killed between naming and unpacking it (seen with 28.5).
    """
    return set(nameless(dind)) - set(dind.docker("image", "ls", "--quiet").split())


def check_ten(dind: Dind, ten: Ten, names: Iterable[str] = NAMES) -> None:
    """Each of them runs, with every byte of its data."""
    wanted = sorted(names)
    assert _run_all(dind, wanted) == {name: f"{ten.ids[name]}\n" for name in wanted}


def run_small(dind: Dind, images_: Iterable[Image]) -> None:
    """Each of these runs, and prints what it is to print."""
    wanted = {image.name: image.text for image in images_}
    assert _run_all(dind, wanted) == wanted


def _run_all(dind: Dind, names: Iterable[str]) -> dict[str, str]:
    """What images print when they are run side by side, a second time if nothing (see `Dind.run_image`)."""
    printed = _run_each(dind, list(names))
    silent = [name for name, text in printed.items() if not text]
    return {**printed, **(_run_each(dind, silent) if silent else {})}


def _run_each(dind: Dind, names: list[str]) -> dict[str, str]:
    found = {name: f"/tmp/out-{number}" for number, name in enumerate(names)}
    runs = [f"docker run --rm --network=none {shlex.quote(name)} >{path} 2>&1 &" for name, path in found.items()]
    dind.sh("\n".join(["unset DOCKER_HOST DOCKER_TLS_VERIFY", *runs, "wait"]), timeout_s=180)
    return {name: dind.exec("cat", path).stdout for name, path in found.items()}


def seeded(dind: Dind) -> list[str]:
    """What the log says was put in: an image's name for each line about one."""
    found = [re.match(r"seeded (.+): [0-9.]+ [KMGT]?i?B in [0-9.]+ s", text) for text in dind.messages]
    return sorted(name for match in found if match for name in match[1].split(", "))


def seed_phase_ms(dind: Dind) -> int:
    """What the seeds took of the start, as the summary says."""
    match = re.search(r"\bms: .*\bseed (\d+)\b", dind.summary or "")
    assert match, dind.describe()
    return int(match[1])


def looked_closer(dind: Dind) -> bool:
    """Whether this start opened a seed, or had a private daemon: then it left word of how far it was."""
    return dind.exec("test", "-e", "/run/cachedind/seeds.json", check=False).status == 0


def seed_warnings(dind: Dind, file: str) -> list[str]:
    """The warnings about one seed."""
    return [text for text in dind.warnings if re.search(rf"(?<![\w.]){re.escape(file)}(?![\w.])", text)]


def status_of_seeds(dind: Dind) -> dict[str, Any]:
    """What `cachedind status` tells about the seeds of this container; empty where it has nothing to tell."""
    done = dind.exec("cachedind", "status", "--json", check=False)
    assert "Traceback" not in done.output, done.output
    return (json.loads(done.stdout).get("seeds") or {}) if done.status == 0 else {}
