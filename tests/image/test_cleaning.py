"""What a killed job leaves is gone before the next one's daemon starts; its images and its build cache are not.

The functions are called in a container that has the volume of a killed one and no daemon of its own.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from helpers.builds import overlay_project
from helpers.dind import DATA_ROOT
from helpers.flavours import Flavour
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind, Process
    from helpers.engine import Engine, Volume

# Bind-mounted into containers, so that what they did is known when they and their volumes are gone.
MARKS = f"{DATA_ROOT}/marks"

COMPOSE = """
services:
  one:
    image: base:latest
    command: sleep 1000
    restart: unless-stopped
    volumes: [data:/data]
  two:
    image: base:latest
    command: sleep 1000
    volumes: [/anonymous]
volumes:
  data:
"""

# Arguments: image store, driver, what to keep, the trace point to die at. Prints what was found and done as JSON.
MAINTAIN = r"""
import json, os, sys, time
sys.path.append(f"/opt/cachedind/lib/python3.{sys.version_info[1]}/site-packages")
from cachedind.base import log, model, trace
from cachedind.base.errors import CleaningError
from cachedind.dataroot import lease
from cachedind.engine import cleaning, leftovers, private_daemon

def look():
    return leftovers.find_leftovers("/var/lib/docker", keep)._asdict()

store, driver, keep, kill_at = sys.argv[1:]
keep = frozenset(keep.split(","))
held = lease.acquire("/var/lib/docker", model.Holder("", "test", time.time()), 0, lambda holder: None)
found = leftovers.find_leftovers("/var/lib/docker", keep)
done = {"found": found._asdict(), "error": None}
mounts = open("/proc/self/mountinfo").read()
descriptors = os.listdir("/proc/self/fd")
try:
    plan = model.StoragePlan(model.ImageStore(store), driver, "test")
    job = cleaning.Job("/var/lib/docker", plan, keep, held.fd, dict(os.environ), log.Log(), trace.Trace(kill_at))
    cleaned = cleaning.clean(job, found)
    done["removed"] = cleaned.removed._asdict()
    done["problems"] = cleaned.problems
except CleaningError as error:
    done["error"] = error.cause
done["left"] = leftovers.find_leftovers("/var/lib/docker", keep)._asdict()
done["mounts"] = open("/proc/self/mountinfo").read() == mounts
done["descriptors"] = os.listdir("/proc/self/fd") == descriptors
done["run"] = os.listdir("/run/cachedind") if os.path.isdir("/run/cachedind") else []
done["links"] = sorted(os.listdir("/sys/class/net"))
print(json.dumps(done))
"""


class Visit(NamedTuple):
    """A container with somebody's volume, whose only process sleeps."""

    dind: Dind
    store: str
    driver: str

    def start(self, keep: str = "", kill_at: str = "") -> Any:
        """Run MAINTAIN; returns how it ended."""
        python = "/opt/cachedind/bin/python"
        # As a CI sets them; a private daemon has no use for either.
        env = {"DOCKER_DRIVER": "vfs", "DOCKER_HOST": "tcp://127.0.0.1:9"}
        words = (python, "-IS", "-c", MAINTAIN, self.store, self.driver, keep, kill_at)
        return self.dind.exec(*words, env=env, check=False)

    def clean(self, keep: str = "") -> dict[str, Any]:
        """The same for what it found and did. Nothing of the private daemon is left in any case."""
        done = self.start(keep)
        assert done.status == 0, done.output
        print(done.output)
        outcome: dict[str, Any] = json.loads(done.stdout)
        assert outcome["mounts"]
        assert outcome["descriptors"]
        assert outcome["run"] == []
        assert outcome["links"] == ["eth0", "lo"]
        assert self.daemons() == []
        return outcome

    def daemons(self) -> list[Process]:
        """What lives of a private daemon; a zombie holds nothing."""
        return [
            process
            for process in self.dind.processes()
            if process.comm.startswith(("dockerd", "containerd")) and process.state not in "ZX"
        ]


def start(engine: Engine, flavour: Flavour, volume: Volume) -> Dind:
    dind = engine.dind(flavour.suite, volume=volume, env=flavour.env)
    dind.wait_ready()
    dind.load_base()
    return dind


def visit(engine: Engine, flavour: Flavour, volume: Volume) -> Visit:
    dind = engine.dind(flavour.suite, volume=volume, entrypoint=["sleep", "infinity"])
    return Visit(dind, flavour.store, flavour.overlay)


