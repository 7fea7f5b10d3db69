"""What a client sees of a daemon, and everything that a job can leave behind to be seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from helpers.dind import SOCKET
from helpers.seeds import docker_archive, small_image

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.registry import Published

# The container's own settings are for a daemon; a client must not read them.
_CLIENT = f"unset DOCKER_TLS_VERIFY DOCKER_CERT_PATH; export DOCKER_HOST={SOCKET}\n"

SECTIONS = {
    "images": "docker images --all --digests --no-trunc --format '{{.Repository}}:{{.Tag}}@{{.Digest}} {{.ID}}' | sort",
    "containers": "docker ps --all --format '{{.Names}} {{.Image}} {{.State}}'",
    "volumes": "docker volume ls --format '{{.Driver}} {{.Name}}'",
    "networks": "docker network ls --format '{{.Name}} {{.Driver}} {{.Scope}}' | sort",
    "plugins": "docker plugin ls --format '{{.Name}} {{.Enabled}}'",
    "contexts": "docker context ls --format '{{.Name}} {{.DockerEndpoint}}'",
    "builders": "docker buildx ls",
    # The build cache stays on purpose.
    "disk": "docker system df --format '{{.Type}}: {{.TotalCount}} {{.Active}} {{.Size}}' | grep -v '^Build Cache'",
    # buildx before 0.20 has no such command.
    "builds": "docker buildx history ls --format '{{.Name}} {{.Status}}' 2>/dev/null || true",
    "info": "docker info --format '{{.Images}} {{.Containers}} {{.Swarm.LocalNodeState}} {{json .Plugins}}'",
}
View = dict[str, list[str]]
_END = "----"


def view(dind: Dind) -> View:
    """What the commands that list things print."""
    told = dind.sh(_CLIENT + f"echo {_END}\n".join(f"{command}\n" for command in SECTIONS.values()))
    return {name: part.splitlines() for name, part in zip(SECTIONS, told.split(f"{_END}\n"), strict=True)}


class Thing(NamedTuple):
    """Something that a job can leave, the section in which it is seen, and how it is made."""

    what: str
    section: str
    script: str


_RUN = "docker run --detach --network=none"
# No paused container: with cgroup v1 nobody can kill what is frozen, nor the container around it.
THINGS = (
    Thing("a loaded image", "images", "docker load --input /left/loaded.tar"),
    Thing("two names on one image", "images", "docker tag loaded:1 registry.example.com/second/name:2"),
    Thing("an imported image", "images", "docker import /left/base.tar imported:1"),
    Thing("a built image", "images", "docker build --tag built:1 /left/build"),
    Thing("a built image without a name", "images", "docker build /left/nameless"),
    Thing("an image that has lost its name", "images", "docker build --tag built:1 /left/again"),
    Thing("an image of the classic builder", "images", "DOCKER_BUILDKIT=0 docker build --tag classic:1 /left/classic"),
    Thing("a pulled image", "images", "docker pull PULLED"),
    Thing("an image by digest", "by digest", "docker pull OTHER"),
    Thing("a container that ran", "containers", "docker run --network=none --name=ran base:latest touch /made"),
    Thing("a committed image", "images", "docker commit ran committed:1"),
    Thing("a container that runs", "containers", f"{_RUN} --name=runs base:latest sleep 1000"),
    Thing("one that restarts", "containers", f"{_RUN} --name=always --restart=always base:latest sleep 1000"),
    Thing("an anonymous volume", "volumes", "docker create --volume=/anonymous base:latest true"),
    Thing("a named volume", "volumes", "docker volume create named"),
    Thing("a network", "networks", "docker network create left"),
    Thing("a plugin", "plugins", "docker plugin create left /left/plugin"),
    Thing("a context", "contexts", "docker context create left --docker host=tcp://127.0.0.1:9"),
    Thing("a builder", "builders", "docker buildx create --name builder-left --driver docker-container"),
    Thing(
        "a swarm with a service",
        "info",
        "docker swarm init --advertise-addr=127.0.0.1 && echo left | docker secret create left -"
        " && echo left | docker config create left -"
        " && docker service create --detach --no-resolve-image --name left base:latest sleep 1000",
    ),
)

_DOCKERFILES = {
    "build": "FROM base:latest\nRUN echo one >/made\n",
    "nameless": "FROM base:latest\nRUN echo nameless >/made\n",
    "again": "FROM base:latest\nRUN echo another >/made\n",
    "classic": "FROM base:latest\nRUN echo classic >/made\nCMD cat /made\n",
}
_PLUGIN = {
    "description": "never enabled",
    "entrypoint": ["/plugin"],
    "interface": {"types": ["docker.volumedriver/1.0"], "socket": "plugin.sock"},
    "linux": {},
    "network": {"type": "none"},
}


def leave_everything(dind: Dind, pulled: Published, other: Published) -> None:
    """Make each of THINGS in a job, and see it there: what is not seen then would not be missed later."""
    dind.load_base()
    files: dict[str, str | bytes] = {f"{name}/Dockerfile": text for name, text in _DOCKERFILES.items()}
    files["loaded.tar"] = docker_archive(small_image(dind.engine, "loaded:1"))
    files["base.tar"] = dind.engine.base_tar
    files["plugin/config.json"] = json.dumps(_PLUGIN)
    files["plugin/rootfs/plugin"] = "nothing"
    dind.put("/left", files)
    for what, section, script in THINGS:
        make = script.replace("PULLED", pulled.name).replace("OTHER", other.by_digest)
        look = SECTIONS.get(section) or f"docker image inspect --format='{{{{.Id}}}}' {other.by_digest} 2>&1 || true"
        told = dind.sh(f"{_CLIENT}{look}\necho {_END}\nmake() {{ {make}; }}\nmake >&2\n{look}")
        before, _, after = told.partition(f"{_END}\n")
        assert before.strip() != after, f"{what} is not seen: {after}"
    # Without the command buildx shows its help, and all is well; the option it does not know.
    if dind.sh(f"{_CLIENT}docker buildx history ls --format='{{{{.Name}}}}' >/dev/null 2>&1 && echo yes || true"):
        assert view(dind)["builds"], "no build is in the history"
