"""Build contexts are linked, not copied: each instance's transfers change its own, whoever began with the same one."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from helpers.pools import Disk

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.flavours import Flavour

DOCKERFILE = """
FROM base:latest
COPY src /src
CMD ["sh", "-c", "cd /src && for f in $(ls -A); do echo $f $(stat -c %a $f) $(cat $f); done"]
"""
CLIENT = "/root/.docker"
"""Where a client keeps what it calls itself: an engine goes on with the context of the one that it knows."""


class Client:
    """One client, on whichever instance: with a context of its own that it changes between builds."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self._kept = b""

    def build(self, dind: Dind) -> list[str]:
        """What the image has in /src, after a build."""
        dind.load_base()
        if self._kept:
            dind.container.put_archive("/root", self._kept)
        dind.sh("rm -rf /sent; mkdir -p /sent/src")
        dind.put("/sent", {"Dockerfile": DOCKERFILE})
        dind.put("/sent/src", self.files)
        dind.docker("build", "--tag=context:latest", "/sent")
        if not self._kept:
            self._kept = b"".join(dind.container.get_archive(CLIENT)[0])
        return dind.docker("run", "--rm", "context:latest").splitlines()

    def expected(self) -> list[str]:
        return [f"{name} 644 {text}" for name, text in sorted(self.files.items())]


def test_a_client_changes_its_context_in_a_clone_and_nobody_elses(engine: Engine, flavour: Flavour) -> None:
    disk = Disk("ext4", flavour)
    pool = disk.volume(engine)
    before = {name: secrets.token_hex(8) for name in ("changed", "gone", "kept")}
    client = Client(dict(before))
    first = disk.start(engine, pool)
    assert client.build(first) == client.expected()
    first.kill()

    leased, cloned = disk.start(engine, pool), disk.start(engine, pool)
    # A clone that was made in advance, where copying took long, is leased.
    assert (cloned.summary or "").startswith(("cloned: ", "warm: "))
    assert cloned.sh("find /var/lib/docker -xdev -name kept -links +1 | head -n 1") != "", "nothing was linked"
    client.files = {"changed": "longer than it was before", "kept": before["kept"], "new": "new"}
    assert client.build(cloned) == client.expected()
    # The same client with what it had: from the other one's context, which nobody has changed.
    client.files = dict(before)
    assert client.build(leased) == client.expected()
    client.files = {"kept": before["kept"]}
    assert client.build(cloned) == client.expected()
    assert client.build(leased) == client.expected()
    assert leased.warnings == cloned.warnings == []
