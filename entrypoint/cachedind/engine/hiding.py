"""Hiding the images of the last job (fresh_images.py), and removing those that nobody had for long, in whatever store.

With graph drivers records are moved offline, and an engine removes what is too old. With the containerd store its
containerd does both, that of a private daemon where one runs anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from cachedind.base.errors import CleaningError
from cachedind.base.model import ImageStore
from cachedind.engine import fresh_images, image_uses
from cachedind.engine.containerd_view import ContainerdView
from cachedind.engine.graph_view import GraphView
from cachedind.engine.leftovers import SET_ASIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from cachedind.base.model import StoragePlan
    from cachedind.base.trace import Trace
    from cachedind.engine.containerd_view import Client
    from cachedind.engine.fresh_images import View


class Wish(NamedTuple):
    """What the next job is to see of images. `uses` tells when any job of the key had each image last, `used_at` when
    the last job of this data ran, `expired_at` which uses are too long ago; in seconds since the epoch."""

    view: View
    uses: Mapping[str, float]
    used_at: float
    expired_at: float


class Hiding(Protocol):
    """One run. Its methods are called in this order; the middle two only when a private daemon runs."""

    seen: frozenset[str]
    """The IDs of what the last job saw and the next one does not."""
    needs_daemon: bool
    ran_containerd: bool
    """Whether finish had to run it."""

    def prepare(self, *, everything: bool) -> None:
        """Have the daemon that is about to run know what it is to remove, or all that is hidden, too. Raises
        OSError."""

    def amid(self, remove: Callable[[Iterable[str]], object], containerd: Client) -> None:
        """What that daemon and its containerd do; `remove` removes images by ID. Raises CleaningError."""

    def finish(self, run: Callable[[], AbstractContextManager[Client]]) -> None:
        """Have nothing in sight that is to be hidden. `run` runs the data-root's containerd. Raises CleaningError,
        OSError."""


def begin(root_fd: int, storage: StoragePlan, wish: Wish, trace: Trace) -> Hiding:
    """Look at what there is, without a daemon. `root_fd` is the engine's root, open for as long as this is used."""
    kind = _InContainerd if storage.store is ImageStore.CONTAINERD else _WithGraphDriver
    return kind(root_fd, storage.driver, wish, trace)


class _WithGraphDriver:
    ran_containerd = False

    def __init__(self, root_fd: int, driver: str, wish: Wish, trace: Trace) -> None:
        self._view = GraphView(root_fd, driver, trace)
        self._wish = wish
        self.seen = frozenset(self._view.plan(wish.view).hidden)
        unused = self._view.unused()
        self._expired = _find_expired(root_fd, unused, wish) if unused else frozenset()
        self.needs_daemon = bool(self._expired)

    def prepare(self, *, everything: bool) -> None:
        self._view.bring_back(self._view.unused() if everything else self._expired)

    def amid(self, remove: Callable[[Iterable[str]], object], containerd: Client) -> None:
        remove(sorted(self._expired))

    def finish(self, run: Callable[[], AbstractContextManager[Client]]) -> None:
        self._view.apply(self._view.plan(self._wish.view))
        # Not those that came back with a job meanwhile, nor what an engine could not remove.
        self._view.forget(self._expired)


class _InContainerd:
    needs_daemon = False

    def __init__(self, root_fd: int, driver: str, wish: Wish, trace: Trace) -> None:
        self._root_fd, self._driver, self._wish, self._trace = root_fd, driver, wish, trace
        self._look()
        self.ran_containerd = False
        self.seen = frozenset(self._plan.hidden)

    def _look(self) -> None:
        self._view = ContainerdView(self._root_fd, self._driver, self._trace)
        unused = self._view.unused()
        expired = _find_expired(self._root_fd, unused, self._wish) if unused else frozenset()
        self._plan = self._view.plan(self._wish.view, expired)
        self._prunes = self._changed = False

    def prepare(self, *, everything: bool) -> None:
        self._prunes = everything

    def amid(self, remove: Callable[[Iterable[str]], object], containerd: Client) -> None:
        self._changed = True
        if self._prunes:
            self._view.bring_back(containerd)
        elif self._plan:
            self._view.apply(self._plan, containerd)

    def finish(self, run: Callable[[], AbstractContextManager[Client]]) -> None:
        if self._changed:
            self._look()
        if not self._plan:
            return
        self.ran_containerd = True
        with run() as containerd:
            self._view.apply(self._plan, containerd)
        self._look()
        if self._plan.names:
            left = ", ".join(self._plan.names[:3])
            raise CleaningError(f"images of the last job could not be hidden: {left}", SET_ASIDE)


def _find_expired(root_fd: int, unused: frozenset[str], wish: Wish) -> frozenset[str]:
    uses = image_uses.latest(wish.uses, image_uses.read(root_fd))
    return fresh_images.find_expired(unused, uses, wish.expired_at)
