"""Names of images: as people write them ("redis:7") and as stores keep them ("docker.io/library/redis:7").

The rules are the reference grammar's (github.com/distribution/reference, reference.go and normalize.go).
"""

from __future__ import annotations

import re

_DOMAIN = (
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])"
)
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_FULL = re.compile(rf"{_DOMAIN}(?::[0-9]+)?/{_PART}(?:/{_PART})*:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}")
_MAX_NAME = 255
"""Characters without the tag."""


def canonical(name: str) -> str:
    """The name with registry and tag. The result is checked by `is_name`, not here."""
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        name = f"docker.io/{name}" if slash else f"docker.io/library/{name}"
    elif first in ("docker.io", "index.docker.io"):
        name = f"docker.io/{rest}" if "/" in rest else f"docker.io/library/{rest}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def familiar(full: str) -> str:
    """A canonical name as people write it."""
    if not full.startswith("docker.io/"):
        return full
    return full.removeprefix("docker.io/").removeprefix("library/")


def is_name(full: str) -> bool:
    """Whether a canonical name is one by the grammar: with a registry and a tag, without a digest."""
    return _FULL.fullmatch(full) is not None and len(full.rpartition(":")[0]) <= _MAX_NAME
