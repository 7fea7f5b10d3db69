"""The images under test, and the image stores that each can use."""

from __future__ import annotations

from typing import NamedTuple

SUITES = ("trixie", "forky")


class Flavour(NamedTuple):
    """An engine and the image store it is to use."""

    suite: str
    store: str

    @property
    def env(self) -> dict[str, str]:
        """The settings that lead there. Graph drivers are what both suites' engines use by themselves."""
        return {"CACHEDIND_IMAGE_STORE": "containerd"} if self.store == "containerd" else {}

    @property
    def overlay(self) -> str:
        """What this store calls its driver on overlay mounts."""
        return "overlayfs" if self.store == "containerd" else "overlay2"

    def __str__(self) -> str:
        return f"{self.suite}-{self.store}"


FLAVOURS = (Flavour("trixie", "graphdriver"), Flavour("forky", "graphdriver"), Flavour("forky", "containerd"))
