"""What lies in a seed by its name: members of a tar (tar_members.py), or files of a directory (layout_members.py).

Nothing is ever extracted, and no name leads out of the seed.
"""

from __future__ import annotations

import posixpath

from cachedind.base.typed import TYPE_CHECKING, Protocol
from cachedind.seeds.model import SeedError
from cachedind.seeds.quoting import shown

if TYPE_CHECKING:
    from collections.abc import Iterator


class Blob(Protocol):
    """Content that is in a seed under some name."""

    @property
    def size_bytes(self) -> int: ...
    def chunks(self) -> Iterator[bytes]: ...

    def head(self, count: int) -> bytes:
        """Its first bytes, without reading the others. Raises SeedError."""
        ...


class Members(Protocol):
    """The files of a seed. Names are relative to its top: "blobs/sha256/…"."""

    def find(self, name: str) -> Blob | None:
        """A regular file, or None if there is none. Raises SeedError for a name that leads out, and what cannot be
        read."""
        ...

    def top_names(self) -> frozenset[str]:
        """What is in it at the top, of whatever type."""
        ...

    def close(self) -> None: ...


def clean_path(name: str) -> str:
    """ "./x//y" → "x/y". Raises SeedError for one that leads out of the seed, or seems to."""
    if name.startswith("/") or ".." in name.split("/"):
        raise outside(name)
    return posixpath.normpath(name)


def outside(name: str) -> SeedError:
    return SeedError(f"it names a path outside of the seed: {shown(name)}")