def run_marked(dind: Dind, name: str, *options: str) -> None:
    """A container that leaves a mark each time that it runs."""
    script = f"echo ran >>/marks/{name}; sleep 1000"
    dind.docker("run", "-d", "--name", name, f"--volume={MARKS}:/marks", *options, "base:latest", "sh", "-c", script)
    wait_until(lambda: marks(dind, name) == 1, what=f"{name} to run")


def marks(dind: Dind, name: str) -> int:
    """How often a container has run."""
    return int(dind.sh(f"cat {MARKS}/{name} 2>/dev/null | wc -l"))


def names(dind: Dind, kind: str) -> set[str]:
    """What the daemon has of containers (ps -a), networks or volumes."""
    formats = {"container": ("ps", "-a", "--format={{.Names}}"), "network": ("network", "ls", "--format={{.Name}}")}
    return set(dind.docker(*formats.get(kind, ("volume", "ls", "--format={{.Name}}"))).split())


def test_everything_of_the_last_job_goes_but_images_and_build_cache(engine: Engine, flavour: Flavour) -> None:
    volume = engine.volume()
    project = overlay_project(secrets.token_hex(8))
    first = start(engine, flavour, volume)
    first.build(project)
    build_id = first.run_image(project)
    first.docker("network", "create", "--subnet=10.77.0.0/24", "mine")
    run_marked(first, "always", "--restart=always", "--network=mine", "--volume=named:/v", "--volume=/anonymous")
    run_marked(first, "failing", "--restart=on-failure", "--network=host")
    first.docker("volume", "create", "unused")
    first.docker("create", "base:latest", "true")
    first.put("/stack", {"compose.yaml": COMPOSE})
    first.docker("compose", "--project-directory=/stack", "up", "--detach")
    first.kill()

    visitor = visit(engine, flavour, volume)
    outcome = visitor.clean()
    assert outcome["error"] is None
    assert outcome["problems"] == []
    found = {kind: len(what) for kind, what in outcome["found"].items() if kind != "swarm"}
    assert found == {"containers": 5, "networks": 2, "volumes": 5, "plugins": 0}
    assert len(outcome["removed"]["containers"]) == 5
    assert not any(outcome["left"].values())
    # Once and not again: the private daemon restarted neither.
    assert (marks(visitor.dind, "always"), marks(visitor.dind, "failing")) == (1, 1)
    visitor.dind.kill()

    third = start(engine, flavour, volume)
    assert names(third, "container") == set()
    assert names(third, "volume") == set()
    assert names(third, "network") == {"bridge", "host", "none"}
    assert marks(third, "always") == 1
    assert third.run_image(project) == build_id
    third.docker("image", "rm", "--force", project.tag)
    assert third.build(project).uncached == []
    assert third.run_image(project) == build_id
    # Nothing is found where nobody did anything but build.
    third.docker("image", "prune", "--force")
    third.kill()
    assert not any(visit(engine, flavour, volume).clean()["found"].values())


def test_kept_containers_keep_what_they_use_and_do_not_run_meanwhile(engine: Engine, flavour: Flavour) -> None:
    volume = engine.volume()
    first = start(engine, flavour, volume)
    first.docker("network", "create", "mine")
    first.docker("network", "create", "nobodys")
    first.docker("volume", "create", "nobodys")
    run_marked(first, "always", "--restart=always", "--network=mine", "--volume=named:/v", "--volume=/anonymous")
    before = names(first, "volume")
    first.kill()

    visitor = visit(engine, flavour, volume)
    outcome = visitor.clean(keep="containers")
    assert outcome["found"]["volumes"] == ["nobodys"]
    assert (len(outcome["found"]["networks"]), outcome["found"]["containers"]) == (1, [])
    assert (outcome["error"], outcome["problems"]) == (None, [])
    # Neither run nor tried to: 255 is what a daemon makes of a container that was running when it was killed.
    [record] = visitor.dind.sh(f"cat {DATA_ROOT}/containers/*/config.v2.json").splitlines()
    state = json.loads(record)["State"]
    assert (state["Running"], state["ExitCode"], state["Error"]) == (False, 255, "")
    assert marks(visitor.dind, "always") == 1
    visitor.dind.kill()

    third = start(engine, flavour, volume)
    assert names(third, "container") == {"always"}
    assert names(third, "volume") == before - {"nobodys"}
    assert names(third, "network") == {"bridge", "host", "none", "mine"}
    # And their policy is still theirs.
    wait_until(lambda: marks(third, "always") == 2, what="the kept container to run again")


