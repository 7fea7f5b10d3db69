"""One run of putting seeds in: read them, and load what a store lacks of them, several at a time.

Whenever a load has ended, the next image is chosen (`pending.choose_next`): so no layer is sent twice, and when a load
fails, its layers are sent with the next image that needs them.
"""

from __future__ import annotations

import contextlib
import os
import time

from cachedind.base.model import ImageStore
from cachedind.base.sizes import format_bytes
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine.image_names import canonical, familiar
from cachedind.seeds import archive, loading
from cachedind.seeds.model import BadSeed, SeedError, SeedKind
from cachedind.seeds.pending import PendingImage, batches, choose_next, settle_names, token_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import docker

    from cachedind.engine.images import Record
    from cachedind.seeds.fetching import Fetched
    from cachedind.seeds.model import Seed, SeedImage
    from cachedind.seeds.progress import Reporter

    Fetch = Callable[[Sequence[Seed], int, Callable[[int], None]], tuple[list[Fetched], dict[str, SeedError]]]
    """Fetches images of another daemon, in archives of so many bytes together at most; tells of bytes as they come."""

MAX_WORKERS = 4


class Outcome(NamedTuple):
    """The result of a run: images in the store, and what is wrong, both by the seed's identity.

    `lasting` are seeds that will be just as bad the next time. `failed` are images whose load failed, so that the store
    may have a part of them.
    """

    images: dict[str, list[Record]]
    bad: dict[str, list[BadSeed]]
    lasting: frozenset[str]
    failed: tuple[Record, ...]


