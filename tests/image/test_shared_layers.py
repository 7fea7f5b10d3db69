"""What a pool shares is the same as what was built: packed, measured and protected, in a leased slot and in a clone."""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING

import pytest

from helpers.builds import Project
from helpers.dind import SOCKET
from helpers.estates import KEY, Estate
from helpers.pools import Disk

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour

# The names of files in all layers of an image, as `docker save` packs them.
NAMES = r"""
import json, subprocess, sys, tarfile, tempfile
found = set()
with tempfile.NamedTemporaryFile() as file:
    subprocess.run(["docker", "save", "--output", file.name, sys.argv[1]], check=True)
    with tarfile.open(file.name) as outer:
        for member in outer:
            try:
                with tarfile.open(fileobj=outer.extractfile(member)) as layer:
                    found |= {f"{entry.name} {entry.size}" for entry in layer if entry.isreg()}
            except (tarfile.TarError, EOFError, ValueError):
                pass  # not a layer
print(json.dumps(sorted(found)))
"""
STAGE = (
    "FROM base:latest AS stage\nCOPY nonce /nonce\nRUN mkdir /one && cat /nonce >/one/file\nRUN cat /one/file >/two\n"
)
FINAL = "FROM base:latest\nCOPY --link --from=stage /one /linked\nCOPY --from=stage /two /copied\n"

# What each way to change something says, tried on each layer that is shared, by its own path and by the link to it.
ATTACK = r"""
import errno, glob, json, os, stat, sys
def first_file(top):
    return next(os.path.join(at, name) for at, _, names in os.walk(top) for name in sorted(names)
                if stat.S_ISREG(os.lstat(os.path.join(at, name)).st_mode))
WAYS = {
    "write": lambda file: os.open(file, os.O_WRONLY),
    "truncate": lambda file: os.truncate(file, 0),
    "create": lambda file: os.open(file + ".new", os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda file: os.mkdir(file + ".new"),
    "symlink": lambda file: os.symlink("/", file + ".new"),
    "link": lambda file: os.link(file, file + ".new"),
    "rename": lambda file: os.rename(file, file + ".new"),
    "unlink": os.unlink,
    "chmod": lambda file: os.chmod(file, 0o777),
    "chown": lambda file: os.chown(file, 1, 1),
    "setxattr": lambda file: os.setxattr(file, "trusted.planted", b"x"),
    "utime": lambda file: os.utime(file, (0, 0)),
}
root = sys.argv[1]
at = ("overlay2/*/diff", "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots/*")
own = glob.glob(f"{root}/.cachedind/layers/*/content")
links = [path for pattern in at for path in glob.glob(f"{root}/{pattern}") if os.path.islink(path)]
found = {}
for top in own + links:
    for name, way in WAYS.items():
        try:
            way(first_file(top + "/"))
            found.setdefault(name, []).append("done")
        except OSError as error:
            found.setdefault(name, []).append(errno.errorcode[error.errno])
print(json.dumps([len(own), len(links), {name: sorted(set(said)) for name, said in found.items()}]))
"""
WAYS = "write truncate create mkdir symlink link rename unlink chmod chown setxattr utime"

# All that is in a pool's layers and goldens: names, kinds, modes, owners, times, extended attributes, and bytes.
LOOK = f"""
import hashlib, os, stat
for top in ("layers", "{KEY}/scopes"):
    for at, directories, names in os.walk(top):
        directories.sort()
        for path in [at, *(os.path.join(at, name) for name in sorted(names + directories))]:
            status = os.lstat(path)
            more = {{name: os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)}}
            print(path, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns, more)
            if stat.S_ISREG(status.st_mode):
                print(hashlib.sha256(open(path, "rb").read()).hexdigest())
"""


def packed(dind: Dind, tag: str) -> set[str]:
    environment = "unset DOCKER_TLS_VERIFY; export DOCKER_HOST=unix:///var/run/docker.sock"
    dind.put("/cachedind-test", {"names.py": NAMES})
    return set(json.loads(dind.sh(f"{environment}; python3 -IS /cachedind-test/names.py {tag}", timeout_s=120)))


def measured(dind: Dind) -> list[tuple[str, ...]]:
    """What `docker system df -v` says of results of builds and of images: a build sends its context once more."""
    told = {
        what: dind.docker("system", "df", "--verbose", f"--format={{{{json .{what}}}}}")
        for what in ("BuildCache", "Images")
    }
    cache = [record for record in json.loads(told["BuildCache"]) if record["CacheType"] == "regular"]
    return sorted((record["Description"], record["Size"], record["Shared"]) for record in cache) + sorted(
        (image["Repository"], image["Size"], image["SharedSize"], image["UniqueSize"])
        for image in json.loads(told["Images"])
    )


UNITS = {"B": 1, "kB": 10**3, "MB": 10**6}
PACKED_BYTES = 64
"""By how much a layer that was packed differs from the same one packed later: there are times in it."""


