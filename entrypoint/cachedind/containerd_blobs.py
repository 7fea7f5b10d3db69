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

from cachedind import beneath, bolt, engine_paths

_RECORDS = (b"v1", b"moby", b"content", b"blob")
_DIGEST = re.compile(rb"sha256:([0-9a-f]{64})")
_SMALL_BYTES = 1 << 16


def find_damaged(root_fd: int, limit_bytes: int) -> dict[str, str]:
    """Which recorded blobs are not what they were, by digest, and why. A database with more than so many bytes is not
    read. Raises nothing for what is on disk: a database that cannot be read is a damage of its own."""
    try:
        recorded = _read_records(root_fd, limit_bytes)
        fd = beneath.open_path(root_fd, engine_paths.BLOBS, os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, ValueError):
        return {}
    try:
        with os.scandir(fd) as entries:
            sizes = {
                entry.name: entry.stat(follow_symlinks=False).st_size
                for entry in entries
                if entry.is_file(follow_symlinks=False)
            }
        return {digest: why for digest in recorded if (why := _check(fd, digest, sizes.get(digest)))}
    finally:
        os.close(fd)


def _read_records(root_fd: int, limit_bytes: int) -> list[str]:
    """Digests, without what comes before the colon. Raises OSError, ValueError."""
    fd, _ = beneath.open_file(root_fd, engine_paths.META)
    try:
        names = bolt.open(fd, limit_bytes).buckets(_RECORDS)
    finally:
        os.close(fd)
    return [match[1].decode() for name in names if (match := _DIGEST.fullmatch(name))]


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
