"""The ledger of seeds: what came from which source. It lies in the data, so that every clone of that carries it.

    <data-root>/.cachedind/seeds.json   {version, min_reader, seeds: {identity: {name, at, images, bad}}}

A job can write it. It is only ever compared with the seeds there are and with what the store holds, so a false one
costs that job's own cache some images at most.
"""

from __future__ import annotations

import contextlib
import os
import re

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine.images import Record
from cachedind.seeds.model import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping

DIRECTORY = ".cachedind"
NAME = "seeds.json"
MAX_ENTRIES = 500
"""Only the newest ones are kept: a source that is gone leaves its entry behind."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def read(root_fd: int) -> tuple[dict[str, Entry], str | None]:
    """The entries of the data-root's ledger, by identity. With the reason if it counts as empty because it is bad."""
    try:
        directory_fd = _open_directory(root_fd)
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        return {}, f"{DIRECTORY}: {error.strerror}"
    try:
        raw = state.read_state(directory_fd, NAME)
        return ({} if raw is None else parse(raw)), None
    except ValueError as error:
        return {}, f"{NAME}: {error}"
    except OSError as error:
        return {}, f"{NAME}: {error.strerror}"
    finally:
        os.close(directory_fd)


def parse(raw: Mapping[str, object]) -> dict[str, Entry]:
    """The entries in the file's object. Raises ValueError."""
    seeds = raw.get("seeds")
    if not isinstance(seeds, dict):
        raise ValueError("no seeds in it")
    return {identity: _parse_entry(value) for identity, value in seeds.items()}


def _parse_entry(value: object) -> Entry:
    match value:
        case {"name": str(name), "at": int() | float() as at, "images": list(images), "bad": list(bad)}:
            records = tuple(map(_parse_record, images))
            return Entry(name, float(at), records, tuple(map(_parse_bad, bad)))
    raise ValueError("a malformed entry")


def _parse_record(value: object) -> Record:
    match value:
        case {"names": list(names), "config": str(config), "chain": str(chain)}:
            digests = [config, chain] if chain else [config]
            if all(isinstance(name, str) for name in names) and all(map(_DIGEST.fullmatch, digests)):
                return Record(tuple(names), config, chain)
    raise ValueError("a malformed image")


def _parse_bad(value: object) -> tuple[str, str]:
    match value:
        case [str(name), str(why)]:
            return name, why
    raise ValueError("a malformed fault")


def write(root_fd: int, entries: Mapping[str, Entry]) -> None:
    """Replace the ledger. It is not synced: after a crash of the host everything is looked at again. Raises OSError."""
    newest = sorted(entries.items(), key=lambda item: item[1].at, reverse=True)[:MAX_ENTRIES]
    values: dict[str, object] = {
        identity: {
            "name": entry.name,
            "at": entry.at,
            "images": [
                {"names": list(record.names), "config": record.config_digest, "chain": record.top_chain}
                for record in entry.images
            ],
            "bad": [list(one) for one in entry.bad],
        }
        for identity, entry in newest
    }
    with contextlib.suppress(FileExistsError):
        os.mkdir(DIRECTORY, 0o700, dir_fd=root_fd)
    directory_fd = _open_directory(root_fd)
    try:
        state.write_state(directory_fd, NAME, {"seeds": values}, None, durable=False)
    finally:
        os.close(directory_fd)


def _open_directory(root_fd: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(DIRECTORY, flags, dir_fd=root_fd)