def in_bytes(rows: list[tuple[str, ...]]) -> list[list[object]]:
    found = [[(cell, re.fullmatch(r"([0-9.]+)(B|kB|MB)", cell)) for cell in row] for row in rows]
    return [[float(match[1]) * UNITS[match[2]] if match else cell for cell, match in row] for row in found]


def about(rows: list[tuple[str, ...]]) -> list[list[object]]:
    """The same, to be compared with; three digits are printed."""
    return [
        [pytest.approx(cell, abs=PACKED_BYTES + cell / 500) if isinstance(cell, float) else cell for cell in row]
        for row in in_bytes(rows)
    ]


def test_what_was_built_before_it_was_shared_is_packed_whole(engine: Engine, flavour: Flavour) -> None:
    """A build that failed leaves results that no image has; the next one makes an image of them."""
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    nonce = secrets.token_hex(8)
    failing = Project("failed:latest", {"Dockerfile": f"{STAGE}RUN false\n", "nonce": nonce}, (), 4)
    first = disk.start(engine, pool)
    first.build(failing, check=False)
    first.kill()

    leased = disk.start(engine, pool)
    cloned = disk.start(engine, pool)
    # A clone that was made in advance, where copying took long, is leased.
    assert (cloned.summary or "").startswith(("cloned: ", "warm: "))
    stage = Project("stage:latest", {"Dockerfile": STAGE, "nonce": nonce}, (), 3)
    final = Project("final:latest", {"Dockerfile": STAGE + FINAL, "nonce": nonce}, (), 5)
    for dind in (leased, cloned):
        assert dind.build(stage).uncached == []
        dind.build(final)
        assert packed(dind, "stage:latest") >= {"one/file 16", "two 16", "nonce 16"}
        assert packed(dind, "final:latest") >= {"linked/file 16", "copied 16"}
        assert dind.docker("run", "--rm", "final:latest", "cat", "/linked/file") == nonce


def test_a_clone_measures_what_its_origin_does_and_cannot_change_it(engine: Engine, flavour: Flavour) -> None:
    """The origin is never asked: engines note down a size when they are first asked for it, and that of a layer of an
    image when they make it. So there are results that no image has."""
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    nonce = secrets.token_hex(8)
    dockerfile = f"{STAGE}FROM base:latest\nCOPY --from=stage /two /copied\n"
    project = Project("final:latest", {"Dockerfile": dockerfile, "nonce": nonce}, (), 4)
    plain = engine.dind(flavour.suite, volume=disk.volume(engine), env=flavour.env)
    plain.wait_ready()
    first = disk.start(engine, pool)
    first.build(project)
    first.kill()
    leased, cloned = disk.start(engine, pool), disk.start(engine, pool)
    for dind in (plain, leased, cloned):
        dind.build(project)
    known = measured(plain)
    assert len(known) >= 4
    assert in_bytes(measured(leased)) == about(known)
    assert in_bytes(measured(cloned)) == about(known)
    cloned.docker("system", "prune", "--all", "--force", "--volumes")
    cloned.docker("builder", "prune", "--all", "--force")
    assert leased.build(project).uncached == []
    assert packed(leased, "final:latest") >= {"copied 16"}


def test_a_job_cannot_change_a_shared_layer_by_any_path_of_its_engine(engine: Engine, flavour: Flavour) -> None:
    estate = Estate(engine, Disk("ext4", flavour))
    dind = estate.occupied()
    dind.load_base()
    estate.await_upkeep(dind)
    dind.put("/cachedind-test", {"attack.py": ATTACK, "planted": "planted"})
    look = f"python3 -IS -c '{LOOK}'"
    before = estate.visitor.sh(look)

    python = ("python3", "-IS", "/cachedind-test/attack.py")
    # The base image has no Python, and may have another libc.
    system = [
        f"--volume={path}:{at}:ro" for path, at in (("/usr", "/usr"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64"))
    ]
    run = ("run", "--rm", "--volume=/var/lib/docker:/x", "--volume=/cachedind-test:/cachedind-test:ro", *system)
    told = {
        "its own shell": dind.exec(*python, "/var/lib/docker").stdout,
        "docker run": dind.docker(*run, "base:latest", *python, "/x"),
        "docker run --privileged": dind.docker(*run, "--privileged", "base:latest", *python, "/x"),
    }
    for text in told.values():
        own, links, said = json.loads(text)
        assert own > 2
        assert links > 2
        assert said == {way: ["EROFS"] for way in WAYS.split()}, told
    container = dind.docker("create", "--volume=/var/lib/docker:/x", "base:latest", "true")
    layer = dind.sh("ls /var/lib/docker/.cachedind/layers").split()[0]
    done = dind.exec(
        "docker",
        "-H",
        SOCKET,
        "cp",
        "/cachedind-test/planted",
        f"{container}:/x/.cachedind/layers/{layer}/content/",
        check=False,
    )
    assert done.status != 0
    assert "read-only file system" in done.output

    assert estate.visitor.sh(look) == before
