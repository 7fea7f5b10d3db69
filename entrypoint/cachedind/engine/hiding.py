"""Hiding the images of the last job (fresh_images.py), and removing those that nobody had for long, in whatever store.

With graph drivers records are moved offline, and an engine removes what is too old. With the containerd store its
containerd does both, that of a private daemon where one runs anyway.
"""

from __future__ import annotations

import contextlib
import os

from cachedind.base.errors import CleaningError, DaemonEnd, PrivateDaemonError
from cachedind.base.model import ImageStore
from cachedind.base.typed import TYPE_CHECKING, NamedTuple, Protocol
from cachedind.engine import fresh_images, image_uses, paths
from cachedind.engine.leftovers import SET_ASIDE
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from cachedind.base.model import StoragePlan
    from cachedind.base.trace import Trace
    from cachedind.engine.containerd_view import Client, ContainerdView, Plan
    from cachedind.engine.fresh_images import View
    from cachedind.engine.graph_view import GraphView


class Wish(NamedTuple):
    """What the next job is to see of images (None: all that the last one saw). `uses` tells when any job of the key had
    each image last, `used_at` when the last job of this data had its, `now` what time it is, in seconds since the
    epoch; after `age_s` seconds without use an image is removed (None: never)."""

    view: View | None
    uses: Mapping[str, float]
    used_at: float
    now: float
    age_s: float | None


class Hiding(Protocol):
    """One run. Its methods are called in this order; the middle two only when a private daemon runs."""

    seen: frozenset[str]
    """The IDs of what the last job saw and the next one does not."""
    expired: frozenset[str]
    """The IDs of those that nobody had for long, which are removed."""
    needs_daemon: bool
    ran_containerd: bool
    """Whether finish had to run it."""
    put_off: str
    """Why it did not come up where nothing was to be hidden, and old images were to go."""

    def prepare(self, *, everything: bool) -> None:
        """Have the daemon that is about to run know what it is to remove, or all that is hidden, too. Raises
        OSError."""

    def amid(self, remove: Callable[[Iterable[str]], frozenset[str]], containerd: Client) -> None:
        """What that daemon and its containerd do; `remove` removes images by ID, and returns those that are gone.
        Raises CleaningError."""

    def finish(self, run: Callable[[], AbstractContextManager[Client]]) -> None:
        """Have nothing in sight that is to be hidden. `run` runs the data-root's containerd. Raises CleaningError,
        OSError."""


def read_last_change(root_fd: int, storage: StoragePlan) -> float:
    """When the records of images changed last, in seconds since the epoch; 0 where there are none. A clone has the
    times of what it was copied from."""
    path = paths.META if storage.store is ImageStore.CONTAINERD else paths.references(storage.driver)
    with contextlib.suppress(OSError):
        fd = beneath.open_path(root_fd, path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
    return 0.0


def begin(root_fd: int, storage: StoragePlan, wish: Wish, trace: Trace) -> Hiding | None:
    """Look at what there is, without a daemon. `root_fd` is the engine's root, open for as long as this is used. None
    where nothing is to go out of sight, and nothing ever did. Raises CleaningError."""
    found: GraphView | ContainerdView
    if storage.store is ImageStore.CONTAINERD:
        from cachedind.engine.containerd_view import ContainerdView

        found = ContainerdView(root_fd, storage.driver, trace)
    else:
        from cachedind.engine.graph_view import GraphView

        found = GraphView(root_fd, storage.driver, trace)
    view = wish.view
    if view is None:
        if not found.unused():
            return None
        view = fresh_images.View({}, found.shown())
    if storage.store is ImageStore.CONTAINERD:
        return _InContainerd(root_fd, storage.driver, view, wish, trace)
    return _WithGraphDriver(root_fd, storage.driver, view, wish, trace)


class _WithGraphDriver:
    ran_containerd = False
    put_off = ""

    def __init__(self, root_fd: int, driver: str, view: View, wish: Wish, trace: Trace) -> None:
        from cachedind.engine.graph_view import GraphView

        self._view = GraphView(root_fd, driver, trace)
        self._shows = view
        self.seen = frozenset(self._view.plan(view).hidden)
        self._times = _Times(root_fd, wish, self.seen)
        self.expired = self._times.find_expired(self._view.unused())
        self._gone: frozenset[str] = frozenset()
        self.needs_daemon = bool(self.expired)

    def prepare(self, *, everything: bool) -> None:
        self._view.bring_back(self._view.unused() if everything else self.expired)

    def amid(self, remove: Callable[[Iterable[str]], frozenset[str]], containerd: Client) -> None:
        self._gone = remove(sorted(self.expired))

    def finish(self, run: Callable[[], AbstractContextManager[Client]]) -> None:
        plan = self._view.plan(self._shows)
        self._view.apply(plan, self._times.of(plan.hidden))
        self._view.forget(self._gone)


class _InContainerd:
    needs_daemon = False
    put_off = ""

    def __init__(self, root_fd: int, driver: str, view: View, wish: Wish, trace: Trace) -> None:
        self._root_fd, self._driver, self._shows, self._trace = root_fd, driver, view, trace
        self.ran_containerd = self._prunes = self._changed = False
        self._plan: Plan
        self._view: ContainerdView
        self._look()
        self.seen = frozenset(self._plan.hidden)
        self._times = _Times(root_fd, wish, self.seen)
        self.expired = self._times.find_expired(self._view.unused() - self.seen)
        self._plan = self._view.plan(view, self.expired)

    def _look(self) -> None:
        from cachedind.engine.containerd_view import ContainerdView

        self._view = ContainerdView(self._root_fd, self._driver, self._trace)
        self._plan = self._view.plan(self._shows, frozenset())

    def prepare(self, *, everything: bool) -> None:
        self._prunes = everything

    def amid(self, remove: Callable[[Iterable[str]], frozenset[str]], containerd: Client) -> None:
        self._changed = True
        if self._prunes:
            self._view.bring_back(containerd)
        elif self._plan:
            self._view.apply(self._plan, self._times.of(self._plan.hidden), containerd)

    def finish(self, run: Callable[[], AbstractContextManager[Client]]) -> None:
        if self._changed:
            self._look()
        if not self._plan:
            return
        self.ran_containerd = True
        try:
            with run() as containerd:
                self._view.apply(self._plan, self._times.of(self._plan.hidden), containerd)
        except PrivateDaemonError as error:
            if self._plan.names or error.end is DaemonEnd.BY_ITSELF:
                raise
            self.put_off = error.cause
            return
        self._look()
        if self._plan.names:
            left = ", ".join(self._plan.names[:3])
            raise CleaningError(f"images of the last job could not be hidden: {left}", SET_ASIDE)


class _Times:
    """When jobs had images last: those in `seen` the last job, others as it is noted down."""

    def __init__(self, root_fd: int, wish: Wish, seen: frozenset[str]) -> None:
        self._wish = wish
        noted = {image_id: known.used_at for image_id, known in fresh_images.read_unused(root_fd).items()}
        last = dict.fromkeys(seen, wish.used_at)
        self._uses = image_uses.latest(noted, image_uses.read(root_fd), wish.uses, last)

    def of(self, images: Iterable[str]) -> dict[str, float]:
        return {image_id: self._uses.get(image_id, self._wish.used_at) for image_id in images}

    def find_expired(self, unused: frozenset[str]) -> frozenset[str]:
        uses = {image_id: self._uses.get(image_id, 0.0) for image_id in unused}
        return fresh_images.find_expired(uses, self._wish.age_s, self._wish.now)
