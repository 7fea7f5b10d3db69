"""One run of putting seeds in: read them, and load what a store lacks of them, several at a time.

What to do next is asked for whenever something has ended (`choose`, pure), so nothing is sent twice, and what one image
was to bring is brought by the next one that needs it when the first one fails.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.model import ImageStore
from cachedind.base.sizes import format_bytes
from cachedind.engine.image_names import canonical, familiar
from cachedind.engine.images import Record, chain_ids
from cachedind.seeds import archive, loading
from cachedind.seeds.model import BadSeed, SeedError, SeedKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import docker

    from cachedind.seeds.fetching import Fetched
    from cachedind.seeds.model import Seed, SeedImage
    from cachedind.seeds.progress import Reporter

    Fetch = Callable[[Sequence[Seed], int, Callable[[int], None]], tuple[list[Fetched], dict[str, SeedError]]]
    """Images of another daemon, in archives of so many bytes together at most; hears of the bytes as they come."""

MAX_WORKERS = 4
_BATCH_BYTES = 1 << 30
"""How many bytes of compressed seeds are decompressed before the first of them is loaded: they take disk meanwhile."""


class Job(NamedTuple):
    """An image that may have to be loaded, with the identity of its seed."""

    identity: str
    seed_name: str
    image: SeedImage

    @property
    def name(self) -> str:
        names = [familiar(name) for name in self.image.names]
        return ", ".join(names) if names else f"{self.seed_name} ({self.image.config_digest[:19]})"

    @property
    def where(self) -> str:
        """Its seed and its name: what whoever has to replace it looks for."""
        names = [familiar(name) for name in self.image.names]
        is_named = names and canonical(self.seed_name) not in self.image.names
        return f"{self.seed_name} ({', '.join(names)})" if is_named else self.seed_name

    @property
    def record(self) -> Record:
        return Record(self.image.names, self.image.config_digest, self.image.top_chain)

    @property
    def parts(self) -> tuple[str, ...]:
        """What stands for each layer: one that is the same on the same layers is the same to every store."""
        layers = self.image.layers
        return tuple(chain_ids([layer.diff_id for layer in layers]))


class Outcome(NamedTuple):
    """What became of the seeds: images in the store and what is wrong, both by identity.

    `lasting` are seeds that will be as bad at the next look. `failed` are images whose load did not come to a good
    end, so that the store may have a part of them.
    """

    images: dict[str, list[Record]]
    bad: dict[str, list[BadSeed]]
    lasting: frozenset[str]
    failed: tuple[Record, ...]


def choose(
    waiting: Sequence[Job], has: Callable[[SeedImage, int], bool], coming: frozenset[str]
) -> tuple[Job, frozenset[int]] | None:
    """The job to begin with next, and the numbers of the layers it has to send. Pure.

    One that shares a missing layer with a running job (`coming`) waits for it. So those that others wait for go first,
    the smallest of them before all; of the rest the largest, which would otherwise run on when all others are done.
    `has` tells whether a layer is there.
    """
    missing = [
        tuple(number for number in range(len(job.image.layers)) if not has(job.image, number)) for job in waiting
    ]
    parts = [tuple(job.parts[number] for number in numbers) for job, numbers in zip(waiting, missing, strict=True)]
    wanted = Counter(part for mine in parts for part in mine)
    best: tuple[tuple[bool, int, int], Job, frozenset[int]] | None = None
    for number, (job, send, mine) in enumerate(zip(waiting, missing, parts, strict=True)):
        if coming.isdisjoint(mine):
            size_bytes = loading.bytes_to_send(job.image, frozenset(send))
            is_wanted = any(wanted[part] > 1 for part in mine)
            rank = (not is_wanted, size_bytes if is_wanted else -size_bytes, number)
            if best is None or rank < best[0]:
                best = (rank, job, frozenset(send))
    return best and best[1:]


def settle_names(jobs: Sequence[Job]) -> tuple[list[Job], list[str]]:
    """Each name once: the last image that claims it gets it. Also returns a sentence for each that lost one. Pure."""
    owner = {name: number for number, job in enumerate(jobs) for name in job.image.names}
    settled, notes = [], []
    for number, job in enumerate(jobs):
        lost = [name for name in job.image.names if owner[name] != number]
        for name in lost:
            winner = jobs[owner[name]]
            if winner.image.config_digest != job.image.config_digest:
                notes.append(f"{familiar(name)} is in {job.seed_name} and in {winner.seed_name}: the latter counts")
        kept = tuple(name for name in job.image.names if owner[name] == number)
        if kept or not lost:
            settled.append(job._replace(image=job.image._replace(names=kept)))
    return settled, notes


class Runner:
    """Puts seeds into a store. `has_layer` and `has_image` look into it without its daemon; `connect` gives a client of
    the daemon, which it may have to start for that, and is called only when there is something to load."""

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
        for batch in _batches(seeds):
            with contextlib.ExitStack() as stack:
                jobs, notes = settle_names(self._read(batch, stack))
                for note in notes:
                    self._reporter.note(note)
                todo: list[Job] = []
                for job in jobs:
                    if self._has_image(job.record):
                        self._images.setdefault(job.identity, []).append(job.record)
                    else:
                        todo.append(job)
                if todo:
                    self._load_all(todo)
            for seed in batch:
                self._images.setdefault(seed.identity, [])
                self._reporter.seed_done()
        return Outcome(self._images, self._bad, frozenset(self._lasting), tuple(self._failed))

    # ---- reading

    def _read(self, batch: Sequence[Seed], stack: contextlib.ExitStack) -> list[Job]:
        from concurrent.futures import ThreadPoolExecutor

        files = [seed for seed in batch if seed.kind is not SeedKind.HOST]
        with ThreadPoolExecutor(workers()) as pool:
            opened = list(pool.map(self._open, files))
        jobs: list[Job] = []
        for seed, found in zip(files, opened, strict=True):
            if found is None:
                continue
            stack.callback(found.close)
            for name, why in found.bad:
                self._fail(seed.identity, BadSeed(f"{seed.name} ({name})" if name else seed.name, why), lasting=True)
            for image in found.images:
                self._add(jobs, seed, image)
        self._read_host([seed for seed in batch if seed.kind is SeedKind.HOST], stack, jobs)
        return jobs

    def _add(self, jobs: list[Job], seed: Seed, image: SeedImage) -> None:
        try:
            whole = loading.with_digests(image) if self._store is ImageStore.CONTAINERD else image
        except SeedError as error:
            self._fail(seed.identity, BadSeed(seed.name, str(error)), lasting=False)
        else:
            jobs.append(Job(seed.identity, seed.name, whole))

    def _read_host(self, seeds: Sequence[Seed], stack: contextlib.ExitStack, jobs: list[Job]) -> None:
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
            self._add_named(one.seeds, opened, jobs)

    def _add_named(self, seeds: Sequence[Seed], opened: archive.OpenSeed, jobs: list[Job]) -> None:
        """Of what another daemon has sent, each seed's image under the name that was asked for."""
        for seed in seeds:
            name = canonical(seed.name)
            image = next((image for image in opened.images if name in image.names), None)
            if image is None:
                why = next((why for other, why in opened.bad if canonical(other) == name), "it is not in what was sent")
                self._fail(seed.identity, BadSeed(seed.name, why), lasting=False)
            else:
                self._add(jobs, seed, image._replace(names=(name,)))

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

    def _load_all(self, jobs: list[Job]) -> None:
        from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

        api = self._connect()
        waiting = list(jobs)
        running: dict[Future[SeedError | None], tuple[Job, frozenset[int]]] = {}
        with ThreadPoolExecutor(workers()) as pool:
            while waiting or running:
                while len(running) < workers():
                    coming = frozenset(job.parts[number] for job, send in running.values() for number in send)
                    chosen = choose(waiting, self._has, coming)
                    if chosen is None:
                        break
                    waiting.remove(chosen[0])
                    running[pool.submit(self._load, api, *chosen)] = chosen
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, send = running.pop(future)
                    error = future.result()
                    if error is None:
                        self._looked_up |= dict.fromkeys((_token(job.image, number) for number in send), True)
                        self._images.setdefault(job.identity, []).append(job.record)
                    else:
                        self._looked_up.clear()  # some of its layers may be there all the same
                        self._failed.append(job.record)
                        self._fail(job.identity, BadSeed(job.where, str(error)), lasting=error.lasting)

    def _has(self, image: SeedImage, number: int) -> bool:
        token = _token(image, number)
        if token not in self._looked_up:
            self._looked_up[token] = self._has_layer(image, number)
        return self._looked_up[token]

    def _load(self, api: docker.APIClient, job: Job, send: frozenset[int]) -> SeedError | None:
        """Why it failed, or None."""
        size_bytes = loading.bytes_to_send(job.image, send)
        started = time.monotonic()
        before: dict[str, str | None] = {}
        try:
            self._check_room(size_bytes)
            if self._store is ImageStore.CONTAINERD:
                before = loading.read_targets(api, job.image.names)
            with self._reporter.step(f"loading {job.name}", size_bytes) as on_bytes:
                loading.load(api, loading.archive(job.image, send, self._store, on_bytes))
        except loading.HalfLoadedError as error:
            loading.restore_targets(api, before)
            return error
        except SeedError as error:
            return error
        self._reporter.loaded(
            job.name, size_bytes, time.monotonic() - started, new_layers=len(send), layers=len(job.image.layers)
        )
        return None

    def _check_room(self, size_bytes: int) -> None:
        """Graph drivers unpack the archive first, and then its layers: twice the bytes, and that at the same time."""
        wanted = size_bytes * 2
        room = self._room_bytes()
        if wanted > room:
            why = f"needs {format_bytes(wanted)} to be loaded, and {format_bytes(room)} are free"
            raise SeedError(why, lasting=False)

    def _fail(self, identity: str, bad: BadSeed, *, lasting: bool) -> None:
        self._bad.setdefault(identity, []).append(bad)
        if lasting:
            self._lasting.add(identity)
        self._reporter.failed(bad)


def workers() -> int:
    """How many images are read or loaded at a time."""
    return max(2, min(MAX_WORKERS, len(os.sched_getaffinity(0))))


def _token(image: SeedImage, number: int) -> tuple[str, str | None]:
    """A layer as a store has it: on what it lies, and with which bytes where the store keeps them."""
    return chain_ids([layer.diff_id for layer in image.layers])[number], image.layers[number].digest


def _batches(seeds: Sequence[Seed]) -> Iterator[list[Seed]]:
    batch: list[Seed] = []
    size_bytes = 0
    for seed in seeds:
        if batch and size_bytes + seed.size_bytes > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(seed)
        size_bytes += seed.size_bytes
    if batch:
        yield batch
