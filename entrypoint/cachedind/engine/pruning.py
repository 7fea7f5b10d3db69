"""What a slot gives up when its pool is over its budget and nothing is left to evict: build cache, and old images.

The upkeep notes down in the pool how much is too much; the next start that finds the note takes it and has its slot
pruned by a private daemon, before its state becomes the golden:

    first    build cache above the limit that builder.gc keeps it to
    then     images, least recently used first; those that others are built on come last, as removing them frees
             little; images of seeds, and images that a container uses, stay
    last     more of the build cache, least recently used first: layers that the removed images shared with it are only
             freed here

An image's last use is the last time that it got a tag, which pulling, loading and building do, or that cleaning found
a container of it (image_uses.py). No engine notes more than that.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time

from cachedind.base import state
from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine.image_names import familiar
from cachedind.engine.private_containerd import whole_seconds_left

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import docker

NAME = "over-budget.json"
"""In the pool's tree."""
_LEAST_CACHE_BYTES = 1 << 20
"""Some engines take a limit of 0 for no limit."""


class StoredImage(NamedTuple):
    """An image of a data-root. `unique_bytes` is what its removal frees of its `size_bytes`, as the engine counts;
    `last_used` in seconds since the epoch, 0 where nobody knows; `spared`: it must stay."""

    id: str
    name: str
    size_bytes: int
    unique_bytes: int
    last_used: float
    spared: bool


class Known(NamedTuple):
    """What no daemon knows: last uses by image ID (`uses`), the names of images that no job sees by ID (`unused`), the
    names that seeds brought, and whether the job's daemon will see none of the images but these (`hides`)."""

    uses: Mapping[str, float]
    unused: Mapping[str, tuple[str, ...]]
    seeded: frozenset[str]
    hides: bool = True


class Inventory(NamedTuple):
    """What could be removed from a data-root. `layers_bytes` is what all images occupy together, `cache_bytes` what the
    build cache occupies that it does not share with images."""

    images: tuple[StoredImage, ...]
    layers_bytes: int
    cache_bytes: int
    shared_cache_bytes: int = 0
    """What it has in common with images. A daemon that sees none of these counts it, too."""

    @property
    def total_bytes(self) -> int:
        return self.layers_bytes + self.cache_bytes


class Pruned(NamedTuple):
    """What was removed: images by name, bytes of build cache; and sentences about what went wrong.

    `cache_limit_bytes` is what the job's own daemon is to keep the build cache to, where this one left it alone.
    """

    images: tuple[str, ...]
    cache_bytes: int
    problems: tuple[str, ...]
    cache_limit_bytes: int | None = None

    def __str__(self) -> str:
        count = len(self.images)
        shown = ", ".join(self.images[:3]) + ", …" * (count > 3)
        images = f"{count} image{'s' if count > 1 else ''} ({shown})" if count else "no image"
        if self.cache_limit_bytes is not None:
            return f"{images}; the build cache is kept to {self.cache_limit_bytes / 1e6:.0f} MB this time"
        return f"{images} and {self.cache_bytes / 1e6:.0f} MB of build cache"


def plan_images(found: Inventory, wanted_bytes: int, limit_bytes: int | None) -> tuple[StoredImage, ...]:
    """Which images to remove to free `wanted_bytes`, once the build cache is down to its limit. Pure."""
    lacking = wanted_bytes - (found.cache_bytes - _kept_cache_bytes(found, limit_bytes))
    going = []
    for image in sorted(found.images, key=_rank):
        if lacking <= 0:
            break
        if not image.spared and image.unique_bytes > 0:
            going.append(image)
            lacking -= image.unique_bytes
    return tuple(going)


def _rank(image: StoredImage) -> tuple[bool, float, str, str]:
    return image.unique_bytes * 2 < image.size_bytes, image.last_used, image.name, image.id


def plan_cache(before: Inventory, now: Inventory, wanted_bytes: int, limit_bytes: int | None) -> int | None:
    """How many bytes of build cache may stay to have `wanted_bytes` of what was there `before` freed; None: all.
    Pure."""
    lacking = wanted_bytes - (before.total_bytes - now.total_bytes)
    keep = max(0, min(_kept_cache_bytes(now, limit_bytes), now.cache_bytes - lacking))
    return keep if keep < now.cache_bytes else None


def _kept_cache_bytes(found: Inventory, limit_bytes: int | None) -> int:
    return found.cache_bytes if limit_bytes is None else min(found.cache_bytes, limit_bytes)


# ---- the note --------------------------------------------------------------------------------------------------------


