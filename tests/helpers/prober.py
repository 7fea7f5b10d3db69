"""A client that is there before the daemon: connects every 10 ms from before the container's first moment.

A port cannot be dialled before its network namespace exists. So a companion container comes first and lends its
network to the cachedind container (`network_mode="container:<companion>"`), and the prober runs in the companion; Unix
sockets it reaches through a volume that both have.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from helpers.engine import NO_CHECK, exec_in
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from docker.models.containers import Container

    from helpers.engine import Done, Engine

EVERY_S = 0.01

# Two things at once. One thread connects and hangs up, again and again, and notes how that went. The other holds on to
# its first connection, asks /_ping and then /info on it, and notes when the answers came.
PROBE = r"""
import http.client, json, os, socket, ssl, sys, threading, time

task = json.loads(sys.argv[1])

def connect():
    client = socket.socket(socket.AF_UNIX if task["unix"] else socket.AF_INET6 if task["ipv6"] else socket.AF_INET)
    try:
        client.settimeout(task["patience_s"])
        client.connect(task["unix"] or (task["host"], task["port"]))
        return client
    except BaseException:
        client.close()
        raise

spans = []
longest_gap = 0.0

def attempt():
    global longest_gap
    started = time.time()
    try:
        connect().close()
        outcome = "connected"
    except OSError as error:
        outcome = type(error).__name__
    if spans:
        longest_gap = max(longest_gap, started - spans[-1]["last"])
    if not spans or spans[-1]["outcome"] != outcome:
        spans.append({"outcome": outcome, "first": started, "last": started, "times": 0})
    spans[-1]["last"] = started
    spans[-1]["times"] += 1

def secure(client):
    if not task["tls"]:
        return client
    # ca.pem is the last file of a set that the daemon's side writes.
    while not all(os.path.exists(f"{task['tls']}/{name}.pem") for name in ("key", "cert", "ca")):
        time.sleep(0.002)
    story["certificates_at"] = time.time()
    context = ssl.create_default_context(cafile=f"{task['tls']}/ca.pem")
    context.load_cert_chain(f"{task['tls']}/cert.pem", f"{task['tls']}/key.pem")
    return context.wrap_socket(client, server_hostname="localhost")

story = {}

def ask():
    while True:
        try:
            client = connect()
            break
        except OSError:
            time.sleep(task["every_s"])
    story["connected_at"] = time.time()
    try:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = secure(client)
        for name in ("_ping", "info"):
            connection.request("GET", f"/{name}")
            answer = connection.getresponse()
            body = answer.read().decode()
            story[name] = {"status": answer.status, "body": body[:20000], "time": time.time()}
    except (OSError, http.client.HTTPException) as error:
        story["broken"] = {"error": repr(error), "time": time.time()}

def write(done):
    with open(task["out"] + ".new", "w") as file:
        json.dump({"spans": spans, "story": story, "longest_gap": longest_gap, "done": done}, file)
    os.rename(task["out"] + ".new", task["out"])

asking = threading.Thread(target=ask, daemon=True)
asking.start()
told = ""
while not os.path.exists(task["out"] + ".stop"):
    attempt()
    now = " ".join(sorted(story)) + spans[-1]["outcome"]
    if now != told:
        told = now
        write(False)
    time.sleep(task["every_s"])