def test_kept_volumes_stay_also_without_their_containers(engine: Engine, suite: str) -> None:
    flavour = Flavour(suite, "graphdriver")
    volume = engine.volume()
    first = start(engine, flavour, volume)
    run_marked(first, "user", "--volume=named:/v", "--volume=/anonymous")
    before = names(first, "volume")
    assert len(before) == 2
    first.kill()

    outcome = visit(engine, flavour, volume).clean(keep="volumes,networks")
    assert (outcome["error"], outcome["problems"]) == (None, [])
    third = start(engine, flavour, volume)
    assert (names(third, "container"), names(third, "volume")) == (set(), before)


def test_a_swarm_is_ended_and_its_services_do_not_run_again(engine: Engine, suite: str) -> None:
    flavour = Flavour(suite, "graphdriver")
    volume = engine.volume()
    first = start(engine, flavour, volume)
    first.docker("swarm", "init")
    first.sh(f"mkdir -p {MARKS}")
    mount = f"--mount=type=bind,source={MARKS},target=/marks"
    script = "echo ran >>/marks/service; sleep 1000"
    options = ("--detach", "--no-resolve-image", "--network=host", mount)
    # A swarm asks the registry first, whatever it has: this one refuses at once.
    first.docker("tag", "base:latest", "127.0.0.1:9/base")
    first.docker("service", "create", *options, "127.0.0.1:9/base", "sh", "-c", script)
    wait_until(lambda: marks(first, "service") == 1, what="the service to run")
    first.kill()

    visitor = visit(engine, flavour, volume)
    # Kept as its containers are, it does not run meanwhile either; the volume is what there is to do.
    visitor.dind.sh(f"mkdir -p {DATA_ROOT}/volumes/stray/_data")
    state = f"find {DATA_ROOT}/swarm -type f -printf '%p %T@ %s\n' | sort"
    before = visitor.dind.sh(state)
    assert "raft" in before
    assert visitor.clean(keep="containers")["found"] == {
        "containers": [],
        "networks": [],
        "volumes": ["stray"],
        "swarm": False,
        "plugins": [],
    }
    assert visitor.dind.sh(state) == before
    assert marks(visitor.dind, "service") == 1
    outcome = visitor.clean()
    assert outcome["found"]["swarm"] is True
    assert (outcome["error"], outcome["problems"]) == (None, [])
    assert marks(visitor.dind, "service") == 1
    visitor.dind.kill()

    third = start(engine, flavour, volume)
    assert third.docker("info", "--format={{.Swarm.LocalNodeState}}") == "inactive"
    assert names(third, "network") == {"bridge", "host", "none"}
    assert names(third, "container") == set()


def test_what_a_daemon_cannot_read_goes_too_and_is_told(engine: Engine, flavour: Flavour) -> None:
    volume = engine.volume()
    first = start(engine, flavour, volume)
    run_marked(first, "cut", "--restart=always")
    run_marked(first, "policy", "--restart=always")
    first.kill()

    visitor = visit(engine, flavour, volume)
    records = visitor.dind.sh(f"grep -l '\"/cut\"' {DATA_ROOT}/containers/*/config.v2.json")
    visitor.dind.sh(f"truncate -s 100 {records}; echo x >{DATA_ROOT}/containers/stray")
    visitor.dind.sh(f"truncate -s 10000 {DATA_ROOT}/network/files/local-kv.db")
    # With no policy to be read, none can be followed; with one that is nonsense neither.
    visitor.dind.sh(f"for file in {DATA_ROOT}/containers/*/hostconfig.json; do echo '{{' >$file; done")
    outcome = visitor.clean()
    assert outcome["error"] is None
    assert not any(outcome["left"].values())
    [networks, *containers] = outcome["problems"]
    assert "local-kv.db is unreadable" in networks
    assert all("the daemon could not read it as a container" in line for line in containers)
    assert {"containers/stray", "containers/" + records.split("/")[-2]} <= {line.split()[0] for line in containers}
    assert (marks(visitor.dind, "cut"), marks(visitor.dind, "policy")) == (1, 1)
    visitor.dind.kill()

    third = start(engine, flavour, volume)
    assert names(third, "container") == set()
    third.docker("network", "create", "new")


