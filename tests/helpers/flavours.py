"""The images under test, and the image stores that each can use."""

from __future__ import annotations

import os
from typing import NamedTuple

SUITES = ("trixie", "forky")
STAND_IN = "stand-in"
"""Forky's engine as that of an image laid out as docker:dind (tests/image/test_engine_image.py)."""
DEFAULT_STORE = os.environ.get("CACHEDIND_TEST_DEFAULT_STORE", "graphdriver")
"""What the engines take by themselves: graph drivers, or "containerd" where scripts/engine-check tries a newer one."""


class Flavour(NamedTuple):
    """An engine and the image store it is to use."""

    suite: str
    store: str

    @property
    def env(self) -> dict[str, str]:
        """The settings that lead there."""
        return {} if self.store == DEFAULT_STORE else {"CACHEDIND_IMAGE_STORE": self.store}

    @property
    def overlay(self) -> str:
        """What this store calls its driver on overlay mounts."""
        return "overlayfs" if self.store == "containerd" else "overlay2"

    def __str__(self) -> str:
        return f"{self.suite}-{self.store}"


FLAVOURS = (Flavour("trixie", "graphdriver"), Flavour("forky", "graphdriver"), Flavour("forky", "containerd"))


def own_overlay(suite: str) -> str:
    """What an image's engine calls the driver that it takes by itself. The tests' older engine is never a newer one."""
    return "overlayfs" if DEFAULT_STORE == "containerd" and suite != "trixie" else "overlay2"
