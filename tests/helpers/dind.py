"""A cachedind container as its users see it: started with options, asked through its API, its logs and `docker exec`.

    def test_something(engine: Engine, suite: str) -> None:
        volume = engine.volume("xfs")
        dind = engine.dind(suite, volume=volume, env={"CACHEDIND_LOCK_TIMEOUT": "1m"}, args=["--mtu=1400"])
        dind.wait_ready()
        assert dind.docker("info", "--format", "{{.Driver}}") == "overlay2"
        dind.kill()

Every container that a test starts is removed at its end, and its log is printed when the test fails.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from docker.errors import APIError, NotFound

from helpers.builds import Build, Project
from helpers.engine import NO_CHECK, CommandFailedError, Done, Engine, Volume, exec_in
from helpers.inside import PROCESSES
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from docker.models.containers import Container

DATA_ROOT = "/var/lib/docker"
POOL = "/cachedind"
REAL_DOCKERD = "/usr/local/libexec/cachedind/dockerd"
"""The engine itself: `dockerd` enters boot."""
SOCKET = "unix:///var/run/docker.sock"


class Process(NamedTuple):
    """A process in the container (those of inner containers too, by their PIDs in it)."""

    pid: int
    ppid: int
    state: str
    comm: str
    argv: tuple[str, ...]
    files: tuple[tuple[int, str], ...]
    pid_namespace: str

    @property
    def command(self) -> str:
        return " ".join(self.argv)

    def has_open(self, path: str) -> bool:
        return any(target == path for _, target in self.files)


class LogLine(NamedTuple):
    """A line of the container's log with the time at which the outer engine read it, in seconds since the epoch."""

    time: float
    text: str


class Info(NamedTuple):
    """What `docker info` says of the inner daemon's storage."""

    driver: str
    store: str
    version: str


