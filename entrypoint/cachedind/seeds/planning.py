"""Deciding which seeds have to be put in. Pure: takes what the ledger and the store say, and returns what to do."""

from __future__ import annotations

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.seeds.model import BadSeed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cachedind.engine.images import Record
    from cachedind.seeds.model import Entry, Seed


class Plan(NamedTuple):
    """What a data-root lacks.

    `missing` have to be read. `superseded` are images of seeds that a missing seed has replaced; they can be removed
    when they have no name any longer. `bad` is known to be bad, and is not read again. `entries` is the part of the
    ledger that stays valid.
    """

    missing: tuple[Seed, ...]
    superseded: tuple[Record, ...]
    bad: tuple[BadSeed, ...]
    entries: Mapping[str, Entry]


def plan_seeding(seeds: Sequence[Seed], entries: Mapping[str, Entry], keeps: Callable[[Record], bool]) -> Plan:
    """`keeps` tells whether the store still has what a record stands for."""
    missing: list[Seed] = []
    bad: list[BadSeed] = []
    for seed in seeds:
        entry = entries.get(seed.identity)
        if entry is None or not all(keeps(record) for record in entry.images):
            missing.append(seed)
        else:
            bad += [BadSeed(name, why) for name, why in entry.bad]
    # The same path with other content: the newer seed has replaced the older one.
    there = {seed.identity for seed in seeds}
    replaced = {seed.name for seed in missing}
    gone = {identity for identity, entry in entries.items() if identity not in there and entry.name in replaced}
    superseded = tuple(record for identity in entries if identity in gone for record in entries[identity].images)
    left = {identity: entry for identity, entry in entries.items() if identity not in gone}
    return Plan(tuple(missing), superseded, tuple(bad), left)