def test_a_daemon_that_does_not_come_up_says_why(engine: Engine, suite: str) -> None:
    flavour = Flavour(suite, "graphdriver")
    volume = engine.volume()
    first = start(engine, flavour, volume)
    run_marked(first, "any")
    first.kill()
    visitor = visit(engine, flavour, volume)
    visitor.dind.sh(f"head -c 70000 /dev/urandom >{DATA_ROOT}/volumes/metadata.db")
    outcome = visitor.clean()
    assert "the private daemon ended with status 1" in outcome["error"]
    assert "metadata.db" in outcome["error"]
    assert "\n" not in outcome["error"]
    assert len(outcome["left"]["containers"]) == 1


@pytest.mark.parametrize("point", ["maintain.started", "maintain.cleaned"])
def test_a_killed_cleaning_leaves_no_daemon_and_no_lease_and_is_done_again(
    engine: Engine, suite: str, point: str
) -> None:
    flavour = Flavour(suite, "graphdriver")
    volume = engine.volume()
    first = start(engine, flavour, volume)
    first.docker("network", "create", "mine")
    run_marked(first, "always", "--restart=always", "--network=mine", "--volume=/anonymous")
    first.kill()
    visitor = visit(engine, flavour, volume)
    assert visitor.start(kill_at=point).status == 137
    # Each of its daemons had the lock's descriptor: while one lived, the lease would be refused below.
    wait_until(lambda: visitor.daemons() == [], what="the private daemon to die", timeout_s=5)
    # Something for a daemon to do, whatever the first one came to.
    visitor.dind.sh(f"mkdir -p {DATA_ROOT}/volumes/stray/_data")
    outcome = json.loads(visitor.start().stdout)
    assert (outcome["error"], outcome["run"]) == (None, [])
    assert not any(outcome["left"].values())
    assert marks(visitor.dind, "always") == 1


def test_the_private_daemon_holds_the_lease_and_is_seen_by_nobody(engine: Engine, suite: str) -> None:
    volume = engine.volume()
    dind = engine.dind(suite, volume=volume, entrypoint=["sleep", "infinity"])
    program = r"""
import json, os, sys, time
sys.path.append(f"/opt/cachedind/lib/python3.{sys.version_info[1]}/site-packages")
from cachedind.dataroot import lease
from cachedind.base import model
from cachedind.engine import private_containerd, private_daemon
held = lease.acquire("/var/lib/docker", model.Holder("", "test", time.time()), 0, lambda holder: None)
plan = model.StoragePlan(model.ImageStore.GRAPHDRIVER, "overlay2", "test")
environ = {**os.environ, "DOCKER_DRIVER": "vfs", "CACHEDIND_X": "1", "container": "lxc"}
with private_daemon.private_daemon("/var/lib/docker", plan, lock_fd=held.fd, environ=environ) as client:
    info = client.info()
    children = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        comm = open(f"/proc/{pid}/comm").read().strip()
        if comm in ("dockerd", "containerd"):
            files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            environment = open(f"/proc/{pid}/environ").read().split("\0")
            namespaces = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("mnt", "net")}
            children.append([comm, "/var/lib/docker/.cachedind/lock" in files, environment, namespaces,
                             open(f"/proc/{pid}/net/tcp").read().count("\n") - 1])
    print(json.dumps({"info": info, "children": children, "mode": os.stat(private_containerd.DIRECTORY).st_mode & 0o777,
                      "own": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net")}}))
"""
    outcome = json.loads(dind.exec("/opt/cachedind/bin/python", "-IS", "-c", program).stdout)
    assert outcome["info"]["Driver"] == "overlay2"
    assert outcome["mode"] == 0o700
    assert sorted(child[0] for child in outcome["children"]) == ["containerd", "dockerd"]
    for name, holds, environment, namespaces, connections in outcome["children"]:
        assert holds, f"{name} does not hold the lock"
        assert "container=docker" in environment
        assert not any(entry.startswith(("DOCKER", "CACHEDIND")) for entry in environment)
        assert namespaces["mnt"] != outcome["own"]["mnt"]
        assert namespaces["net"] != outcome["own"]["net"]
        assert connections == 0
    assert dind.sh("test ! -e /run/docker.sock; test ! -e /var/run/docker.pid; ls /run/cachedind") == ""