class Dind:
    """One cachedind container. Made by `Engine.dind`."""

    def __init__(self, engine: Engine, container: Container) -> None:
        self.engine = engine
        self.container = container
        self.docker_host = SOCKET
        self._has_base = False

    @classmethod
    def create(
        cls,
        engine: Engine,
        image: str,
        *,
        args: Sequence[str] = (),
        volume: Volume | None = None,
        pool: Volume | None = None,
        volumes: Mapping[str, Mapping[str, str]] | None = None,
        read_only_volume: bool = False,
        data_root: str = DATA_ROOT,
        env: Mapping[str, str] | None = None,
        entrypoint: Sequence[str] | None = None,
        tmpfs: Mapping[str, str] | None = None,
        network: str | None = None,
        aliases: Sequence[str] = (),
        privileged: bool = True,
        healthcheck: Mapping[str, Any] | None = NO_CHECK,
        start: bool = True,
        **more: Any,
    ) -> Dind:
        """Create a container of `image` and start it, unless `start` is off.

        `volume` goes to `data_root`; without one the image's VOLUME makes an anonymous volume. `pool` goes to
        /cachedind, which switches pool mode on, with a key that is said to be the default one (CACHEDIND_KEY="" takes
        that back). `volumes` are further ones in the docker SDK's notation
        ({name: {"bind": path, "mode": "rw"}}), as is anything in `more` (hostname, tty, ulimits, cap_add, ...).
        """
        env = {**({} if pool is None else {"CACHEDIND_KEY": "default"}), **(env or {})}
        binds = {name: dict(options) for name, options in (volumes or {}).items()}
        if volume is not None:
            binds[volume.name] = {"bind": data_root, "mode": "ro" if read_only_volume else "rw"}
        if pool is not None:
            binds[pool.name] = {"bind": POOL, "mode": "ro" if read_only_volume else "rw"}
        if network is not None:
            more["networking_config"] = {
                network: engine.client.api.create_endpoint_config(aliases=list(aliases)),
            }
            more["network"] = network
        container = engine.client.containers.create(
            image,
            command=list(args),
            entrypoint=None if entrypoint is None else list(entrypoint),
            environment=env,
            volumes=binds,
            tmpfs=dict(tmpfs or {}),
            privileged=privileged,
            name=engine.new_name("dind"),
            labels=engine.labels,
            healthcheck=None if healthcheck is None else dict(healthcheck),
            **more,
        )
        dind = cls(engine, container)
        engine.undo_later(f"container {container.name}", lambda: container.remove(force=True, v=True))
        engine.dinds.append(dind)
        if start:
            dind.start()
        return dind

    # ---- the container's life ----------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return str(self.container.id)

    @property
    def name(self) -> str:
        return str(self.container.name)

    @property
    def state(self) -> dict[str, Any]:
        """The State of `docker inspect`, fresh."""
        return dict(self._attrs["State"])

    @property
    def _attrs(self) -> dict[str, Any]:
        self.container.reload()
        attrs: dict[str, Any] = self.container.attrs or {}
        return attrs

    @property
    def running(self) -> bool:
        return bool(self.state["Running"])

    @property
    def address(self) -> str:
        """The container's IPv4 address on its (first) network."""
        networks = self._attrs["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    def start(self) -> None:
        """Start the container; after an end of it, start it again with its files as they are."""
        self._has_base = False
        self.container.start()

    def kill(self) -> None:
        """SIGKILL, as a CI does; returns when the container is down. One that is down already is left alone."""
        try:
            self.container.kill()
        except APIError as error:
            if error.status_code != 409:
                raise
        self.wait_exit(timeout_s=30)

    def stop(self, timeout_s: int = 10) -> float:
        """`docker stop`; returns the seconds it took."""
        started = time.monotonic()
        self.container.stop(timeout=timeout_s)
        return time.monotonic() - started

    def signal(self, name: str) -> None:
        """Send a signal to PID 1, for example "TERM", and return at once."""
        self.container.kill(signal=name)

    def remove(self) -> None:
        """Remove the container and its anonymous volumes, whatever it is doing."""
        self.container.remove(force=True, v=True)

    def wait_exit(self, timeout_s: float = 60) -> int:
        """Wait until the container has ended; returns its exit code."""
        state = wait_until(
            lambda: state if not (state := self.state)["Running"] else None,
            what=f"{self.name} to exit",
            timeout_s=timeout_s,
            diagnose=self.describe,
        )
        return int(state["ExitCode"])

    def wait_ready(self, timeout_s: float = 60, *, every_s: float = 0.05) -> float:
        """Wait until the inner daemon answers; returns the seconds since the call."""
        started = time.monotonic()
        self._has_base = False

        wait_until(
            lambda: self.docker_status("version", timeout_s=5) == 0,
            what=f"{self.name} to be ready",
            timeout_s=timeout_s,
            every_s=every_s,
            hopeless=self.why_not_running,
            diagnose=self.describe,
        )
        return time.monotonic() - started

    def wait_log(self, pattern: str, timeout_s: float = 30) -> LogLine:
        """Wait for a line that matches the regular expression; returns it. An ended container ends the wait."""

        def find() -> list[LogLine]:
            return [line for line in self.log_lines() if re.search(pattern, line.text)]

        found = wait_until(
            find,
            what=f"a log line like {pattern!r} from {self.name}",
            timeout_s=timeout_s,
            # The last lines may arrive with the end of the container.
            hopeless=lambda: None if find() else self.why_not_running(),
            diagnose=self.describe,
        )
        return found[0]

    def why_not_running(self) -> str | None:
        """A sentence when the container has ended, else None."""
        state = self.state
        return None if state["Running"] else f"the container ended with exit code {state['ExitCode']}"

    def describe(self) -> str:
        """The state and the end of the log, for failure messages."""
        try:
            state = self.state
        except NotFound:
            return f"{self.name}: removed"
        lines = "\n".join(self.log().splitlines()[-60:])
        return f"{self.name}: {state['Status']}, exit code {state['ExitCode']}; the end of its log:\n{lines}"

    # ---- what it says ------------------------------------------------------------------------------------------

    def log(self) -> str:
        """Everything the container wrote to its standard output and standard error."""
        return self.container.logs().decode("utf-8", "replace")

    def log_lines(self) -> list[LogLine]:
        """The log with the engine's timestamps: one clock for all containers."""
        found = []
        for line in self.container.logs(timestamps=True).decode("utf-8", "replace").splitlines():
            stamp, _, text = line.partition(" ")
            found.append(LogLine(parse_time(stamp), text.rstrip("\r")))
        return found

    @property
    def messages(self) -> list[str]:
        """What cachedind itself said: its lines without the prefix."""
        prefix = "cachedind: "
        return [line.text.removeprefix(prefix) for line in self.log_lines() if line.text.startswith(prefix)]

    @property
    def warnings(self) -> list[str]:
        """cachedind's warning lines."""
        return [text for text in self.messages if text.startswith("warning: ")]

    @property
    def errors(self) -> list[str]:
        """cachedind's error lines; an orderly failure has exactly one."""
        return [text for text in self.messages if text.startswith("error: ")]

    @property
    def summary(self) -> str | None:
        """The summary line, which begins with "warm", "cloned", "seeded" or "cold", or None before it is there."""
        found = [text for text in self.messages if re.match(r"(warm|cloned|seeded|cold): ", text)]
        assert len(found) <= 1, f"more than one summary: {found}"
        return found[0] if found else None

    # ---- what happens inside -------------------------------------------------------------------------------------

    def exec(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60,
        check: bool = True,
    ) -> Done:
        """Run a command in the container. See `helpers.engine.exec_in`."""
        return exec_in(self.container, argv, env=env, timeout_s=timeout_s, check=check)

    def sh(self, script: str, *, timeout_s: float = 60, check: bool = True) -> str:
        """Run a shell script in the container; returns what it printed."""
        return self.exec("sh", "-euc", script, timeout_s=timeout_s, check=check).stdout.rstrip("\n")

    def python(self, source: str, *args: str, timeout_s: float = 60) -> str:
        """Run a Python program in the container; returns what it printed."""
        return self.exec("python3", "-IS", "-c", source, *args, timeout_s=timeout_s).stdout

    def docker(self, *args: str, timeout_s: float = 60) -> str:
        """Run the inner docker client against the inner daemon's Unix socket; returns what it printed."""
        return self._docker(args, timeout_s=timeout_s, check=True).stdout.rstrip("\n")

    def docker_status(self, *args: str, timeout_s: float = 60) -> int:
        """As `docker`, for its exit code."""
        return self._docker(args, timeout_s=timeout_s, check=False).status

    def _docker(self, args: Sequence[str], *, timeout_s: float, check: bool) -> Done:
        # The container's own settings are for a daemon; a client must not read them.
        env = {"DOCKER_HOST": self.docker_host, "DOCKER_TLS_VERIFY": "", "DOCKER_CERT_PATH": ""}
        return self.exec("docker", *args, env=env, timeout_s=timeout_s, check=check)

    def put(self, directory: str, files: Mapping[str, str | bytes], *, mode: int = 0o644) -> None:
        """Write files below a directory of the container; it and theirs are made when missing.

        Not below /tmp, which becomes a tmpfs in the container and would hide them.
        """
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                # BuildKit compares modification times of nothing, but keeps them in layers: all the same.
                entry = tarfile.TarInfo(f"{directory.strip('/')}/{name}")
                entry.size, entry.mode = len(data), mode
                tar.addfile(entry, io.BytesIO(data))
        self.container.put_archive("/", stream.getvalue())

    def info(self) -> Info:
        """The inner daemon's storage driver and image store."""
        info = json.loads(self.docker("info", "--format", "{{json .}}"))
        containerd = any("io.containerd.snapshotter.v1" in str(pair) for pair in info["DriverStatus"] or ())
        return Info(info["Driver"], "containerd" if containerd else "graphdriver", info["ServerVersion"])

    def processes(self) -> list[Process]:
        """All processes that the container sees, by PID; a kernel's view, not the container's own ps."""
        return [
            Process(
                pid=item["pid"],
                ppid=item["ppid"],
                state=item["state"],
                comm=item["comm"],
                argv=tuple(item["argv"]),
                files=tuple((fd, target) for fd, target in item["files"]),
                pid_namespace=item["pid_namespace"],
            )
            for item in json.loads(self.python(PROCESSES))
        ]

    def daemons(self) -> list[Process]:
        """The dockerd processes in the container."""
        return [process for process in self.processes() if process.comm == "dockerd"]

    # ---- builds ------------------------------------------------------------------------------------------------

    def load_base(self) -> None:
        """Give the inner daemon `base:latest`, unless it has it. It is asked once; no test takes it away and builds."""
        if self._has_base:
            return
        if self.docker_status("image", "inspect", "base:latest") != 0:
            self.put("/cachedind-test", {"base.tar": self.engine.base_archive})
            self.docker("load", "--quiet", "--input", "/cachedind-test/base.tar")
        self._has_base = True

    def build(self, project: Project, *, check: bool = True, timeout_s: float = 240) -> Build:
        """Build a project with the inner daemon, having loaded the base image where that is missing."""
        self.load_base()
        directory = f"/cachedind-test/{project.tag.replace(':', '-')}"
        self.put(directory, project.files)
        started = time.monotonic()
        done = self._docker(
            ("build", "--progress=plain", "--tag", project.tag, directory), timeout_s=timeout_s, check=check
        )
        return Build(done.status, done.output, time.monotonic() - started)

    def keep_image(self, project: Project) -> None:
        """Give a project's image, where there is one, a second name, so that a rebuild leaves nothing to the collector.

        A cold rebuild under the same name unpacks onto snapshots of the image that it has just replaced, while
        containerd's collector removes them: "parent snapshot does not exist" in 2 of 180 such builds of a bare engine
        28.5 with the containerd store (https://github.com/moby/buildkit/issues/6521).
        """
        if self.docker_status("image", "inspect", project.tag) == 0:
            self.docker("tag", project.tag, f"kept:{project.tag.replace(':', '-')}")

    def build_in_background(self, project: Project) -> threading.Thread:
        """Start a build that may be killed together with its container; its outcome is nobody's business."""
        self.load_base()

        def run() -> None:
            # The container may be killed between two requests, or before the context is in it.
            with contextlib.suppress(APIError, CommandFailedError):
                self.build(project, check=False)

        thread = threading.Thread(target=run, name=f"build in {self.name}", daemon=True)
        thread.start()
        return thread

    def run_image(self, project: Project) -> str:
        """Run what a project built, check what it prints, and return its build id.

        An engine may lose all that a container has printed which ends at once, when both cores are busy
        (https://github.com/moby/moby/issues/41378; once in some thousand runs): then it is run once more. A file that
        is gone is no such case, the container fails on it; one that is empty prints nothing the second time either.
        """
        run = ("run", "--rm", "--network=none", project.tag)
        printed = (self.docker(*run) or self.docker(*run)).splitlines()
        assert printed, f"{project.tag} printed nothing"
        build_id, *found = printed
        assert tuple(found) == project.expected
        return build_id


def parse_time(stamp: str) -> float:
    """Seconds since the epoch of an engine's timestamp, which has nanoseconds."""
    match = re.fullmatch(r"(.*?)(?:\.(\d+))?Z", stamp)
    assert match, f"not a timestamp: {stamp!r}"
    return datetime.fromisoformat(f"{match[1]}+00:00").timestamp() + float(f"0.{match[2] or 0}")