def note(tree_fd: int, lacking_bytes: int) -> None:
    """Tell the next start by how much the pool is over its budget; 0: it is not. Raises OSError."""
    if lacking_bytes <= 0:
        _drop(tree_fd)
        return
    with contextlib.suppress(FileExistsError, FileNotFoundError):  # somebody else notes it down right now
        state.write_state(tree_fd, NAME, {"lacking_bytes": lacking_bytes}, None, durable=False)


def take_note(tree_fd: int) -> int:
    """How many bytes this start has to free: once for each note, whoever comes first. Raises OSError."""
    try:
        raw = state.read_state(tree_fd, NAME)
    except ValueError:
        raw = {}
    if raw is None or not _drop(tree_fd):
        return 0
    lacking = raw.get("lacking_bytes")
    return lacking if isinstance(lacking, int) and not isinstance(lacking, bool) else 0


def _drop(tree_fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=tree_fd)
        return True
    return False


# ---- by a daemon's API -----------------------------------------------------------------------------------------------


def prune(
    client: docker.DockerClient,
    wanted_bytes: int,
    limit_bytes: int | None,
    *,
    store: ImageStore,
    known: Known,
    deadline: float,
) -> Pruned:
    """Free `wanted_bytes`, or what can be freed of that until `deadline` (of time.monotonic()).

    With the containerd store the build cache is left to the engine's own collector: `docker builder prune` drops all
    its keys there, also of what it keeps, so that nothing is CACHED any longer (seen with 28.5).

    `limit_bytes` is the build cache's own limit. Raises DockerException, requests.RequestException.
    """
    before = look(client, known)
    names, problems = _remove_images(client, plan_images(before, wanted_bytes, limit_bytes), deadline)
    now = look(client, known)
    keep = plan_cache(before, now, wanted_bytes, limit_bytes)
    if store is ImageStore.CONTAINERD:
        more = now.shared_cache_bytes if known.hides else 0
        limit = None if keep is None else max(keep + more, _LEAST_CACHE_BYTES)
        return Pruned(tuple(names), 0, tuple(problems), limit)
    freed = 0
    if keep is not None and time.monotonic() < deadline:
        client.api.timeout = whole_seconds_left(deadline)
        # Not all=True, which also takes what images have, and frees nothing by that (buildkit, cache/manager.go).
        freed = int(client.api.prune_builds(keep_storage=keep).get("SpaceReclaimed") or 0)
    return Pruned(tuple(names), freed, tuple(problems))


def look(client: docker.DockerClient, known: Known) -> Inventory:
    """What the daemon has. Raises DockerException, requests.RequestException."""
    usage = client.api.df()
    busy = {str(container.get("ImageID")) for container in client.api.containers(all=True)}
    images = []
    for entry in usage.get("Images") or ():
        identity = str(entry["Id"])
        unused = known.unused.get(identity)
        names = list(map(familiar, entry.get("RepoTags") or () if unused is None else unused))
        size = int(entry.get("Size") or 0)
        images.append(
            StoredImage(
                identity,
                (names or [identity[:19]])[0],
                size,
                max(0, size - max(0, int(entry.get("SharedSize") or 0))),
                max(_tagged_at(client, identity) if unused is None else 0.0, known.uses.get(identity, 0.0)),
                identity in busy or not known.seeded.isdisjoint(names),
            )
        )
    records = usage.get("BuildCache") or ()
    cache = sum(int(record["Size"]) for record in records if not record.get("Shared"))
    shared = sum(int(record["Size"]) for record in records if record.get("Shared"))
    return Inventory(tuple(images), int(usage.get("LayersSize") or 0), cache, shared)


def _tagged_at(client: docker.DockerClient, identity: str) -> float:
    metadata = client.images.get(identity).attrs.get("Metadata") or {}
    return parse_time(metadata.get("LastTagTime"))


def _remove_images(
    client: docker.DockerClient, images: Iterable[StoredImage], deadline: float
) -> tuple[list[str], list[str]]:
    """Names of removed images, and sentences about those that stay: one failure does not stop the rest."""
    from docker.errors import DockerException
    from requests import RequestException

    gone, problems = [], []
    for image in images:
        if time.monotonic() >= deadline:
            problems.append("no time left to remove every image")
            break
        client.api.timeout = whole_seconds_left(deadline)
        try:
            client.api.remove_image(image.id, force=True)
        except (DockerException, RequestException) as error:
            problems.append(f"image {image.name[:64]}: {getattr(error, 'explanation', None) or error}")
            continue
        gone.append(image.name)
    return gone, problems


def parse_time(text: object) -> float:
    """Seconds since the epoch of an RFC 3339 time as the engine writes it, with nanoseconds; 0 for anything else, and
    for Go's zero time."""
    if not isinstance(text, str):
        return 0.0
    whole, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789") if rest else ""
    try:
        return max(0.0, datetime.datetime.fromisoformat(whole + zone).timestamp())
    except (ValueError, OverflowError):
        return 0.0
