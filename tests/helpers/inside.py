"""Small programs that tests run inside a container, with the image's own Python."""

from __future__ import annotations

# A Unix socket at argv[1] that nobody listens at.
MAKE_SOCKET = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"

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

# Watches all containers from the engine's PID namespace until the file argv[1] is there: who has a lock on a file
# .cachedind/lock, and who has a living dockerd. Prints a line of JSON at each change: the engine's clock, and container
# ids; and at least every half second the number of looks and the longest time between two, so that a recorder that
# stood still cannot pass for a quiet machine.
#
# /proc cannot be read at one instant. What a look finds is therefore confirmed in a second pass: two containers
# that are both found in both passes were both there at the moment between the passes.
RECORD_HOLDERS = r"""
import json, os, re, sys, time

def read(path):
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")

def is_daemon(pid):
    # A zombie has closed its files already: it holds nothing.
    return read(f"/proc/{pid}/comm") == "dockerd\n" and read(f"/proc/{pid}/stat").rpartition(") ")[2][0] not in "ZX"

def locks(pid, fd):
    return ".cachedind/lock" in os.readlink(f"/proc/{pid}/fd/{fd}") and "lock:" in read(f"/proc/{pid}/fdinfo/{fd}")

def look():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            container = re.search("[0-9a-f]{64}", read(f"/proc/{pid}/cgroup"))
            if not container:
                continue
            if is_daemon(pid):
                yield "daemons", container[0], is_daemon, (pid,)
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if locks(pid, fd):
                    yield "holders", container[0], locks, (pid, fd)
        except OSError:
            continue

def still(test, args):
    try:
        return test(*args)
    except OSError:
        return False

looks, longest, last, beat, previous = 0, 0.0, None, 0.0, time.time()
while not os.path.exists(sys.argv[1]):
    first_pass = list(look())
    now = time.time()
    seen = {"holders": set(), "daemons": set()}
    for kind, container, test, args in first_pass:
        if still(test, args):
            seen[kind].add(container)
    looks, longest, previous = looks + 1, max(longest, now - previous), now
    state = {kind: sorted(containers) for kind, containers in seen.items()}
    if state != last or now - beat > 0.5:
        print(json.dumps({"time": now, "looks": looks, "longest_gap": longest, **state}), flush=True)
        last, beat = state, now
    # Never more than half of one processor.
    time.sleep(max(0.01, time.time() - now))
"""
