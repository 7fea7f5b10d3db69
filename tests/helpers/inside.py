"""Small programs that tests run inside a container, with the image's own Python."""

from __future__ import annotations

# Every process with its open files, as JSON. A process that ends meanwhile is left out.
PROCESSES = r"""
import json, os, sys

def read(path):
    with open(path, "rb") as file:
        return file.read()

found = []
for name in os.listdir("/proc"):
    if not name.isdigit() or int(name) == os.getpid():
        continue
    try:
        state, ppid = read(f"/proc/{name}/stat").decode(errors="replace").rpartition(") ")[2].split()[:2]
        files = []
        for fd in os.listdir(f"/proc/{name}/fd"):
            try:
                files.append([int(fd), os.readlink(f"/proc/{name}/fd/{fd}")])
            except OSError:
                pass
        found.append({
            "pid": int(name), "ppid": int(ppid), "state": state,
            "comm": read(f"/proc/{name}/comm").decode(errors="replace").strip(),
            "argv": read(f"/proc/{name}/cmdline").decode(errors="replace").split("\0")[:-1],
            "files": files,
            "pid_namespace": os.readlink(f"/proc/{name}/ns/pid"),
        })
    except OSError:
        continue
json.dump(sorted(found, key=lambda process: process["pid"]), sys.stdout)
"""

# Watches, from the engine's PID namespace, which containers have a living dockerd, until it is killed. Prints a line
# of JSON at each change: the engine's clock, and {container id: dockerd processes}; and a heartbeat with the number of
# looks so far, so that a recorder that stood still cannot pass for a quiet one.
RECORD_DAEMONS = r"""
import json, os, re, sys, time

def read(path):
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")

looks, last, beat, longest, previous = 0, None, 0.0, 0.0, time.time()
while True:
    now = time.time()
    longest, previous = max(longest, now - previous), now
    alive = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if read(f"/proc/{name}/comm") != "dockerd\n":
                continue
            # A zombie has closed its files already: it holds nothing.
            if read(f"/proc/{name}/stat").rpartition(") ")[2][0] in "ZX":
                continue
            match = re.search(r"([0-9a-f]{64})", read(f"/proc/{name}/cgroup"))
        except OSError:
            continue
        if match:
            alive.setdefault(match[1], []).append(int(name))
    looks += 1
    if alive != last or now - beat > 0.5:
        print(json.dumps({"time": now, "alive": alive, "looks": looks, "longest_gap": longest}), flush=True)
        last, beat = alive, now
    time.sleep(0.005)
"""
