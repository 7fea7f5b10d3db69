"""Seeds: images that are put into a data-root from outside. The values that its modules pass on; nothing here acts.

Seed        a source that the settings name, seen from outside: a file, a directory, an image of another daemon
SeedImage   an image in it, read and understood, its layers still where they are
Record      what the ledger remembers of an image that was loaded
"""

from __future__ import annotations

from enum import StrEnum

from cachedind.base.typed import TYPE_CHECKING, NamedTuple, Protocol
from cachedind.engine.images import Record, chain_ids

if TYPE_CHECKING:
    from collections.abc import Iterator


class SeedKind(StrEnum):
    ARCHIVE = "archive"
    """A tar, perhaps compressed: of `docker save`, or of an OCI layout."""
    LAYOUT = "layout"
    """A directory that is an OCI layout."""
    HOST = "host"
    """An image of another daemon."""


class Seed(NamedTuple):
    """One source. `identity` changes whenever its content may have changed, and is the same wherever it is mounted.

    `name` is its path, or an image's name at the other daemon. `checksum` is the SHA-256 in the file beside it.
    """

    kind: SeedKind
    name: str
    identity: str
    size_bytes: int
    checksum: str | None = None


class SeedError(Exception):
    """A seed that cannot be used. The message is the reason: one line, without the seed's name.

    `lasting` tells that the same bytes will be just as bad the next time. A full disk or a vanished file does not last.
    """

    def __init__(self, why: str, *, lasting: bool = True) -> None:
        super().__init__(why)
        self.lasting = lasting


class BadSeed(NamedTuple):
    """A seed, or an image in it, that was not loaded, and why: one line."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


class Content(Protocol):
    """Bytes that can be read again and again."""

    @property
    def size_bytes(self) -> int: ...

    def chunks(self) -> Iterator[bytes]:
        """All of them, in pieces of at most 1 MiB. Raises SeedError when they are not all there any longer."""
        ...


class Layer(NamedTuple):
    """A layer as a seed has it.

    `diff_id` is the digest of its tar without compression, as the image's configuration has it; `digest` that of the
    bytes in `content`, or None where nobody has computed it; `media_type` OCI's name for their format.
    """

    diff_id: str
    digest: str | None
    media_type: str
    content: Content


class SeedImage(NamedTuple):
    """An image of this machine's platform. Its names are canonical ("docker.io/library/redis:7"), perhaps none.

    `manifest` is the image's own manifest with its media type, where the seed has one: its layers are then exactly
    `layers`, each with a digest.
    """

    names: tuple[str, ...]
    config: bytes
    config_digest: str
    layers: tuple[Layer, ...]
    manifest: bytes | None = None
    manifest_type: str = ""

    @property
    def top_chain(self) -> str:
        return chain_ids([layer.diff_id for layer in self.layers])[-1] if self.layers else ""


class Entry(NamedTuple):
    """What the ledger remembers of one seed: `name` is where it was found last, `at` when it was read.

    `bad` is what is wrong with it, as long as it does not change: (name, why).
    """

    name: str
    at: float
    images: tuple[Record, ...]
    bad: tuple[tuple[str, str], ...] = ()
