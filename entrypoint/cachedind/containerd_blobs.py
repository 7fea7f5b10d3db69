"""Blobs of containerd's content store: that those which are recorded are there, and that small ones are what their
names say. Indexes, manifests and configurations are small, and nobody looks at their bytes again: an image with a bad
one can be neither run nor built upon, and building it anew finds the blob there already.

containerd syncs a blob before it records it (plugins/content/local/writer.go), and forgets the record before it removes
the file (core/metadata/content.go), so no kill leaves damage.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING

from cachedind import beneath, engine_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachedind.bolt_check import Judge

_RECORDS = (b"v1", b"moby", b"content", b"blob")
_DIGEST = re.compile(rb"sha256:([0-9a-f]{64})")
_SMALL_BYTES = 1 << 16


class Blobs:
    """Which blobs are recorded. `takes` are shown what is in the databases of these paths; after that, `find_damaged`
    tells which are not what they were."""

    def __init__(self) -> None:
        self._digests: list[str] = []
        self.takes: Mapping[str, Judge] = {engine_paths.META: self._take}

    def _take(self, path: tuple[bytes, ...], key: bytes, _value: bytes) -> None:
        if key == b"size" and path[:-1] == _RECORDS and (match := _DIGEST.fullmatch(path[-1])):
            self._digests.append(match[1].decode())

    def find_damaged(self, root_fd: int) -> dict[str, str]:
        """By digest, and why. Raises nothing for what is on disk."""
        try:
            fd = beneath.open_path(root_fd, engine_paths.BLOBS, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return {}
        try:
            with os.scandir(fd) as entries:
                sizes = {
                    entry.name: entry.stat(follow_symlinks=False).st_size
                    for entry in entries
                    if entry.is_file(follow_symlinks=False)
                }
            return {digest: why for digest in self._digests if (why := _check(fd, digest, sizes.get(digest)))}
        finally:
            os.close(fd)


def _check(content_fd: int, digest: str, size_bytes: int | None) -> str:
    """What is wrong with it, or nothing."""
    if size_bytes is None:
        return "it is recorded, and there is no such file"
    if size_bytes > _SMALL_BYTES:
        return ""
    try:
        raw = beneath.read(content_fd, digest, _SMALL_BYTES)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return "" if hashlib.sha256(raw).hexdigest() == digest else "its bytes are others than its digest says"
