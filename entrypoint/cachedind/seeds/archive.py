"""What images a seed has, an archive or a layout: read and understood, with their layers still where they are.

There are two formats (oci_layout.py, docker_archive.py), and often both in one file: `docker save` since 25 writes the
second one for older readers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re

from cachedind.base.typed import TYPE_CHECKING
from cachedind.seeds import compression, docker_archive, listing, oci_layout, seed_file
from cachedind.seeds.contents import File
from cachedind.seeds.documents import find_json, read_small
from cachedind.seeds.layout_members import LayoutMembers
from cachedind.seeds.model import SeedError, SeedKind
from cachedind.seeds.tar_members import TarMembers

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from cachedind.seeds.listing import ListedImage
    from cachedind.seeds.members import Members
    from cachedind.seeds.model import Seed, SeedImage

_SUFFIX = re.compile(r"\.(?:tar|tar\.gz|tgz|tar\.zst|tzst|tar\.xz|txz|oci)$", re.IGNORECASE)


class OpenSeed:
    """The images of a seed, whose layers can be read until it is closed.

    `bad` are images in it that cannot be used, by name or position, and why.
    """

    def __init__(self, images: tuple[SeedImage, ...], bad: tuple[tuple[str, str], ...], members: Members) -> None:
        self.images = images
        self.bad = bad
        self._members = members

    def close(self) -> None:
        self._members.close()

    def __enter__(self) -> OpenSeed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_seed(seed: Seed, *, spool_directory: str, room_bytes: int, on_read: Callable[[int], None]) -> OpenSeed:
    """Open an archive or a layout. A compressed archive is decompressed into `spool_directory`, to at most
    `room_bytes`.

    `on_read` is told the number of bytes as they are read for that, or for the checksum. Raises SeedError when nothing
    in it can be used.
    """
    if seed.kind is SeedKind.LAYOUT:
        return _open_layout(seed, on_read)
    with contextlib.ExitStack() as stack:
        fd = seed_file.open_file(seed.name)
        original = File(fd)
        stack.callback(original.close)
        packing = compression.sniff(seed_file.pread(fd, 6, 0))
        if packing is not None:
            unpacked = compression.decompress(
                fd,
                packing,
                name=seed.name,
                checksum=seed.checksum,
                spool_directory=spool_directory,
                room_bytes=room_bytes,
                on_read=on_read,
            )
            return open_archive(unpacked, fallback_name=_fallback(seed.name))
        if seed.checksum is not None:
            seed_file.verify(fd, seed.checksum, seed.name, on_read)
        stack.pop_all()
        return open_archive(fd, fallback_name=_fallback(seed.name))


def open_archive(fd: int, *, fallback_name: str = "") -> OpenSeed:
    """Open an archive that is in a file, uncompressed. Takes the descriptor over, also when it raises SeedError.

    `fallback_name` is the repository of an image in an OCI layout that has none.
    """
    return _open(TarMembers(File(fd)), fallback_name)


def _open_layout(seed: Seed, on_read: Callable[[int], None]) -> OpenSeed:
    members = LayoutMembers(seed.name)
    with contextlib.ExitStack() as on_error:
        on_error.callback(members.close)
        index = members.find("index.json")
        if index is None:
            raise SeedError("it has no index.json, so it is not an OCI layout")
        if seed.checksum is not None:
            raw = read_small(index, "index.json")
            on_read(len(raw))
            seed_file.compare(hashlib.sha256(raw).hexdigest(), seed.checksum, seed.name)
        on_error.pop_all()
    return _open(members, _fallback(seed.name))


def _open(members: Members, fallback_name: str) -> OpenSeed:
    with contextlib.ExitStack() as on_error:
        on_error.callback(members.close)
        images, bad = listing.settle(_read_entries(members), fallback_name)
        if not images and not bad:
            raise SeedError("there is no image in it")
        on_error.pop_all()
        return OpenSeed(images, bad, members)


def _fallback(path: str) -> str:
    """A repository's name from a file's: "/seeds/my-app.tar.gz" → "my-app"."""
    return _SUFFIX.sub("", os.path.basename(path.rstrip("/"))).lower()


def _read_entries(members: Members) -> list[ListedImage]:
    index = find_json(members, "index.json")
    manifest = find_json(members, "manifest.json")
    if index is None and manifest is None:
        raise SeedError(_what_it_is(members.top_names()))
    entries = [] if index is None else list(oci_layout.list_images(members, index))
    if manifest is not None:
        known = {entry.image.config_digest: entry.image for entry in reversed(entries) if entry.image is not None}
        entries += docker_archive.list_images(members, manifest, known)
    return entries


def _what_it_is(names: frozenset[str]) -> str:
    if "repositories" in names:
        return "it was saved by a Docker before 1.10, in a format that is not supported: save it again with a newer one"
    if {"bin", "etc"} <= names:
        return "it is a root filesystem, not an image, as `docker export` writes them: use `docker save`"
    return "it has neither manifest.json nor index.json, so it is not an image archive"
