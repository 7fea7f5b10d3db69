"""Time to ready: from a container's first instruction to the first `_ping` that is answered with 200.

The clock starts and stops in the same container, so the outer engine's own work is not in it. The same small prober
measures all subjects: it connects again every few milliseconds until it is accepted, and waits for the answer then.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from docker.models.containers import Container

PROBER = """
import os, socket, sys, time
start = float(os.environ.pop("START"))
pause = float(os.environ.pop("PAUSE", "0.002"))
end = time.monotonic() + 120
while time.monotonic() < end:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(120)
    try:
        client.connect("/var/run/docker.sock")
        client.sendall(b"GET /_ping HTTP/1.0\\r\\n\\r\\n")
        if b" 200 " in client.recv(4096):
            print("READY", start, time.time(), flush=True)
            sys.exit()
    except OSError:
        pass
    client.close()
    time.sleep(pause)
print("GAVE UP", flush=True)
"""
# date costs a millisecond, the same one for every subject.
ENTRYPOINT = ["sh", "-c", 'START=$(date +%s.%N) python3 -IS -c "$PROBER" & exec "$@"', "sh"]
ENVIRONMENT = {"PROBER": PROBER, "CACHEDIND_LOG_FORMAT": "json"}


class Answer(NamedTuple):
    """When a container began and when its daemon answered, in seconds since the epoch, and the fields of cachedind's
    summary (none from a bare daemon).
    """

    started: float
    answered: float
    summary: dict[str, object]

    @property
    def ready_s(self) -> float:
        return self.answered - self.started

    @property
    def phases_ms(self) -> dict[str, float]:
        phases = self.summary.get("phases_ms")
        return phases if isinstance(phases, dict) else {}


def read_answer(container: Container, name: str) -> Answer:
    """Follow the log until the prober speaks. cachedind's summary comes before."""
    summary: dict[str, object] = {}
    text = b""
    # The prober ends, and says so, after two minutes; killing the container then ends the stream.
    for chunk in container.logs(stream=True, follow=True):
        text += chunk
        *lines, text = text.split(b"\n")
        for line in lines:
            if line.startswith(b"READY "):
                started, answered = map(float, line.split()[1:])
                return Answer(started, answered, summary)
            if line.startswith(b"GAVE UP"):
                raise SystemExit(f"{name}: no answer within two minutes")
            if line.startswith(b"{") and b"phases_ms" in line:
                summary = json.loads(line)
    log = container.logs().decode("utf-8", "replace")
    raise SystemExit(f"{name}: the container ended before its daemon answered:\n{log}")