class Runner:
    """Puts seeds into a store. `has_layer` and `has_image` look into it without its daemon; `connect`, which may
    start the daemon, returns a client of it, and is called only when there is something to load."""

    def __init__(
        self,
        store: ImageStore,
        has_layer: Callable[[SeedImage, int], bool],
        has_image: Callable[[Record], bool],
        connect: Callable[[], docker.APIClient],
        fetch: Fetch,
        reporter: Reporter,
        *,
        spool_directory: str,
        min_free_bytes: int,
    ) -> None:
        self._store = store
        self._has_layer = has_layer
        self._has_image = has_image
        self._connect = connect
        self._fetch = fetch
        self._reporter = reporter
        self._spool_directory = spool_directory
        self._min_free_bytes = min_free_bytes
        self._looked_up: dict[tuple[str, str | None], bool] = {}
        self._images: dict[str, list[Record]] = {}
        self._bad: dict[str, list[BadSeed]] = {}
        self._lasting: set[str] = set()
        self._failed: list[Record] = []

    def run(self, seeds: Sequence[Seed]) -> Outcome:
        """Returns when everything is in the store or known to be bad. Needs a single thread at the beginning."""
        for batch in batches(seeds):
            with contextlib.ExitStack() as stack:
                pending, notes = settle_names(self._read(batch, stack))
                for note in notes:
                    self._reporter.note(note)
                todo: list[PendingImage] = []
                for item in pending:
                    if self._has_image(item.record):
                        self._images.setdefault(item.identity, []).append(item.record)
                    else:
                        todo.append(item)
                if todo:
                    self._load_all(todo)
            for seed in batch:
                self._images.setdefault(seed.identity, [])
                self._reporter.seed_done()
        return Outcome(self._images, self._bad, frozenset(self._lasting), tuple(self._failed))

    # ---- reading

    def _read(self, batch: Sequence[Seed], stack: contextlib.ExitStack) -> list[PendingImage]:
        from concurrent.futures import ThreadPoolExecutor

        files = [seed for seed in batch if seed.kind is not SeedKind.HOST]
        with ThreadPoolExecutor(workers()) as pool:
            opened = list(pool.map(self._open, files))
        pending: list[PendingImage] = []
        for seed, found in zip(files, opened, strict=True):
            if found is None:
                continue
            stack.callback(found.close)
            for name, why in found.bad:
                self._fail(seed.identity, BadSeed(f"{seed.name} ({name})" if name else seed.name, why), lasting=True)
            for image in found.images:
                self._add(pending, seed, image)
        self._read_host([seed for seed in batch if seed.kind is SeedKind.HOST], stack, pending)
        return pending

    def _add(self, pending: list[PendingImage], seed: Seed, image: SeedImage) -> None:
        try:
            whole = loading.with_digests(image) if self._store is ImageStore.CONTAINERD else image
        except SeedError as error:
            self._fail(seed.identity, BadSeed(seed.name, str(error)), lasting=False)
        else:
            pending.append(PendingImage(seed.identity, seed.name, whole))

    def _read_host(self, seeds: Sequence[Seed], stack: contextlib.ExitStack, pending: list[PendingImage]) -> None:
        if not seeds:
            return
        what = f"fetching {familiar(canonical(seeds[0].name))}" if len(seeds) == 1 else f"fetching {len(seeds)} images"
        with self._reporter.step(what, sum(seed.size_bytes for seed in seeds)) as on_read:
            archives, bad = self._fetch(seeds, self._room_bytes(), on_read)
        for seed in seeds:
            if seed.identity in bad:
                self._fail(seed.identity, BadSeed(seed.name, str(bad[seed.identity])), lasting=False)
        for one in archives:
            try:
                opened = archive.open_archive(one.fd)
            except SeedError as error:
                for seed in one.seeds:
                    self._fail(seed.identity, BadSeed(seed.name, str(error)), lasting=False)
                continue
            stack.callback(opened.close)
            self._add_named(one.seeds, opened, pending)

    def _add_named(self, seeds: Sequence[Seed], opened: archive.OpenSeed, pending: list[PendingImage]) -> None:
        """From what another daemon has sent, add each seed's image under the name that was asked for."""
        for seed in seeds:
            name = canonical(seed.name)
            image = next((image for image in opened.images if name in image.names), None)
            if image is None:
                why = next((why for other, why in opened.bad if canonical(other) == name), "it is not in what was sent")
                self._fail(seed.identity, BadSeed(seed.name, why), lasting=False)
            else:
                self._add(pending, seed, image._replace(names=(name,)))

    def _open(self, seed: Seed) -> archive.OpenSeed | None:
        try:
            with self._reporter.step(f"reading {seed.name}", seed.size_bytes) as on_read:
                return archive.open_seed(
                    seed, spool_directory=self._spool_directory, room_bytes=self._room_bytes(), on_read=on_read
                )
        except SeedError as error:
            self._fail(seed.identity, BadSeed(seed.name, str(error)), lasting=error.lasting)
            return None

    def _room_bytes(self) -> int:
        status = os.statvfs(self._spool_directory)
        return max(0, status.f_bavail * status.f_frsize - self._min_free_bytes)

    # ---- loading

    def _load_all(self, pending: list[PendingImage]) -> None:
        from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

        api = self._connect()
        waiting = list(pending)
        running: dict[Future[SeedError | None], tuple[PendingImage, frozenset[int]]] = {}
        with ThreadPoolExecutor(workers()) as pool:
            while waiting or running:
                while len(running) < workers():
                    coming = frozenset(item.parts[number] for item, send in running.values() for number in send)
                    chosen = choose_next(waiting, self._has, coming)
                    if chosen is None:
                        break
                    waiting.remove(chosen[0])
                    running[pool.submit(self._load, api, *chosen)] = chosen
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    item, send = running.pop(future)
                    error = future.result()
                    if error is None:
                        self._looked_up |= dict.fromkeys((token_of(item.image, number) for number in send), True)
                        self._images.setdefault(item.identity, []).append(item.record)
                    else:
                        self._looked_up.clear()  # some of its layers may be there all the same
                        self._failed.append(item.record)
                        self._fail(item.identity, BadSeed(item.where, str(error)), lasting=error.lasting)

    def _has(self, image: SeedImage, number: int) -> bool:
        token = token_of(image, number)
        if token not in self._looked_up:
            self._looked_up[token] = self._has_layer(image, number)
        return self._looked_up[token]

    def _load(self, api: docker.APIClient, item: PendingImage, send: frozenset[int]) -> SeedError | None:
        """Why it failed, or None."""
        size_bytes = loading.bytes_to_send(item.image, send)
        started = time.monotonic()
        before: dict[str, str | None] = {}
        try:
            self._check_room(size_bytes)
            if self._store is ImageStore.CONTAINERD:
                before = loading.read_targets(api, item.image.names)
            with self._reporter.step(f"loading {item.name}", size_bytes) as on_bytes:
                loading.load(api, loading.archive(item.image, send, self._store, on_bytes))
        except loading.HalfLoadedError as error:
            loading.restore_targets(api, before)
            return error
        except SeedError as error:
            return error
        self._reporter.loaded(
            item.name, size_bytes, time.monotonic() - started, new_layers=len(send), layers=len(item.image.layers)
        )
        return None

    def _check_room(self, size_bytes: int) -> None:
        """Graph drivers unpack the archive first and then its layers, which takes twice its size for a while."""
        wanted = size_bytes * 2
        room = self._room_bytes()
        if wanted > room:
            why = f"loading it takes {format_bytes(wanted)}, and {format_bytes(room)} are free"
            raise SeedError(why, lasting=False)

    def _fail(self, identity: str, bad: BadSeed, *, lasting: bool) -> None:
        self._bad.setdefault(identity, []).append(bad)
        if lasting:
            self._lasting.add(identity)
        self._reporter.failed(bad)


def workers() -> int:
    """How many images are read or loaded at a time."""
    return max(2, min(MAX_WORKERS, len(os.sched_getaffinity(0))))
