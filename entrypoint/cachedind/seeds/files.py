"""Seeds that are files: which ones the settings' paths and globs mean, and what tells that one has changed.

Only checksum files are opened here: a start on which nothing is missing pays for one stat of each seed.
"""

from __future__ import annotations

import os
import re
import stat

from cachedind.base.typed import TYPE_CHECKING
from cachedind.seeds.model import BadSeed, Seed, SeedError, SeedKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".oci")
"""Files with these endings count in a directory of seeds. A file that is named directly may have any name."""

_INDEX = "index.json"
_CHECKSUM_SUFFIX = ".sha256"
_MAX_CHECKSUM_BYTES = 1 << 16
_CHECKSUM_LINE = re.compile(r"\\?([0-9a-fA-F]{64})(?:[ \t]+[*]?(.*))?")


def find(patterns: Iterable[str]) -> tuple[list[Seed], list[BadSeed]]:
    """The seeds at paths and globs, each once, and what is wrong there. Raises nothing.

    Needs the right to look into the directories; the files themselves are not opened.
    """
    seeds: dict[str, Seed] = {}
    bad: list[BadSeed] = []
    for pattern in patterns:
        paths = _expand(pattern)
        if paths is None:
            bad.append(
                BadSeed(pattern, "there is no such file or directory: mount it there, or remove it from CACHEDIND_SEED")
            )
        for path in paths or []:
            try:
                seed = _look(path)
            except SeedError as error:
                bad.append(BadSeed(path, str(error)))
            else:
                seeds.setdefault(seed.identity, seed)
    return list(seeds.values()), bad


def _expand(pattern: str) -> list[str] | None:
    """Paths of files and layouts, None where nothing is. A directory stands for the seeds in it, and may have none."""
    if os.path.lexists(pattern):
        return [*_in_place(pattern)]
    if not any(character in pattern for character in "*?["):
        return None
    from glob import glob

    matches = sorted(glob(pattern, recursive=True))
    return [path for match in matches for path in _matched(match)] if matches else None


def _matched(path: str) -> list[str]:
    """What a glob's match stands for: a checksum belongs to the file beside it, and is not a seed."""
    return [] if path.endswith(_CHECKSUM_SUFFIX) else [*_in_place(path)]


def _in_place(path: str) -> Iterator[str]:
    if not os.path.isdir(path) or _is_layout(path):
        yield path
        return
    try:
        names = sorted(os.listdir(path))
    except OSError:
        yield path  # _look reports what is wrong with it
        return
    for name in names:
        inside = f"{path.rstrip('/')}/{name}"
        if name.startswith("."):
            continue
        if name.endswith(SUFFIXES) or (os.path.isdir(inside) and _is_layout(inside)):
            yield inside


def _is_layout(path: str) -> bool:
    return os.path.lexists(f"{path}/{_INDEX}")


def _look(path: str) -> Seed:
    """Raises SeedError."""
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        if is_directory and not _is_layout(path):
            os.listdir(path)  # raises what made it look like a file
            raise SeedError("it is a directory without an index.json: an OCI layout has one")
        status = os.stat(f"{path}/{_INDEX}" if is_directory else path)
    except OSError as error:
        raise SeedError(f"it cannot be looked at ({error.strerror})", lasting=False) from None
    if not stat.S_ISREG(status.st_mode):
        raise SeedError("it is not a regular file")
    checksum = _read_checksum(path)
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    identity = f"file:{status.st_ino}:{status.st_size}:{times}{f':{checksum}' if checksum else ''}"
    kind = SeedKind.LAYOUT if is_directory else SeedKind.ARCHIVE
    return Seed(kind, path, identity, status.st_size, checksum)


def _read_checksum(path: str) -> str | None:
    """The checksum in the file beside it, in lower case; None without such a file. Raises SeedError."""
    beside = f"{path.rstrip('/')}{_CHECKSUM_SUFFIX}"
    try:
        fd = os.open(beside, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SeedError(f"{os.path.basename(beside)} cannot be read ({error.strerror})", lasting=False) from None
    try:
        raw = os.read(fd, _MAX_CHECKSUM_BYTES)
    except OSError as error:
        raise SeedError(f"{os.path.basename(beside)} cannot be read ({error.strerror})", lasting=False) from None
    finally:
        os.close(fd)
    found = parse_checksum(raw.decode("utf-8", "replace"), os.path.basename(path.rstrip("/")))
    if found is None:
        raise SeedError(f"{os.path.basename(beside)} has no SHA-256 for it: `sha256sum NAME >NAME.sha256` makes one")
    return found


def parse_checksum(text: str, name: str) -> str | None:
    """The SHA-256 for a file in what sha256sum(1) has written: its own line, or the only one. Pure."""
    lines = [match for line in text.splitlines() if (match := _CHECKSUM_LINE.fullmatch(line.strip()))]
    own = [match[1] for match in lines if match[2] and os.path.basename(match[2]) == name]
    if not own and len(lines) == 1:
        own = [lines[0][1]]
    return own[0].lower() if own else None
