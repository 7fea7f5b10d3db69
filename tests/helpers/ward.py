"""Good data-roots, one for each engine and store, and what is done to a file of a copy of one."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from helpers.builds import Project
from helpers.estates import Visitor

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine, Volume
    from helpers.flavours import Flavour

PLACE = "/damage"

# What is done to the file $f.
CUT = 'truncate -s 12288 "$f"'
EMPTY = 'truncate -s 0 "$f"'
ZEROS = 'head -c "$(stat -c %s "$f")" /dev/zero >"$f.x"; mv "$f.x" "$f"'
META_PAGES = 'dd if=/dev/zero of="$f" bs=4096 count=2 conv=notrunc status=none'
DIRECTORY = 'rm -f "$f"; mkdir "$f"'
PIPE = 'rm -f "$f"; mkfifo "$f"'
LINK = 'rm -f "$f"; ln -s /etc/passwd "$f"'
NOISE = 'head -c 9999 /dev/urandom >"$f"'
GONE = 'rm -rf "$f"'


def on(path: str, how: str) -> str:
    """A script that does this to a file, which must be there."""
    return f'f="{path}"; [ -e "$f" ]; {how}'


def marked_project(nonce: str) -> Project:
    """Few steps, one of which leaves something that no other build makes."""
    dockerfile = (
        "FROM base:latest\nCOPY nonce /nonce\n"
        "RUN cat /proc/sys/kernel/random/uuid >/build-id\nRUN sha256sum /nonce >/sum\n"
        'CMD ["/bin/sh", "-c", "cat /build-id /nonce"]\n'
    )
    return Project("small:latest", {"Dockerfile": dockerfile, "nonce": nonce}, (nonce,), 3)


class Good(NamedTuple):
    """A volume with a data-root in it at `good`, of which copies are made and damaged."""

    volume: Volume
    visitor: Visitor
    project: Project
    build_id: str

    def damage(self, script: str) -> None:
        """Make a new copy, at `case`, and run a script in it."""
        self.visitor.sh(f"rm -rf case; cp -a --reflink=always good case; cd case; {script}")


class Ward:
    """Good data-roots by flavour, made when the first test wants one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._good: dict[Flavour, Good] = {}

    def good(self, flavour: Flavour) -> Good:
        if flavour not in self._good:
            volume = self.engine.volume("xfs", size_mib=4096)
            what = marked_project(secrets.token_hex(8))
            dind = self.start(flavour, volume, "good")
            dind.build(what)
            build_id = dind.run_image(what)
            dind.kill()
            dind.remove()
            # A second start keeps copies of what a third one may have to put back.
            again = self.start(flavour, volume, "good")
            assert again.build(what).uncached == []
            again.kill()
            again.remove()
            self._good[flavour] = Good(volume, Visitor(self.engine, volume), what, build_id)
        return self._good[flavour]

    def create(self, flavour: Flavour, volume: Volume, name: str, **env: str) -> Dind:
        """An instance on one of the data-roots that is not started yet."""
        return self.engine.dind(
            flavour.suite,
            volume=volume,
            data_root=PLACE,
            args=[f"--data-root={PLACE}/{name}"],
            env={**flavour.env, **env},
            start=False,
        )

    def start(self, flavour: Flavour, volume: Volume, name: str) -> Dind:
        dind = self.create(flavour, volume, name)
        dind.start()
        dind.wait_ready()
        return dind
