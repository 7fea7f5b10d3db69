"""Instances as they are played: made from a drawn start, with a slow engine where that says so, taken down and up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from helpers.dind import SOCKET, Dind
from helpers.waiting import wait_until
from kinds import REFUSED, Fate

if TYPE_CHECKING:
    import random

    from helpers.engine import Engine
    from kinds import Start

KILL_BY_NAME = """
for file in /proc/[0-9]*/comm; do
  case " NAMES " in
    *" $(cat "$file" 2>/dev/null) "*) pid=${file%/comm}; kill -SIGNAL "${pid#/proc/}" 2>/dev/null || true ;;
  esac
done
"""
_UP = "API listen on "
_TALES: dict[str, str] = {}
"""What those said that are gone, by their names."""


class Player(NamedTuple):
    """A start that is played, its container, in a pool its key and scope, and in direct mode whether it is remapped."""

    start: Start
    dind: Dind
    key: str = ""
    scope: str = ""
    read_only: bool = False
    remapped: bool = False

    def ready(self) -> None:
        """Each private daemon of a start is as slow as its engine."""
        self.dind.wait_ready(timeout_s=120 + 8 * self.start.slow_s, every_s=0.3)

    def describe(self) -> str:
        ended = _TALES.get(self.dind.name)
        lines = tale(self.dind) if ended is None else ended
        key = f", key {self.key}, scope {self.scope}" if self.key else ""
        more = ", read-only" * self.read_only + ", remapped" * self.remapped
        return f"    {self.dind.name}: {self.start}{key}{more}\n{lines}"


class Maker:
    """Makes the containers of starts.

    A slow engine is an image whose engine's program sleeps before it does anything, for as long as /etc/sluggish says.
    What only asks it for its version or the like is answered at once.
    """

    def __init__(self, engine: Engine) -> None:
        self._sluggish = {suite: _make_sluggish(engine, image) for suite, image in engine.images.items()}

    def create(
        self, engine: Engine, start: Start, flags: tuple[str, ...] = (), socket: str = SOCKET, **options: Any
    ) -> Dind:
        """The container of a start, not started yet; `options` are those of `Dind.create`."""
        mistake, text = REFUSED[start.how] if start.fate is Fate.REFUSED else ((), "")
        image = (self._sluggish if start.slow_s else engine.images)[start.flavour.suite]
        words = start.form.options((*flags, *mistake), socket)
        env = {**start.env, **words.pop("env", {}), **options.pop("env", {})}
        dind = Dind.create(engine, image, start=False, env=env, **words, **options)
        dind.docker_host = socket
        if start.slow_s:
            dind.put("/etc", {"sluggish": f"{start.slow_s}"})
        if text:
            dind.put("/etc/docker", {"daemon.json": text})
        return dind


_SLUGGISH = r"""
program=$(sed -n 's/.*"path": "\([^"]*\)".*/\1/p' /usr/local/share/cachedind/engine.json)
mkdir /usr/libexec/sluggish
mv "$program" /usr/libexec/sluggish/dockerd
cat >"$program" <<'END'
#!/opt/cachedind/bin/python -IS
import os, sys, time
if not {"-v", "--version", "-h", "--help", "--validate"} & set(sys.argv):
    with open("/etc/sluggish") as file:
        time.sleep(float(file.read()))
os.execv("/usr/libexec/sluggish/dockerd", sys.argv)
END
chmod 755 "$program"
"""


def _make_sluggish(engine: Engine, image: str) -> str:
    container = engine.client.containers.create(image, entrypoint=["sh", "-euc", _SLUGGISH], labels=engine.labels)
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0, container.logs()
        repository, tag = "cachedind-sluggish", f"{engine.session}-{image.rpartition(':')[2]}"
        container.commit(repository, tag, changes=['ENTRYPOINT ["dockerd-entrypoint.sh"]', "CMD []"])
    finally:
        container.remove(force=True, v=True)
    name = f"{repository}:{tag}"
    engine.undo_later(f"image {name}", lambda: engine.client.images.remove(name, force=True))
    return name


# ---- what is done to one -----------------------------------------------------------------------------------------


def kill_inside(dind: Dind, names: str, signal: str = "KILL") -> None:
    """Send a signal to every process in the container that has one of these names."""
    dind.sh(KILL_BY_NAME.replace("NAMES", names).replace("SIGNAL", signal), check=False)


def end_daemon(dind: Dind, dice: random.Random) -> str:
    """End the daemon in a container whose shell starts it again, and wait for the next one. Returns how."""
    how, names, signal = dice.choice(
        (
            ("TERM of its daemon", "dockerd", "TERM"),
            ("KILL of its daemon", "dockerd", "KILL"),
            ("KILL of its daemon and containerd", "dockerd containerd", "KILL"),
        )
    )
    before = dind.log().count(_UP)
    kill_inside(dind, names, signal)
    wait_until(
        lambda: dind.log().count(_UP) > before,
        what=f"{dind.name} to have a daemon again after {how}",
        timeout_s=240,
        hopeless=dind.why_not_running,
        diagnose=dind.describe,
    )
    return how


def restart(dind: Dind, dice: random.Random) -> str:
    """End the container, and start the same one again. Returns how."""
    if dice.random() < 0.5:
        _stop(dind)
        how = "stop and start of its container"
    else:
        dind.kill()
        how = "kill and start of its container"
    dind.start()
    return how


def end(dind: Dind, *, clean: bool) -> None:
    """Take it down for good: as `docker stop` does, or killed."""
    if clean:
        _stop(dind)
    dind.kill()
    log = dind.log()
    _TALES[dind.name] = tale(dind)
    assert "Traceback" not in log, log
    dind.remove()
    dind.engine.dinds.remove(dind)


def _stop(dind: Dind) -> None:
    """A loop in a shell drops the signal, and is killed in the end, which need not take long."""
    looped = "while" in str(dind.container.attrs["Config"]["Entrypoint"])
    dind.stop(timeout_s=2 if looped else 15)


# ---- what it says ------------------------------------------------------------------------------------------------


def tale(dind: Dind) -> str:
    """What cachedind said, and the end of what the engine did, indented."""
    own = [f"cachedind: {line}" for line in dind.messages]
    last = [line for line in dind.log().splitlines() if not line.startswith("cachedind: ")][-4:]
    return "\n".join(f"      {line[:600]}" for line in own + last)


def has_come_up(dind: Dind) -> bool:
    return _UP in dind.log()


def beginning(dind: Dind) -> str:
    """How its last start began: warm, cloned, seeded or cold."""
    return _last_summary(dind).partition(":")[0]


def slot_of(dind: Dind) -> str:
    """The slot that its last start says it leased."""
    summary = _last_summary(dind)
    found = re.search(r"\bslot ([0-9a-f]{12})\b", summary)
    assert found, f"{dind.name} has no slot: {summary}"
    return found[1]


def _last_summary(dind: Dind) -> str:
    found = [line for line in dind.messages if re.match(r"(warm|cloned|seeded|cold): ", line)]
    return found[-1] if found else "?"
