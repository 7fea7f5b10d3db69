"""The outer Docker Engine, and whatever a test makes on it.

The tests know the engine by its API alone (DOCKER_HOST): it may run in its own mount namespace or on another
machine. So nothing is bind-mounted from here; files go in by `Dind.put`, and real filesystems are made on loop
devices by a helper container of the engine, the workbench.

Everything carries the label `cachedind.test=<session id>` and is undone in reverse order by `Engine.close`, which
fails when something will not go.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import secrets
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import docker
from docker.errors import APIError, NotFound
from docker.types import IPAMConfig, IPAMPool

from helpers.flavours import STAND_IN
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from docker.models.containers import Container

    from helpers.dind import Dind

LABEL = "cachedind.test"
STAND_IN_IMAGE = "cachedind-test:stand-in"
"""What scripts/test names it."""

# What mkfs wants to hear; sizes are sparse, so only what is written costs disk.
MKFS = {
    "ext4": "mkfs.ext4 -q -F",
    "xfs": "mkfs.xfs -q -f",
    "btrfs": "mkfs.btrfs -q -f",
}
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")


NO_CHECK: dict[str, Any] = {"test": ["NONE"]}
"""For containers whose health nobody asks for: a check in each of hundreds is a load."""


class Volume(NamedTuple):
    """A named volume of the outer engine and the filesystem it lies on ("directory": the engine's own disk)."""

    name: str
    fstype: str


def on(volume: Volume, path: str, mode: str = "rw") -> dict[str, dict[str, str]]:
    """For the option `volumes` of a container: this volume at that path."""
    return {volume.name: {"bind": path, "mode": mode}}


class Done(NamedTuple):
    """How a command in a container ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class CommandFailedError(AssertionError):
    """A command that had to succeed did not."""


def exec_in(
    container: Container,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    check: bool = True,
) -> Done:
    """Run a command in a running container to its end, killed after `timeout_s` (status 124 or 137).

    A container that does not run, or ends meanwhile, is a status other than 0 too. Raises CommandFailedError for a
    status other than 0, unless `check` is off.
    """
    bounded = ["timeout", "--kill-after=5", f"{timeout_s:g}", *argv]
    status, stdout, stderr = _exec(container, bounded, env)
    done = Done(status, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))
    if check and done.status != 0:
        raise CommandFailedError(f"{' '.join(argv)[:500]}: status {done.status}\n{done.output[-4000:]}")
    return done


def _exec(container: Container, argv: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[int, bytes, bytes]:
    # By the client program and not by the SDK's exec_run: that one loses what arrives together with the response's
    # header (seen with 3 of 600 quick commands), because it reads the socket beneath a buffered reader. Delete this
    # when docker.api.client._get_raw_response_socket no longer does.
    settings = [f"--env={name}={value}" for name, value in (env or {}).items()]
    done = subprocess.run(
        ["docker", "exec", *settings, str(container.id), *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


class Engine:
    """The outer engine as one test (or one session) sees it: a client, and a list of what to undo."""

    def __init__(self, client: docker.DockerClient, session: str, images: Mapping[str, str]) -> None:
        self.client = client
        self.session = session
        self.images = images
        self.dinds: list[Dind] = []
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._parent: Engine | None = None

    @classmethod
    def connect(cls) -> Engine:
        """Connect to the engine of DOCKER_HOST and find the images under test on it."""
        client = docker.from_env(timeout=180)
        return cls(client, secrets.token_hex(3), find_images(client))

    def scope(self) -> Engine:
        """The same engine with an undo list of its own: what one test makes ends with that test."""
        inner = Engine(self.client, self.session, self.images)
        inner._parent = self
        return inner

    @property
    def labels(self) -> dict[str, str]:
        return {LABEL: self.session}

    def new_name(self, what: str) -> str:
        return f"cdt-{self.session}-{next(_COUNTER)}-{what}"

    def engine_version(self, suite: str) -> str:
        """The Docker Engine version of a suite's image, as its DOCKER_VERSION has it: "26.1.5"."""
        environment = self.client.images.get(self.images[suite]).attrs["Config"]["Env"]
        return next(pair.partition("=")[2] for pair in environment if pair.startswith("DOCKER_VERSION="))

    # ---- making things --------------------------------------------------------------------------------------

    def dind(self, suite: str, **options: Any) -> Dind:
        """Start a cachedind container of a suite ("trixie", "forky"); `options` are those of `Dind.create`."""
        from helpers.dind import Dind

        assert suite in self.images, f"no image {suite}: scripts/test makes it"
        return Dind.create(self, self.images[suite], **options)

    def volume(self, fstype: str = "directory", *, size_mib: int = 2048) -> Volume:
        """A new, empty volume: on the engine's own disk, or a filesystem of its own of the given type.

        tmpfs and ramfs are empty again once no container has the volume mounted.
        """
        name = self.new_name("volume")
        options: dict[str, str] = {}
        if fstype in MKFS:
            image = f"/var/lib/docker/{name}.img"
            device = self.loop_device(image, size_mib)
            exec_in(self.workbench, ["sh", "-euc", f"{MKFS[fstype]} {device}"])
            options = {"type": fstype, "device": device}
        elif fstype in MEMORY_FILESYSTEMS:
            options = {"type": fstype, "device": fstype, "o": f"size={size_mib}m"}
            if fstype == "ramfs":
                del options["o"]
        elif fstype != "directory":
            raise ValueError(f"no way to make a volume on {fstype}")
        return self._make_volume(name, fstype, options)

    def volume_on(self, device: str, fstype: str) -> Volume:
        """A volume of what is on a block device already."""
        return self._make_volume(self.new_name("volume"), fstype, {"type": fstype, "device": device})

    def _make_volume(self, name: str, fstype: str, options: Mapping[str, str]) -> Volume:
        volume = self.client.volumes.create(name, labels=self.labels, driver_opts=dict(options))
        self.undo_later(f"volume {name}", volume.remove)
        return Volume(name, fstype)

    def network(self, subnet: str = "") -> str:
        """A new bridge network, by name; containers on it find each other by name and alias. The engine chooses its
        subnet where none is given."""
        name = self.new_name("network")
        ipam = IPAMConfig(pool_configs=[IPAMPool(subnet=subnet)]) if subnet else None
        network = self.client.networks.create(name, driver="bridge", labels=self.labels, ipam=ipam)
        self.undo_later(f"network {name}", network.remove)
        return name

    def in_volume(self, volume: Volume, script: str, *, timeout_s: float = 60.0) -> str:
        """Run a shell script in a throw-away container that has the volume at /volume; returns what it printed."""
        container = self.client.containers.create(
            self.workbench_image,
            entrypoint=["sleep", "infinity"],
            name=self.new_name("visit"),
            labels=self.labels,
            healthcheck=NO_CHECK,
            volumes={volume.name: {"bind": "/volume"}},
            init=True,
        )
        try:
            container.start()
            return exec_in(container, ["sh", "-euc", script], timeout_s=timeout_s).stdout
        finally:
            container.remove(force=True, v=True)

    @property
    def workbench_image(self) -> str:
        return self.images["trixie"]

    @functools.cached_property
    def workbench(self) -> Container:
        """A privileged container with the engine's /dev and PID namespace, for what the engine's API cannot do.

        It lives as long as the session.
        """
        if self._parent is not None:
            return self._parent.workbench
        container = self.client.containers.create(
            self.workbench_image,
            # Not the image's entrypoint, and nothing at its VOLUME that would matter.
            entrypoint=["sleep", "infinity"],
            name=self.new_name("workbench"),
            labels=self.labels,
            healthcheck=NO_CHECK,
            privileged=True,
            pid_mode="host",
            # So that /proc/<pid>/cgroup names containers in full.
            cgroupns="host",
            network_mode="none",
            volumes={"/dev": {"bind": "/dev"}},
        )
        self.undo_later("the workbench", lambda: container.remove(force=True, v=True))
        container.start()
        return container

    def loop_device(self, image: str, size_mib: int | None = None) -> str:
        """A loop device on a file of the workbench, which is made where a size is given, and goes with the device.

        The workbench's /var/lib/docker is the anonymous volume of the image's VOLUME, thus on the engine's disk rather
        than in a container's layer.
        """
        make = f"losetup --find --show {image}"
        if size_mib is not None:
            make = f"truncate -s {size_mib}M {image}; {make}"
        # Two sessions may be told of the same free device; the slower one asks again.
        device = wait_until(
            lambda: exec_in(self.workbench, ["sh", "-euc", make], check=False).stdout.strip(),
            what="a free loop device",
            timeout_s=10,
        )
        remove = f"losetup --detach {device}; rm -f {image}"
        self.undo_later(f"loop device {device}", lambda: exec_in(self.workbench, ["sh", "-euc", remove]))
        return device

    # ---- the images that inner daemons get ---------------------------------------------------------------------

    @functools.cached_property
    def base_tar(self) -> bytes:
        """A small root filesystem (a shell, coreutils and their libraries) out of the image's own files.

        There is no registry in the tests: an inner daemon gets its base image from here.
        """
        if self._parent is not None:
            return self._parent.base_tar
        status, data, errors = _exec(self.workbench, ["sh", "-euc", _MAKE_BASE])
        assert status == 0, f"the base image could not be made: {errors!r}"
        return data

    @functools.cached_property
    def base_archive(self) -> bytes:
        """The image `base:latest` of that: loaded, it has the same ID in every daemon, whatever its image store.

        What `docker import` makes of the same tar is another image each time.
        """
        if self._parent is not None:
            return self._parent.base_archive
        from helpers.clients import docker_archive

        return docker_archive(self.base_tar, "base:latest", [], architecture=self.client.version()["Arch"])

    # ---- undoing ----------------------------------------------------------------------------------------------

    def undo_later(self, what: str, undo: Callable[[], object]) -> None:
        """Register how to undo something, right after it was done."""
        self._undo.append((what, undo))

    def close(self) -> None:
        """Undo everything, newest first. Goes on after a failure and tells all of them at the end."""
        failures = []
        while self._undo:
            what, undo = self._undo.pop()
            try:
                undo()
            except NotFound:
                pass
            except (APIError, AssertionError, OSError) as error:
                failures.append(f"{what}: {error}")
        assert not failures, "could not clean up:\n" + "\n".join(failures)

    def leftovers(self) -> list[str]:
        """What carries this session's label and is still there."""
        filters: Any = {"label": f"{LABEL}={self.session}"}
        found = [f"container {item.name}" for item in self.client.containers.list(all=True, filters=filters)]
        found += [f"volume {item.name}" for item in self.client.volumes.list(filters=filters)]
        found += [f"network {item.name}" for item in self.client.networks.list(filters=filters)]
        return found


_COUNTER = itertools.count(1)


def find_images(client: docker.DockerClient) -> dict[str, str]:
    """The newest cachedind:<engine version>-<suite> per suite, as scripts/build-image tags them, and the stand-in of
    scripts/test.

    CACHEDIND_TEST_IMAGES="trixie=name:tag forky=name:tag" puts others in their place.
    """
    found: dict[str, tuple[str, str]] = {}
    for image in client.images.list(STAND_IN_IMAGE):
        found[STAND_IN] = (image.attrs["Created"], STAND_IN_IMAGE)
    for image in client.images.list("cachedind"):
        for tag in image.tags:
            match = re.fullmatch(r"cachedind:\d+\.\d+\.\d+-([a-z]+)", tag)
            if match:
                found[match[1]] = max(found.get(match[1], ("", "")), (image.attrs["Created"], tag))
    chosen = {suite: tag for suite, (_, tag) in found.items()}
    for pair in os.environ.get("CACHEDIND_TEST_IMAGES", "").split():
        suite, _, tag = pair.partition("=")
        chosen[suite] = tag
    return chosen


_MAKE_BASE = r"""
root=$(mktemp -d)
mkdir -p "$root/usr/bin" "$root/usr/lib" "$root/usr/lib64" "$root/tmp" "$root/etc"
ln -s usr/bin "$root/bin"; ln -s usr/lib "$root/lib"; ln -s usr/lib64 "$root/lib64"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
ln -s dash "$root/usr/bin/sh"
for tool in dash cat chmod chown cp cut date dd env head ln ls mkdir mknod mv od rm rmdir seq sha256sum sleep sort \
    stat sync tail touch tr true uname wc; do
  path=$(readlink -f "/usr/bin/$tool")
  cp "$path" "$root/usr/bin/$tool"
  ldd "$path" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    [ -e "$root$library" ] || cp -L "$library" "$root$library"
  done
done
tar -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -c .
rm -rf "$root"
"""