write(True)
"""


class Span(NamedTuple):
    """Attempts in a row with one outcome: "connected" or the name of the error."""

    outcome: str
    first: float
    last: float
    times: int


class Answer(NamedTuple):
    """One HTTP answer and when it was there (the engine's clock)."""

    status: int
    body: str
    time: float


class Probe:
    """A running prober of one address. Made by `Companion.probe`."""

    def __init__(self, container: Container, out: str) -> None:
        self._container = container
        self._out = out

    def _report(self) -> dict[str, Any]:
        done = exec_in(self._container, ["cat", self._out], check=False)
        return json.loads(done.stdout) if done.status == 0 else {"spans": [], "story": {}, "longest_gap": 0.0}

    def wait_for(self, *names: str, timeout_s: float = 60) -> None:
        """Wait until the first client's story tells of one of these: "connected_at", "_ping", "info", "broken"."""
        wait_until(
            lambda: any(name in self._report()["story"] for name in names),
            what=f"the prober's {' or '.join(names)}",
            timeout_s=timeout_s,
            diagnose=lambda: f"the prober saw {self._report()}",
        )

    def finish(self) -> Findings:
        """Stop and tell."""
        exec_in(self._container, ["touch", f"{self._out}.stop"])
        report: dict[str, Any] = {}

        def is_done() -> bool:
            report.update(self._report())
            return bool(report.get("done"))

        wait_until(is_done, what="the prober's report", timeout_s=10)
        return Findings(
            spans=[Span(**span) for span in report["spans"]],
            longest_gap=report["longest_gap"],
            story=report["story"],
        )


class Findings(NamedTuple):
    """What a prober saw."""

    spans: list[Span]
    longest_gap: float
    story: Mapping[str, Any]

    @property
    def first_connect(self) -> float:
        return next(span.first for span in self.spans if span.outcome == "connected")

    @property
    def failures_after_first_connect(self) -> list[Span]:
        outcomes = [span.outcome for span in self.spans]
        after = self.spans[outcomes.index("connected") :]
        return [span for span in after if span.outcome != "connected"]

    @property
    def failures_before(self) -> int:
        """How many attempts failed before the first that succeeded: a prober that came too late has none."""
        outcomes = [span.outcome for span in self.spans]
        return sum(span.times for span in self.spans[: outcomes.index("connected")])

    def answer(self, name: str) -> Answer:
        """The first client's answer to "_ping" or "info"."""
        assert name in self.story, f"no answer to {name}: {self.story}"
        return Answer(**self.story[name])


class Companion:
    """A container that lends its network to a cachedind container and looks at it from within."""

    def __init__(
        self,
        engine: Engine,
        suite: str,
        *,
        volumes: Mapping[str, Mapping[str, str]] | None = None,
        sysctls: Mapping[str, str] | None = None,
    ) -> None:
        container = engine.client.containers.create(
            engine.images[suite],
            entrypoint=["sleep", "infinity"],
            name=engine.new_name("companion"),
            labels=engine.labels,
            healthcheck=NO_CHECK,
            volumes={name: dict(options) for name, options in (volumes or {}).items()},
            sysctls=dict(sysctls or {}),
            init=True,
        )
        engine.undo_later(f"container {container.name}", lambda: container.remove(force=True, v=True))
        container.start()
        self.container = container
        self._engine = engine

    @property
    def network(self) -> str:
        """What to pass as `network_mode` to a container that shares this one's network."""
        return f"container:{self.container.id}"

    def exec(self, argv: Sequence[str], *, check: bool = True) -> Done:
        return exec_in(self.container, argv, check=check)

    def accepts(self, host: str, port: int) -> bool:
        """Whether something listens there."""
        source = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()"
        return self.exec(["python3", "-IS", "-c", source, host, str(port)], check=False).status == 0

    def probe(
        self, *, unix: str = "", port: int = 0, host: str = "127.0.0.1", tls: str = "", patience_s: float = 60
    ) -> Probe:
        """Start probing a Unix socket or a TCP port; returns when the first attempt was made."""
        out = f"/root/{self._engine.new_name('probe')}"
        task = {
            "unix": unix,
            "host": host,
            "ipv6": ":" in host,
            "port": port,
            "tls": tls,
            "out": out,
            "every_s": EVERY_S,
            "patience_s": patience_s,
        }
        self.container.exec_run(["python3", "-IS", "-c", PROBE, json.dumps(task)], detach=True)
        probe = Probe(self.container, out)
        wait_until(lambda: probe._report()["spans"], what="the prober's first attempt", timeout_s=10)
        time.sleep(5 * EVERY_S)
        return probe
