"""Removing what the last job left by a daemon's API."""

from __future__ import annotations

import time
from functools import partial

from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine.leftovers import UNREADABLE_NETWORKS, Leftovers
from cachedind.engine.private_containerd import whole_seconds_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import docker


def remove_by_api(removal: Removal, leftovers: Leftovers) -> Leftovers:
    """Remove what was found; what is gone already is fine. One failure does not stop the rest. A container's anonymous
    volumes are among the volumes, where they are not kept.
    """
    api = removal.client.api
    made = [name for name in leftovers.networks if name != UNREADABLE_NETWORKS]
    return Leftovers(
        removal.try_all("container", leftovers.containers, partial(api.remove_container, force=True)),
        removal.try_all("network", made, api.remove_network),
        removal.try_all("volume", leftovers.volumes, partial(api.remove_volume, force=True)),
        leftovers.swarm,
        leftovers.plugins,
    )


class Removal:
    """Removing one thing after the other until a deadline: what the daemon did not know, and what went wrong."""

    def __init__(self, client: docker.DockerClient, deadline: float) -> None:
        self.client = client
        self._deadline = deadline
        self.unknown: set[str] = set()
        self.problems: list[str] = []

    def try_all(self, what: str, names: Iterable[str], remove: Callable[[str], object]) -> tuple[str, ...]:
        """The names of those that were removed."""
        from docker.errors import DockerException, NotFound
        from requests import RequestException

        gone = []
        for name in names:
            if time.monotonic() >= self._deadline:
                self.problems.append(f"no time left to remove every {what}")
                break
            self.client.api.timeout = whole_seconds_left(self._deadline)
            try:
                remove(name)
                gone.append(name)
            except NotFound:
                self.unknown.add(name)
            except (DockerException, RequestException, UnicodeError) as error:
                self.problems.append(f"{what} {name[:64]}: {getattr(error, 'explanation', None) or error}")
        return tuple(gone)

    def try_images(self, ids: Iterable[str]) -> frozenset[str]:
        """IDs of images that are gone. Of one whose layers are gone the engine does not know."""
        wanted = tuple(ids)
        removed = self.try_all("image", wanted, partial(self.client.api.remove_image, force=True))
        return frozenset(removed) | (self.unknown & set(wanted))
