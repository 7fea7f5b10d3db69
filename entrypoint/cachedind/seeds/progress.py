"""How far the seeds are: a line for each image, bars for people at a terminal, and a file for `cachedind status`."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time

from cachedind.base.sizes import format_bytes
from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID

    from cachedind.base.log import Log
    from cachedind.seeds.model import BadSeed

STATUS_PATH = "/run/cachedind/seeds.json"
_WRITE_EVERY_S = 0.5
_DRAW_EVERY_S = 0.1


class Step(NamedTuple):
    """One thing that is going on: what, of how many bytes, and how many of them are done."""

    what: str
    total_bytes: int
    done_bytes: int = 0


class Reporter:
    """Tells about one run. Its methods may be called from several threads."""

    def __init__(self, log: Log, seeds: int, *, bars: bool, path: str = STATUS_PATH) -> None:
        """`seeds` is how many there are to do. `bars` draws on standard error, which must be a terminal."""
        self._log = log
        self._path = path
        self._lock = threading.Lock()
        self._steps: dict[int, Step] = {}
        self._next = 0
        self._written_at = 0.0
        self._drawn_at = 0.0
        self._images: list[str] = []
        self._failed: list[str] = []
        self._bytes = 0
        self._seeds = seeds
        self._seeds_done = 0
        self._started = time.time()
        self._bars = _make_bars() if bars else None
        self._tasks: dict[int, TaskID] = {}
        self._write(final=False)

    @contextlib.contextmanager
    def step(self, what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A step while it goes on; the value is called with the number of bytes that were done since the last call."""
        with self._lock:
            number = self._next
            self._next += 1
            self._steps[number] = Step(what, total_bytes)
            if self._bars is not None:
                self._tasks[number] = self._bars.add_task(what, total=total_bytes)

        def advance(done_bytes: int) -> None:
            with self._lock:
                step = self._steps[number]
                self._steps[number] = step._replace(done_bytes=step.done_bytes + done_bytes)
                if self._bars is not None:
                    self._bars.advance(self._tasks[number], done_bytes)
                    self._draw_now_and_then(self._bars)
                self._write_now_and_then()

        try:
            yield advance
        finally:
            with self._lock:
                del self._steps[number]
                if self._bars is not None:
                    self._bars.remove_task(self._tasks.pop(number))

    def loaded(self, name: str, sent_bytes: int, took_s: float, *, new_layers: int, layers: int) -> None:
        """An image is in the store."""
        with self._lock:
            self._images.append(name)
            self._bytes += sent_bytes
            rate = f", {format_bytes(round(sent_bytes / took_s))}/s" if sent_bytes and took_s > 0 else ""
            self._say(
                f"seeded {name}: {format_bytes(sent_bytes)} in {took_s:.2f} s{rate}, "
                f"{new_layers} of {layers} layers were new"
            )
            self._write_now_and_then()

    def failed(self, bad: BadSeed) -> None:
        """A seed or an image was not loaded. The caller logs that."""
        with self._lock:
            self._failed.append(str(bad))

    def note(self, text: str) -> None:
        """Tell the person who provides the seeds something."""
        with self._lock:
            self._say(text)

    def seed_done(self) -> None:
        with self._lock:
            self._seeds_done += 1

    def close(self) -> None:
        """The run is over, well or not."""
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
            self._write(final=True)

    def _say(self, text: str) -> None:
        if self._bars is None:
            self._log.info(text)
        else:
            self._bars.console.print(f"cachedind: {text}", markup=False, highlight=False)

    def _draw_now_and_then(self, bars: Progress) -> None:
        if time.monotonic() - self._drawn_at >= _DRAW_EVERY_S:
            self._drawn_at = time.monotonic()
            bars.refresh()

    def _write_now_and_then(self) -> None:
        if time.monotonic() - self._written_at >= _WRITE_EVERY_S:
            self._write(final=False)

    def _write(self, *, final: bool) -> None:
        self._written_at = time.monotonic()
        content = {
            "pid": os.getpid(),
            "seeds": self._seeds,
            "seeds_done": self._seeds_done,
            "images": self._images,
            "bytes": self._bytes,
            "now": [step._asdict() for step in self._steps.values()],
            "failed": self._failed,
            "started_at": round(self._started, 3),
            "finished_at": round(time.time(), 3) if final else None,
        }
        # For people only: a full /run must not end a start.
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
            temporary = f"{self._path}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o644), "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.rename(temporary, self._path)


def _make_bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    # With auto_refresh it would draw in a thread of its own, and the private daemon is forked meanwhile.
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
    )
    bars.start()
    return bars


def read_status(path: str = STATUS_PATH) -> dict[str, object] | None:
    """The progress of the last run in this container; None where there was none, or its file is malformed."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            value = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
