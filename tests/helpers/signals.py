"""Signals at a chosen moment of a container's start, to the millisecond.

`docker kill` answers only once the engine has finished `docker start`, and its request takes a while. So a program on
the workbench, which sees all processes of the engine, waits until the container's first process takes signals, counts
from there, and sends the signal itself: for the kernel it comes from outside, as the engine's does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from helpers.engine import exec_in
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind

_SIGNAL = r"""
import json, os, signal, sys, time

container, delay_s, ready = sys.argv[1], float(sys.argv[2]), sys.argv[3]

def read(path):
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")

def takes_signals(pid):
    # docker-init asks for signals before it starts its child. Before that, a kernel drops what the first process of a
    # container has no handler for.
    return read(f"/proc/{pid}/comm") == "docker-init\n" and read(f"/proc/{pid}/task/{pid}/children") != ""

def is_first(pid):
    # runc prepares the container in this process under names of its own, then executes the entrypoint.
    try:
        if container not in read(f"/proc/{pid}/cgroup") or not read(f"/proc/{pid}/comm").startswith("docker"):
            return False
        return read(f"/proc/{pid}/status").partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"
    except (OSError, IndexError):
        return False

old = set(filter(str.isdigit, os.listdir("/proc")))
open(ready, "w").close()
deadline = time.time() + 20
while time.time() < deadline:
    first = next((pid for pid in os.listdir("/proc") if pid.isdigit() and pid not in old and is_first(pid)), None)
    if first:
        began = time.time()
        while not takes_signals(first):
            pass
        guarded = time.time()
        while time.time() < guarded + delay_s:
            pass
        sent = time.time()
        os.kill(int(first), signal.SIGTERM)
        print(json.dumps({"began": began, "guarded": guarded, "sent": sent}))
        sys.exit()
    time.sleep(0.0003)
sys.exit("no first process was seen")
"""


class Sent(NamedTuple):
    """When the entrypoint began, when docker-init began to take signals, and when one was sent (the engine's clock)."""

    began: float
    guarded: float
    sent: float


def start_and_terminate(dind: Dind, delay_s: float) -> Sent:
    """Start a created container, and send SIGTERM to its first process `delay_s` after docker-init took over."""
    bench = dind.engine.workbench
    stem = f"/var/lib/docker/{dind.engine.new_name('signal')}"
    script = f'exec python3 -IS -c "$1" "$2" "$3" {stem}.ready >{stem}.out 2>{stem}.err'
    bench.exec_run(["sh", "-c", script, "sh", _SIGNAL, dind.id, str(delay_s)], detach=True)
    ready = f"test -e {stem}.ready"
    wait_until(lambda: exec_in(bench, ["sh", "-c", ready], check=False).status == 0, what="the signaller", every_s=0.01)
    dind.start()
    output = wait_until(
        lambda: exec_in(bench, ["cat", f"{stem}.out"]).stdout,
        what="the signal to be sent",
        timeout_s=25,
        diagnose=lambda: exec_in(bench, ["cat", f"{stem}.err"]).stdout,
    )
    return Sent(**json.loads(output))
