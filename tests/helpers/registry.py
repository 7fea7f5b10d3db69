"""An image registry for inner daemons to pull from, in a container on a network of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from helpers.engine import exec_in
from helpers.seeds import PYTHON
from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind
    from helpers.engine import Engine

HOST = "registry:5000"

_CONFIG = """
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /var/lib/docker/registry}}
http: {addr: ":5000"}
"""


class Registry:
    """`program` is the file of Debian's docker-registry. Daemons that are to use it need `network` and `arguments`."""

    arguments = (f"--insecure-registry={HOST}",)

    def __init__(self, engine: Engine, program: Path) -> None:
        self.network = engine.network()
        # The image's own entrypoint makes way for the registry, which needs nothing of it but a C library.
        self._dind: Dind = engine.dind(
            "trixie",
            entrypoint=["/registry/serve", "serve", "/registry/config.yml"],
            network=self.network,
            aliases=["registry"],
            privileged=False,
            start=False,
        )
        self._dind.put("/registry", {"config.yml": _CONFIG})
        self._dind.put("/registry", {"serve": program.read_bytes()}, mode=0o755)
        self._dind.start()
        ask = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/v2/')"
        wait_until(
            lambda: exec_in(self._dind.container, [PYTHON, "-I", "-c", ask], check=False).status == 0,
            what="the registry to answer",
            diagnose=self._dind.describe,
        )
        engine.dinds.remove(self._dind)
