"""Images that may have to be loaded: which of them gets a name, and which is loaded next. Pure."""

from __future__ import annotations

from collections import Counter

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine.image_names import canonical, familiar
from cachedind.engine.images import Record, chain_ids
from cachedind.seeds import loading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cachedind.seeds.model import Seed, SeedImage

_BATCH_BYTES = 1 << 30
"""How many bytes of compressed seeds are decompressed before the first of them is loaded: they take disk meanwhile."""


class PendingImage(NamedTuple):
    """An image that may have to be loaded, with the identity of its seed."""

    identity: str
    seed_name: str
    image: SeedImage

    @property
    def name(self) -> str:
        names = [familiar(name) for name in self.image.names]
        return ", ".join(names) if names else f"{self.seed_name} ({self.image.config_digest[:19]})"

    @property
    def where(self) -> str:
        """Its seed and its name, for whoever has to replace it."""
        names = [familiar(name) for name in self.image.names]
        is_named = names and canonical(self.seed_name) not in self.image.names
        return f"{self.seed_name} ({', '.join(names)})" if is_named else self.seed_name

    @property
    def record(self) -> Record:
        return Record(self.image.names, self.image.config_digest, self.image.top_chain)

    @property
    def parts(self) -> tuple[str, ...]:
        """A chain ID for each layer: stores take a layer for the same if it is the same on the same layers."""
        layers = self.image.layers
        return tuple(chain_ids([layer.diff_id for layer in layers]))


def choose_next(
    waiting: Sequence[PendingImage], has: Callable[[SeedImage, int], bool], coming: frozenset[str]
) -> tuple[PendingImage, frozenset[int]] | None:
    """The image to load next, and the numbers of the layers that have to be sent. Pure.

    An image that lacks a layer which is being loaded with another one (`coming`) waits for that. So images that others
    wait for go first, the smallest before the larger ones; then the rest, the largest first, so that it does not run on
    when all others are done. `has` tells whether a layer is there.
    """
    missing = [
        tuple(number for number in range(len(item.image.layers)) if not has(item.image, number)) for item in waiting
    ]
    parts = [tuple(item.parts[number] for number in numbers) for item, numbers in zip(waiting, missing, strict=True)]
    wanted = Counter(part for mine in parts for part in mine)
    best: tuple[tuple[bool, int, int], PendingImage, frozenset[int]] | None = None
    for number, (item, send, mine) in enumerate(zip(waiting, missing, parts, strict=True)):
        if coming.isdisjoint(mine):
            size_bytes = loading.bytes_to_send(item.image, frozenset(send))
            is_wanted = any(wanted[part] > 1 for part in mine)
            rank = (not is_wanted, size_bytes if is_wanted else -size_bytes, number)
            if best is None or rank < best[0]:
                best = (rank, item, frozenset(send))
    return best and best[1:]


def settle_names(pending: Sequence[PendingImage]) -> tuple[list[PendingImage], list[str]]:
    """Each name once: the last image that claims it gets it. Also returns a sentence for each that lost one. Pure."""
    owner = {name: number for number, item in enumerate(pending) for name in item.image.names}
    settled, notes = [], []
    for number, item in enumerate(pending):
        lost = [name for name in item.image.names if owner[name] != number]
        for name in lost:
            winner = pending[owner[name]]
            if winner.image.config_digest != item.image.config_digest:
                notes.append(f"{familiar(name)} is in {item.seed_name} and in {winner.seed_name}: the latter counts")
        kept = tuple(name for name in item.image.names if owner[name] == number)
        if kept or not lost:
            settled.append(item._replace(image=item.image._replace(names=kept)))
    return settled, notes


def token_of(image: SeedImage, number: int) -> tuple[str, str | None]:
    """What identifies a layer in a store: its chain ID, and its digest where the seed has one."""
    return chain_ids([layer.diff_id for layer in image.layers])[number], image.layers[number].digest


def batches(seeds: Sequence[Seed]) -> Iterator[list[Seed]]:
    """The seeds in their order, in batches of limited size."""
    batch: list[Seed] = []
    size_bytes = 0
    for seed in seeds:
        if batch and size_bytes + seed.size_bytes > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(seed)
        size_bytes += seed.size_bytes
    if batch:
        yield batch
