"""What of a pool could be evicted, and how large it is."""

from __future__ import annotations

import contextlib
import os

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.host import procfs, trees
from cachedind.pool import choice, directory, key_directory, layer_list, layers, scopes, slots
from cachedind.pool.limits import NOTHING, NOTHING_NEW, SUPERSEDED, THROW_AWAY, Entry, EntryKind, Size
from cachedind.pool.slot_state import Candidate, Kind

if TYPE_CHECKING:
    from cachedind.pool.directory import Pool


def measure_layers(pool: Pool) -> None:
    """Note down how large each layer is that nobody has measured yet: two system calls for each file of it, once."""
    for layer_id in layers.names(pool.layers_fd):
        with contextlib.suppress(OSError, ValueError):
            layers.measure(pool.layers_fd, layer_id)


def read_layer_sizes(pool: Pool) -> dict[str, Size]:
    """Of all layers, measured now where that was not done yet. Raises OSError."""
    found = {}
    for layer_id in layers.names(pool.layers_fd):
        with contextlib.suppress(OSError, ValueError):
            found[layer_id] = layers.measure(pool.layers_fd, layer_id)
    return found


class Survey(NamedTuple):
    """Everything that could be evicted, and how large each thing is that several of these may have: layers, and files
    with several names. Sizes only where they were asked for."""

    entries: list[Entry]
    shared: dict[str, Size]


def survey(pool: Pool, *, sizes: bool, now: float) -> Survey:
    """Look at all keys. `sizes` measures what is no layer, which takes a system call or two for each file of it."""
    found: list[Entry] = []
    shared = read_layer_sizes(pool) if sizes else {}
    for key_name in sorted(directory.names_in(pool.keys_fd)):
        key_fd = directory.open_directory(pool.keys_fd, key_name)
        if key_fd is None:
            continue
        try:
            candidates, _ = key_directory.read_candidates(key_fd)
            goldens = [candidate for candidate in candidates if candidate.kind is Kind.GOLDEN]
            for candidate in candidates:
                entry = _entry(key_fd, key_name, candidate, goldens, now)
                if sizes:
                    measured = measure(key_fd, entry.name)
                    shared |= measured.linked
                    layer_ids = measured.layers.union(measured.linked)
                    entry = entry._replace(own_bytes=measured.own.bytes, inodes=measured.own.inodes, layers=layer_ids)
                found.append(entry)
        finally:
            os.close(key_fd)
    return Survey(found, shared)


class Measured(NamedTuple):
    """What a slot or golden takes: alone, as the layers that it lists, and in files that have names elsewhere too, each
    by a name that no layer has."""

    own: Size = NOTHING
    layers: frozenset[str] = frozenset()
    linked: dict[str, Size] = {}  # noqa: RUF012


def measure(key_fd: int, name: str) -> Measured:
    """How large a slot or golden is. What is gone meanwhile has no size; of what has no list that can be read no layer
    is known."""
    try:
        directory_fd = key_directory.open_below(key_fd, name)
    except OSError:
        return Measured()
    try:
        data_fd = directory.open_directory(directory_fd, "data")
        if data_fd is None:
            return Measured()
        try:
            found = trees.measure(data_fd)
        finally:
            os.close(data_fd)
        listed: frozenset[str] = frozenset()
        with contextlib.suppress(OSError, ValueError):
            listed = layer_list.read_list(directory_fd)
        linked = {f"{device}:{inode}": Size(size, 1) for (device, inode), size in found.linked.items()}
        return Measured(Size(found.bytes, found.files + found.directories), listed, linked)
    finally:
        os.close(directory_fd)


def _entry(key_fd: int, key_name: str, candidate: Candidate, goldens: list[Candidate], now: float) -> Entry:
    found = candidate.state
    is_slot = candidate.kind is Kind.SLOT
    held, holder = slots.look(key_fd, candidate.name) if is_slot else (False, None)
    used = holder.since if holder is not None else (found.data.started_at if found.data is not None else now)
    return Entry(
        key=key_name,
        name=candidate.name,
        kind=_kind(candidate),
        scope=found.scope,
        id=found.id,
        newest=is_slot and not held and choice.needs_promotion(found, goldens, procfs.read_boot_id()),
        why=THROW_AWAY if found.read_only else NOTHING_NEW if found.nothing_new else SUPERSEDED,
        held=held,
        superseded=is_slot and not held and choice.superseded(found, goldens) and not choice.may_come_back(found, now),
        trusted=found.is_trusted(procfs.read_boot_id()),
        last_used=used,
        own_bytes=0,
    )


def _kind(candidate: Candidate) -> EntryKind:
    if candidate.kind is Kind.SLOT:
        return EntryKind.SLOT
    if scopes.is_named(candidate.name, scopes.GOLDEN):
        return EntryKind.GOLDEN
    return EntryKind.PREVIOUS if scopes.is_named(candidate.name, scopes.PREVIOUS) else EntryKind.OTHER
